"""How strong the attacks of an audit are, and what they cost, decided before they run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation.statistics import FEWEST_POINTS

__all__ = ["LEVELS", "Plan", "choose"]

FIXED = 20 + 3 * 4 + 21  # passes of noise, FGSM at four sizes, PGD-10


@dataclass(frozen=True)
class Plan:
    """Strength of the attacks of an audit.

    Attributes:
        level: "quick", "standard" or "full". n: points.
        steps: of plain PGD. longer: of the PGD that must not do worse. restarts: of PGD.
        auto: steps of Auto-PGD; targets: of its targeted form. queries: of Square.
        samples: gradients averaged a step where outputs are random. surrogates: models to transfer from.
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
        """Forward and backward passes, at most: points that break early save some of it."""
        return round(self.expected(1.0, 1.0))

    def expected(self, clean: float, robust: float) -> float:
        """The likely number of passes, where a share of the points is right and withstands.

        Single attacks go to their end on what is right, repeated ones and Square on what withstands a short
        attack.
        """
        plain, auto = 2 * self.steps + 1, 2 * (self.auto + 1)
        once = FIXED + plain * (6 + self.surrogates) + 2 * self.longer + 1
        again = plain * self.restarts + auto * (2 + self.targets) + self.queries
        return self.n * (clean * once + robust * again)

    def to_json(self) -> dict[str, Any]:
        """As plain data, with the passes it may take."""
        return {**asdict(self), "passes": self.cost()}


LEVELS = (
    Plan("full", 0, longer=200, restarts=10, auto=100, targets=9, queries=5000, samples=20),
    Plan("standard", 0, longer=100, restarts=5, auto=50, targets=9, queries=1000, samples=16),
    Plan("quick", 0),
)


def choose(points: int, budget: float, surrogates: int = 0) -> Plan:
    """The strongest level that the budget (passes) pays for; then fewer points, down to 50.

    Raises:
        UserError: not even the quick level on 50 points is within the budget.

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
