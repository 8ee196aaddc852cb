"""BatchNorm in eval mode folded into the convolution before it, in a copy of the network for one pass.

A BatchNorm in eval mode is an affine map of each channel, s (x - mean) + bias, s = weight / sqrt(var + eps).
After a convolution it is the same as s times the convolution's weight, and a bias. An attack in eval mode
makes many passes with the same parameters, and they take less time folded.

The network itself stays as it is: other threads may use it meanwhile, and a pass may be interrupted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["FoldedNorm", "FoldedPass", "fold", "foldable", "listened"]


@dataclass(frozen=True)
class FoldedNorm:
    """A convolution with the weight and the bias that replace its own and a BatchNorm during a pass.

    Attributes:
        conv, norm: the layers.
        weight, bias: what replaces them.
        read: the tensors of which these were computed, with their version counters.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    weight: Tensor
    bias: Tensor
    read: list[tuple[Tensor | None, int]]

    def stale(self, dtype: torch.dtype | None) -> bool:
        """Whether one of the tensors has changed, or the results are needed in another type."""
        now = _tensors(self.conv, self.norm)
        same = all(
            a is b and (a is None or a._version == v) for a, (b, v) in zip(now, self.read, strict=True)
        )
        return not same or self.weight.dtype != (dtype or self.conv.weight.dtype)

    def copies(self) -> dict[nn.Module, nn.Module]:
        """The layers, each with the copy that stands for it: a convolution for both, and an identity."""
        parameters = {**self.conv._parameters, "weight": self.weight, "bias": self.bias}
        return {
            self.conv: _copy(self.conv, _parameters=parameters),
            self.norm: _copy(self.norm, forward=_unchanged),
        }


@dataclass(frozen=True)
class FoldedPass:
    """A network with its pairs folded, as a function of images.

    Each call is made by copies of the two layers and of the modules that contain them, and everything else in
    them is the network's own.
    """

    module: nn.Module
    pairs: Sequence[FoldedNorm]

    @property
    def training(self) -> bool:
        """The network's mode."""
        return self.module.training

    def __call__(self, x: Tensor) -> Tensor:
        made: dict[nn.Module, nn.Module] = {}
        for pair in self.pairs:
            made |= pair.copies()
        return _with(made, self.module)(x)


def _with(made: dict[nn.Module, nn.Module], module: nn.Module) -> nn.Module:
    """A module that has copies where they are made, and is copied itself if it contains one."""
    if module not in made:
        own = module._modules
        children = {name: child and _with(made, child) for name, child in own.items()}
        same = all(child is own[name] for name, child in children.items())
        made[module] = module if same else _copy(module, _modules=children)
    return made[module]


def _copy(module: nn.Module, **changes: Any) -> nn.Module:
    """A module of the same class with the same attributes, but for some."""
    other = object.__new__(type(module))
    vars(other).update(vars(module) | changes)
    return other


@torch.no_grad()
def fold(pairs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]], dtype: torch.dtype | None) -> list[FoldedNorm]:
    """Fold every BatchNorm, with running statistics, into its convolution.

    All BatchNorms are computed together, which are a few launches on a device.

    Args:
        pairs: convolutions with the BatchNorm that follows.
        dtype: of the results, or None for the type of the weights.
    """
    if not pairs:
        return []
    lists: Any = torch  # its _foreach operations (one kernel for many tensors) are not in the type stubs
    convs, norms = zip(*pairs, strict=True)
    scales: Any = lists._foreach_add([n.running_var for n in norms], [n.eps for n in norms])
    lists._foreach_sqrt_(scales)
    lists._foreach_reciprocal_(scales)
    _where_given(lists._foreach_mul_, scales, [n.weight for n in norms])
    biases: Any = lists._foreach_neg([n.running_mean for n in norms])
    _where_given(lists._foreach_add_, biases, [c.bias for c in convs])
    lists._foreach_mul_(biases, scales)
    _where_given(lists._foreach_add_, biases, [n.bias for n in norms])
    weights = [conv.weight * scale.view(-1, 1, 1, 1) for conv, scale in zip(convs, scales, strict=True)]
    read = [[(t, 0 if t is None else t._version) for t in _tensors(*pair)] for pair in pairs]
    cast = [[t.to(dtype) for t in tensors] for tensors in (weights, biases)] if dtype else [weights, biases]
    return [FoldedNorm(*each) for each in zip(convs, norms, *cast, read, strict=True)]


def _where_given(change: Callable[..., None], tensors: list[Tensor], others: Sequence[Tensor | None]) -> None:
    """Change tensors in place by those of the others that are not None."""
    both = [(tensor, other) for tensor, other in zip(tensors, others, strict=True) if other is not None]
    if both:
        change(*map(list, zip(*both, strict=True)))


def _tensors(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    return conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var


def _unchanged(input: Tensor) -> Tensor:
    return input


def foldable(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether a pair can be folded now: eval mode, nothing learns, and nobody listens between the two."""
    learns = any(t is not None and t.requires_grad for t in _tensors(conv, norm))
    own = "forward" in vars(conv) or "forward" in vars(norm)
    heard = listened(conv) or listened(norm)
    return not (norm.training or learns or own or heard) and norm.running_mean is not None


def listened(module: nn.Module) -> bool:
    """Whether hooks read, or may change, what the module reads and returns, or its gradients."""
    own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(own) or bool(_has_any_global_hook())
