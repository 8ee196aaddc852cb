"""Evaluation: attacks run in sequence on the points that are still robust, and the scores that result."""

from bivallate.evaluation.attack_model import attack, evaluate
from bivallate.evaluation.attacked_images import Crafted, craft
from bivallate.evaluation.attacks import Attack, Stage, attacks, parse
from bivallate.evaluation.evaluation_identity import Identity, evaluation_name
from bivallate.evaluation.evaluation_progress import EvaluationProgress
from bivallate.evaluation.predictions import Prediction, predict
from bivallate.evaluation.score import Score
from bivallate.evaluation.search import Restarts, ScaledPGD, Search, Targets
from bivallate.evaluation.significance import Row, SeedSpread, compare, over_seeds
from bivallate.evaluation.sweeps import eps_curve, minimal_distances, transfer

__all__ = [
    "Attack",
    "Crafted",
    "EvaluationProgress",
    "Identity",
    "Prediction",
    "Restarts",
    "Row",
    "ScaledPGD",
    "Score",
    "Search",
    "SeedSpread",
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
