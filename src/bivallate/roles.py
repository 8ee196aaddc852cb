"""`Role`: the base class of all exchangeable parts of a method."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, Self


class Composition(Protocol):
    """A method as its parts see it, a `Method` or a `BoundMethod`: the choice of the other parts.

    The parts are of the classes `lower.threat.Threat`, `lower.solver.Solver`, `lower.problem.Objective`,
    `coupling.implicit.Coupling`, `weighting.base.Weighting` and `upper.loss.Loss`; attack_mode is a
    `lower.modes.AttackMode`. Most of their files import this one, which so cannot import them.
    """

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


def parts_within(value: Any) -> Iterator[Role]:
    """The parts of a method in a value's fields and lists, at any depth; those around others come first."""
    if isinstance(value, Role):
        yield value
    inner = value if isinstance(value, tuple | list) else ()
    if dataclasses.is_dataclass(value):
        inner = (getattr(value, field.name, None) for field in dataclasses.fields(value))
    for each in inner:
        yield from parts_within(each)


class Role:
    """A part of a method.

    Its subclasses are the roles: solver, objective, start, direction, stop, coupling, weighting, loss.

    Attributes:
        recordable: whether a CUDA graph may repeat what the part computes in an attack. It may if the part
            reads only images, labels, clean logits, gradients, the threat, its own fields and what it has
            kept since this attack began, draws no numbers, reads no clock, and has no branch in Python that
            depends on a value of a tensor. Of objectives and directions; each class declares it anew, because
            it is not inherited.
    """

    recordable: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Take a part's answer by the earlier name of `takes_two_labels`."""
        super().__init_subclass__(**options)
        if "takes_mixed" in vars(cls) and "takes_two_labels" not in vars(cls):
            warnings.warn(f"{cls.__name__}.takes_mixed is now called takes_two_labels", DeprecationWarning, 2)
            cls.takes_two_labels = cls.takes_mixed  # pyright: ignore[reportAttributeAccessIssue]

    def check(self, method: Composition) -> None:
        """Raise UserError if the part cannot work together with the method's other parts.

        `Method` calls it when a method is composed, for each of its parts and for the parts in their fields
        (`parts_within`): a part around others does not ask them.
        """

    def takes_two_labels(self) -> bool:
        """Whether the part works on images with two labels (CutMix).

        It does if it reads labels only through `label_loss`, or not at all.
        """
        return False

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Return the part with attack steps `length` times as long and `number` times as many.

        A part without steps returns itself.
        """
        return self
