"""bivallate: adversarial training as bilevel optimisation, and an honest measure of what it achieves."""

from bivallate.coupling.barrier import Barrier, Implicit, Mask
from bivallate.coupling.implicit import Detached, Leaf
from bivallate.coupling.last_step import LastStep
from bivallate.errors import UserError
from bivallate.lower.pgd import PGD
from bivallate.lower.threat import L2, Linf
from bivallate.method import Method, register
from bivallate.parts import part
from bivallate.step import train_step
from bivallate.types import Batch, Clock
from bivallate.upper.loss import Adversarial, Trades
from bivallate.weighting.base import Equal
from bivallate.weighting.dro import KLDRO

from bivallate import methods  # isort: skip

__version__ = "0.1.0"
__all__ = [
    "KLDRO",
    "L2",
    "PGD",
    "Adversarial",
    "Barrier",
    "Batch",
    "Clock",
    "Detached",
    "Equal",
    "Implicit",
    "LastStep",
    "Leaf",
    "Linf",
    "Mask",
    "Method",
    "Trades",
    "UserError",
    "methods",
    "part",
    "register",
    "train_step",
]
