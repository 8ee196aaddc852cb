"""bivallate: adversarial training as bilevel optimisation, and an honest measure of what it achieves."""

from bivallate import starting  # noqa: F401  first, as what follows takes seconds

# isort: split
from bivallate import data, methods, models
from bivallate.audit.of_run import audit
from bivallate.check import check_gradient, upper_gradient
from bivallate.coupling.barrier import Barrier, Implicit, Mask
from bivallate.coupling.cid import cid
from bivallate.coupling.implicit import Coupling, Detached, Leaf
from bivallate.coupling.last_step import LastStep
from bivallate.errors import UserError
from bivallate.evaluate import Score, attack, predict
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem, Objective
from bivallate.lower.solver import Solver
from bivallate.lower.start import Start, corner, gaussian, uniform, zero
from bivallate.lower.stop import Stop
from bivallate.lower.threat import L2, Linf
from bivallate.method import Method, register
from bivallate.parts import part
from bivallate.reports.comparison.api import compare
from bivallate.reports.diagnostics.api import diagnose
from bivallate.reports.page import report
from bivallate.run.api import train
from bivallate.run.examined import evaluate
from bivallate.run.execution import Run
from bivallate.run.loading import load
from bivallate.run.optim import SGD, AdamW, Cosine, Flat, MultiStep, Triangle
from bivallate.run.resuming import resume
from bivallate.step import train_step
from bivallate.types import Batch, Clock, Evidence, Facts, Solution, Terms
from bivallate.upper.awp import AWP
from bivallate.upper.loss import Adversarial, Loss, Mart, Trades
from bivallate.version import __version__ as __version__
from bivallate.weighting.base import After, Equal, Weighting
from bivallate.weighting.dro import KLDRO
from bivallate.weighting.learned import Correlation, MarginNet
from bivallate.weighting.rules import GAIRAT, MAIL, WMMR

__all__ = [
    "AWP",
    "GAIRAT",
    "KLDRO",
    "L2",
    "MAIL",
    "PGD",
    "SGD",
    "WMMR",
    "AdamW",
    "Adversarial",
    "After",
    "Barrier",
    "Batch",
    "Clock",
    "Correlation",
    "Cosine",
    "Coupling",
    "Detached",
    "Equal",
    "Evidence",
    "Facts",
    "Flat",
    "Implicit",
    "LastStep",
    "Leaf",
    "Linf",
    "Loss",
    "LowerProblem",
    "MarginNet",
    "Mart",
    "Mask",
    "Method",
    "MultiStep",
    "Objective",
    "Run",
    "Score",
    "Solution",
    "Solver",
    "Start",
    "Stop",
    "Terms",
    "Trades",
    "Triangle",
    "UserError",
    "Weighting",
    "attack",
    "audit",
    "check_gradient",
    "cid",
    "compare",
    "corner",
    "data",
    "diagnose",
    "evaluate",
    "gaussian",
    "load",
    "methods",
    "models",
    "part",
    "predict",
    "register",
    "report",
    "resume",
    "train",
    "train_step",
    "uniform",
    "upper_gradient",
    "zero",
]
