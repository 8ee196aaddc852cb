"""Which schedules change if a run is continued beyond its planned end."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from bivallate.run.config import Config
from bivallate.run.phases import phase_at
from bivallate.run.warm_up import growth
from bivallate.types import Clock

__all__ = ["effects_of_more_epochs", "fractions_of_epochs", "length_dependent"]


def effects_of_more_epochs(planned: Config, longer: Config, steps: int) -> str:
    """A message on what more epochs change.

    It is empty if they change nothing: the run then ends with the weights of a run that was planned with so
    many epochs.

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
    """Dotted names of what would have been otherwise before the planned end in a run of `epochs` epochs.

    A user's part is named if it is a schedule (a function of the clock alone), and its fields if they declare
    `OF_EPOCHS`.
    """
    moments = [(epoch, step) for epoch in range(config.epochs) for step in {0, steps // 2, steps - 1}]
    both = [[Clock(e, length, s, steps) for e, s in moments] for length in (config.epochs, epochs)]
    schedules: dict[str, Any] = {
        "warm_up": lambda clock: growth(clock, config.warm_up),
        "phases": lambda clock: phase_at(config.phases, clock.epoch, clock.epochs),
        "rate": config.rate,
    }
    if config.average and not isinstance(config.average, int | float):
        rule = config.average
        schedules["average"] = lambda clock: rule.epoch_share(1, clock, config.rate)
    found: list[str] = []
    for name, part in _within(config.method, ""):
        if _is_schedule(part):
            schedules[name] = part
        else:
            found += [
                f"{name}.{field}" for field in fractions_of_epochs(part) if 0 < getattr(part, field) < 1
            ]
    return sorted(found + [name for name, schedule in schedules.items() if _differs(schedule, both)])


def fractions_of_epochs(part: Any) -> list[str]:
    """The fields of a part, or of its class, that declare `OF_EPOCHS`."""
    return [field.name for field in dataclasses.fields(part) if field.metadata.get("of_epochs")]


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
