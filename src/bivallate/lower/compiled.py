"""Run a network's passes by torch.compile, within a training step and where one derivative is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError

__all__ = ["BACKEND", "Compiled", "compiling", "network_for", "without_compiling"]

BACKEND = "inductor"
FORMS = 64  # largest number of modes, shapes and formats to compile a network for; torch's own limit is 8

_compiled: list[Compiled] = []  # the compiled networks of the contexts that are entered, innermost last
_plain: list[bool] = []  # not empty within a pass that is differentiated twice


class Compiled:
    """A network under torch.compile, compiled at its first pass and again for each of its modes.

    Minibatches of other sizes than `shapes` (an epoch's last one, a minibatch that has shrunk) go through the
    network itself. So does every pass that is differentiated twice, has a tangent, is made at other
    parameters or has hooks, because these cannot be compiled. The names of the network's parameters stay the
    same.

    Attributes:
        model: the network.
        shapes: (B, C, H, W) of the minibatches to compile for.
        backend: of torch.compile.
        passes: number of compiled passes so far.
    """

    def __init__(self, model: nn.Module, shapes: set[tuple[int, ...]], backend: str = "") -> None:
        self.model, self.shapes, self.passes = model, shapes, 0
        self.backend = backend or BACKEND
        self._made: Callable[[Tensor], Any] | None = None

    def takes(self, model: Any, x: Tensor) -> bool:
        """Whether to compile a pass of x through this model."""
        own = model is self.model and tuple(x.shape) in self.shapes
        return own and not _plain and not self.model._forward_pre_hooks

    def __call__(self, x: Tensor) -> Any:
        """The network's logits."""
        from torch._dynamo.exc import TorchDynamoException

        if self._made is None:
            self._made = torch.compile(self.model, backend=self.backend, dynamic=False)
        self.passes += 1
        try:
            with _limits():
                return self._made(x)
        except TorchDynamoException as error:
            raise _unfit(error) from error

    @property
    def training(self) -> bool:
        """The network's mode."""
        return self.model.training


@contextmanager
def _limits() -> Iterator[None]:
    """Settings of torch.compile: enough forms, and graphs that more than one backward pass can use."""
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch

    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    before, donated = getattr(dynamo, limit), getattr(functorch, "donated_buffer", None)
    try:
        setattr(dynamo, limit, FORMS)
        if donated is not None:
            functorch.donated_buffer = False
        yield
    finally:
        setattr(dynamo, limit, before)
        if donated is not None:
            functorch.donated_buffer = donated


def _unfit(error: Exception) -> UserError:
    first = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"compile=true: torch.compile cannot make this network ({first[0][:200]}). On a processor it needs a "
        "C++ compiler (g++), on CUDA triton; where that is there, it is the network: train with compile=false"
    )


@contextmanager
def compiling(compiled: Compiled | None) -> Iterator[None]:
    """Within, passes of the network are compiled where possible."""
    if compiled is None:
        yield
        return
    _compiled.append(compiled)
    try:
        yield
    finally:
        _compiled.pop()


@contextmanager
def without_compiling() -> Iterator[None]:
    """Within, no pass is compiled."""
    _plain.append(True)
    try:
        yield
    finally:
        _plain.pop()


def network_for(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """The callable for a pass of x: the compiled network, or the model itself."""
    return _compiled[-1] if _compiled and _compiled[-1].takes(model, x) else model
