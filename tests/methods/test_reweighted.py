"""MART, GAIRAT, WMMR, MAIL: references, invariants of their rules, traps of the public codes."""

from __future__ import annotations

import math

import pytest
import torch
from tests.methods.glue import CLASSES, EPS, Net, agree, asked, minibatches
from tests.reference import reweighted as reference
from tests.reference import trades_mart
from tests.reference.plainsgd import box, clip, cross_entropy, sgd, still
from torch import Tensor

from bivallate import Linf, UserError, methods
from bivallate.lower.objective import MarginWeighted
from bivallate.lower.objective import cross_entropy as objective
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.methods.reweighted import RECIPE
from bivallate.roles import parts_within
from bivallate.schedule import Linear
from bivallate.types import Batch, Clock, Evidence, Facts
from bivallate.upper.loss import Adversarial, Mart
from bivallate.weighting.base import After
from bivallate.weighting.dro import KLDRO
from bivallate.weighting.rules import GAIRAT, MAIL, WMMR

THREAT = Linf(EPS)
STEP = RECIPE * EPS


def evidence(
    logits: Tensor,
    y: Tensor,
    *,
    kappa: Tensor | None = None,
    clean: Tensor | None = None,
    clock: Clock | None = None,
) -> Evidence:
    """Evidence about given logits."""
    loss = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    rows = torch.arange(len(y))
    steps = kappa if kappa is not None else torch.zeros_like(y)
    at = clean if clean is not None else logits
    return Evidence(
        loss.detach(), logits.detach(), y, rows, steps, clock or Clock(), clean=lambda: at, attached=logits
    )


def some(n: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, CLASSES, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, CLASSES, (n,), generator=generator)


# ---------------------------------------------------------------- references


@pytest.mark.parametrize("beta", [5.0, 6.0, 0.0])
def test_mart(beta) -> None:
    agree(methods.mart(THREAT, beta=beta), trades_mart.mart, alpha=STEP, beta=beta)


@pytest.mark.parametrize("steps", [10, 5])
@pytest.mark.parametrize("shift", [-1.0, 0.0, math.inf])
def test_gairat(steps, shift) -> None:
    method = methods.gairat(THREAT, steps=steps, shift=shift, burn_in=0.0)
    agree(method, reference.gairat, alpha=STEP, steps=steps, shift=shift)


def gair_fat(model, batches, draw, *, eps, lr, alpha, tau, steps=10, shift=0.0) -> None:
    """GAIR-FAT written out: an example stops where it is wrong with its tau used up; kappa counts the correct
    iterates before that.
    """
    params, buffers, ended = list(model.parameters()), [], []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        delta = clip(eps * (2 * draw("start:uniform", t, x, index) - 1), lo, up)
        kappa, left = torch.zeros(len(y)), torch.full((len(y),), tau[t])
        active = torch.ones(len(y), dtype=torch.bool)
        with still(model, "eval"):
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                logits = model(x + delta)
                (grad,) = torch.autograd.grad(cross_entropy(logits, y).sum(), delta)
                right = logits.argmax(1) == y
                active = active & (right | (left > 0))
                left = left - (active & ~right).long()
                kappa = kappa + (active & right)
                moved = clip(delta.detach() + alpha * grad.sign(), lo, up)
                delta = torch.where(active[:, None, None, None], moved, delta.detach())
        ended += active.tolist()
        w = reference.gairat_omega(kappa.double(), steps, shift)
        model.train()
        loss = (w / w.mean() * cross_entropy(model(x + delta), y)).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, lr, 0.9, 5e-4)
    assert 1 < sum(ended) < len(ended) - 1, "some examples stop and some go all the way"


def test_gair_fat() -> None:
    method = methods.gair_fat(THREAT, burn_in=0.0)
    agree(method, gair_fat, epoch=[0, 2, 5], epochs=6, alpha=STEP, tau=[0, 3, 6])


def test_gairat_burns_in() -> None:
    method = methods.gairat(THREAT, burn_in=0.5)
    agree(method, reference.gairat, epoch=[0, 2, 3], epochs=4, alpha=STEP, shift=[math.inf, -1.0, -1.0])


