"""Strength and cost of the attacks of an audit, decided before they run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation.statistics import FEWEST_POINTS

__all__ = ["LEVELS", "Plan", "choose"]

FIXED = 20 + 3 * 4 + 21  # passes a point of noise, FGSM at four step sizes, and PGD-10


@dataclass(frozen=True)
class Plan:
    """Strength of the attacks of an audit.

    Attributes:
        level: "quick", "standard" or "full".
        n: number of points.
        steps: of plain PGD.
        longer: steps of the long PGD, which must break no fewer points.
        restarts: of PGD.
        auto: steps of Auto-PGD.
        targets: classes of its targeted form.
        queries: of Square, a point.
        samples: gradients averaged a step for random outputs.
        surrogates: models to transfer from, the linear imitation included.
    """

    level: str
    n: int
    steps: int = 20
    longer: int = 40
    restarts: int = 3
    auto: int = 20
    targets: int = 3
    queries: int = 200
    samples: int = 8
    surrogates: int = 1

    def cost(self) -> int:
        """Forward and backward passes at most; points that are broken early take fewer."""
        return round(self.expected(1.0, 1.0))

    def expected(self, clean: float, robust: float) -> float:
        """The expected number of passes.

        Single attacks run all their steps on the points that are right without an attack; restarts,
        Auto-PGD and Square do so only on the points that a short attack leaves robust.

        Args:
            clean: share of the points that are right without an attack.
            robust: share of the points that are right after a short one.
        """
        plain, auto = 2 * self.steps + 1, 2 * (self.auto + 1)
        once = FIXED + plain * (6 + self.surrogates) + 2 * self.longer + 1
        again = plain * self.restarts + auto * (2 + self.targets) + self.queries
        return self.n * (clean * once + robust * again)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, with `passes`, its cost at most."""
        return {**asdict(self), "passes": self.cost()}


LEVELS = (
    Plan("full", 0, longer=200, restarts=10, auto=100, targets=9, queries=5000, samples=20),
    Plan("standard", 0, longer=100, restarts=5, auto=50, targets=9, queries=1000, samples=16),
    Plan("quick", 0),
)


def choose(points: int, budget: float, surrogates: int = 0) -> Plan:
    """Choose the strongest level whose cost is within the budget, if need be on fewer points.

    Args:
        points: number of points to attack.
        budget: in forward and backward passes.
        surrogates: number of models to transfer from.

    Raises:
        UserError: the budget does not suffice for the quick level on 50 points, or on all of fewer.

    Example:
        >>> choose(500, 1_000_000).level
        'quick'
    """
    for level in LEVELS:
        plan = replace(level, n=points, surrogates=1 + surrogates)
        if plan.cost() <= budget:
            return plan
    quick = replace(LEVELS[-1], n=1, surrogates=1 + surrogates)
    affordable = math.floor(budget / quick.cost()) if math.isfinite(budget) else points
    if affordable < min(FEWEST_POINTS, points):
        need = replace(quick, n=min(FEWEST_POINTS, points)).cost()
        raise UserError(
            f"the budget of {budget:,.0f} passes is too small: the least that tells anything is {need:,} "
            f"({min(FEWEST_POINTS, points)} points at the quick level); allow more minutes, or a GPU"
        )
    return replace(quick, n=min(points, affordable))
