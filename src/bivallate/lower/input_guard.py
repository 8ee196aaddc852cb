"""Forward passes that leave the caller's images alone, even where a network works in place.

A network that normalises by `x.sub_(mean)` overwrites the very tensor that the caller goes on with: a judge
would compare it with the ball, a search would step from it, a data set would be changed for good.
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
    """model(x), with x left as it was even if the network writes to it.

    The first pass of a network in each mode is made on a copy, which tells whether it writes into its input;
    one that does is given a copy in every pass, and gradients go through it. An honest one is given x itself,
    and only the tensor's version counter is read.

    Raises:
        UserError: a network that has left its input alone writes into it all the same.
    """
    habits = _of(model)
    mode = bool(getattr(model, "training", False)), x.requires_grad, torch.is_grad_enabled()
    if habits.get(mode, True) or x.is_inference():  # such tensors have no counter
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
    """Whether a pass of the network, of those made so far, has changed its input in place."""
    return any(_of(model).values())


def _copied(model: Callable[[Tensor], Tensor], x: Tensor, habits: dict[Mode, bool], mode: Mode) -> Any:
    own = x.clone()
    before = None if own.is_inference() else own._version
    logits = model(own)
    if mode not in habits:
        # values as well: x.data and arrays that share the memory do not count versions
        with torch.no_grad():
            same = torch.equal(own.nan_to_num(), x.nan_to_num())
        habits[mode] = not same or (before is not None and own._version != before)
    return logits


def _subject(model: Any) -> Any:
    """The network that is asked: the module itself, or the one that is run at other parameters."""
    return model if isinstance(model, torch.nn.Module) else getattr(model, "module", model)


def _of(model: Any) -> dict[Mode, bool]:
    try:
        return _habits.setdefault(_subject(model), {})
    except TypeError:  # cannot be remembered, so every pass is like a first
        return {}
