"""Evaluation: attacks run in sequence on the points that are still robust, and scores that follow from them.

The package is callable through `bivallate.evaluate(...)`, which is `evaluate` below; import the rest from
here: `from bivallate.evaluate import Score, attacks`.
"""

from bivallate.evaluate.attacks import Attack, Stage, attacks, parse
from bivallate.evaluate.compare import Row, Spread, compare, over_seeds
from bivallate.evaluate.crafting import Crafted, craft
from bivallate.evaluate.evaluating import attack, evaluate
from bivallate.evaluate.naming import Identity, evaluation_name
from bivallate.evaluate.predictions import Prediction, predict
from bivallate.evaluate.progress import Progress
from bivallate.evaluate.score import Score
from bivallate.evaluate.search import Restarts, ScaledPGD, Search, Targets
from bivallate.evaluate.sweeps import eps_curve, minimal_distances, transfer

__all__ = [
    "Attack",
    "Crafted",
    "Identity",
    "Prediction",
    "Progress",
    "Restarts",
    "Row",
    "ScaledPGD",
    "Score",
    "Search",
    "Spread",
    "Stage",
    "Targets",
    "attack",
    "attacks",
    "compare",
    "craft",
    "eps_curve",
    "evaluate",
    "evaluation_name",
    "minimal_distances",
    "over_seeds",
    "parse",
    "predict",
    "transfer",
]
