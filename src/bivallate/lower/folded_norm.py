"""BatchNorm in eval mode folded into the convolution before it, for the length of a pass.

A BatchNorm in eval mode is an affine map of each channel, s (x - mean) + bias, s = weight / sqrt(var + eps).
After a convolution it is the same as s times the convolution's weight, and a bias. An attack in eval mode
makes many passes with the same parameters, and they take less time folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FoldedNorm", "foldable", "folded"]


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

    @staticmethod
    @torch.no_grad()
    def of(conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype | None) -> FoldedNorm:
        """Fold a BatchNorm with running statistics; dtype: of the results, or None for the weight's own."""
        read = [(tensor, 0 if tensor is None else tensor._version) for tensor in _tensors(conv, norm)]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        bias = -mean * scale if norm.bias is None else torch.addcmul(norm.bias, mean, scale, value=-1)
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        return FoldedNorm(conv, norm, weight.to(dtype), bias.to(dtype), read)

    def stale(self, dtype: torch.dtype | None) -> bool:
        """Whether one of the tensors has changed, or the results are needed in another type."""
        now = _tensors(self.conv, self.norm)
        same = all(
            a is b and (a is None or a._version == v) for a, (b, v) in zip(now, self.read, strict=True)
        )
        return not same or self.weight.dtype != (dtype or self.conv.weight.dtype)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within, the convolution computes both layers and the BatchNorm nothing."""
        place: dict[str, Any] = self.conv._parameters
        before = {name: place[name] for name in ("weight", "bias")}
        place |= {"weight": self.weight, "bias": self.bias}
        self.norm.forward = _unchanged
        try:
            yield
        finally:
            place |= before
            del self.norm.forward


def _tensors(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    return conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var


def _unchanged(input: Tensor) -> Tensor:
    return input


def foldable(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether a pair can be folded now: eval mode, nothing learns, and nobody listens between the two."""
    learns = any(t is not None and t.requires_grad for t in _tensors(conv, norm))
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (conv, norm))
    own = "forward" in vars(conv) or "forward" in vars(norm)
    return not (norm.training or learns or hooked or own) and norm.running_mean is not None


@contextmanager
def folded(pairs: Sequence[FoldedNorm]) -> Iterator[None]:
    """Within, the pairs are folded."""
    with ExitStack() as stack:
        for pair in pairs:
            stack.enter_context(pair.lent())
        yield
