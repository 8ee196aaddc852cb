"""The gradient by the image through a convolution that reads few channels, as a forward convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FewChannels", "quick_stems"]

FEW = 4  # channels up to which a processor's own kernel is slower


def quick_stems(model: nn.Module) -> nn.Module:
    """Replaces, in place, every convolution that reads at most four channels by `FewChannels`.

    The library's kernel for that gradient is made for many channels: on a processor the first layer of
    tiny-cnn takes a third of its time so.
    """
    for name, module in list(model.named_modules()):
        if name and type(module) is nn.Conv2d and FewChannels.suits(module):
            model.set_submodule(name, FewChannels(module))
    return model


class FewChannels(nn.Conv2d):
    """A frozen convolution whose gradient by its input is one convolution at the output's resolution.

    An input pixel s i + a (stride s, phase a) is read by output o with tap s (i - o) + a + padding: each of
    the s x s phases is a convolution of the output's gradient, all of them one with s x s times the channels,
    and the phases are interleaved. The same sums in another order; first derivatives by the input alone.
    """

    kernel: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        shape = conv.in_channels, conv.out_channels, conv.kernel_size
        super().__init__(*shape, conv.stride, conv.padding, bias=conv.bias is not None, device="meta")  # pyright: ignore
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("kernel", _phases(conv), persistent=False)

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether the class can stand for it: square stride, numeric padding, no dilation, no hook."""
        plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1
        square = len(set(conv.stride)) == len(set(conv.padding)) == 1 and set(conv.dilation) == {1}
        hooked = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks
        return plain and square and not hooked and conv.in_channels <= FEW

    def forward(self, input: Tensor) -> Tensor:
        """(B, O, H', W')."""
        if not (input.requires_grad and torch.is_grad_enabled()):
            return super().forward(input)
        return _Convolution.apply(input, self.weight, self.bias, self.kernel, self.stride[0], self.padding[0])


def _phases(conv: nn.Conv2d) -> Tensor:
    """(I s s, O, n, n) kernel of all phases, n odd: its middle is the output at the input's own place."""
    weight, s, p = conv.weight.detach(), conv.stride[0], int(conv.padding[0])
    rows, columns = weight.shape[2:]
    taps = {
        (a, (a + p - k) // s): k for k in range(max(rows, columns)) for a in range(s) if not (a + p - k) % s
    }
    reach = max(abs(d) for _, d in taps)
    kernel = weight.new_zeros(weight.shape[1], s, s, weight.shape[0], 2 * reach + 1, 2 * reach + 1)
    for (a, d), k in taps.items():
        for (b, e), m in taps.items():
            if k < rows and m < columns:
                kernel[:, a, b, :, d + reach, e + reach] = weight[:, :, k, m].T
    return kernel.flatten(0, 2)


class _Convolution(torch.autograd.Function):
    """conv2d forwards; backwards the convolution with the phases."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.stride, ctx.size = stride, x.shape[2:]
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (kernel,), (grad,), s, (height, width) = ctx.saved_tensors, grads, ctx.stride, ctx.size
        lacking = -(-width // s) - grad.shape[3], -(-height // s) - grad.shape[2]
        if max(lacking) > 0:
            grad = F.pad(grad, (0, max(lacking[0], 0), 0, max(lacking[1], 0)))
        found = F.conv2d(grad, kernel, padding=kernel.shape[2] // 2)
        if s > 1:
            found = F.pixel_shuffle(found.contiguous(), s)
        return found[:, :, :height, :width], None, None, None, None, None
