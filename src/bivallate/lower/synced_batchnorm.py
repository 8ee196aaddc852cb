"""BatchNorm over the rows of all processes, with the same statistics and derivatives as on one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError

__all__ = ["is_synchronised", "synchronise", "unsynchronise"]


class _Total(torch.autograd.Function):
    """The sum over processes. Derivatives of any order, also in forward mode, are such sums too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return collective.total(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore
        return _total(grad_outputs[0])

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:  # pyright: ignore
        return collective.total(grad_inputs[0])


def _total(values: Tensor) -> Tensor:
    return _Total.apply(values)  # pyright: ignore[reportReturnType]


class _Synced:
    """The forward pass of a BatchNorm that in train mode normalises over the rows of all processes.

    Each process contributes the mean, the variance and the number of its rows, from which all processes
    compute the same statistics: one all-reduce of 2 C + 1 numbers for each process forward, and one backward.
    """

    def forward(self: Any, input: Tensor) -> Tensor:
        x = input
        if not (_on_batches(self) and collective.is_distributed()):
            return super().forward(x)  # pyright: ignore
        self._check_input_dim(x)
        mean, var, count = _statistics(x)
        if self.track_running_stats:
            self._move(mean.detach(), var.detach() * (count / (count - 1).clamp(min=1)))
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = (var + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        made = (x - mean.view(shape)) * scale.view(shape)
        return (made if self.bias is None else made + self.bias.view(shape)).to(x.dtype)

    def _move(self: Any, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics as torch does: through `.data`, which autograd does not record."""
        passes: Any = self.num_batches_tracked
        passes.add_(1)
        share = 1 / float(passes) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, var)):
            running.data.copy_((1 - share) * running.data + share * now)


def _on_batches(norm: Any) -> bool:
    """Whether a BatchNorm uses batch statistics: in train mode, and without running statistics always."""
    return norm.training or norm.running_mean is None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,) and variance (C,) over the rows of all processes, and the number of values per channel."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    dims = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(wide, dims, correction=0)
    own = torch.cat([mean, var, mean.new_tensor([x.numel() / x.shape[1]])])[None]
    before, after = collective.rank(), collective.world_size() - collective.rank() - 1
    every = _total(torch.cat([own.new_zeros(before, own.shape[1]), own, own.new_zeros(after, own.shape[1])]))
    means, variances, counts = every.split([len(mean), len(mean), 1], 1)
    total = counts.detach().sum()
    share = counts.detach() / total
    whole = (share * means).sum(0)
    return whole, (share * (variances + (means - whole).square())).sum(0), total


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """Over (B, C) or (B, C, L)."""


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """Over (B, C, H, W)."""


class SyncedBatchNorm3d(_Synced, nn.BatchNorm3d):
    """Over (B, C, D, H, W)."""


SYNCED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm3d: SyncedBatchNorm3d,
}


def synchronise(model: nn.Module) -> None:
    """Let every BatchNorm of a network normalise over the rows of all processes; nothing changes on one.

    Raises:
        UserError: a layer of a class derived from BatchNorm, which may compute differently.
    """
    if not collective.is_distributed():
        return
    for path, module in model.named_modules():
        if type(module) in SYNCED:
            module.__class__ = SYNCED[type(module)]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, _Synced):
            raise UserError(
                f"sync_batchnorm knows PyTorch's own BatchNorm1d, 2d and 3d, and layer {path} is "
                f"{type(module).__module__}.{type(module).__name__}: choose another network, or train with "
                "sync_batchnorm=false, where every process normalises over its own rows"
            )


def unsynchronise(model: nn.Module) -> None:
    """The inverse of `synchronise`: restore PyTorch's own classes."""
    plain = {synced: own for own, synced in SYNCED.items()}
    for module in model.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]


def is_synchronised(model: Callable[[Tensor], Tensor]) -> bool:
    """Whether passes of this network, in its present mode, wait for passes of other processes."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return collective.is_distributed() and any(isinstance(m, _Synced) and _on_batches(m) for m in modules)  # pyright: ignore
