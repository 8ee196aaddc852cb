"""The references checked against mathematics alone: derivatives, closed forms, constants and limits between
methods.
"""

from __future__ import annotations

import ast
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.reference import (
    adaptive,
    amortised,
    awp,
    fast_bat,
    plain_at,
    plainsgd,
    reweighted,
    single_step,
    trades_mart,
)
from tests.reference.settings import EPS, Small, draws, flat, gradient, minibatches, trained
from torch import Tensor, nn

D = torch.float64


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= tolerance)


def test_the_references_share_no_code_with_the_package() -> None:
    sources = list(Path(__file__).parent.glob("*.py"))
    assert len(sources) > 10
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any("bivallate" in name for name in names), path.name


def test_sgd_is_torch_sgd_with_momentum_and_decay() -> None:
    mine, theirs = Small(seed=3), Small(seed=3)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    buffers: list[Tensor] = []
    for x, y, _ in minibatches():
        params = list(mine.parameters())
        grads = torch.autograd.grad(plainsgd.cross_entropy(mine(x), y).mean(), params)
        plainsgd.sgd(params, grads, buffers, 0.1, 0.9, 5e-4)
        optimizer.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        optimizer.step()
    assert close(flat(mine), flat(theirs), 1e-14)


def test_divergence_has_the_clean_prediction_first() -> None:
    generator = torch.Generator().manual_seed(0)
    z, w = torch.randn(4, 3, dtype=D, generator=generator), torch.randn(4, 3, dtype=D, generator=generator)
    expected = F.kl_div(w.log_softmax(1), z.softmax(1), reduction="none").sum(1)
    assert close(plainsgd.kl(z, w), expected, 1e-14)
    assert not close(plainsgd.kl(w, z), expected, 1e-2)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_still_passes_use_the_asked_statistics_and_move_none(mode: str) -> None:
    model = Small(norm=True)
    x = minibatches()[0][0]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with plainsgd.still(model, mode):
        out = model(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    expected = model(x) if mode == "train" else None
    if expected is not None:
        assert close(out, expected, 1e-14)
        assert not torch.equal(model.state_dict()["norm.running_mean"], before["norm.running_mean"])
    else:
        assert close(out, model.eval()(x), 1e-14)


def test_the_outer_pass_moves_the_statistics_once_a_forward() -> None:
    for method, forwards in ((plain_at.pgd_at, 1), (fast_bat.fast_bat, 1), (trades_mart.trades, 2)):
        model = Small(norm=True)
        method(model, minibatches(), draws, eps=EPS, lr=0.1, attack_mode="train")
        assert model.state_dict()["norm.num_batches_tracked"] == 3 * forwards


# --- one step and TRADES, MART


def test_trades_and_mart_on_three_classes_by_hand() -> None:
    clean = torch.tensor([[0.7, 0.2, 0.1]], dtype=D).log()
    adv = torch.tensor([[0.5, 0.3, 0.2]], dtype=D).log()
    y = torch.tensor([0])
    assert plainsgd.kl(clean, adv).item() == pytest.approx(0.0851228, abs=1e-6)
    bce, weighted = trades_mart.mart_terms(clean, adv, y)
    assert bce.item() == pytest.approx(1.0496793, abs=1e-6)
    assert weighted.item() == pytest.approx(0.0851228 * 0.3000001, abs=1e-6)
    sure = torch.tensor([[60.0, 0.0, 0.0]], dtype=D)
    _, nearly_nothing = trades_mart.mart_terms(sure, adv, y)
    assert 0 < nearly_nothing.item() < 2e-7


def test_gradient_alignment_is_perfect_for_a_binary_linear_model() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    x, y, index = minibatches()[0]
    log = single_step.grad_align(Linear(), [(x, y % 2, index)], draws, eps=EPS, lr=0.1)
    assert abs(log[0]["penalty"]) < 1e-12
    curved = single_step.grad_align(Small(), minibatches(), draws, eps=0.3, lr=0.1, coefficient=0.2)
    assert all(entry["penalty"] > 1e-4 for entry in curved)


def test_backward_smoothing_has_no_direction_without_smoothing() -> None:
    x = minibatches()[0][0]
    model = Small()
    q = model(x).detach()
    point = torch.zeros_like(x, requires_grad=True)
    (still_there,) = torch.autograd.grad(plainsgd.kl(q, model(x + point)).sum(), point)
    assert still_there.abs().max() < 1e-14


# --- amortised (M4, M5, M6)


def test_free_with_one_replay_starts_as_plain_training_and_pays_one_pass() -> None:
    passes = []
    model = Small()
    model.register_forward_hook(lambda *_: passes.append(1))
    log = amortised.free(model, minibatches(), draws, eps=EPS, lr=0.1, replays=1)
    assert len(passes) == len(log) == 3
    assert max(entry["delta_max"] for entry in log) <= EPS
    first = minibatches()[:1]
    one, other = Small(), Small()
    amortised.free(one, first, draws, eps=EPS, lr=0.1, replays=1)
    plain_at.plain(other, first, draws, lr=0.1)
    assert torch.equal(flat(one), flat(other))
    assert not torch.equal(trained(amortised.free, replays=1), trained(plain_at.plain))


@pytest.mark.parametrize("n", [1, 3])
def test_yopo_walks_the_path_of_pgd_if_the_first_layer_is_affine(n: int) -> None:
    x, y, index = minibatches()[0]
    path: list[Tensor] = []
    amortised.yopo(Small(), [(x, y, index)], draws, eps=EPS, lr=0.1, m=4, n=n, sigma=1 / 255, path=path)
    lo, up = plainsgd.box(x, EPS)
    model = Small()
    eta = plainsgd.clip(EPS * (2 * draws("start:uniform", 0, x, index) - 1), lo, up)
    for k in range(4):
        eta = eta.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(x + eta), y), eta)
        eta = plainsgd.clip(eta.detach() + n / 255 * g.sign(), lo, up)
        assert close(path[k], eta, 1e-14)


