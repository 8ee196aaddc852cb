"""GAT, NuAT, ELLE, AAER, FGSM-PGI, LIET, SORA: references, invariants, limits, memories."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.methods.glue import EPS, Net, agree, asked, gap, minibatches, train
from tests.reference import smooth_steps as reference
from torch import Tensor, nn

import bivallate as bv
from bivallate import L2, Linf, UserError, methods
from bivallate.data.augment import Augment
from bivallate.evidence import evidence_of
from bivallate.gradcheck import check_gradient
from bivallate.lower.distances import DISTANCES, nuclear
from bivallate.lower.modes import attacking
from bivallate.lower.problem import LowerProblem
from bivallate.methods.entries import create
from bivallate.noise import Noise
from bivallate.record import NonFinite
from bivallate.types import Batch, Clock, Facts
from bivallate.upper.loss import Trades, adversarial
from bivallate.upper.smoothness_losses import Abnormal, Consistent, LocallyLinear, elle_coefficient

THREAT = Linf(EPS)
TWICE = minibatches() * 2  # the same rows in two epochs
EPOCHS = [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("threat", [Linf(EPS), L2(0.5), bv.L1(2.0)])
def test_an_image_without_a_gradient_is_remembered_as_it_is(threat) -> None:
    x, y, index = (t.float() if t.is_floating_point() else t for t in minibatches()[0])
    bound = methods.fgsm_pgi(threat).bind(Facts(int(index.max()) + 1, tuple(x.shape[1:]), 3))
    net = Net().float().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    hidden = nn.Sequential(Hiding(), net)
    for epoch in range(3):
        bv.train_step(hidden, optimizer, bound, Batch(x, y, index), Clock(epoch, 3))
    assert bound.solver.momentum.isfinite().all()
    assert bound.solver.bank.isfinite().all()


class Hiding(nn.Module):
    """Hides the first image."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(len(x)) > 0).view(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ["nuat", "yopo"])
def test_a_divergence_is_called_so(name) -> None:
    threat = L2(0.5) if name == "yopo" else THREAT
    with pytest.raises(NonFinite):
        bv.train("tiny-cnn", bv.data.load("digits"), create(name, threat), epochs=3, lr=1e6, threads=1)


@pytest.mark.parametrize("eps", [EPS, 0.15])
def test_gat_and_nuat(eps: float) -> None:
    threat = Linf(eps)
    agree(methods.gat(threat), reference.guided, weights=[10.0] * 3)
    grown = methods.gat(threat, weight=3.0, last=4.0)
    agree(grown, reference.guided, epoch=[0, 85, 86], epochs=100, weights=[3.0, 3.0, 12.0])
    nuat = {"epoch": [9, 45, 95], "epochs": 100, "kind": "nuclear"}
    agree(methods.nuat(threat), reference.guided, weights=[0.45, 2.25, 4.5], **nuat)


@pytest.mark.parametrize("eps", [EPS, 0.15])
def test_elle(eps: float) -> None:
    agree(methods.elle(Linf(eps)), reference.elle, coefficient=1000.0 if eps == EPS else 10.0, lr=0.01)
    agree(methods.elle(Linf(eps), coefficient=3.0), reference.elle, coefficient=3.0)


