"""Sums over the minibatches of an epoch, exact across a resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bivallate import collective
from bivallate.run.weight_spread import Spread
from bivallate.types import StepRecord


@dataclass
class EpochSums:
    """Running sums of what the steps of one epoch report.

    JSON holds floats exactly, so a resume loses nothing. Of several processes the first one's sums are kept:
    a resume within an epoch counts them for every rank.

    Attributes:
        spread: of the weights. watched: margin and weight / mean of every stride-th row of the training data,
            as it was last trained on; none with stride 0.
        sent, everywhere: rows, forward and backward passes, of this process as the others have heard of them,
            and of all processes.
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

    def news(self, record: StepRecord, *, first: bool) -> list[float]:
        """What the other processes have not heard of: rows, forward and backward passes.

        With those of the step that is being made.
        """
        own = self._costs()
        now = (record.examples if first else 0, record.passes.forward, record.passes.backward)
        return [float(a + b - sent) for a, b, sent in zip(own, now, self.sent, strict=True)]

    def heard(self, news: Sequence[float]) -> None:
        """Take in the sums of all processes' news, once the step is added."""
        self.sent = self._costs()
        self.everywhere = [a + round(b) for a, b in zip(self.everywhere, news, strict=True)]

    def _costs(self) -> list[int]:
        return [self.rows, self.forward, self.backward]

    def add(self, record: StepRecord, *, first: bool) -> None:
        """Take in one step; `first` tells the first use of a minibatch from a replay."""
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
        """The sums of all ranks, the same on each."""
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
        """Means over the examples; passes per row that was seen."""
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
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> EpochSums:
        """What `to_dict` gave; a checkpoint from before weights were counted begins to count them here."""
        costs = [kept.get(name, 0) for name in ("rows", "forward", "backward")]
        younger = {"sent": costs, "everywhere": costs}
        return cls(**{**younger, **kept, "spread": Spread(**kept.get("spread", {}))})