def test_yopo_without_inner_steps_gives_the_stem_the_true_gradient_of_the_passes() -> None:
    """With n = 0 the Hamiltonian's gradient is the chain rule itself, so both schemes are known."""
    batch = minibatches()[0]
    plain, _ = gradient(plain_at.pgd_at, batch, steps=0)
    paper, _ = gradient(amortised.yopo, batch, m=3, n=0)
    twice, _ = gradient(amortised.yopo, batch, m=3, n=0, first_layer="both")
    stem = sum(p.numel() for p in Small().stem.parameters())
    assert close(paper, 3 * plain, 1e-12)
    assert close(twice[:stem], 6 * plain[:stem], 1e-12)
    assert close(twice[stem:], 3 * plain[stem:], 1e-12)


def test_atta_views_are_cut_and_pasted_back() -> None:
    generator = torch.Generator().manual_seed(0)
    canvas = torch.rand(3, 1, 8, 8, dtype=D, generator=generator)
    view = (torch.tensor([0, 4, 2]), torch.tensor([4, 0, 1]), torch.tensor([True, False, True]))
    window = amortised.cut(canvas, view, 4)
    assert torch.equal(amortised.paste(canvas, view, window), canvas)
    changed = amortised.paste(canvas, view, window + 1)
    assert torch.equal(amortised.cut(changed, view, 4), window + 1)
    assert (changed != canvas).flatten(1).sum(1).tolist() == [16, 16, 16]
    assert torch.equal(window[0, 0, 0], canvas[0, 0, 0, 4:8].flip(0))


def test_atta_that_forgets_every_epoch_is_pgd_from_gaussian_noise() -> None:
    batches = minibatches()
    canvases = torch.cat([x for x, _, _ in batches])
    here = [(torch.zeros(len(x)), torch.zeros(len(x)), torch.zeros(len(x)).bool()) for x, _, _ in batches]
    settings = {"steps": 3, "alpha": 0.007}
    forgetful = trained(amortised.atta, canvases=canvases, views=here, epochs=[0, 1, 2], reset=1, **settings)
    gauss = Small()
    plain_at.pgd_at(
        gauss,
        batches,
        lambda purpose, *rest: draws(purpose.replace("start", "bank"), *rest),
        eps=EPS,
        lr=0.1,
        start="gauss",
        **settings,
    )
    assert close(forgetful, flat(gauss))
    again = [batches[0]] * 3
    views = [here[0]] * 3
    one, other = Small(), Small()
    for model, reset in ((one, 1), (other, None)):
        amortised.atta(
            model,
            again,
            draws,
            eps=EPS,
            lr=0.1,
            canvases=canvases,
            views=views,
            epochs=[0, 1, 2],
            reset=reset,
            alpha=0.007,
        )
    assert not close(flat(one), flat(other), 1e-6)


# --- adaptive (M10 - M12)


def test_fosc_is_the_maximum_over_the_corners() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[0.0, 0.01, 0.5, 0.99, 1.0, 0.3]], dtype=D)
    g = torch.randn(1, 6, dtype=D, generator=generator)
    lo, up = plainsgd.box(x, 0.1)
    delta = lo + torch.rand(1, 6, dtype=D, generator=generator) * (up - lo)
    for low, high, closed in (
        (lo, up, adaptive.fosc_box(g, delta, lo, up)),
        (torch.full_like(x, -0.1), torch.full_like(x, 0.1), adaptive.fosc_ball(g, delta, 0.1)),
    ):
        corners = itertools.product(*zip(low[0].tolist(), high[0].tolist(), strict=True))
        best = max(float((torch.tensor(c, dtype=D) - delta[0]) @ g[0]) for c in corners)
        assert closed.item() == pytest.approx(best, abs=1e-14)
    assert adaptive.fosc_box(g, delta, lo, up) < adaptive.fosc_ball(g, delta, 0.1)
    assert adaptive.fosc_box(g, torch.where(g > 0, up, lo), lo, up).abs().max() == 0


