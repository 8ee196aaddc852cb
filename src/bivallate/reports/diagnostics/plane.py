"""Models in the plane of mean robust accuracy and robust accuracy of the worst class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.style import colour, figure, marker

Interval = tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """The place of one model, or of the mean of several seeds. Accuracies are fractions.

    Attributes:
        label: name of the model.
        mean, mean_interval_95: robust accuracy over all points, and its 95 % interval.
        worst, worst_interval_95: robust accuracy of the weakest class, and its 95 % interval.
        worst_class: name of that class; empty for a mean over seeds, whose weakest classes may differ.
    """

    label: str
    mean: float
    mean_interval_95: Interval | None
    worst: float
    worst_interval_95: Interval | None
    worst_class: str = ""

    def beaten_by(self, other: Standing) -> bool:
        """Whether the other is at least as high on both axes and higher on one; intervals are ignored."""
        mine, its = (self.mean, self.worst), (other.mean, other.worst)
        return its != mine and all(b >= a for a, b in zip(mine, its, strict=True))


@dataclass(frozen=True)
class Plane(Diagnostic):
    """Robust accuracy of the weakest class against that of all points.

    Attributes:
        attack: name of the attack.
        standings: place of every model.
    """

    attack: str
    standings: tuple[Standing, ...]

    @property
    def front(self) -> list[Standing]:
        """The models that no other one beats (`Standing.beaten_by`), by rising mean."""
        kept = [s for s in self.standings if not any(s.beaten_by(other) for other in self.standings)]
        return sorted(kept, key=lambda s: (s.mean, -s.worst))

    def data(self) -> dict[str, Any]:
        """The attributes, and the labels on the front."""
        standings = [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(s).items()}
                     for s in self.standings]  # fmt: skip
        return {"attack": self.attack, "standings": standings, "front": [s.label for s in self.front]}

    def draw(self) -> Figure:
        """A cross of two intervals for each model; dashed: all classes equal; stepped: the front."""
        fig, ax = figure(height=3.0)
        across = [v for s in self.standings for v in (s.mean, *(s.mean_interval_95 or ()))]
        up = [v for s in self.standings for v in (s.worst, *(s.worst_interval_95 or ()))]
        low, high = 100 * min(across) - 2, 100 * max(across) + 2
        ax.plot([low, high], [low, high], color="#555555", lw=0.8, ls="--", zorder=1)
        front = self.front
        if len(front) > 1:
            corners = [100 * s.mean for s in front], [100 * s.worst for s in front]
            ax.step(*corners, where="pre", color="#aaaaaa", lw=0.8, zorder=1)
        for k, s in enumerate(self.standings):
            beside, above = _error(s.mean, s.mean_interval_95), _error(s.worst, s.worst_interval_95)
            ax.errorbar(
                100 * s.mean, 100 * s.worst, above, beside, ls="", marker=marker(k), color=colour(k),
                elinewidth=0.8, ms=4.5, alpha=0.9, label=s.label, zorder=3,
            )  # fmt: skip
        ax.set_xlabel(f"robust accuracy under {self.attack} (%)")
        ax.set_ylabel("of its weakest class (%)")
        ax.set_xlim(low, high)
        ax.set_ylim(100 * min(up) - 3, high)
        fig.legend(loc="outside upper left", ncols=2)
        return fig


def _error(value: float, interval: Interval | None) -> list[list[float]] | None:
    """Lengths of an error bar below and above the value, in per cent."""
    if interval is None:
        return None
    return [[100 * max(0.0, value - interval[0])], [100 * max(0.0, interval[1] - value)]]


def plane(scores: Mapping[str, Score], classes: Sequence[str] = ()) -> Plane:
    """Make the plane from evaluations by label. Raises UserError for fewer than two."""
    if len(scores) < 2:
        raise UserError("the plane of mean and worst class compares runs: name two or more")
    found, attacks = [], dict.fromkeys(score.attack for score in scores.values())
    for label, score in scores.items():
        number, worst = score.worst_class
        name = classes[number] if classes else str(number)
        own = (score.robust_accuracy, score.interval_95, worst, score.worst_class_interval_95)
        found.append(Standing(label, *own, name))
    return Plane(" / ".join(attacks), tuple(found))


def of_rows(attack: str, rows: Sequence[Mapping[str, Any]]) -> Plane:
    """Make the plane from the rows of a comparison: of runs, or of methods over seeds.

    Raises UserError for fewer than two.
    """
    if len(rows) < 2:
        raise UserError("the plane of mean and worst class compares runs: name two or more")
    return Plane(attack, tuple(_of_row(row) for row in rows))


def _of_row(row: Mapping[str, Any]) -> Standing:
    if "run" in row:
        own = (row["robust_accuracy"], row["interval_95"], row["worst_class"], row["worst_class_interval_95"])
        return Standing(row["run"], own[0], tuple(own[1]), own[2], tuple(own[3]), row["worst_class_name"])
    mean, worst = row["robust_accuracy"], row["worst_class"]
    spans = [tuple(v["interval_95"]) if v["interval_95"] else None for v in (mean, worst)]
    label = f"{row['method']}, {len(row['runs'])} seeds"
    return Standing(label, mean["mean"], spans[0], worst["mean"], spans[1])
