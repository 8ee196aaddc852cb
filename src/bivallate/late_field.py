"""Fields of dataclasses that are computed when they are first read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["Later", "changed"]


Value = TypeVar("Value")


class Later:
    """A field of a dataclass that may be given as a function, which is called when the field is first read.

    A value that few parts ask for, such as kappa, is then computed for those parts alone. Since
    `dataclasses.replace` reads every field, a class with such fields has a method that copies with `changed`.
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


def changed(value: Value, **changes: Any) -> Value:
    """A copy of a dataclass with other values of some fields; fields that nobody has read stay unread.

    Raises TypeError for a field that there is not.
    """
    kept = {name.removeprefix("_"): held for name, held in vars(value).items()}
    return type(value)(**{**kept, **changes})
