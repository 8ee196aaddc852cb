"""bivallate: adversarial training as bilevel optimisation, and an honest measure of what it achieves."""

from bivallate import data, methods, models
from bivallate.coupling.barrier import Barrier, Implicit, Mask
from bivallate.coupling.implicit import Detached, Leaf
from bivallate.coupling.last_step import LastStep
from bivallate.errors import UserError
from bivallate.evaluate import Score, attack, evaluate
from bivallate.lower.pgd import PGD
from bivallate.lower.threat import L2, Linf
from bivallate.method import Method, register
from bivallate.parts import part
from bivallate.run.api import Run, load, resume, train
from bivallate.run.optim import SGD, AdamW, Cosine, Flat, MultiStep, Triangle
from bivallate.step import train_step
from bivallate.types import Batch, Clock
from bivallate.upper.loss import Adversarial, Trades
from bivallate.weighting.base import Equal
from bivallate.weighting.dro import KLDRO

__version__ = "0.1.0"
__all__ = [
    "KLDRO",
    "L2",
    "PGD",
    "SGD",
    "AdamW",
    "Adversarial",
    "Barrier",
    "Batch",
    "Clock",
    "Cosine",
    "Detached",
    "Equal",
    "Flat",
    "Implicit",
    "LastStep",
    "Leaf",
    "Linf",
    "Mask",
    "Method",
    "MultiStep",
    "Run",
    "Score",
    "Trades",
    "Triangle",
    "UserError",
    "attack",
    "data",
    "evaluate",
    "load",
    "methods",
    "models",
    "part",
    "register",
    "resume",
    "train",
    "train_step",
]
