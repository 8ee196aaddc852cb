"""The basic methods against their references: three momentum updates, the last minibatch short."""

from __future__ import annotations

import copy
import math

import pytest
from tests.methods.glue import EPS, Net, agree, gap, minibatches, train
from tests.reference import done, fast_bat, plain_at, single_step, trades_mart

from bivallate import KLDRO, Barrier, LastStep, Linf, UserError, methods
from bivallate.lower.start import zero
from bivallate.method import Method
from bivallate.methods.entries import create

THREAT = Linf(EPS)


def test_plain() -> None:
    agree(methods.plain(THREAT), plain_at.plain)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(("steps", "size"), [(2, 0.5), (7, 0.25), (10, 0.25)])
def test_at(mode, steps, size) -> None:
    method = methods.at(THREAT, steps=steps, step_size=size, attack_mode=mode)
    agree(method, plain_at.pgd_at, steps=steps, alpha=size * EPS, attack_mode=mode)


def test_fast_at() -> None:
    agree(methods.fast_at(THREAT), single_step.fast_at)


def test_fgsm_at() -> None:
    method = methods.fast_at(THREAT, step_size=1.0).but(solver__start=zero)
    agree(method, single_step.fgsm_at)


def test_trades() -> None:
    agree(methods.trades(THREAT), trades_mart.trades, alpha=EPS / 4)
    agree(methods.trades(THREAT, beta=1.0, steps=3), trades_mart.trades, alpha=EPS / 4, beta=1.0, steps=3)


