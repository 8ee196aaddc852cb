"""The input gradient of a convolution that reads few channels, computed as a forward convolution.

An attack needs the gradient with respect to the image and no other. On a processor PyTorch's kernel for the
input gradient is made for many channels: for the first layer of tiny-cnn, which reads one or three, it takes
a third of the time of an attack.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FewChannels", "quick_stems"]

FEW = 4  # input channels up to which PyTorch's own kernel is the slower one


def quick_stems(model: nn.Module) -> nn.Module:
    """Replace, in place, every convolution that reads at most four channels by `FewChannels`.

    The parameters stay the same objects under the same names, so state dicts still fit. Returns the model.
    """
    for name, module in list(model.named_modules()):
        if name and type(module) is nn.Conv2d and FewChannels.suits(module):
            model.set_submodule(name, FewChannels(module))
    return model


class FewChannels(nn.Conv2d):
    """A convolution whose input gradient is quick on a processor while its own parameters are frozen.

    The output at o reads the input pixel s i + a (stride s, phase a = 0 .. s - 1) with the tap
    s (i - o) + a + padding of the kernel. So the input gradient at the pixels of one phase is a convolution
    of the output's gradient. All s x s phases are computed as one convolution with s x s times the channels,
    and a pixel shuffle puts their pixels in place. These are the sums that PyTorch computes, in another
    order.

    On other devices, under autocast or torch.compile, and where the convolution's parameters need gradients,
    the class computes as `nn.Conv2d` does.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        shape = conv.in_channels, conv.out_channels, conv.kernel_size
        super().__init__(*shape, conv.stride, conv.padding, bias=conv.bias is not None, device="meta")  # pyright: ignore
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether the class can replace it: few channels, square stride, numeric zero padding, no hooks."""
        plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1
        square = len(set(conv.stride)) == len(set(conv.padding)) == 1 and set(conv.dilation) == {1}
        hooked = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks
        return plain and square and not hooked and conv.in_channels <= FEW

    def forward(self, input: Tensor) -> Tensor:
        """Convolve images (B, C, H, W) to (B, O, H', W')."""
        learning = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        asked = input.requires_grad and torch.is_grad_enabled() and not learning
        elsewhere = input.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        if not asked or elsewhere or torch.compiler.is_compiling():
            return super().forward(input)
        return _Convolution.apply(input, self.weight, self.bias, self.stride[0], int(self.padding[0]))


def _phases(weight: Tensor, s: int, p: int) -> Tensor:
    """The kernel of all phases (I s s, O, n, n), n odd; its centre belongs to the output at offset zero."""
    # A phase does not use all n x n places. The unused ones point behind the last tap, where the padding has
    # put a zero.
    index = _taps(weight.shape[2], weight.shape[3], s, p)
    kernel = F.pad(weight.flatten(2), (0, 1))[:, :, index]  # (O, I, s, s, n, n)
    return kernel.permute(1, 2, 3, 0, 4, 5).flatten(0, 2)


@lru_cache(maxsize=64)
def _taps(rows: int, columns: int, s: int, p: int) -> Tensor:
    """Index of the kernel's tap at each place of each phase (s, s, n, n); rows * columns means none."""
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
    """conv2d whose backward pass is the convolution of all phases, made of differentiable operations."""

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
        # An output stands for s x s pixels. Where the stride does not divide the image, the last pixels have
        # no output: zeros are appended for them.
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
