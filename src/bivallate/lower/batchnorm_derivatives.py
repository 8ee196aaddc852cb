"""BatchNorm in train mode with a fast second derivative.

Torch computes the derivative of BatchNorm's backward pass by some forty operations on whole activations,
which can take longer than the convolutions of a double backward. The backward pass itself is one fused
kernel: with x^ = (x - m(x)) s, m the mean over a channel and s = (var + eps)^-1/2, it is

    P(g) = s [g - m(g) - x^ m(g x^)],    d/dx = w P(g),    d/dw = sum g x^,    d/db = sum g.

P is symmetric, so the derivative of that pass needs only the kernel again. For the cotangents u, v and t of
its three results,

    in g:  w P(u) + v x^ + t
    in x:  P(a u + b g) - s w e / n x^,    a = -s w m(g x^),    b = v - s w m(u x^)
    in w:  e = sum u P(g)

with n the number of values of a channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["FastSecondDerivatives"]

KERNELS: Any = torch.ops.aten
Gradients = tuple[Tensor | None, ...]


class FastSecondDerivatives(TorchFunctionMode):
    """A context in which BatchNorm in train mode has the fast second derivative.

    Values do not change; on CUDA, where torch itself may choose cuDNN's kernels, by no more than rounding.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.batch_norm`, by `_Normalise` where that applies."""
    x = input  # under torch's name, by which it may be handed over
    wide = x.dtype in (torch.float32, torch.float64) and x.device.type in ("cpu", "cuda")
    # torch refuses one value per channel
    if training and wide and x.numel() > x.shape[1] and not _saved_by_hooks():
        running = running_mean, running_var
        return _Normalise.apply(x, weight, bias, running, momentum, eps)  # pyright: ignore[reportReturnType]
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


def _saved_by_hooks() -> bool:
    """Whether hooks keep the tensors of a graph, as `torch.utils.checkpoint` has it.

    Checkpointing repeats a pass later, outside of this context, and needs the same operations there.
    """
    try:
        with disable_saved_tensors_hooks("asked"):  # raises if there are any
            return False
    except RuntimeError:
        return True


class _Normalise(torch.autograd.Function):
    """Forward: BatchNorm with the minibatch's statistics, which moves the running ones as torch does."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Any, momentum: float,
        eps: float,
    ) -> Tensor:  # fmt: skip
        made, mean, scale = KERNELS.native_batch_norm(x, weight, bias, *running, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return made

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:  # pyright: ignore
        found: Any = _Backward.apply(grad_outputs[0], *ctx.saved_tensors, ctx.eps)
        wanted = ctx.needs_input_grad[:3]
        return *(made if want else None for made, want in zip(found, wanted, strict=True)), None, None, None


class _Backward(torch.autograd.Function):
    """Forward: BatchNorm's backward pass. Backward: its derivatives in g, x and the weight."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, eps: float
    ) -> Gradients:
        in_x, in_weight, in_bias = _kernel(g, x, weight, mean, scale, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, weight, mean, scale, in_weight, in_bias)
        ctx.eps = eps
        return in_x, in_weight, in_bias

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Gradients:  # pyright: ignore
        g, x, weight, mean, scale, g_scaled, g_sum = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated a third time
            found = _differentiable(g, x, weight, ctx.eps, grad_outputs)
        else:
            found = _derivatives((g, x, weight, mean, scale), g_scaled, g_sum, ctx.eps, grad_outputs)
        return *found, None, None, None


def _kernel(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, eps: float,
    wanted: tuple[bool, bool, bool] = (True, True, True),
) -> Any:  # fmt: skip
    """w P(g), and the sums of g x^ and of g over each channel; in one pass through g and x."""
    if weight is None and wanted[1]:  # on CUDA the kernel of channels last gives no such sum without a weight
        weight = torch.ones_like(mean)
    return KERNELS.native_batch_norm_backward(g, x, weight, None, None, mean, scale, True, eps, wanted)


def _derivatives(saved: Any, g_scaled: Tensor, g_sum: Tensor, eps: float, cotangents: Gradients) -> Gradients:
    """The derivatives of the module's docstring in g, x and the weight.

    g_scaled, g_sum: (C,) sums of g x^ and of g.
    """
    g, x, weight, mean, scale = saved
    u, v, t = cotangents
    n, shape = x.numel() / x.shape[1], (1, -1, *[1] * (x.ndim - 2))
    factor = scale if weight is None else scale * weight
    in_g = in_x = e = None
    b: Tensor | None = v
    if u is not None:
        in_g, u_scaled, u_sum = _kernel(u, x, weight, mean, scale, eps)
        # sum u g, by the kernel that sums u (g - 0) 1
        product = _kernel(
            u, g, None, torch.zeros_like(mean), torch.ones_like(scale), eps, (False, True, False)
        )[1]
        e = scale * (product - (u_sum * g_sum + u_scaled * g_scaled) / n)
        b = -factor * u_scaled / n if v is None else v - factor * u_scaled / n
    if b is not None:
        mixed = b.view(shape) * g
        if u is not None:
            mixed.addcmul_(u, (-factor * g_scaled / n).view(shape))
        in_x = _kernel(mixed, x, None, mean, scale, eps, (True, False, False))[0]
    if e is not None and in_x is not None:
        along = (-factor * e / n * scale).view(shape)
        in_x.addcmul_(x, along).sub_(along * mean.view(shape))
    if v is not None or t is not None:
        in_g = torch.zeros_like(g) if in_g is None else in_g
        if v is not None:
            in_g.addcmul_(x - mean.view(shape), (v * scale).view(shape))
        if t is not None:
            in_g.add_(t.view(shape))
    return in_g, in_x, None if weight is None else e


def _differentiable(
    g: Tensor, x: Tensor, weight: Tensor | None, eps: float, cotangents: Gradients
) -> Gradients:
    """The same derivatives, from operations that can be differentiated any number of times."""
    g, x = g.view_as(g), x.view_as(x)  # g may depend on x, which is not meant here
    weight = None if weight is None else weight.view_as(weight)
    dims, shape = [d for d in range(x.ndim) if d != 1], (1, -1, *[1] * (x.ndim - 2))
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    scale = (var + eps).rsqrt()
    centred = (x - mean) * scale
    along = (g * centred).mean(dims, keepdim=True)
    in_x = scale * (g - g.mean(dims, keepdim=True) - centred * along)
    in_x = in_x if weight is None else in_x * weight.view(shape)
    results = (in_x, (g * centred).sum(dims), g.sum(dims))
    made, given = zip(
        *((r, u) for r, u in zip(results, cotangents, strict=True) if u is not None), strict=True
    )
    sought = [t for t in (g, x, weight) if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(made, sought, given, create_graph=True, allow_unused=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in (g, x, weight))
