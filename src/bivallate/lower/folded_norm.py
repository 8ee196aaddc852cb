"""BatchNorm in eval mode folded into the convolution before it, for the length of a pass.

A BatchNorm in eval mode is an affine map of each channel, s (x - mean) + bias, s = weight / sqrt(var + eps).
After a convolution it is the same as s times the convolution's weight, and a bias. An attack in eval mode
makes many passes with the same parameters, and they take less time folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FoldedNorm", "fold", "foldable", "folded"]


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
