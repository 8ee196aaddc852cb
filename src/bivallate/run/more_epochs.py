"""Which schedules change if a run is continued beyond its planned end."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from bivallate.run.config import Config
from bivallate.run.warm_up import growth
from bivallate.types import Clock

__all__ = ["effects_of_more_epochs", "length_dependent"]

SHARES = ("share", "burn_in")  # fields of parts, other than schedules, that are fractions of the epochs


def effects_of_more_epochs(planned: Config, longer: Config, steps: int) -> str:
    """A message on what more epochs change; empty if the run ends as one planned with this length.

    Args:
        planned, longer: the configuration before and after.
        steps: minibatches of an epoch.
    """
    text = f"{planned.epochs} epochs become {longer.epochs}"
    found = length_dependent(planned, longer.epochs, steps)
    if not found:
        return ""
    last = Clock(planned.epochs - 1, planned.epochs, steps - 1, steps)
    then = Clock(planned.epochs, longer.epochs, 0, steps)
    text += f", and {', '.join(found)} hang{'s' if len(found) == 1 else ''} on their number: up to epoch "
    text += f"{planned.epochs} as planned, then as in a run of {longer.epochs}, but not with its weights"
    if "rate" in found:
        before, after = (planned.optimizer.lr * planned.rate(clock) for clock in (last, then))
        text += f". The learning rate goes from {before:.3g} to {after:.3g} there"
    if "warm_up" in found and growth(then, longer.warm_up) < 1:
        text += f". The radius goes back to {growth(then, longer.warm_up):.0%} there, to grow again"
    return text


def length_dependent(config: Config, epochs: int, steps: int) -> list[str]:
    """Dotted names of the schedules that, up to the planned end, differ in a run of `epochs` epochs.

    A user's part is included if it is a schedule, that is a function of the clock alone.
    """
    moments = [(epoch, step) for epoch in range(config.epochs) for step in {0, steps // 2, steps - 1}]
    both = [[Clock(e, length, s, steps) for e, s in moments] for length in (config.epochs, epochs)]
    found = ["warm_up"] if _differs(lambda clock: growth(clock, config.warm_up), both) else []
    for name, part in [("rate", config.rate), *_within(config.method, "")]:
        if _is_schedule(part):
            found += [name] if _differs(part, both) else []
        else:
            found += [f"{name}.{field}" for field in SHARES if 0 < getattr(part, field, 0) < 1]
    return sorted(found)


def _differs(schedule: Any, both: list[list[Clock]]) -> bool:
    before, after = ([schedule(clock) for clock in clocks] for clocks in both)
    return before != after


def _is_schedule(part: Any) -> bool:
    return callable(part) and list(inspect.signature(part).parameters) == ["clock"]


def _within(part: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All parts nested within a part, with their dotted names."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield name + field.name, value
            yield from _within(value, f"{name}{field.name}.")
