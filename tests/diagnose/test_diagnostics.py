"""Diagnostics on models whose result is known; the files hold what the figures show."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from bivallate import Linf, UserError, methods
from bivallate.evaluation.geometry import agreement
from bivallate.lower.distances import cosines
from bivallate.method import facts_for
from bivallate.reports.diagnostics.curves import learning_curves
from bivallate.reports.diagnostics.fosc import fosc, fosc_traces
from bivallate.reports.diagnostics.fosc_epochs import fosc_over_epochs, stationarity
from bivallate.reports.diagnostics.gradients import gradient_alignment
from bivallate.reports.diagnostics.landscape import loss_landscape
from bivallate.reports.diagnostics.per_class import confusion, per_class
from bivallate.reports.diagnostics.ranks import accuracy_over_eps, adversarial_rank, transfer
from bivallate.reports.diagnostics.weighed_points import weigh_points
from bivallate.reports.diagnostics.weights import (
    extremes,
    likelihood_pca,
    pictured,
    weight_scatter,
    weights_by_class,
)
from bivallate.reports.diagnostics.weights_epochs import weights_by_margin, weights_over_epochs
from bivallate.types import Clock

matplotlib.use("Agg")
THREAT = Linf(0.1)


class Linear(nn.Module):
    """Logits that are linear in the image."""

    def __init__(self, classes: int, seed: int = 0, pixels: int = 12) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, pixels))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T


@pytest.fixture
def binary():
    torch.manual_seed(1)
    model, x = Linear(2), 0.3 + 0.4 * torch.rand(60, 3, 2, 2)
    return model, (x, model(x).argmax(1))


@pytest.fixture
def several():
    torch.manual_seed(2)
    model, x = Linear(4, 5), 0.3 + 0.4 * torch.rand(90, 3, 2, 2)
    return model, (x, model(x).argmax(1))


def test_the_alignment_of_a_linear_binary_model_is_one(binary):
    model, data = binary
    found = gradient_alignment({"linear": model}, data, THREAT)
    assert found.score["linear"] == pytest.approx(1, abs=1e-6)
    assert len(found.cosine["linear"]) == 60


def test_the_alignment_of_a_bent_model_is_lower(binary):
    model, data = binary
    bent = nn.Sequential(nn.Flatten(), nn.Linear(12, 50), nn.Tanh(), nn.Linear(50, 2))
    for p in bent[1].parameters():
        p.data *= 40
    assert gradient_alignment({"bent": bent}, data, THREAT).score["bent"] < 0.9
    assert model.weight.requires_grad


def test_the_cosine_of_the_loss_and_of_the_diagnostic_is_one():
    """As both were before they were one: the loss's to the bit, the diagnostic's to rounding."""
    a, b = torch.randn(2, 20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    b[3] = a[3]
    cos, defined = cosines(a, b)
    p, q = a.flatten(1), b.flatten(1)
    own = (p / p.norm(dim=1, keepdim=True) * (q / q.norm(dim=1, keepdim=True))).sum(1)
    assert torch.equal(cos, own)
    assert defined.all()
    p, q = p.double(), q.double()
    torch.testing.assert_close(
        agreement(a, b), (p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1)), rtol=0, atol=1e-15
    )


def test_zero_gradients_agree():
    a, b = torch.tensor([[1.0, 0], [0, 0], [1, 1]]), torch.tensor([[0.0, 1], [1, 0], [-1, -1]])
    assert agreement(a, b).tolist() == pytest.approx([0, 1, -1])


def test_fosc_vanishes_where_a_linear_model_is_maximised(binary):
    model, data = binary
    found = fosc(model, data, THREAT, steps=(0, 20))
    assert float(np.abs(found.fosc[1]).max()) < 1e-5  # 20 steps of eps/4 reach every corner
    assert float(found.fosc[0].min()) > 1e-3
    direction = (model.weight[1] - model.weight[0]).detach()
    signs = torch.where(data[1] == 0, 1.0, -1.0)[:, None] * direction.sign()
    worst = data[0] + 0.1 * signs.view_as(data[0])
    best = F.cross_entropy(model(worst), data[1], reduction="none").detach().numpy()
    assert found.loss[1] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("form", ["ball", "box"])
def test_fosc_is_drawn_in_the_form_that_is_named(several, form):
    model, data = several
    found = fosc(model, data, THREAT, steps=(1,), n=9, form=form)
    assert (found.form, found.data()["form"]) == (form, form)
    other = fosc(model, data, THREAT, steps=(1,), n=9, form="box" if form == "ball" else "ball")
    larger, smaller = (found, other) if form == "ball" else (other, found)
    assert (larger.fosc >= smaller.fosc - 1e-6).all()
    assert (larger.fosc > smaller.fosc).any(), "some pixels lie near 0 or 1"
    said = "ball within [0, 1]" if form == "box" else "FOSC, ball (nats)"
    for drawn in (found, fosc_traces(model, data, THREAT, steps=2, n=9, form=form)):
        texts = [ax.get_xlabel() + ax.get_ylabel() for ax in drawn.figure().axes]
        assert any(said in text for text in texts), texts
    over = fosc_over_epochs({"at": {1: found.fosc[0], 2: other.fosc[0]}}, form)
    assert said in over.figure().get_supxlabel()


def test_traces_are_fosc_step_by_step(several):
    model, data = several
    traces = fosc_traces(model, data, THREAT, steps=6, n=9, seed=3)
    found = fosc(model, data, THREAT, steps=(0, 2, 6), n=9, seed=3)
    assert traces.fosc.shape == (7, 9)
    assert np.array_equal(traces.fosc[[0, 2, 6]], found.fosc)
    assert np.array_equal(traces.loss[[0, 2, 6]], found.loss)


def test_stationarity_is_of_the_methods_own_attack_at_that_time(binary):
    model, (x, y) = binary
    method = methods.curriculum(THREAT, steps=8, until=1.0).bind(facts_for(model, x, 2))
    early = stationarity(model, method, (x, y), Clock(0, 10))  # no steps: the clean image
    late = stationarity(model, method, (x, y), Clock(9, 10))  # eight sign steps of eps/4: the corner
    point = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
    assert early == pytest.approx(0.1 * grad.abs().flatten(1).sum(1).numpy(), rel=1e-4)
    assert float(np.abs(late).max()) < 1e-5
    drawn = fosc_over_epochs({"curriculum": {10: late, 1: early}})
    assert list(drawn.fosc["curriculum"]) == [1, 10]
    assert [line.get_label()[:8] for line in drawn.figure().axes[0].get_lines()] == ["epoch 1:", "epoch 10"]


def test_stationarity_refuses_an_attack_that_leaves_the_ball(binary):
    model, (x, y) = binary
    method = methods.n_fgsm(THREAT).bind(facts_for(model, x, 2))
    with pytest.raises(UserError, match="which this method's attack leaves"):
        stationarity(model, method, (x, y), Clock())


def test_a_label_may_look_like_mathematics(binary, tmp_path):
    values = {1: np.linspace(0.01, 1, 20, dtype=np.float32)}
    assert fosc_over_epochs({r"$\foo$": values}).save(tmp_path / "drawn").stat().st_size > 1000
    model, data = binary
    drawn = transfer({r"$\foo$": model, "other": model}, data, THREAT, attack="fgsm", n=4)
    assert drawn.save(tmp_path / "transfer").stat().st_size > 1000
    silent = weights_over_epochs({r"$\foo$": [{"epoch": 1, "effective": 1.0, "weight_mean": 1.0}]})
    assert silent.save(tmp_path / "weights").stat().st_size > 1000


def test_the_centre_of_the_landscape_is_the_loss_and_its_slope_the_gradient(several):
    model, (x, y) = several
    found = loss_landscape(model, (x, y), THREAT, row=7, size=5)
    here = F.cross_entropy(model(x[7:8]), y[7:8]).item()
    assert found.loss[2, 2] == pytest.approx(here, rel=1e-5)
    assert (np.diff(found.loss[:, 2]) > 0).all()  # the loss of a linear model is convex along its gradient
    point = x[7:8].clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y[7:8]), point)
    at = x[7:8] + found.axis[4] * 0.1 * grad.sign()
    assert found.loss[4, 2] == pytest.approx(F.cross_entropy(model(at), y[7:8]).item(), rel=1e-5)


class Scripted(nn.Module):
    """Class 2 rises with the first pixel above 0.5: from place 1 at 0.52, past class 0 at 0.525."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(40.0))

    def forward(self, x: Tensor) -> Tensor:
        t = self.scale * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([0 * t + 5, 0 * t + 4, 2 + 3 * t, 0 * t + 1], 1)


