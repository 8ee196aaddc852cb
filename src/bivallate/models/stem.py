"""The gradient by the image through a convolution that reads few channels, as a forward convolution.

On a processor the library's kernel for that gradient, made for many channels, takes a third of the time of an
attack on tiny-cnn, and an attack asks for nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FewChannels", "quick_stems"]

FEW = 4  # channels up to which a processor's own kernel is slower


def quick_stems(model: nn.Module) -> nn.Module:
    """Replace, in place, every convolution that reads at most four channels by `FewChannels`.

    It has the same parameters under the same names.
    """
    for name, module in list(model.named_modules()):
        if name and type(module) is nn.Conv2d and FewChannels.suits(module):
            model.set_submodule(name, FewChannels(module))
    return model


class FewChannels(nn.Conv2d):
    """A convolution that is quick where an attack needs it: on a processor, frozen, by its input.

    An input pixel s i + a (stride s, phase a) is read by output o with tap s (i - o) + a + padding: each of
    the s x s phases is a convolution of the output's gradient, all of them one with s x s times the channels,
    and the phases are interleaved. The same sums in another order. Everywhere else it is the convolution that
    it was made of.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        shape = conv.in_channels, conv.out_channels, conv.kernel_size
        super().__init__(*shape, conv.stride, conv.padding, bias=conv.bias is not None, device="meta")  # pyright: ignore
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether the class can stand for it: square stride, numeric padding, no dilation, no hook."""
        plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1
        square = len(set(conv.stride)) == len(set(conv.padding)) == 1 and set(conv.dilation) == {1}
        hooked = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks
        return plain and square and not hooked and conv.in_channels <= FEW

    def forward(self, input: Tensor) -> Tensor:
        """(B, O, H', W')."""
        learning = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        asked = input.requires_grad and torch.is_grad_enabled() and not learning
        elsewhere = input.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        if not asked or elsewhere or torch.compiler.is_compiling():
            return super().forward(input)
        return _Convolution.apply(input, self.weight, self.bias, self.stride[0], int(self.padding[0]))


def _phases(weight: Tensor, s: int, p: int) -> Tensor:
    """(I s s, O, n, n) kernel of all phases, n odd: its middle is the output at the input's own place."""
    # The same taps in another order, so the sums agree but for rounding; a phase that some taps do not reach
    # has zeros there, which the extra column of the padded kernel gives.
    index = _taps(weight.shape[2], weight.shape[3], s, p)
    kernel = F.pad(weight.flatten(2), (0, 1))[:, :, index]  # (O, I, s, s, n, n); behind the last tap is zero
    return kernel.permute(1, 2, 3, 0, 4, 5).flatten(0, 2)


@lru_cache(maxsize=64)
def _taps(rows: int, columns: int, s: int, p: int) -> Tensor:
    """(s, s, n, n) which tap of a kernel stands where in the phases; rows columns for none."""
    taps = {
        (a, (a + p - k) // s): k for k in range(max(rows, columns)) for a in range(s) if not (a + p - k) % s
    }
    reach = max(abs(d) for _, d in taps)
    index = torch.full((s, s, 2 * reach + 1, 2 * reach + 1), rows * columns)
    for (a, d), k in taps.items():
        for (b, e), m in taps.items():
            if k < rows and m < columns:
                index[a, b, d + reach, e + reach] = k * columns + m
    return index


class _Convolution(torch.autograd.Function):
    """conv2d forwards; backwards the convolution with the phases, which may be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.size = x.shape[-2:]
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (weight,), (grad,), s, (height, width) = ctx.saved_tensors, grads, ctx.stride, ctx.size
        kernel = _phases(weight, s, ctx.padding)
        # Each output stands for s x s pixels; where stride and size do not match, the last pixels have none.
        lacking = -(-width // s) - grad.shape[3], -(-height // s) - grad.shape[2]
        if max(lacking) > 0:
            grad = F.pad(grad, (0, max(lacking[0], 0), 0, max(lacking[1], 0)))
        found = F.conv2d(grad, kernel, padding=kernel.shape[2] // 2)
        if s > 1:
            found = F.pixel_shuffle(found.contiguous(), s)
        return found[:, :, :height, :width], None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # pyright: ignore
        (weight,) = ctx.saved_tensors
        return F.conv2d(cast(Tensor, tangents[0]), weight, None, ctx.stride, ctx.padding)
