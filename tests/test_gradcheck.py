"""The user's own gradient check, and the gradient of one step that is not applied."""

from __future__ import annotations

import copy
import math
from typing import Literal

import pytest
import torch
from tests.coupling.differences import gradient
from tests.methods.glue import Net, minibatches
from torch import Tensor, nn

from bivallate import KLDRO, L2, PGD, Barrier, Equal, LastStep, Linf, Method, UserError, methods, models
from bivallate.gradcheck import check_gradient, upper_gradient
from bivallate.lower.interior import InteriorAscent
from bivallate.lower.start import uniform
from bivallate.methods.entries import create as method_named
from bivallate.methods.entries import registry
from bivallate.types import Batch

X, Y, INDEX = minibatches((6,))[0]
THREAT = Linf(8 / 255)


def state(model: nn.Module) -> list[Tensor]:
    return [v.clone() for v in model.state_dict().values()]


@pytest.mark.parametrize(
    "method",
    [
        methods.plain(THREAT),
        methods.at(THREAT, steps=2),
        methods.trades(THREAT, steps=2),
        methods.lbgat(THREAT, steps=2, alpha=2.0),
        methods.fast_bat(THREAT, step_size=0.05),
        methods.fast_bat(THREAT, step_size=0.05, curvature_steps=3),
        methods.done_pgd(THREAT, steps=2),
        methods.done_fast(THREAT, step_size=0.05),
    ],
    ids=lambda m: m.name,
)
def test_stated_gradients_agree(method) -> None:
    model = Net()
    before = state(model)
    report = check_gradient(model, method, (X, Y), directions=3)
    assert report.ok
    assert report.surrogate_error < 1e-6
    assert report.kinks == 0
    assert "agrees" in report.verdict
    assert 0 <= report.active <= 1
    assert (report.implicit > 1e-6) == (method.name in ("fast-bat", "done-pgd", "done-fast"))
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert str(report).count("\n") == 6


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_method_of_the_catalogue_can_be_checked(name: str) -> None:
    method = registry()[name].illustration(THREAT)
    report = check_gradient(Net(), method, (X, Y), directions=1)
    assert report.method == name
    assert math.isfinite(report.surrogate_error)


def test_weights_that_begin_anew_are_checked_as_equal() -> None:
    method = methods.non_parametric(THREAT, steps=1)
    found = check_gradient(Net(), method, (X, Y), directions=2)
    assert found.ok
    assert found == check_gradient(Net(), method.but(weighting=Equal()), (X, Y), directions=2)


def test_the_gap_is_what_the_method_leaves_out() -> None:
    exact = Method(THREAT, PGD(0, 0.0, uniform), coupling=LastStep(0.1, 0.1))
    assert check_gradient(Net(), exact, (X, Y)).true_gap < 1e-6
    weaker = exact.but(coupling=LastStep(0.1, 0.01))
    report = check_gradient(Net(), weaker, (X, Y))
    assert report.ok
    assert report.true_gap > 1e-3
    assert "differs from the true one" in report.verdict
    # a second network that begins as theta does not move with it
    assert check_gradient(Net(), methods.lbgat(THREAT, steps=0), (X, Y)).true_gap < 1e-6
    full = Method(
        Linf(0.1), InteriorAscent(60, 2e-3), coupling=Barrier(2e-3, 1.0, 100, 1e-12), weighting=KLDRO(1.0)
    )
    assert check_gradient(Net(), full, (0.2 + 0.6 * X, Y), directions=2).true_gap < 1e-6


@pytest.mark.parametrize("name", ["done-gd", "done-pgd", "done-adam"])
def test_proposition_1_is_one_parameter_and_agrees_with_finite_differences(name: str) -> None:
    method = method_named(name, Linf(0.1), steps=60, inner="exact", c=2e-3, temperature=1.0)
    assert method.solver == InteriorAscent(60, 2e-3)
    assert isinstance(method.coupling, Barrier)
    assert (method.coupling.c, method.coupling.curvature_steps) == (2e-3, 60)
    assert check_gradient(Net(), method, (0.2 + 0.6 * X, Y), directions=2).true_gap < 1e-6
    short = method.but(coupling=Barrier(2e-3))
    assert check_gradient(Net(), short, (0.2 + 0.6 * X, Y), directions=1).true_gap > 1e-4, (
        "the Hessian matters"
    )
    with pytest.raises(UserError, match="unknown inner"):
        method_named(name, Linf(0.1), inner="precise")