def test_ranks_of_a_scripted_model():
    x = torch.full((30, 1, 2, 2), 0.5)
    x[20:, 0, 0, 0] = 0.1  # too far away to be moved
    x[:20, 0, 0, 0] = 0.52
    y = torch.zeros(30, dtype=torch.long)
    clean = Scripted()(x)
    assert (clean.argsort(dim=1, descending=True)[0] == torch.tensor([0, 2, 1, 3])).all()
    found = adversarial_rank({"m": Scripted()}, (x, y), THREAT)
    assert found.counts["m"].tolist() == [10, 20, 0, 0]


def test_transfer_is_white_box_on_its_diagonal_and_harmless_to_a_stranger(binary):
    model, data = binary
    blind = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    blind[1].weight.data.zero_()
    found = transfer({"own": model, "blind": blind}, data, Linf(0.3))
    share = float((data[1] == blind(data[0]).argmax(1)).float().mean())
    assert found.accuracy[0][0] < 0.2
    assert found.accuracy[0][1] == found.accuracy[1][1] == pytest.approx(share)
    assert found.accuracy[1][0] > 0.6  # sign(0) moves nothing but the random start


def test_accuracy_falls_with_eps(several):
    model, data = several
    found = accuracy_over_eps({"m": model}, data, THREAT, factors=(0, 0.5, 1, 4), n=50)
    values = found.accuracy["m"]
    assert found.eps == pytest.approx((0, 0.05, 0.1, 0.4))
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1