def test_gairat_schedules() -> None:
    piecewise = methods.gairat(THREAT, schedule="piecewise", burn_in=0.5)
    epochs, shifts = [59, 60, 95], [math.inf, -1.0, -2.0]
    agree(piecewise, reference.gairat, epoch=epochs, epochs=120, alpha=STEP, shift=shifts)
    linear = methods.gairat(THREAT, schedule="linear", shift_max=4.0, burn_in=0.0)
    agree(linear, reference.gairat, epoch=[0, 5, 9], epochs=10, alpha=STEP, shift=[4.0, 1.5, -0.5])
    with pytest.raises(UserError, match="shift_max"):
        methods.gairat(THREAT, schedule="linear")
    with pytest.raises(UserError, match="finite ends"):
        GAIRAT(shift=Linear(start=math.inf, end=-1.0))


@pytest.mark.parametrize("base", ["at", "trades"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_wmmr(base, detach, weighted) -> None:
    method = methods.wmmr(THREAT, base=base, detach=detach, weighted_attack=weighted)
    alpha = EPS / 4 if base == "at" else STEP
    agree(method, reference.wmmr, host=base, alpha=alpha, detach_weights=detach, weighted_attack=weighted)


@pytest.mark.parametrize("host", ["at", "trades", "mart"])
@pytest.mark.parametrize("times_three", [False, True])
def test_mail(host, times_three) -> None:
    make = {"at": methods.mail_at, "trades": methods.mail_trades, "mart": methods.mail_mart}[host]
    method = make(THREAT, times_three=times_three, burn_in=0.0)
    agree(method, reference.mail, host=host, alpha=STEP, times_three=times_three)


def test_mail_burns_in() -> None:
    method = methods.mail_at(THREAT)
    agree(method, reference.mail, epoch=[0, 74, 75], epochs=120, alpha=STEP, burn_in=[True, True, False])


def test_mail_of_the_bilaw_paper() -> None:
    method = methods.mail_at(THREAT, slope=5.0, bias=0.05, burn_in=0.0)
    agree(method, reference.mail, alpha=STEP, slope=5.0, bias=0.05)


# ---------------------------------------------------------------- GAIRAT


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(-1.0, (0.999665, 0.119203, 6.144e-6)), (0.0, (0.999955, 0.5, 4.540e-5))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gairat_constants(shift, expected, dtype) -> None:
    kappa = torch.tensor([0, 5, 10])
    logits = torch.zeros(3, 2, dtype=dtype)
    w = GAIRAT(10, shift)(evidence(logits, torch.zeros(3, dtype=torch.long), kappa=kappa))
    omega = torch.tensor(expected, dtype=dtype)
    torch.testing.assert_close(w, omega / omega.mean(), rtol=2e-4, atol=0)


def test_gairat_in_float32_keeps_small_weights() -> None:
    kappa = torch.tensor([10, 10, 9])
    y = torch.zeros(3, dtype=torch.long)
    single = GAIRAT(10, -4.0)(evidence(torch.zeros(3, 2), y, kappa=kappa))
    double = GAIRAT(10, -4.0)(evidence(torch.zeros(3, 2, dtype=torch.float64), y, kappa=kappa))
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)
    naive = (1 + torch.tanh(torch.tensor(-9.0))) / 2
    true = torch.sigmoid(torch.tensor(-18.0, dtype=torch.float64))
    assert not torch.isclose(naive.double(), true, rtol=0.1, atol=0), "the trap that is being avoided"


@pytest.mark.parametrize("form", ["tanh", "sigmoid", "discrete"])
@pytest.mark.parametrize("steps", [10, 7])
def test_gairat_decreases_and_has_mean_one(form, steps) -> None:
    kappa = torch.arange(steps + 1)
    y = torch.zeros(steps + 1, dtype=torch.long)
    w = GAIRAT(steps, -1.0, form)(evidence(torch.zeros(steps + 1, 2, dtype=torch.float64), y, kappa=kappa))
    assert (w[1:] < w[:-1]).all()
    assert abs(w.mean().item() - 1) < 1e-12
    for k in (0, steps // 2, steps):
        same = GAIRAT(steps, -1.0, form)(
            evidence(torch.zeros(4, 2, dtype=torch.float64), y[:4], kappa=torch.full((4,), k))
        )
        torch.testing.assert_close(same, torch.ones(4, dtype=torch.float64))


def test_gairat_halves_odd_steps_as_real_numbers() -> None:
    y = torch.zeros(2, dtype=torch.long)
    logits = torch.zeros(2, 2, dtype=torch.float64)
    w = GAIRAT(7, 0.0)(evidence(logits, y, kappa=torch.tensor([3, 4])))
    omega = torch.sigmoid(2 * 5 * (1 - 2 * torch.tensor([3.0, 4.0], dtype=torch.float64) / 7))
    torch.testing.assert_close(w, 2 * omega / omega.sum())


def test_gairat_needs_the_solver_to_take_its_steps() -> None:
    with pytest.raises(UserError, match="out of 10, but the solver PGD takes 20 steps"):
        methods.gairat(THREAT).but(solver__steps=20)
    assert methods.gairat(THREAT, steps=20).solver.steps == 20


@pytest.mark.parametrize("make", [methods.gairat, methods.gair_fat])
def test_gairat_counts_finer_steps(make) -> None:
    finer = make(THREAT, steps=2).stepped(0.5, 2.0)
    (rule,) = [p for p in parts_within(finer.weighting) if isinstance(p, GAIRAT)]
    assert (finer.solver.steps, rule.steps) == (4, 4)


def test_kappa_counts_every_correct_iterate() -> None:
    """Correct, wrong, correct again, wrong: kappa is 2, not the 1 of a first failure."""
    script = [[0, 1], [1, 1], [0, 0], [1, 1]]
    calls = iter(script)

    def model(x: Tensor) -> Tensor:
        predicted = torch.tensor(next(calls))
        return torch.nn.functional.one_hot(predicted, 2).to(x) + 0 * x.flatten(1).sum(1, keepdim=True)

    batch = Batch(torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1]), torch.arange(2))
    problem = LowerProblem(model, batch, objective, THREAT)
    solution = PGD(4, EPS / 4).solve(problem)
    assert solution.kappa.tolist() == [2, 3]


