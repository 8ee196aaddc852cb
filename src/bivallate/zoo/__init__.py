"""Trained networks that come with the package: their weights, and the measured accuracies of each."""

from __future__ import annotations

from importlib.resources import files
from typing import NotRequired, TypedDict

from bivallate.errors import unknown
from bivallate.schema import Share, parse

__all__ = ["PREFIX", "Robustness", "ZooEntry", "entries", "entry"]

PREFIX = "zoo:"
LIST = "zoo.json"


class Robustness(TypedDict):
    """Accuracies of a network under an attack, on `n` test images drawn with `seed` or on all of them.

    Accuracies are fractions in [0, 1].
    """

    attack: str
    n: int
    seed: int
    clean_accuracy: Share
    robust_accuracy: Share
    interval_95: tuple[Share, Share]


class ZooEntry(TypedDict):
    """A network of the zoo.

    `fingerprint` is the checksum of its weights. `slice` counts how many of the first test images the network
    classifies correctly, clean and under an attack; a test repeats this count. `made` is the command that
    trained the network, with the code at `commit`.
    """

    data: str
    norm: str
    eps: str
    method: str
    network: str
    parameters: int
    measured: Robustness
    slice: dict[str, int | str]
    fingerprint: str
    made: str
    commit: str
    licence: str
    note: NotRequired[str]


def entries() -> dict[str, ZooEntry]:
    """The networks of the zoo by name."""
    place = files(__name__).joinpath(LIST)
    return parse(place.read_text(encoding="utf-8"), place, "list of networks", dict[str, ZooEntry])


def entry(name: str) -> ZooEntry:
    """What is known of "zoo:NAME". Raises UserError for an unknown name, with the nearest one."""
    name, known = name.removeprefix(PREFIX), entries()
    if name not in known:
        raise unknown("network of the zoo", name, known)
    return known[name]
