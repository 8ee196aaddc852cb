"""Every weighting with every loss and every stateless solver: one step, or a refusal that says what to do."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from typing import Any

import pytest
import torch
from tests.methods.glue import CLASSES, EPS, SHAPE, Net, gap, minibatches
from torch import nn

import bivallate as bv
from bivallate import KLDRO, PGD, Linf, Method, UserError
from bivallate.lower.direction import adam, raw
from bivallate.lower.interior import BarrierAscent, InteriorAscent
from bivallate.lower.objective import kl_to_clean
from bivallate.lower.pgd import Wider
from bivallate.lower.start import gaussian, uniform, zero
from bivallate.lower.stop import FOSCBelow, Misclassified
from bivallate.methods.entries import registry
from bivallate.part_kinds import KINDS
from bivallate.types import Batch, Clock, Facts
from bivallate.upper.awp import AWP
from bivallate.upper.class_losses import Reweighed
from bivallate.upper.loss import Adversarial, Mart, Trades
from bivallate.upper.regulariser import GradAlign
from bivallate.upper.smoothness_losses import Guided, LocallyLinear, NoisyLabels
from bivallate.weighting.base import After, Equal, Weighting
from bivallate.weighting.class_weights import ClassBandit, ClassDRO, ClassNoRegret
from bivallate.weighting.margin_net import Correlation, MarginNet
from bivallate.weighting.rules import GAIRAT, MAIL, WMMR, OwnLoss

THREAT = Linf(EPS)
FACTS = Facts(20, SHAPE, CLASSES, dtype=torch.float64)
ROWS, META = minibatches((3,))[0], minibatches((3,), seed=7)[0]

WEIGHTINGS: list[Weighting] = [
    Equal(),
    MAIL(),
    MAIL(margin="difference"),
    WMMR(),
    WMMR(differentiable=False, normalised=True),
    GAIRAT(1),
    After(MAIL(), burn_in=0.0),
    After(MarginNet((8,)), burn_in=0.0),
    KLDRO(),
    MarginNet((8,)),
    Correlation(),
    OwnLoss(),
    ClassDRO(),
    ClassNoRegret(),
    ClassBandit(),
]
LOSSES: list[Any] = [
    Adversarial(),
    Adversarial(0.1),
    Trades(),
    Mart(),
    AWP(Adversarial()),
    AWP(Trades()),
    GradAlign(Adversarial(), 0.2),
    AWP(GradAlign(Trades(), 0.2)),
]
# losses that are one host or one term more: a rule, a memory and a network that learns say enough of them
WRAPPED: list[Any] = [
    Reweighed(Trades()),
    Reweighed(Trades(), "anchor"),
    Guided(3.0),
    Guided(3.0, "nuclear"),
    NoisyLabels(),
    LocallyLinear(Adversarial(), 10.0),
]
FEW = [w for w in WEIGHTINGS if isinstance(w, KLDRO | MAIL | MarginNet)]
PAIRS = [*itertools.product(WEIGHTINGS, LOSSES), *itertools.product(FEW, WRAPPED)]
# these ask for what one solver tells, and are refused with all others
# (in test_fair, test_helper_labels, test_helper_network, test_decoupled)
OF_ONE_SOLVER = {"BoundaryGuided", "ClassScored", "ClassTrades", "HelperExamples", "ImprovedKL"}
# these ask for a solver that tells where it began (tests/methods/test_smooth_steps.py)
OF_SOME_SOLVERS = {"Abnormal", "Consistent"}
SOLVERS: list[Any] = [
    PGD(1, EPS / 2, uniform),
    PGD(1, EPS / 2, gaussian, adam),
    PGD(1, 1.0, zero, raw),
    PGD(1, EPS / 2, uniform, stop=Misclassified(0)),
    PGD(1, EPS / 2, uniform, stop=FOSCBelow(0.1)),
    Wider(PGD(1, EPS, uniform), 2.0),
    InteriorAscent(1, 1e-3),
    BarrierAscent(1, EPS / 4),
    BarrierAscent(1, 1.0, direction=raw),
]
# these attack as evaluations do: no training method is made of them
EVALUATION = {"APGD", "FAB", "Square"}


def kinds(folder: str) -> dict[str, type]:
    """The parts that a folder defines."""
    package = importlib.import_module(f"bivallate.{folder}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"bivallate.{folder}.{module.name}")
    return {n: c for n, c in KINDS.items() if c.__module__.startswith(f"bivallate.{folder}.")}


def solvers() -> dict[str, type]:
    """The solvers among the parts."""
    return {n: c for n, c in kinds("lower").items() if hasattr(c, "solve") and n not in EVALUATION}


def test_the_tables_are_complete() -> None:
    weightings = {n for n, c in kinds("weighting").items() if issubclass(c, Weighting)}
    assert {type(w).__name__ for w in WEIGHTINGS} == weightings - OF_ONE_SOLVER
    assert {type(loss).__name__ for loss in (*LOSSES, *WRAPPED)} == (
        set(kinds("upper")) - OF_ONE_SOLVER - OF_SOME_SOLVERS
    )
    stateless = {type(s).__name__ for s in SOLVERS}
    assert all(not isinstance(s.bind(FACTS), nn.Module) for s in SOLVERS)
    assert stateless <= set(solvers())


@pytest.mark.parametrize(("weighting", "loss"), PAIRS, ids=lambda part: str(part)[:50])
def test_runs_or_refuses(weighting, loss) -> None:
    ran, refused = [], []
    for k, solver in enumerate(SOLVERS):
        objective = kl_to_clean if isinstance(loss, Trades) and k < 2 else bv.methods.at(THREAT).objective
        try:
            method = Method(THREAT, solver, objective, weighting=weighting, loss=loss)
        except UserError as error:
            refused.append((type(solver).__name__, str(error)))
            continue
        assert Method.from_dict(method.to_dict()) == method
        net = Net().train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        batch = Batch(*ROWS, meta=Batch(*META))
        record = bv.train_step(net, optimizer, method.bind(FACTS), batch, Clock())
        assert gap(net, Net()) > 0
        assert all(torch.isfinite(v).all() for v in net.state_dict().values())
        assert all(p.requires_grad for p in net.parameters())
        assert net.training
        assert record.weight_mean > 0
        ran.append(type(solver).__name__)
    learns_under_awp = weighting.needs_meta and isinstance(loss, AWP)
    counts_steps = isinstance(weighting, GAIRAT)
    expected = SOLVERS if learns_under_awp else [s for s in SOLVERS if counts_steps and isinstance(s, Wider)]
    assert [name for name, _ in refused] == [type(s).__name__ for s in expected]
    remedy = "use a weighting" if learns_under_awp else "give both the same number"
    assert all(remedy in message for _, message in refused)
    assert len(ran) + len(refused) == len(SOLVERS)


def test_a_second_stream_and_a_memory_are_refused_together() -> None:
    """Every method of the catalogue whose solver remembers rows, under every weighting that learns."""
    remembering = []
    for name, entry in registry().items():
        method = entry.illustration(THREAT)
        if not isinstance(method.solver.bind(FACTS), nn.Module):
            continue
        remembering.append(name)
        for weighting in (MarginNet(), Correlation(), After(MarginNet())):
            with pytest.raises(UserError, match="remembers the training"):
                method.but(weighting=weighting)
    assert {"free-at", "yopo", "atta"} <= set(remembering)