# ---------------------------------------------------------------- margins


def test_mail_weighs_small_margins_more() -> None:
    logits, y = some()
    e = evidence(logits, y)
    w = MAIL()(e)
    order = e.margin.argsort()
    assert (w[order][1:] <= w[order][:-1]).all()
    assert abs(w.mean().item() - 1) < 1e-12
    assert not w.requires_grad
    assert (MAIL(times_three=True)(e) <= 3).all()


def test_margin_of_two_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    e = evidence(logits, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(e.margin, 2 * logits.softmax(1)[:, 0] - 1)


def test_mail_margins() -> None:
    adversarial, y = some()
    clean, _ = some(seed=1)
    e = evidence(adversarial, y, clean=clean)
    torch.testing.assert_close(MAIL(margin="natural")(e), MAIL()(evidence(clean, y)))
    p, q = clean.softmax(1), adversarial.softmax(1)
    n = torch.arange(len(y))
    omega = torch.sigmoid(10 * (-0.5 - (q[n, y] - p[n, y])))
    torch.testing.assert_close(MAIL(margin="difference")(e), omega / omega.mean())


def test_wmmr_weights() -> None:
    logits, y = some()
    e = evidence(logits.requires_grad_(), y)
    w = WMMR(2.0)(e)
    assert w.requires_grad
    assert not WMMR(2.0, differentiable=False)(e).requires_grad
    torch.testing.assert_close(w.detach(), torch.exp(-2 * e.margin))
    assert ((w >= math.exp(-2)) & (w <= math.exp(2))).all()
    assert abs(WMMR(2.0, normalised=True)(e).mean().item() - 1) < 1e-12
    tie = evidence(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]))
    assert WMMR(2.0)(tie).item() == 1.0


def test_a_constant_weight_does_not_change_a_sign_step() -> None:
    """The reason why `detach` matters in the attack only through the weight's own gradient."""
    (x, y, index), net = minibatches()[0], Net().eval()
    grads = []
    for climbed in (objective, MarginWeighted(2.0, detach=True), MarginWeighted(2.0)):
        problem = LowerProblem(net, Batch(x, y, index), climbed, THREAT)
        grads.append(problem.logits_and_gradient(torch.zeros_like(x))[1])
    assert torch.equal(grads[0].sign(), grads[1].sign())
    assert not torch.allclose(grads[1], grads[2])