def weighed(model, data, method):
    bound = method.bind(facts_for(model, data[0], 4))
    return weigh_points(model, bound, data, Clock(9, 10)), bound


def test_weights_are_the_rule_on_minibatches_of_128(several):
    model, data = several
    found, bound = weighed(model, data, methods.mail_at(THREAT))
    assert found.weights.mean() == pytest.approx(1, rel=1e-5)
    rule = bound.spec.weighting.rule
    omega = 1 / (1 + np.exp(-rule.slope * (rule.bias - found.margin)))
    assert found.weights == pytest.approx(omega / omega.mean(), rel=1e-3)
    heavy, light = found.margin[found.weights.argmax()], found.margin[found.weights.argmin()]
    assert heavy == pytest.approx(found.margin.min())
    assert light == pytest.approx(found.margin.max())
    picked = extremes(found, tuple("abcd"), 5)
    assert (np.diff(picked.weights[0]) >= 0).all()
    assert (np.diff(picked.weights[1]) <= 0).all()
    assert picked.y.tolist() == data[1].numpy()[picked.index].tolist()


def test_the_scatter_of_a_method_with_itself_is_the_diagonal(several):
    model, data = several
    first, _ = weighed(model, data, methods.mail_at(THREAT))
    second, _ = weighed(model, data, methods.at(THREAT))
    assert weight_scatter(first, first, ("a", "a")).correlation == pytest.approx(1)
    assert weight_scatter(first, second, ("a", "b")).correlation is None  # equal weights have no order
    assert set(weight_scatter(first, first, ("a", "a")).robust.tolist()) <= {0, 2}
    other, _ = weighed(model, (data[0][:50], data[1][:50]), methods.at(THREAT))
    with pytest.raises(UserError, match="same points"):
        weight_scatter(first, other, ("a", "b"))


def test_principal_components_keep_distances(several):
    model, data = several
    found, _ = weighed(model, data, methods.at(THREAT))
    shown = likelihood_pca(found, tuple("abcd"), (0, 2, 3))
    p = found.adversarial[np.isin(found.y, (0, 2, 3))]  # 4 classes on a simplex have 3 dimensions
    own = np.linalg.norm(p[:, None] - p[None], axis=2)
    drawn = np.linalg.norm(shown.points[:, None] - shown.points[None], axis=2)
    assert drawn == pytest.approx(own, abs=1e-5)
    assert shown.explained.sum() == pytest.approx(1)