class _NoSecond(torch.autograd.Function):
    """tanh whose backward forgets that it depends on x."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.slope = 1 - x.detach().tanh() ** 2
        return x.tanh()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.slope


def test_a_wrong_second_derivative_is_found() -> None:
    class Tanh(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _NoSecond.apply(x)  # pyright: ignore[reportReturnType]

    model = Net(norm=False)
    model.act = Tanh()  # pyright: ignore[reportAttributeAccessIssue]
    assert check_gradient(model, methods.at(THREAT, steps=1), (X, Y)).ok
    report = check_gradient(model, methods.fast_bat(THREAT, step_size=0.05, rho=1.0), (X, Y))
    assert not report.ok
    assert "NOT" in report.verdict


def test_kinks_are_reported() -> None:
    model = Net(norm=False)
    model.act = nn.ReLU()  # pyright: ignore[reportAttributeAccessIssue]
    assert check_gradient(model.float(), methods.fast_bat(THREAT, step_size=0.05), (X.float(), Y)).ok
    dead = Net(norm=False)
    dead.act = nn.ReLU()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        dead.stem.weight.zero_()
        dead.stem.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))  # every unit is on its kink
        dead.conv.bias = nn.Parameter(torch.ones(4, dtype=torch.float64))
    report = check_gradient(dead, methods.at(THREAT, steps=1), (X, Y))
    assert not report.ok
    assert "NOT" in report.verdict


@pytest.mark.parametrize("make", [methods.at, methods.done_pgd, methods.fast_bat, methods.trades])
def test_upper_gradient_is_one_step_and_leaves_no_trace(make) -> None:
    model, method = Net(dropout=0.3).train(), make(THREAT)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, generator = state(model), torch.get_rng_state()
    one = upper_gradient(model, method, (X, Y), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert torch.equal(generator, torch.get_rng_state())
    assert model.training
    assert all(p.grad is not None and (p.grad == 1).all() for p in model.parameters())
    two = upper_gradient(model, method, (X, Y), seed=3)
    assert all(torch.equal(one[k], two[k]) for k in one)
    other = upper_gradient(model, method, (X, Y), seed=4)
    assert not all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("training", [True, False])
def test_upper_gradient_is_the_steps_own(training) -> None:
    model, method = Net().train(training), methods.fast_bat(THREAT).but(attack_mode="eval")
    batch = Batch(X, Y, torch.arange(len(Y)))
    expected, _ = gradient(model, method, batch)
    model = Net().train(training)
    found = upper_gradient(model, method, (X, Y), training=training)
    assert torch.equal(torch.cat([v.flatten() for v in found.values()]), expected)


@pytest.mark.parametrize("name", ["non-parametric", "bilaw", "bilaw-trades"])
def test_learned_weights_look_ahead(name: str) -> None:
    """The weights of the gradient are those of a training step with that rate, not the ones without any."""
    x, y, _ = minibatches((6,), seed=5)[0]
    method = method_named(name, THREAT)
    found = upper_gradient(Net(), method, (X, Y), meta=(x, y))
    model = Net()
    batch = Batch(X, Y, torch.arange(len(Y)), meta=Batch(x, y, torch.arange(len(y))))
    expected, _ = gradient(model, method, batch)
    assert torch.equal(torch.cat([v.flatten() for v in found.values()]), expected)
    equal = upper_gradient(Net(), method.but(weighting=Equal()), (X, Y))
    assert not all(torch.allclose(found[k], equal[k]) for k in found)


@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf")])
def test_a_step_ahead_needs_a_rate(lr: float) -> None:
    with pytest.raises(UserError, match="lr must be positive"):
        upper_gradient(Net(), methods.at(THREAT), (X, Y), lr=lr)


def test_rows_must_match() -> None:
    with pytest.raises(UserError, match="as many rows"):
        upper_gradient(Net(), methods.at(THREAT), (X, Y[:2]))


def test_no_radius_is_no_attack_and_has_a_finite_gradient() -> None:
    model = models.create("tiny-cnn", num_classes=3, shape=(1, 8, 8), seed=0)
    data = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for threat in (L2(0.0), Linf(0.0)):
        found = upper_gradient(model, methods.fast_bat(threat), data)
        plain = upper_gradient(model, methods.plain(threat), data)
        for name, value in found.items():
            torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", ["projected", "barrier", "exact"])
def test_no_radius_is_no_attack_in_the_interior_either(
    inner: Literal["projected", "barrier", "exact"],
) -> None:
    model = models.create("tiny-cnn", num_classes=3, shape=(1, 8, 8), seed=0)
    data = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    found, unattacked = (
        upper_gradient(
            model, methods.done_gd(Linf(0.0), inner=inner, coupling=coupling, temperature=1.0), data
        )
        for coupling in ("barrier", "none")
    )
    for name, value in found.items():
        torch.testing.assert_close(value, unattacked[name], rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused() -> None:
    model = models.create("tiny-cnn", num_classes=3, shape=(1, 8, 8), seed=0)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for bad in ((2 * x + 1, y), (x, y + 1), (x, y.float()), (x * float("nan"), y)):
        with pytest.raises(UserError):
            upper_gradient(model, methods.at(Linf(0.1)), bad)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), 3))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: Tensor):
        logits = self.inner(x)
        return (logits, logits) if self.training else logits


class Silent(Pair):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)


class Blind(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


class Uncopied(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.kept = self.inner[1].weight * 2


LAZY = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
MODELS = {
    "frozen": (small().requires_grad_(False), "no parameter of Sequential asks for a gradient"),
    "lazy": (LAZY, "1.weight of Sequential is lazy: pass a batch through the model first"),
    "without values": (small().to("meta"), "1.weight of Sequential has no values"),
    "without parameters": (nn.Flatten(), "there is nothing to train"),
    "no gradient": (Silent(), "no gradient leaves its logits"),
    "none to the images": (Blind(), "to the images"),
    "other shapes": (nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), "failed in .* mode on a batch of shape"),
    "no logits": (
        nn.Conv2d(X.shape[1], 3, 1),
        r"must return logits, here \(2, classes\); it returned \(2, 3,",
    ),
    "not copied": (Uncopied(), "Uncopied cannot be copied"),
    "a class": (nn.Linear, "got the class Linear: call it"),
    "nothing": (None, "got NoneType"),
}
ROWS = {
    "floating labels": ((X, Y.float()), "labels must be integers"),
    "labels of a column": ((X, Y[:, None]), r"labels \(B,\)"),
    "planes": ((X[:, 0], Y), r"images \(B, C, H, W\)"),
    "three": ((X, Y, Y), r"must be a pair \(x, y\), got 3 things"),
    "images alone": (X, "got Tensor"),
    "text": (("a", "b"), "must be a pair"),
    "beyond white": ((2 + X, Y), r"floating point in \[0, 1\]"),
    "other classes": ((X, Y + 70), r"labels must lie in 0..\d+, got 7"),
}


@pytest.mark.parametrize("asked", [upper_gradient, check_gradient])
@pytest.mark.parametrize("case", [*MODELS, *ROWS])
def test_a_model_or_rows_of_no_use_are_told_in_one_line(asked, case) -> None:
    model, words = MODELS.get(case, (Net(), ""))
    rows, words = ROWS.get(case, ((X, Y), words))
    for method in (methods.at(THREAT, steps=1), methods.fast_bat(THREAT)):
        with pytest.raises(UserError, match=words) as told:
            asked(model, method, rows)
        assert "\n" not in str(told.value)


def test_a_second_stream_of_no_use_and_a_model_that_fails_in_train_mode_are_told() -> None:
    for meta, words in (
        ((X, Y + 70), "labels must lie"),
        ((X, Y.float()), "integers"),
        ((X[..., :4], Y), "meta images"),
    ):
        with pytest.raises(UserError, match=words):
            upper_gradient(Net(), methods.bilaw(THREAT), (X, Y), meta=meta)
    with pytest.raises(UserError, match="it returned tuple"):
        upper_gradient(Pair(), methods.at(THREAT, steps=1), (X, Y % 3))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_the_gradient_of_a_model_in_any_precision(kind) -> None:
    method = methods.at(THREAT, steps=1)
    exact = small().to(kind)
    wanted = upper_gradient(copy.deepcopy(exact).double(), method, (X.double(), Y % 3))
    found = upper_gradient(exact, method, (X.numpy(), (Y % 3).int().numpy()))
    assert {p.dtype for p in exact.parameters()} == {kind}
    for name, value in found.items():
        assert value.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-6)
