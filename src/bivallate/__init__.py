"""bivallate: adversarial training as bilevel optimisation, and an honest measure of what it achieves.

Names are imported when they are first asked for: the command line answers at once where it needs no torch.
"""

from bivallate import startup_interrupt  # noqa: F401  first, as what follows takes seconds

# isort: split
from typing import TYPE_CHECKING

from bivallate.lazy_import import lazy_attributes
from bivallate.version import __version__ as __version__

if TYPE_CHECKING:
    from bivallate import data, methods, models
    from bivallate.audits.run_audit import audit
    from bivallate.coupling.barrier import Barrier, Implicit, Mask
    from bivallate.coupling.cid import cid
    from bivallate.coupling.implicit import Coupling, Detached, Leaf
    from bivallate.coupling.last_step import LastStep
    from bivallate.errors import UserError
    from bivallate.evaluation import Score, attack, predict
    from bivallate.gradcheck import check_gradient, upper_gradient
    from bivallate.lower.convergence import convergence_bound
    from bivallate.lower.direction import Direction
    from bivallate.lower.pgd import PGD
    from bivallate.lower.problem import LowerProblem, Objective
    from bivallate.lower.several_threats import DrawnThreat, SteepestThreat, WorstThreat
    from bivallate.lower.solver import Solver
    from bivallate.lower.start import Start, corner, gaussian, uniform, zero
    from bivallate.lower.stop import Stop
    from bivallate.lower.threat import L1, L2, Linf
    from bivallate.method import Method
    from bivallate.methods.entries import register
    from bivallate.parts import part
    from bivallate.reports.comparison.compare_runs import compare
    from bivallate.reports.diagnostics.diagnose_runs import diagnose
    from bivallate.reports.page import report
    from bivallate.run.averaging import EMA, SWA, Cyclic
    from bivallate.run.cycles import Cycles
    from bivallate.run.evaluate_run import evaluate
    from bivallate.run.execution import Run
    from bivallate.run.load_model import load
    from bivallate.run.logger import Logger
    from bivallate.run.optim import SGD, AdamW
    from bivallate.run.rates import Cosine, Flat, MultiStep, Triangle
    from bivallate.run.resuming import resume
    from bivallate.run.training import train
    from bivallate.step import train_step
    from bivallate.types import Batch, Clock, Evidence, Facts, Solution, Terms
    from bivallate.upper.awp import AWP
    from bivallate.upper.loss import Adversarial, Loss, Mart, Trades
    from bivallate.weighting.base import After, Equal, Weighting
    from bivallate.weighting.dro import KLDRO
    from bivallate.weighting.margin_net import Correlation, MarginNet
    from bivallate.weighting.rules import GAIRAT, MAIL, WMMR

__all__ = [
    "AWP",
    "EMA",
    "GAIRAT",
    "KLDRO",
    "L1",
    "L2",
    "MAIL",
    "PGD",
    "SGD",
    "SWA",
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
    "Cycles",
    "Cyclic",
    "Detached",
    "Direction",
    "DrawnThreat",
    "Equal",
    "Evidence",
    "Facts",
    "Flat",
    "Implicit",
    "LastStep",
    "Leaf",
    "Linf",
    "Logger",
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
    "SteepestThreat",
    "Stop",
    "Terms",
    "Trades",
    "Triangle",
    "UserError",
    "Weighting",
    "WorstThreat",
    "attack",
    "audit",
    "check_gradient",
    "cid",
    "compare",
    "convergence_bound",
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

_PLACES = {
    "audit": "bivallate.audits.run_audit",
    "check_gradient": "bivallate.gradcheck",
    "upper_gradient": "bivallate.gradcheck",
    "Barrier": "bivallate.coupling.barrier",
    "Implicit": "bivallate.coupling.barrier",
    "Mask": "bivallate.coupling.barrier",
    "cid": "bivallate.coupling.cid",
    "Coupling": "bivallate.coupling.implicit",
    "Detached": "bivallate.coupling.implicit",
    "Leaf": "bivallate.coupling.implicit",
    "LastStep": "bivallate.coupling.last_step",
    "UserError": "bivallate.errors",
    "Score": "bivallate.evaluation",
    "attack": "bivallate.evaluation",
    "predict": "bivallate.evaluation",
    "convergence_bound": "bivallate.lower.convergence",
    "Direction": "bivallate.lower.direction",
    "PGD": "bivallate.lower.pgd",
    "LowerProblem": "bivallate.lower.problem",
    "Objective": "bivallate.lower.problem",
    "DrawnThreat": "bivallate.lower.several_threats",
    "SteepestThreat": "bivallate.lower.several_threats",
    "WorstThreat": "bivallate.lower.several_threats",
    "Solver": "bivallate.lower.solver",
    "Start": "bivallate.lower.start",
    "corner": "bivallate.lower.start",
    "gaussian": "bivallate.lower.start",
    "uniform": "bivallate.lower.start",
    "zero": "bivallate.lower.start",
    "Stop": "bivallate.lower.stop",
    "L1": "bivallate.lower.threat",
    "L2": "bivallate.lower.threat",
    "Linf": "bivallate.lower.threat",
    "Method": "bivallate.method",
    "register": "bivallate.methods.entries",
    "part": "bivallate.parts",
    "compare": "bivallate.reports.comparison.compare_runs",
    "diagnose": "bivallate.reports.diagnostics.diagnose_runs",
    "report": "bivallate.reports.page",
    "train": "bivallate.run.training",
    "EMA": "bivallate.run.averaging",
    "SWA": "bivallate.run.averaging",
    "Cyclic": "bivallate.run.averaging",
    "Cycles": "bivallate.run.cycles",
    "evaluate": "bivallate.run.evaluate_run",
    "Run": "bivallate.run.execution",
    "load": "bivallate.run.load_model",
    "Logger": "bivallate.run.logger",
    "AdamW": "bivallate.run.optim",
    "Cosine": "bivallate.run.rates",
    "Flat": "bivallate.run.rates",
    "MultiStep": "bivallate.run.rates",
    "SGD": "bivallate.run.optim",
    "Triangle": "bivallate.run.rates",
    "resume": "bivallate.run.resuming",
    "train_step": "bivallate.step",
    "Batch": "bivallate.types",
    "Clock": "bivallate.types",
    "Evidence": "bivallate.types",
    "Facts": "bivallate.types",
    "Solution": "bivallate.types",
    "Terms": "bivallate.types",
    "AWP": "bivallate.upper.awp",
    "Adversarial": "bivallate.upper.loss",
    "Loss": "bivallate.upper.loss",
    "Mart": "bivallate.upper.loss",
    "Trades": "bivallate.upper.loss",
    "After": "bivallate.weighting.base",
    "Equal": "bivallate.weighting.base",
    "Weighting": "bivallate.weighting.base",
    "KLDRO": "bivallate.weighting.dro",
    "Correlation": "bivallate.weighting.margin_net",
    "MarginNet": "bivallate.weighting.margin_net",
    "GAIRAT": "bivallate.weighting.rules",
    "MAIL": "bivallate.weighting.rules",
    "WMMR": "bivallate.weighting.rules",
}


__getattr__, __dir__ = lazy_attributes(__name__, _PLACES)
