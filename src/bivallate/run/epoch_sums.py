"""Sums over the minibatches of an epoch, which a resume continues exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from bivallate import collective
from bivallate.record import DeviceRecord
from bivallate.run.weight_spread import Spread
from bivallate.types import Passes, StepRecord


class StepSums(NamedTuple):
    """What the processes send each other with the gradients of a step (`StepRecord.sums`).

    Each process gives its own numbers; the record has their sums.

    Attributes:
        stop: 1 if the process has been asked to stop.
        save: 1 if it is time to save a checkpoint, of the first process alone.
        rows, forward, backward: of `EpochSums.unsent`.
    """

    stop: float
    save: float
    rows: float
    forward: float
    backward: float


@dataclass
class EpochSums:
    """Running sums of what the steps of one epoch report.

    JSON holds floats exactly, so a resume loses nothing. Each process keeps its own sums.

    Attributes:
        examples: number of examples; every replay of a minibatch counts.
        rows: number of rows of data; replays do not count.
        loss, weight, effective: sums over the examples; `effective` is the effective sample size.
        correct: examples that were classified correctly under the attack.
        forward, backward: passes of this process.
        spread: histogram of the example weights.
        watched: row -> (margin, weight / mean weight) when it was last trained on. These are the rows of the
            training data whose number `stride` divides; none with stride 0.
        logged, counted: what the method's parts log, summed over the examples, and the number of those.
        sent: rows, forward and backward passes of this process that are in `everywhere`.
        everywhere: rows, forward and backward passes of all processes.
    """

    examples: int = 0
    rows: int = 0
    loss: float = 0.0
    correct: int = 0
    weight: float = 0.0
    effective: float = 0.0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    spread: Spread = field(default_factory=Spread)
    stride: int = 0
    watched: dict[str, list[float]] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    sent: list[int] = field(default_factory=lambda: [0, 0, 0])
    everywhere: list[int] = field(default_factory=lambda: [0, 0, 0])

    def unsent(self, replays: Sequence[StepRecord | DeviceRecord]) -> list[float]:
        """Rows, forward and backward passes not yet sent to the other processes, with this minibatch's."""
        passes = sum((replay.passes for replay in replays), Passes())
        now = (replays[0].examples, passes.forward, passes.backward)
        return [float(a + b - sent) for a, b, sent in zip(self._costs(), now, self.sent, strict=True)]

    def add_minibatch(self, replays: Sequence[StepRecord]) -> StepSums:
        """Add the steps of a minibatch; return the sums over all processes that its last step carries."""
        for k, record in enumerate(replays):
            self.add(record, first=k == 0)
        sums = StepSums(*replays[-1].sums)
        self.add_everywhere(sums[2:])
        return sums

    def add_everywhere(self, costs: Sequence[float]) -> None:
        """Add the sums of `unsent` over all processes, after the minibatch has been added."""
        self.sent = self._costs()
        self.everywhere = [a + round(b) for a, b in zip(self.everywhere, costs, strict=True)]

    def _costs(self) -> list[int]:
        return [self.rows, self.forward, self.backward]

    def add(self, record: StepRecord, *, first: bool) -> None:
        """Add one step; `first` is True for the first use of a minibatch, False for a replay."""
        n = record.examples
        self.examples += n
        self.rows += n if first else 0
        self.loss += record.loss * n
        self.correct += record.correct
        self.weight += record.weight_mean * n
        self.effective += record.effective * n
        self.spread.add(record.relative)
        for row, margin, weight in zip(record.rows, record.margin, record.relative, strict=False):
            if self.stride and row % self.stride == 0:
                self.watched[str(row)] = [round(margin, 6), round(weight, 6)]
        self.forward += record.passes.forward
        self.backward += record.passes.backward
        for name, value in record.logged.items():
            self.logged[name] = self.logged.get(name, 0.0) + value * n
            self.counted[name] = self.counted.get(name, 0) + n

    def over_ranks(self) -> EpochSums:
        """The sums over all ranks, the same on each of them."""
        first, *others = (EpochSums.from_dict(kept) for kept in collective.gather_objects(self.to_dict()))
        for other in others:
            first._merge(other)
        return first

    def _merge(self, other: EpochSums) -> None:
        for name in ("examples", "rows", "loss", "correct", "weight", "effective", "forward", "backward"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = max(self.seconds, other.seconds)
        self.spread.merge(other.spread)
        self.watched |= other.watched
        for name, value in other.logged.items():
            self.logged[name] = self.logged.get(name, 0.0) + value
            self.counted[name] = self.counted.get(name, 0) + other.counted[name]

    def line(self) -> dict[str, Any]:
        """The epoch's line: means over the examples, and passes per row of data."""
        n, rows = max(self.examples, 1), max(self.rows, 1)
        return {
            "loss": self.loss / n,
            "train_robust": self.correct / n,
            "weight_mean": self.weight / n,
            "effective": self.effective / n,
            "weight_quantiles": self.spread.quantiles(),
            "watched": {row: self.watched[row] for row in sorted(self.watched, key=int)},
            "forward": self.forward / rows,
            "backward": self.backward / rows,
            **{name: value / self.counted[name] for name, value in self.logged.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """The sums as a dictionary for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> EpochSums:
        """Restore what `to_dict` gave; sums that an older checkpoint lacks begin at zero."""
        costs = [kept.get(name, 0) for name in ("rows", "forward", "backward")]
        younger = {"sent": costs, "everywhere": costs}
        return cls(**{**younger, **kept, "spread": Spread(**kept.get("spread", {}))})
