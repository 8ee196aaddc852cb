"""CUDA graphs of the stand-in: the kernels of a capture are recorded, and replayed into the same memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class CUDAGraph:
    """Kernels on the memory of the capture. What a capture made is void until the first replay."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def void(self) -> None:
        """A capture computes nothing: whoever reads what it made sees that."""
        for _, args, kwargs, found in self.calls:
            own = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
            for t in tensors(found):
                fresh = t.untyped_storage()._cdata not in own
                if fresh and t.is_floating_point() and not t._is_zerotensor():
                    t.fill_(float("nan"))
        assert self.calls

    def replay(self) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for op, args, kwargs, found in self.calls:
                again = op(*args, **kwargs)
                for old, new in zip(tensors(found), tensors(again), strict=True):
                    if old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                        old.copy_(new)


@contextmanager
def graph(made: CUDAGraph) -> Iterator[None]:
    from tests.device import standin

    standin.recorded.append(made.calls)
    try:
        yield
    finally:
        standin.recorded.pop()
    with torch._C.DisableTorchFunction(), torch.no_grad():
        made.void()


class Stream:
    """All is done in the order in which it is asked for."""

    def wait_stream(self, other: Stream) -> None:
        pass


@contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    yield


REPLACED = {
    "CUDAGraph": CUDAGraph,
    "graph": graph,
    "Stream": Stream,
    "stream": stream,
    "current_stream": lambda device=None: Stream(),
}
