"""Add up the gradients of all processes, bucket by bucket, while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bivallate import collective

__all__ = ["overlapping", "summed"]

BUCKET = 8 << 20  # bytes; smaller networks have one flat bucket, sent after the backward pass

_under_way: WeakKeyDictionary[nn.Module, Buckets] = WeakKeyDictionary()


class Buckets:
    """Parameters in the order in which a backward pass reaches them, and the all-reduces under way.

    A bucket is sent when all its gradients are there and the bucket before has been sent, so that every
    process sends them in the same order. The gradients of the first layers are in no bucket: `summed` sends
    them after the pass, together with the loss.
    """

    def __init__(self, groups: Sequence[list[Tensor]]) -> None:
        self.groups = list(groups)
        self.place = {id(p): k for k, group in enumerate(self.groups) for p in group}
        self.sent: list[tuple[Tensor, Any, list[tuple[Tensor, int]]]] = []
        self.ready: set[int] = set()
        self.again = False
        hooked = [p for group in self.groups for p in group]
        self.handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in hooked]

    def _arrived(self, parameter: Tensor) -> None:
        self.again |= id(parameter) in self.ready  # a second backward pass: what was sent is not the sum
        self.ready.add(id(parameter))
        while len(self.sent) < len(self.groups) and all(
            id(p) in self.ready for p in self.groups[len(self.sent)]
        ):
            grads = [p.grad for p in self.groups[len(self.sent)] if p.grad is not None]
            flat = torch.cat([grad.detach().flatten() for grad in grads])
            marks = [(grad, grad._version) for grad in grads]
            self.sent.append((flat, dist.all_reduce(flat, async_op=True), marks))

    def collect(self) -> set[int]:
        """Put the sums into `.grad`, and return the ids of the parameters that have them.

        A bucket whose gradients were changed after it had been sent is left out: the caller sums it anew. The
        version counter of a tensor shows such a change.
        """
        added = set[int]()
        for (flat, work, marks), group in zip(self.sent, self.groups, strict=False):
            work.wait()
            fresh = all(
                p.grad is grad and grad._version == version
                for p, (grad, version) in zip(group, marks, strict=True)
            )
            if self.again or not fresh:
                continue
            parts = flat.split([p.numel() for p in group])
            for p, part in zip(group, parts, strict=True):
                p.grad = part.view_as(p).clone()
                added.add(id(p))
        self.sent, self.ready, self.again = [], set(), False
        return added

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


def grouped(model: nn.Module) -> list[list[Tensor]]:
    """Trainable parameters in buckets, from the last layers on; the last one (first layers) is left out."""
    groups, size = [list[Tensor]()], 0
    for p in reversed([p for p in model.parameters() if p.requires_grad]):
        if size >= BUCKET:
            groups.append([])
            size = 0
        groups[-1].append(p)
        size += p.numel() * p.element_size()
    return groups[:-1]


@contextmanager
def overlapping(model: nn.Module, once: bool) -> Iterator[None]:
    """Within, all-reduces of this network's gradients begin while its backward pass still runs.

    Args:
        once: whether each update has one backward pass; otherwise nothing is sent before `summed`.
    """
    groups = grouped(model) if once and collective.is_distributed() else []
    if not groups:
        yield
        return
    buckets = _under_way[model] = Buckets(groups)
    try:
        yield
    finally:
        buckets.stop()
        del _under_way[model]


def summed(model: nn.Module, besides: Tensor) -> Tensor:
    """Add up the gradients of all processes, in place, and return `besides` summed over the processes.

    Each process's loss is a sum divided by the global count, so that gradients are added: an average of
    per-process averages would be wrong on uneven minibatches. One flat all-reduce carries `besides` and all
    gradients that are not under way already.
    """
    buckets = _under_way.get(model)
    done = buckets.collect() if buckets is not None else set()
    return collective.sum_gradients((p for p in model.parameters() if id(p) not in done), besides)
