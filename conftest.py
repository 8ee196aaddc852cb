"""What a test, or an example in a docstring, registers under a name is gone after it."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# A shell's background job ignores Ctrl-C, and what nohup starts the end of the terminal: tests send both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

REGISTRIES: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("bivallate.part_kinds", "KINDS"): lambda part: part,
    ("bivallate.methods.entries", "_REGISTRY"): lambda entry: entry.make,
    ("bivallate.method", "MAKERS"): lambda make: make,
    ("bivallate.models.architectures", "_registry"): lambda entry: entry.build,
    ("bivallate.evaluation.named_attacks", "_FAMILIES"): lambda entry: entry[0],
}
"""Where a decorator enters what it decorates -> the class or function of an entry."""


def tables() -> dict[tuple[str, str], dict[str, Any]]:
    """The registries of the modules that are loaded: none is imported for this."""
    return {
        place: getattr(sys.modules[place[0]], place[1]) for place in REGISTRIES if place[0] in sys.modules
    }


def of_the_package(made: Any) -> bool:
    """Whether a module of the package holds it, whose import during a test is for good."""
    made = inspect.unwrap(made)
    module = sys.modules.get(made.__module__) if made.__module__.startswith("bivallate.") else None
    return inspect.unwrap(getattr(module, made.__name__, None)) is made  # pyright: ignore[reportArgumentType]


@contextmanager
def restored() -> Iterator[None]:
    """Leaves the registries as they were: pytest-xdist may give a process any test next."""
    before = {place: dict(table) for place, table in tables().items()}
    yield
    for place, table in tables().items():
        known = before.get(place, {})
        own = {n: e for n, e in table.items() if n not in known and of_the_package(REGISTRIES[place](e))}
        table.clear()
        table.update(known | own)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Every test and every example in a docstring runs within it."""
    with restored():
        yield