@pytest.mark.parametrize("scheme", ["ns-pgd", "uniform", "corner", "pgd"])
@pytest.mark.parametrize("hessian", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("a", [None, 0.1])
def test_fast_bat(scheme, hessian, mode, a) -> None:
    method = methods.fast_bat(THREAT, step_size=a, linearisation=scheme, curvature_steps=5 if hessian else 0)
    method = method.but(attack_mode=mode)
    left = agree(method, fast_bat.fast_bat, scheme=scheme, hessian=hessian, attack_mode=mode, a=a)
    free = [record.logged["free"] for record in left.records]
    assert all(0.1 < f < 0.9 for f in free) or a is None, free


@pytest.mark.parametrize("hessian", [False, True])
def test_fast_bat_as_eq_12_is_printed(hessian) -> None:
    method = methods.fast_bat(THREAT, cross_at="delta", curvature_steps=5 if hessian else 0)
    agree(method, fast_bat.fast_bat, cross_at="delta", hessian=hessian)


def test_fast_bat_large_eps_has_the_smaller_step() -> None:
    method = methods.fast_bat(Linf(16 / 255))
    assert isinstance(method.coupling, LastStep)
    assert method.coupling.step_size == pytest.approx(2500 / 255)
    agree(method, fast_bat.fast_bat)
    agree(methods.fast_bat(Linf(16 / 255), step_size=2000 / 255), fast_bat.fast_bat, a=2000 / 255)


@pytest.mark.parametrize("solver", ["gd", "pgd", "adam"])
@pytest.mark.parametrize("coupling", ["barrier", "mask", "none"])
@pytest.mark.parametrize("norm", [True, False])
def test_done(solver, coupling, norm) -> None:
    make = {"gd": methods.done_gd, "pgd": methods.done_pgd, "adam": methods.done_adam}[solver]
    alpha = None if solver == "gd" else EPS / 4
    agree(
        make(THREAT, coupling=coupling),
        done.done,
        model=Net(norm),
        solver=solver,
        implicit=coupling,
        alpha=alpha,
    )


@pytest.mark.parametrize("solver", ["gd", "pgd", "adam"])
@pytest.mark.parametrize("c", [None, 1e-4])
@pytest.mark.parametrize("norm", [True, False])
def test_done_with_inner_steps_on_the_barrier(solver, c, norm) -> None:
    """Algorithm 1's inner steps descend h, which contains the barrier."""
    make = {"gd": methods.done_gd, "pgd": methods.done_pgd, "adam": methods.done_adam}[solver]
    alpha = None if solver == "gd" else EPS / 4
    given = {"c": c, "inner": "barrier"}
    left = agree(make(THREAT, **given), done.done, model=Net(norm), solver=solver, alpha=alpha, **given)
    assert all(record.logged["free"] == 1 for record in left.records), "no coordinate ends on a bound"
    assert min(record.logged["sensitivity"] for record in left.records) > 0


@pytest.mark.parametrize("name", ["done-gd", "done-pgd", "done-adam", "done-fast"])
def test_done_has_its_strength_and_temperature(name) -> None:
    method = create(name, THREAT, c=1e-3, temperature=1.5)
    assert (method.coupling, method.weighting.temperature) == (Barrier(1e-3), 1.5)
    assert create(name, THREAT).weighting == KLDRO(), "the paper's, where nothing is said"
    assert create(name, THREAT).coupling == Barrier()
    for c, kind in ((0.0, "positive"), (-1.0, "positive"), (math.nan, "finite")):
        with pytest.raises(UserError, match=f"c must be a {kind} number"):
            create(name, THREAT, c=c)
    if name == "done-gd":
        agree(method, done.done, solver="gd", c=1e-3, r=1.5)


@pytest.mark.parametrize(("epoch", "r"), [([39, 40, 50], [10, 1, 0.1]), ([50, 50, 51], [0.1, 0.1, 0.1])])
@pytest.mark.parametrize(("rate", "guard"), [(0.9, 2.0), (0.5, math.inf), (1.0, 2.0)])
def test_done_over_the_temperatures(epoch, r, rate, guard) -> None:
    method = methods.done_pgd(THREAT, rate=rate, guard=guard)
    left = agree(
        method,
        done.done,
        epoch=epoch,
        epochs=60,
        alpha=EPS / 4,
        r=r,
        eta=rate,
        guard=None if guard == math.inf else guard,
    )
    assert [record.logged["temperature"] for record in left.records] == r


def test_done_with_the_hessian() -> None:
    alone = Net(norm=False)  # with batch statistics the system of one example contains the others
    method = methods.done_pgd(THREAT).but(coupling=Barrier(curvature_steps=5))
    agree(method, done.done, model=alone, alpha=EPS / 4, hessian="cg")
    dense = methods.done_pgd(THREAT).but(coupling=Barrier(curvature_steps=200, tolerance=1e-13))
    agree(dense, done.done, model=alone, alpha=EPS / 4, hessian="dense", tolerance=1e-9)


def test_done_fast() -> None:
    agree(methods.done_fast(THREAT), done.done_fast)


def test_done_fast_with_a_sign_step_to_warm_up() -> None:
    method = methods.done_fast(THREAT, step_size=0.01, warmup_sign=True)
    left = agree(method, done.done_fast, a_gd=0.01, warmup_sign=True)
    other = train(Net(), methods.done_fast(THREAT, step_size=0.01), minibatches())
    assert gap(left.model, other.model) > 1e-3
    assert left.records[0].passes == other.records[0].passes
    assert Method.from_dict(method.to_dict()) == method


def test_the_temperature_of_done_falls_late() -> None:
    temperature = KLDRO().temperature
    model = copy.deepcopy(Net())
    assert not isinstance(temperature, float)
    left = train(model, methods.done_pgd(THREAT, steps=1), minibatches(), epoch=[16, 17, 21], epochs=25)
    assert [record.logged["temperature"] for record in left.records] == [10, 1, 0.1]


def test_running_statistics_move_once_a_step() -> None:
    for method in (methods.at(THREAT), methods.fast_bat(THREAT), methods.done_pgd(THREAT)):
        left = train(Net(), method, minibatches())
        assert left.model.get_buffer("norm1.num_batches_tracked") == 3, method.name
    assert gap(Net(), Net()) == 0
