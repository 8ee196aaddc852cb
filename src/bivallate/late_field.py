"""Fields of dataclasses that are computed when they are first read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Later"]


class Later:
    """A field of a dataclass that may be given as a function, which is called when the field is first read.

    What hardly anyone asks for is so computed, and launched on a device, for those alone who do.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, instance: Any, owner: type) -> Tensor:
        if instance is None:
            raise AttributeError(self.name)  # so the dataclass sees no default
        value = vars(instance)[self.name]
        if not isinstance(value, Tensor):
            value = vars(instance)[self.name] = value()
        return value

    def __set__(self, instance: Any, value: Tensor | Callable[[], Tensor]) -> None:
        vars(instance)[self.name] = value


@dataclass(frozen=True)
class AttackStart:
    """Where an attack took its first gradient, and what the network answered there.

    Attributes:
        delta: (B, C, H, W). logits: (B, K), with graph in theta where the solver has kept that pass.
        gradient_at_zero: (B, C, H, W) gradient of the objective where delta is exactly 0, or None.
        training: whether the network was in train mode.
    """

    delta: Tensor
    logits: Tensor
    gradient_at_zero: Tensor | None = None
    training: bool = False

    def at_other_parameters(self) -> AttackStart:
        """The same point, without the graph and the gradient of the parameters that it was passed at."""
        return AttackStart(self.delta, self.logits.detach())