class Rough(Net):
    """A network that bends within a step, so that some attacks lower the loss."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.3 * torch.sin(20 * x))


@pytest.mark.parametrize("constant", [True, False])
def test_aaer(constant: bool) -> None:
    seen: list[int] = []

    def told(*args, **hyper) -> None:
        seen.extend(reference.aaer(*args, **hyper))

    threat = Linf(0.1)
    rough = {"model": Rough(), "batches": minibatches((8, 8, 8, 5)), "lr": 0.02, "constant": constant}
    method = methods.aaer(threat, variation_weight=2.0).but(loss__constant=constant)
    agree(method, told, lambda3=2.0, **rough)
    inside = {"noise": 1.0, "alpha": 0.125, "ball": True, "lambda2": 2.5, "lambda3": 1.5}
    own = methods.aaer(threat, noise=1.0, step_size=1.25, loss_weight=2.5, variation_weight=1.5)
    agree(own.but(loss__constant=constant), told, **inside, **rough)
    assert any(0 < n < 8 for n in seen), "some examples are abnormal and some are not"


def test_fgsm_pgi() -> None:
    def told(*args, **hyper) -> None:
        reference.fgsm_pgi(*args, **{"epochs": EPOCHS, **hyper})

    settings = {"batches": TWICE, "epoch": EPOCHS, "epochs": 2}
    agree(methods.fgsm_pgi(THREAT), told, **settings)
    agree(methods.fgsm_pgi(THREAT, reset=1, weight=2.0, decay=0.9), told, **settings, reset=1, weight=2.0,
          decay=0.9)  # fmt: skip


def test_liet() -> None:
    settings = {"batches": TWICE, "epoch": EPOCHS, "epochs": 2}

    def told(*args, **hyper) -> None:
        reference.liet(*args, **{"weights": [50.0] * 3 + [100.0] * 3, **hyper})

    agree(methods.liet(THREAT), told, **settings)
    agree(methods.liet(THREAT, every=2, least=0.0, most=1.0), told, **settings, every=2, least=0.0, most=1.0)


@pytest.mark.parametrize("theta", [0.05, 0.9])
def test_sora(theta: float) -> None:
    lengths: list[float] = []

    def told(*args, **hyper) -> None:
        lengths.extend(reference.sora(*args, **hyper))

    settings = {"model": Rough(), "batches": minibatches((6, 6, 6, 3)), "lr": 0.02}
    agree(methods.sora(Linf(0.1), memory=theta), told, theta=theta, **settings)
    assert min(lengths) < 0.9 * max(lengths), "steps change"


# ---------------------------------------------------------------- distances


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_zero_at_equality_alone_and_differentiable(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    distance = DISTANCES[name]
    assert distance(a, b).shape == (5,)
    assert (distance(a, b) > 0).all()
    assert distance(a, a).abs().max() < 1e-14
    assert torch.allclose(distance(a, b), distance(b, a))
    torch.autograd.gradcheck(lambda q: distance(a, q).sum(), (b.clone().requires_grad_(),))


def test_the_nuclear_norm_is_of_the_whole_minibatch() -> None:
    a = torch.zeros(2, 2, dtype=torch.float64)
    one_way = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    two_ways = torch.eye(2, dtype=torch.float64)
    assert float(nuclear(a, one_way).sum()) == pytest.approx(math.sqrt(2))
    assert float(nuclear(a, two_ways).sum()) == pytest.approx(2)
    large = torch.tensor([[1e3, -1e3, 0.0]])
    assert float(DISTANCES["jensen-shannon"](large, -large)) == pytest.approx(math.log(2))


# ---------------------------------------------------------------- limits between methods


def test_without_its_term_each_is_its_host() -> None:
    pairs = [
        (methods.elle(THREAT, coefficient=0.0), methods.fgsm_at(THREAT)),
        (methods.aaer(THREAT, loss_weight=0.0, variation_weight=0.0), methods.n_fgsm(THREAT)),
        (methods.aaer(THREAT, variation_weight=0.0), methods.n_fgsm(THREAT)),  # the term is constant
        (methods.gat(THREAT, weight=0.0), methods.plain(THREAT)),
    ]
    for own, host in pairs:
        ends = [train(Net(norm=False), m, minibatches()).model for m in (own, host)]
        assert gap(*ends) < 1e-12, own.name


def test_pgi_that_forgets_at_once_is_fgsm_from_a_corner() -> None:
    """And a prior that is remembered is something else."""
    own = methods.fgsm_pgi(THREAT, weight=0.0, smoothing=0.0, reset=1)
    host = methods.fast_at(THREAT, step_size=1.0).but(solver__start=bv.corner)
    settings = {"epoch": EPOCHS, "epochs": 2}
    ends = [train(Net(), m, TWICE, **settings).model for m in (own, host)]
    assert gap(*ends) < 1e-12
    assert gap(ends[0], train(Net(), own.but(solver__reset=40), TWICE, **settings).model) > 1e-6


def test_without_regularisation_a_term_stands_back() -> None:
    x, y, index = minibatches()[0]
    for loss in (LocallyLinear(adversarial, 5.0), Abnormal(adversarial), Consistent(adversarial)):
        problem = asked(Net(), x, y, index).unregularised()
        problem.start = bv.types.AttackStart(torch.zeros_like(x), torch.zeros(len(y), 3, dtype=x.dtype))
        assert loss(problem, x).anchor.abs().max() == 0


# ---------------------------------------------------------------- parts


def test_the_kept_pass_is_gone_through_and_costs_no_forward() -> None:
    x, y, index = minibatches()[0]
    grads, passes = [], []
    for keep in (True, False):
        model = Net().train()
        problem = asked(model, x, y, index)
        start = torch.full_like(x, 0.01)
        with attacking(model, "train"):
            if keep:
                problem.start, _ = problem.first_gradient(start)
            else:
                problem.start = bv.types.AttackStart(start, problem.logits_and_gradient(start)[0])
        terms = Consistent(adversarial, 3.0)(problem, x)
        terms.anchor.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        passes.append((problem.forward.passes.forward, problem.forward.passes.backward))
    assert torch.allclose(*grads, atol=1e-12)
    assert passes == [(2 * len(y), 3 * len(y)), (3 * len(y), 3 * len(y))]


def test_a_loss_at_other_parameters_makes_the_pass_anew() -> None:
    """AWP asks there: the kept graph is of the network's own."""
    method = methods.fgsm_pgi(THREAT)
    perturbed = method.but(loss=bv.AWP(method.loss, gamma=0.02))
    one, two = (train(Net(), m, minibatches()) for m in (method, perturbed))
    assert gap(one.model, two.model) > 1e-6
    assert all(math.isfinite(r.loss) for r in two.records)