HISTORY = [
    {"epoch": e, "loss": 2 / e, "clean": 0.5, "robust": 0.1 * e, "train_robust": 0.2, "lr": 0.1,
     "effective": 0.9, "weight_mean": 1.0, "weight_quantiles": [0.1, 0.5, 0.9, 1.2, 4.0 + e],
     "watched": {"0": [-0.5, 2.0], "30": [0.8, 0.1 * e]}}
    for e in (1, 2, 3)
]  # fmt: skip


def test_curves_leave_out_what_was_not_recorded():
    found = learning_curves({"a": HISTORY})
    assert [p.key for p in found.panels] == ["loss", "clean", "robust", "effective", "lr"]
    assert found.data()["a"]["robust"] == pytest.approx([0.1, 0.2, 0.3])
    warm = learning_curves({"a": [line | {"temperature": 1.0} for line in HISTORY]}, ["temperature"])
    assert [p.key for p in warm.panels] == ["temperature"]


def test_curves_show_which_threat_was_the_strongest():
    shares = [line | {"strongest_l2": 0.75, "strongest_l1": 0.1 * line["epoch"]} for line in HISTORY]
    found = learning_curves({"a": shares, "b": HISTORY}, ["strongest"])
    (ax,) = found.draw().axes
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["L2", "L1"], "not Linf, which no run has recorded"
    lines = [line.get_ydata() for line in ax.get_lines() if len(line.get_xdata())]
    np.testing.assert_allclose(sorted(map(list, lines)), [[10, 20, 30], [75, 75, 75]])
    assert found.data()["b"]["strongest_l2"] == [None] * 3


def score():
    from bivallate.evaluation import attack_and_score

    torch.manual_seed(3)
    model, x = Linear(4, 5), torch.rand(80, 3, 2, 2)
    return attack_and_score(model, (x, model(x).argmax(1)), THREAT, "pgd-2")


def test_everything_saves_its_data_and_figures(several, tmp_path):
    model, data = several
    one, s = weighed(model, data, methods.mail_at(THREAT))[0], score()
    names = tuple("abcd")
    drawn = {
        "alignment": gradient_alignment({"m": model}, data, THREAT),
        "fosc": fosc(model, data, THREAT, steps=(1, 2)),
        "landscape": loss_landscape(model, data, THREAT, size=5),
        "ranks": adversarial_rank({"m": model}, data, THREAT, attack="pgd-1"),
        "eps": accuracy_over_eps({"m": model}, data, THREAT, factors=(0, 1), attack="fgsm"),
        "transfer": transfer({"m": model, "n": model}, data, THREAT, attack="fgsm"),
        "weights": weights_by_class(one, names),
        "scatter": weight_scatter(one, one, ("a", "b")),
        "examples": extremes(one, names, 3),
        "likelihoods": likelihood_pca(one, names),
        "over": weights_over_epochs({"a": HISTORY}),
        "margins": weights_by_margin("a", HISTORY),
        "curves": learning_curves({"a": HISTORY, "b": HISTORY}),
        "classes": per_class({"m": s, "n": s}, names),
        "confusion": confusion(s, names),
    }
    for name, result in drawn.items():
        kinds = ("svg", "png", "pdf") if name == "confusion" else ("svg",)
        first = result.save(tmp_path / name, kinds)
        assert first == tmp_path / f"{name}.svg"
        assert all((tmp_path / f"{name}.{kind}").stat().st_size > 1000 for kind in kinds)
        files = {p.suffix for p in tmp_path.glob(f"{name}.*")} - {f".{k}" for k in kinds}
        assert files in ({".json"}, {".npz"})
    kept = np.load(tmp_path / "fosc.npz", allow_pickle=False)
    assert (kept["fosc"] == drawn["fosc"].fosc).all()
    counts = json.loads((tmp_path / "confusion.json").read_text())["counts"]
    assert counts == s.confusion.tolist()
    again = gradient_alignment({"m": model}, data, THREAT).save(tmp_path / "again", ("svg",))
    assert again.read_bytes() == (tmp_path / "alignment.svg").read_bytes()


