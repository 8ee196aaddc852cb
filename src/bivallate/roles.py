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

    The bases of the rows derive from it: solver, objective, start, stop, coupling, weighting, loss.
    """

    def check(self, method: Composition) -> None:
        """Raise UserError where the part cannot serve beside the method's other parts.

        Asked when the method is composed.
        """

    def takes_mixed(self) -> bool:
        """Whether it asks for the labels through `label_loss` alone, or not at all.

        Then an image may have two labels by shares (CutMix).
        """
        return False

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """The part with the steps of its attack longer or shorter, more or fewer.

        `length` times as long and `number` times as many; a part that makes none is itself.
        """
        return self
