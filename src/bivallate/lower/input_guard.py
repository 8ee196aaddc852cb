"""Forward passes that leave the caller's images unchanged, even if a network works in place.

A network that normalises by `x.sub_(mean)` overwrites the caller's tensor. An attack would then step from the
changed images, a check would compare them with the ball, and a data set would stay changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bivallate.errors import UserError

__all__ = ["call_unharmed", "writes_to_input"]

Mode = tuple[bool, bool, bool]

_habits: WeakKeyDictionary[Any, dict[Mode, bool]] = WeakKeyDictionary()


def call_unharmed(model: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    """Return model(x), and leave x unchanged even if the network writes to it.

    The first pass of a network in each mode is made on a copy, which shows whether the network writes to its
    input. If it does, it gets a copy in every pass, and gradients flow through the copy. If not, it gets x
    itself, and only the tensor's version counter is compared.

    Raises:
        UserError: a network writes to its input although it did not in its first pass.
    """
    habits = _of(model)
    mode = bool(getattr(model, "training", False)), x.requires_grad, torch.is_grad_enabled()
    if habits.get(mode, True) or x.is_inference():  # inference tensors have no version counter
        return _copied(model, x, habits, mode)
    before = x._version
    logits = model(x)
    if x._version != before:
        raise UserError(
            f"{type(_subject(model)).__name__} changed its input in place, as it had not done in earlier "
            "passes, so that the images are lost: let it compute x - mean instead of x.sub_(mean), or begin "
            "its forward with x = x.clone()"
        )
    return logits


def writes_to_input(model: Callable[[Tensor], Tensor]) -> bool:
    """Whether any pass of the network so far has changed its input in place."""
    return any(_of(model).values())


def _copied(model: Callable[[Tensor], Tensor], x: Tensor, habits: dict[Mode, bool], mode: Mode) -> Any:
    own = x.clone()
    before = None if own.is_inference() else own._version
    logits = model(own)
    if mode not in habits:
        # compare values too: writes through x.data or a shared array do not move the version counter
        with torch.no_grad():
            same = torch.equal(own.nan_to_num(), x.nan_to_num())
        habits[mode] = not same or (before is not None and own._version != before)
    return logits


def _subject(model: Any) -> Any:
    """The network: the module itself, or the module that a `Functional` runs at other parameters."""
    return model if isinstance(model, torch.nn.Module) else getattr(model, "module", model)


def _of(model: Any) -> dict[Mode, bool]:
    try:
        return _habits.setdefault(_subject(model), {})
    except TypeError:  # no weak reference is possible: every pass is treated as a first one
        return {}