def test_a_dot_in_a_figures_name_is_kept(tmp_path, monkeypatch):
    found = weights_over_epochs({"a": HISTORY})
    assert found.save(tmp_path / "eps0.1", ("svg", "png")) == tmp_path / "eps0.1.svg"
    assert {p.name for p in tmp_path.iterdir()} == {"eps0.1.svg", "eps0.1.png", "eps0.1.json"}
    whole = (tmp_path / "eps0.1.svg").read_bytes()

    def broken(self, place, **_):
        Path(place).write_text("half a fig")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(UserError, match=r"cannot write .*eps0\.1\.svg"):
        found.save(tmp_path / "eps0.1", ("svg",))
    assert (tmp_path / "eps0.1.svg").read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 3


def test_a_rule_that_only_weighs_what_it_was_fitted_to_says_so(several):
    model, data = several

    def refuse(evidence):
        raise UserError("call fit first")

    spec = methods.at(THREAT)
    bound = spec.bind(facts_for(model, data[0], 4))
    bound.weighting = refuse
    with pytest.raises(UserError, match="outside a training step"):
        weigh_points(model, bound, data, Clock())


def test_weights_of_runs_from_before_quantiles_were_recorded_are_drawn_without_them(tmp_path):
    old = [{k: v for k, v in line.items() if k != "weight_quantiles"} for line in HISTORY]
    found = weights_over_epochs({"old": old, "new": HISTORY})
    assert found.quantiles == {"old": [[]] * 3, "new": [line["weight_quantiles"] for line in HISTORY]}
    assert found.save(tmp_path / "both").stat().st_size > 1000
    said = weights_over_epochs({"old": old, "new": HISTORY}).draw().axes[1].texts[0].get_text()
    assert said == "not recorded: old"


def test_margins_and_weights_of_the_same_examples(tmp_path):
    lines = [line | {"epoch": e, "watched": {"7": [0.1, e]}} for e in range(1, 11) for line in HISTORY[:1]]
    found = weights_by_margin("a", lines)
    assert found.epochs == [1, 4, 7, 10]
    assert found.weight == [[1], [4], [7], [10]]
    assert found.rows == [[7]] * 4
    assert found.clean == [[]] * 4
    with_clean = weights_by_margin("a", [line | {"watched_clean": {"7": 0.9}} for line in lines])
    assert with_clean.clean == [[0.9]] * 4
    assert next(t.get_text() for t in with_clean.figure().legends[0].get_texts()) == "clean, after the epoch"
    assert weights_by_margin("a", lines[:1]).epochs == [1]
    with pytest.raises(UserError, match="no epoch recorded"):
        weights_by_margin("a", [{"epoch": 1}])


def test_nine_runs_are_more_than_there_are_colours(several):
    lines = {str(k): HISTORY for k in range(9)}
    model, (x, y) = several
    data, many = (x[:6], y[:6]), {str(k): model for k in range(9)}
    for drawn in (
        weights_over_epochs(lines),
        learning_curves(lines),
        gradient_alignment(many, data, THREAT),
        adversarial_rank(many, data, THREAT),
        accuracy_over_eps(many, data, THREAT, factors=(0, 1)),
    ):
        assert drawn.draw().axes


@pytest.mark.parametrize("diagnosis", [learning_curves, weights_over_epochs])
def test_a_run_without_a_finished_epoch_is_refused(diagnosis):
    with pytest.raises(UserError, match="no epoch was finished"):
        diagnosis({"a": []})


def test_likelihoods_are_of_the_papers_classes_where_there_are_these():
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert pictured(names) == (1, 0, 8)
    assert pictured(("0", "1", "2", "3")) == (0, 1, 2)


@pytest.mark.parametrize(
    ("key", "forward", "drawn"),
    [
        ("train_robust", 1.0, False),
        ("train_robust", 2.0, True),
        ("robust", 1.0, True),
        ("train_robust", None, True),
    ],
)
def test_the_training_accuracy_of_a_run_that_does_not_attack_is_not_drawn_as_robust(key, forward, drawn):
    from bivallate.reports.diagnostics.curves import LearningCurves

    lines = [{"epoch": k, "robust": 0.1, "train_robust": 0.9} for k in (1, 2)]
    lines = [line | ({"forward": forward} if forward is not None else {}) for line in lines]
    axis = LearningCurves({"run": lines}, keys=("robust",)).draw().axes[0]
    wanted = [100 * line[key] for line in lines]
    assert (wanted in [list(line.get_ydata()) for line in axis.lines]) == drawn