def test_elle_is_silent_where_the_loss_is_linear() -> None:
    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 1e-3 * x.flatten(1).sum(1)
            return torch.stack([score, -score], 1)

    x, y, index = minibatches()[0]
    straight = LocallyLinear(adversarial, 1.0)(asked(Linear(), x, y % 2, index), x)
    bent = LocallyLinear(adversarial, 1.0)(asked(Net(), x, y, index, 0.3), x)
    assert straight.anchor.max() < 1e-12 < 1e-6 < bent.anchor.max()
    assert elle_coefficient(8 / 255) == 1000


def test_stored_perturbations_follow_crops_and_flips() -> None:
    """What an image's visit leaves in the bank is found again through another view."""
    augment, (x, y, index) = Augment(pad=1, flip=True), minibatches((6,))[0]
    facts = Facts(6, (1, 6, 6), 3, dtype=torch.float64, padding=1)
    method = methods.fgsm_pgi(THREAT)
    bound = method.bind(facts)
    canvas = augment.canvas(x)
    for epoch in range(3):
        view = augment.view(Noise(0, index, epoch), (1, 6, 6))
        batch, clock = Batch(view.apply(canvas), y, index, view), Clock(epoch, 3)
        model = Net().train()
        problem = LowerProblem(model, batch, method.objective, THREAT, clock)
        before = bound.state_dict()["solver.bank"].clone()
        with attacking(model, "train"):
            solution = bound.solver.solve(problem)
        if epoch:
            held = problem.project(view.apply(before[index]))
            assert torch.equal(solution.before_last, held)
        terms = method.loss(problem.with_solution(solution), batch.x + solution.delta)
        bound.solver.feedback(problem, solution.delta, evidence_of(problem, terms, solution))
        window = view.apply(bound.state_dict()["solver.bank"][index])
        assert (window.abs() <= EPS + 1e-15).all()
        assert (window.abs() > 0.99 * EPS).double().mean() > 0.3
    with pytest.raises(UserError, match="rotation"):
        method.bind(Facts(6, (1, 6, 6), 3, rotates=True))


def test_sora_shortens_its_steps_where_gradients_turn() -> None:
    class Straight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.linspace(-1, 1, 36, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            score = 1e-3 * x.flatten(1) @ self.w
            return torch.stack([score, -score, 0 * score], 1)

    method = methods.sora(Linf(0.1), memory=0.5)
    straight, bent = (train(m, method, minibatches() * 3) for m in (Straight(), Rough()))
    assert straight.bound.state_dict()["solver.agreement"] > 0.99
    assert bent.bound.state_dict()["solver.agreement"] < 0.95


def test_sora_learns_nothing_from_images_without_a_gradient() -> None:
    """Of a network without a gradient at all, and of one whose gradients are tiny everywhere."""

    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.linspace(-1, 1, 36, dtype=torch.float64))
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            score = self.scale * x.flatten(1) @ self.w
            return torch.stack([score, -score, 0 * score], 1)

    method = methods.sora(Linf(0.1), memory=0.5)
    nothing, tiny = (train(Scaled(s), method, minibatches() * 3) for s in (0.0, 1e-15))
    assert nothing.bound.state_dict()["solver.agreement"] == pytest.approx(0.99)
    assert tiny.bound.state_dict()["solver.agreement"] > 0.99


REFUSED = [
    (lambda: methods.elle(L2(0.5)), "give a coefficient"),
    (lambda: methods.elle(THREAT, coefficient=-1.0), "at least 0"),
    (lambda: methods.plain(THREAT).but(loss=Abnormal(adversarial)), "where the attack began"),
    (lambda: methods.plain(THREAT).but(loss=Consistent(Trades())), "where the attack began"),
    (lambda: methods.sora(THREAT).but(coupling=bv.Detached()), "Leaf"),
    (lambda: Consistent(adversarial, distance="cosine"), "distance"),
    (lambda: methods.liet(THREAT, every=0), "every"),
    (lambda: methods.fgsm_pgi(THREAT, reset=0), "reset"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_cannot_be_is_refused(make, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize("name", ["gat", "elle", "aaer"])
def test_the_stated_gradient_agrees_with_differences(name: str) -> None:
    x, y, _ = minibatches()[0]
    report = check_gradient(Net(norm=False), create(name, Linf(0.1)), (x, y), directions=2)
    assert report.ok, str(report)


def test_copies_share_nothing() -> None:
    for name in ("fgsm-pgi", "liet", "sora"):
        method = create(name, THREAT)
        one, two = (train(copy.deepcopy(Net()), method, minibatches()) for _ in range(2))
        assert gap(one.model, two.model) == 0
