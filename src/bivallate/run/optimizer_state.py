"""The state of an optimiser as a checkpoint holds it: by the parameters' names, not by their positions."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.models.io import without_compile

__all__ = ["pack_optimizer", "remember_groups", "unpack_optimizer"]

Plain = int | float | None | tuple[int | float, ...]  # what is kept beside tensors; bool is an int
GROUP = re.compile(r"groups\[(\d+)\]\.(.+)")
SET_ELSEWHERE = ("params", "lr", "lr_ratio", "initial_lr")  # they follow from the configuration


def remember_groups(optimizer: torch.optim.Optimizer) -> None:
    """Remember the values of the optimiser's groups, to recognise later those that it has changed."""
    optimizer.made_groups = [  # pyright: ignore[reportAttributeAccessIssue]
        {key: copy.deepcopy(value) for key, value in group.items() if key not in SET_ELSEWHERE}
        for group in optimizer.param_groups
    ]


def _made_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The values that `remember_groups` saw; none for an optimiser that was made elsewhere."""
    return copy.deepcopy(getattr(optimizer, "made_groups", []))


def _changed_in_groups(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """ "groups[NUMBER].KEY" -> value, for the values of groups that have changed since they were made."""
    groups = zip(optimizer.param_groups, _made_groups(optimizer), strict=False)
    return {
        f"groups[{k}].{key}": value
        for k, (group, made) in enumerate(groups)
        for key, value in group.items()
        if key not in SET_ELSEWHERE and not (key in made and _same(value, made[key]))
    }


def _same(value: Any, made: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(made, Tensor):
        return isinstance(value, Tensor) and isinstance(made, Tensor) and torch.equal(value, made)
    return type(value) is type(made) and value == made


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint's JSON can hold a value of a group: a number, None, or a tuple of numbers."""
    items = value if isinstance(value, tuple) else (value,)
    return all(isinstance(item, int | float | None) for item in items)


def pack_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Plain]]:
    """The optimiser's state by "PARAMETER.KEY": the tensors, and the plain numbers.

    Values of its groups come from the configuration. Those that the optimiser has changed since it was made
    are among the numbers, by "groups[NUMBER].KEY"; learning rates are not, as `set_rate` sets them.

    Raises:
        UserError: there is state of another kind, which a checkpoint cannot hold.
    """
    names, state = _names(optimizer, model), optimizer.state_dict()["state"]
    whole = {f"{names[i]}.{k}": v for i, entry in state.items() for k, v in entry.items()}
    changed = _changed_in_groups(optimizer)
    for key, value in (whole | changed).items():
        held = _is_plain(value) if key in changed else isinstance(value, Tensor | int | float | None)
        if not held:
            raise UserError(
                f"the optimiser {type(optimizer).__name__} keeps {key} as {type(value).__name__}, which a "
                "checkpoint cannot hold: keep a tensor or a number"
            )
    tensors = {key: value for key, value in whole.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in (whole | changed).items() if key not in tensors}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, packed: Mapping[str, Tensor | Plain]
) -> None:
    """Restore the optimiser from `pack_optimizer`, or from version 0.1.0, which numbered the parameters.

    Args:
        packed: its tensors and numbers together.

    Raises:
        KeyError: there is state of a parameter or of a group that the optimiser does not have.
    """
    groups = {key: value for key, value in packed.items() if GROUP.fullmatch(key)}
    place = {name: i for i, name in enumerate(_names(optimizer, model))}
    state: dict[int, dict[str, Tensor | Plain]] = {}
    for key, value in packed.items():
        if key in groups:
            continue
        name, _, kind = key.rpartition(".")
        index = int(name) if name.isdigit() and name not in place else place[name]
        state.setdefault(index, {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, made in zip(optimizer.param_groups, _made_groups(optimizer), strict=False):
        group.update(made)
    for key, value in groups.items():
        match = GROUP.fullmatch(key)
        assert match is not None  # only such keys are in `groups`
        if int(match[1]) >= len(optimizer.param_groups) or match[2] in SET_ELSEWHERE:
            raise KeyError(key)
        plain = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        optimizer.param_groups[int(match[1])][match[2]] = plain


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Names of the optimiser's parameters, in the optimiser's order."""
    names = {id(p): without_compile(name) for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
