"""`Role`: the base class of all exchangeable parts of a method."""

from __future__ import annotations

from typing import Any, Protocol, Self


class Composition(Protocol):
    """A method as its parts see it: the choice of the other parts."""

    @property
    def threat(self) -> Any: ...
    @property
    def solver(self) -> Any: ...
    @property
    def objective(self) -> Any: ...
    @property
    def coupling(self) -> Any: ...
    @property
    def weighting(self) -> Any: ...
    @property
    def loss(self) -> Any: ...
    @property
    def replays(self) -> int: ...
    @property
    def accumulate(self) -> bool: ...
    @property
    def attack_mode(self) -> Any: ...


class Role:
    """A part of a method.

    The base classes of the roles derive from it: solver, objective, start, stop, coupling, weighting, loss.
    """

    def check(self, method: Composition) -> None:
        """Raise UserError if the part cannot work together with the method's other parts.

        Called when the method is composed.
        """

    def takes_mixed(self) -> bool:
        """Whether the part works on images with two labels (CutMix).

        It does if it reads labels only through `label_loss`, or not at all.
        """
        return False

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Return the part with `length` times as long and `number` times as many attack steps.

        A part without steps returns itself.
        """
        return self