# ---------------------------------------------------------------- burn-in, MART, bad values


def test_after_holds_a_memory_still_and_saves_it() -> None:
    rule = After(KLDRO(temperature=1.0), burn_in=0.5).bind(Facts(10, (1, 6, 6), CLASSES))
    logits, y = some()
    before = {k: v.clone() for k, v in rule.state_dict().items()}
    early, late = Clock(epoch=1, epochs=4), Clock(epoch=2, epochs=4)
    rule.update(evidence(logits, y, clock=early))
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in rule.state_dict().items())
    assert torch.equal(rule(evidence(logits, y, clock=early)), torch.ones(8, dtype=torch.float64))
    assert rule.log() == {}, "a temperature that is not known yet cannot be recorded"
    rule.update(evidence(logits, y, clock=late))
    assert rule.log() == {"temperature": 1.0}
    weights = rule(evidence(logits, y, clock=late))
    assert weights.std() > 0.1
    other = After(KLDRO(temperature=1.0), burn_in=0.5).bind(Facts(10, (1, 6, 6), CLASSES))
    other.load_state_dict(rule.state_dict())
    assert torch.equal(other(evidence(logits, y, clock=late)), weights)


def test_a_certain_example_adds_next_to_no_kl_to_mart() -> None:
    y = torch.tensor([0, 1])
    clean = torch.tensor([[60.0, 0.0, 0.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    adversarial = torch.tensor([[0.0, 5.0, 0.0]] * 2, dtype=torch.float64)
    answers = iter((clean, adversarial))
    terms = Mart(beta=1.0)(asked(lambda x: next(answers), clean, y), adversarial)
    divergence = (clean.log_softmax(1).exp() * (clean.log_softmax(1) - adversarial.log_softmax(1))).sum(1)
    assert terms.anchor[0] <= 1.01e-7 * divergence[0]
    assert terms.anchor[1] > 0.1 * divergence[1]


def test_the_doubt_of_mart_carries_gradient() -> None:
    x, y, _ = minibatches()[0]
    net = Net()
    anchor = Mart()(asked(net, x, y), x).anchor.sum()
    assert anchor.item() == pytest.approx(0, abs=1e-9)
    clean = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    fixed = torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64)
    answers = iter((clean, fixed))
    terms = Mart(beta=1.0)(asked(lambda z: next(answers), clean, torch.tensor([0])), fixed)
    (grad,) = torch.autograd.grad(terms.anchor.sum(), clean)
    p = clean.detach().softmax(1)
    log_ratio = clean.detach().log_softmax(1) - (fixed.softmax(1) + 1e-12).log()
    kl = (p * log_ratio).sum(1, keepdim=True)
    own = (1 - p[:, :1] + 1e-7) * p * (log_ratio - kl)
    factor = kl * p[:, :1] * (p - torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(grad, own + factor)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAIL(margin="odd"), "unknown margin"),  # pyright: ignore
        (lambda: MAIL(slope=math.inf), "finite slope"),
        (lambda: WMMR(alpha=-1.0), "at least 0"),
        (lambda: GAIRAT(form="cosh"), "unknown form"),  # pyright: ignore
        (lambda: GAIRAT(steps=0), "at least 1"),
        (lambda: After(MAIL(), burn_in=60), r"\[0, 1\]"),
        (lambda: methods.wmmr(THREAT, base="mart"), "unknown base"),  # pyright: ignore
    ],
)
def test_bad_values_are_refused(make, message) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_smoothing_moves_the_cross_entropy_of_mart_alone() -> None:
    x, y, _ = minibatches()[0]
    net = Net().eval()
    sharp, smooth = (Mart(smoothing=s)(asked(net, x, y), x) for s in (0.0, 0.2))
    own, other = (Adversarial(s)(asked(net, x, y), x) for s in (0.0, 0.2))
    torch.testing.assert_close(smooth.robust - sharp.robust, other.robust - own.robust)
    assert torch.equal(sharp.anchor, smooth.anchor)
