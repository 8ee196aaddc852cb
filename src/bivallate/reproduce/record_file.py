"""What is read of a record's file; other entries are kept as they are."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from bivallate.evaluation.evaluation_file import Packed
from bivallate.reproduce.cell import What
from bivallate.schema import Amount, Whole

__all__ = ["RecordFile"]


class Column(TypedDict):
    """A column of a record."""

    what: What
    value: float
    interval_95: tuple[float, float] | None
    unit: str
    score: NotRequired[str]


class KeptPoints(TypedDict):
    """The verdicts of an evaluation on its points."""

    points: dict[str, Packed]
    data_fingerprint: str


class Epoch(TypedDict):
    """The entries of an epoch that are read."""

    seconds: Amount
    effective: NotRequired[float | None]
    robust: NotRequired[float | None]


class RecordedTraining(TypedDict):
    """The cost of a training, and its epochs."""

    forward_per_row: Amount
    backward_per_row: Amount
    history: list[Epoch]


class RecordedPart(TypedDict):
    """A part, of which only the name is read."""

    kind: str


class RecordedMethod(TypedDict):
    """The entries of a method that are read."""

    weighting: NotRequired[RecordedPart]


class RecordedData(TypedDict):
    """The entries of a data set that are read."""

    name: str


class RecordedConfig(TypedDict):
    """The entries of a configuration that are read without decoding it, so that old records stay readable."""

    device: NotRequired[str]
    method: NotRequired[RecordedMethod]
    data: NotRequired[RecordedData]


class DataUsed(TypedDict):
    """The entries of the data that are read."""

    train: Whole
    fingerprint: NotRequired[str]


class SourceUsed(TypedDict):
    """The entries of a network that examples were transferred from that are read."""

    fingerprint: NotRequired[str]


class RecordedMachine(TypedDict):
    """The entries of a machine that are read."""

    gpu: str | None
    processor: str
    threads: Whole
    torch: str
    together: NotRequired[Whole]


class RecordFile(TypedDict):
    """The entries of a record that are read."""

    row: str
    group: str
    seed: Whole
    weights: NotRequired[str]
    columns: dict[str, Column]
    scores: dict[str, KeptPoints]
    training: NotRequired[RecordedTraining]
    config: NotRequired[RecordedConfig]
    data: NotRequired[DataUsed]
    sources: NotRequired[dict[str, SourceUsed]]
    machine: RecordedMachine
    commit: dict[str, str | bool | None]
