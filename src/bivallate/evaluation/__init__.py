"""Evaluation: attacks run in sequence on the points that are still robust, and the scores that result."""

from bivallate.evaluation.attack_functions import attack, attack_and_score
from bivallate.evaluation.attacked_images import AttackedImages, craft
from bivallate.evaluation.black_box import transfer
from bivallate.evaluation.evaluation_identity import Identity, evaluation_name
from bivallate.evaluation.evaluation_options import EvaluationOptions
from bivallate.evaluation.evaluation_progress import EvaluationProgress
from bivallate.evaluation.joined_score import within_all
from bivallate.evaluation.named_attacks import Attack, Stage, attack_named, attacks
from bivallate.evaluation.predictions import Prediction, predict
from bivallate.evaluation.score import Score
from bivallate.evaluation.search import Restarts, ScaledPGD, Search, Targets
from bivallate.evaluation.significance import Row, SeedSpread, over_seeds, rank
from bivallate.evaluation.sweeps import eps_curve, minimal_distances
from bivallate.evaluation.threat_union import ThreatUnion
from bivallate.renamed import renamed_names

__all__ = [
    "Attack",
    "AttackedImages",
    "EvaluationOptions",
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
    "ThreatUnion",
    "attack",
    "attack_and_score",
    "attack_named",
    "attacks",
    "craft",
    "eps_curve",
    "evaluation_name",
    "minimal_distances",
    "over_seeds",
    "predict",
    "rank",
    "transfer",
    "within_all",
]

__getattr__ = renamed_names(
    __name__,
    {
        "Crafted": "AttackedImages",
        "compare": "rank",
        "evaluate": "attack_and_score",
        "parse": "attack_named",
    },
)