def test_dynamic_stops_at_once_or_never() -> None:
    pgd = {"steps": 6, "alpha": EPS / 4}
    never = trained(adaptive.dynamic, epochs=[0, 1, 2], c_max=0.0, **pgd)
    assert close(never, trained(plain_at.pgd_at, **pgd))
    model = Small()
    log = adaptive.dynamic(model, minibatches(), draws, eps=EPS, lr=0.1, epochs=[0, 1, 2], c_max=1e9, **pgd)
    assert [entry["steps"] for entry in log] == [1.0, 1.0, 1.0]
    assert close(flat(model), trained(plain_at.pgd_at, steps=1, alpha=EPS / 4))
    some = adaptive.dynamic(Small(), minibatches(), draws, eps=EPS, lr=0.1, epochs=[0] * 3, c_max=0.02, **pgd)
    assert any(1 < entry["steps"] < 6 for entry in some)


def test_curriculum_begins_plain_and_ends_as_pgd() -> None:
    assert close(trained(adaptive.curriculum, epochs=[0, 0, 0]), trained(plain_at.plain))
    assert close(trained(adaptive.curriculum, epochs=[100, 110, 119]), trained(plain_at.pgd_at))
    assert close(trained(adaptive.curriculum_cai, levels=[0, 0, 0]), trained(plain_at.plain))
    log = adaptive.curriculum_cai(Small(), minibatches(), draws, eps=EPS, lr=0.1, levels=[1, 4, 2])
    assert [entry["clean"] for entry in log] == [2.0, 1.0, 1.0]


def test_the_curriculum_rises_only_when_stuck_and_trained() -> None:
    levels = adaptive.cai_levels([0.95] * 6, [0.5, 0.6, 0.6, 0.6, 0.4, 0.4], patience=2)
    assert levels == [(0, None), (0, None), (0, None), (1, 1), (1, None), (1, None)]
    assert adaptive.cai_levels([0.5] * 6, [0.5] * 6, patience=2)[-1] == (0, None)


def test_friendly_training_with_patience_is_pgd() -> None:
    pgd = {"steps": 5, "alpha": 0.007}
    assert close(trained(adaptive.fat, tau=5, omega=0.0, **pgd), trained(plain_at.pgd_at, **pgd))
    model = Small()
    log = adaptive.fat(model, minibatches(), draws, eps=EPS, lr=0.1, tau=0, **pgd)
    assert all(0 < entry["frozen"] <= 1 for entry in log)
    assert any(entry["steps"] > 0 for entry in log)
    assert not close(flat(model), trained(plain_at.pgd_at, **pgd), 1e-6)


# --- limits, AWP


def test_weights_that_cannot_tell_samples_apart_leave_the_host() -> None:
    at = {"steps": 4, "alpha": 0.007}
    pgd = trained(plain_at.pgd_at, **at)
    assert close(trained(reweighted.gairat, shift=math.inf, **at), pgd)
    assert close(trained(reweighted.wmmr, sharpness=0.0, attack_mode="eval", **at), pgd)
    assert close(trained(reweighted.mail, slope=0.0, **at), trained(plain_at.pgd_at, start="gauss", **at))
    trades = trained(trades_mart.trades, beta=5.0, **at)
    assert close(trained(reweighted.mail, host="trades", slope=0.0, **at), trades)
    assert close(trained(reweighted.wmmr, host="trades", sharpness=0.0, **at), trades)
    assert close(trained(reweighted.mail, host="mart", slope=0.0, **at), trained(trades_mart.mart, **at))
    assert not close(trained(reweighted.gairat, **at), pgd, 1e-6)


def test_nothing_to_attack_is_plain_training() -> None:
    plain = trained(plain_at.plain)
    for method in (plain_at.pgd_at, single_step.fast_at, single_step.n_fgsm, adaptive.fat, fast_bat.fast_bat):
        assert close(trained(method, eps=0.0), plain)
    assert close(trained(trades_mart.trades, eps=0.0), plain)
    assert close(trained(single_step.n_fgsm, k=0.0), trained(single_step.fgsm_at))
    assert close(trained(single_step.grad_align, coefficient=0.0), trained(single_step.fgsm_at))


def test_weight_perturbation_vanishes_with_gamma_and_ignores_the_copys_rate() -> None:
    pgd = {"steps": 3, "alpha": 2 / 255}
    host = trained(plain_at.pgd_at, attack_mode="train", norm=True, **pgd)
    assert close(trained(awp.awp, gamma=0.0, norm=True, **pgd), host)
    assert close(trained(awp.awp, norm=True, **pgd), trained(awp.awp, norm=True, copy_lr=7.0, **pgd))
    assert not close(trained(awp.awp, norm=True, **pgd), host, 1e-4)
    assert close(trained(awp.awp, lr=0.0, **pgd), flat(Small()), 1e-14)
    log = awp.awp(Small(), minibatches(), draws, eps=EPS, lr=0.1, **pgd)
    assert all(entry["loss"] > entry["host_loss"] for entry in log)
