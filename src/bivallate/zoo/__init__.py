"""Trained networks that the package brings: what was measured of each, and their weights."""

from __future__ import annotations

from importlib.resources import files
from typing import NotRequired, TypedDict

from bivallate.schema import Share, parse

__all__ = ["PREFIX", "Robustness", "ZooEntry", "entries"]

PREFIX = "zoo:"
LIST = "zoo.json"


class Robustness(TypedDict):
    """What AutoAttack left of a network on a seeded random subset of the test images, or on all."""

    attack: str
    n: int
    seed: int
    clean_accuracy: Share
    robust_accuracy: Share
    interval_95: tuple[Share, Share]


class ZooEntry(TypedDict):
    """A network.

    `fingerprint` is of its weights; `slice` says how many of so many first test images it classifies rightly,
    clean and under an attack; `made` is the command, at `commit`.
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
    """The networks by name."""
    place = files(__name__).joinpath(LIST)
    return parse(place.read_text(encoding="utf-8"), place, "list of networks", dict[str, ZooEntry])
