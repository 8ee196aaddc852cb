"""The cost of a step, what it leaves behind, and its result when it is split over two processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.coupling.differences import gradient
from tests.methods.glue import CLASSES, EPS, SHAPE, Net, minibatches, train
from tests.methods.meter import Metered
from tests.ranks import in_two_processes
from torch import Tensor

import bivallate as bv
from bivallate import KLDRO, Barrier, Equal, LastStep, Linf, methods
from bivallate.late_field import Later
from bivallate.method import Method
from bivallate.record import NonFinite
from bivallate.types import Batch, Clock, Facts

THREAT = Linf(EPS)


ROWS = 5


def measured(method: Method) -> tuple[tuple[float, float], tuple[float, float]]:
    """(forwards, backwards) per example by the hooks, and by the package's own count."""
    model = Metered(Net())
    passes = train(model, method, minibatches((ROWS,))).records[0].passes
    meter = model.meter
    hooks = meter.forward / ROWS, meter.backwards / ROWS
    return hooks, (passes.forward / ROWS, passes.backward / ROWS)


K = 4
J = 2
HESSIAN = LastStep(0.1, 0.1, curvature_steps=J, tolerance=0.0)
VARIANTS = {
    "fast-bat without warm-up": (methods.fast_bat(THREAT, linearisation="uniform"), (2, 4)),
    "cross derivative at delta": (methods.fast_bat(THREAT, cross_at="delta"), (4, 6)),
    "fast-bat with Hessian": (methods.fast_bat(THREAT).but(coupling=HESSIAN), (4, 6 + 2 * J)),
    "done in eval mode": (methods.done_pgd(THREAT, steps=K).but(attack_mode="eval"), (K + 2, K + 4)),
    "done with Hessian": (
        methods.done_pgd(THREAT, steps=K).but(coupling=Barrier(curvature_steps=J, tolerance=0.0)),
        (K + 2, K + 4 + 2 * J),
    ),
    "done, another loss": (methods.done_pgd(THREAT, steps=K).but(loss__smoothing=0.1), (K + 1, K + 4)),
    "done, uncoupled": (methods.done_pgd(THREAT, steps=K, coupling="none"), (K + 1, K + 1)),
    "trades with the weights of done": (
        methods.trades(THREAT, steps=K).but(weighting=KLDRO()),
        (K + 3, K + 2),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_passes_of_variants(name) -> None:
    method, expected = VARIANTS[name]
    hooks, counted = measured(method)
    assert hooks == counted == expected


def test_record_says_what_happened() -> None:
    model, batch = Net().eval(), Batch(*minibatches((7,))[0])
    method = methods.at(Linf(0.0)).but(weighting=KLDRO(temperature=0.5, rate=1.0))
    _, record = gradient(model, method, batch)
    logits = model(batch.x).detach()
    losses = F.cross_entropy(logits, batch.y, reduction="none")
    w = (losses / 0.5).softmax(0) * 7
    assert record.examples == 7
    assert record.correct == int((logits.argmax(1) == batch.y).sum())
    assert record.loss == pytest.approx(float((w * losses).mean()), rel=1e-12)
    assert record.weight_mean == pytest.approx(1, rel=1e-12)
    assert record.effective == pytest.approx(float(w.sum() ** 2 / w.square().sum()) / 7, rel=1e-12)
    assert record.logged["temperature"] == 0.5


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_nothing_is_updated_when_something_is_not_finite(poison) -> None:
    model = Net()
    x, y, index = minibatches((4,))[0]
    if poison == "loss":
        x = x.clone()
        x[0, 0, 0, 0] = math.nan
    else:
        model.head.weight.register_hook(lambda grad: grad * math.inf)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFinite, match="epoch 1, minibatch 1"):
        train(model, methods.plain(THREAT), [(x, y, index)])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_loop_may_go_on_after_what_was_not_finite() -> None:
    model, (x, y, index) = Net(), minibatches((4,))[0]
    method = methods.plain(THREAT).bind(Facts(99, SHAPE, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NonFinite):
        bv.train_step(model, optimizer, method, Batch(x * math.nan, y, index), Clock(steps=2))
    record = bv.train_step(model, optimizer, method, Batch(x, y, index), Clock(step=1, steps=2))
    assert math.isfinite(record.loss)


METHODS = {
    "at": methods.at(Linf(EPS), steps=2),
    "kl-dro": methods.at(Linf(EPS), steps=2).but(weighting=KLDRO(temperature=0.3)),
    "done": methods.done_pgd(Linf(EPS), steps=2).but(attack_mode="eval"),
}


def two_steps(name: str, take: slice) -> list[Tensor]:
    """Parameters after two updates on some rows of each minibatch."""
    model = Net().eval()
    method = METHODS[name].bind(Facts(99, SHAPE, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for t, (x, y, index) in enumerate(minibatches((7, 7))):
        bv.train_step(model, optimizer, method, Batch(x[take], y[take], index[take]), Clock(step=t, steps=2))
    return [p.detach() for p in model.parameters()]


def _work(rank: int, folder: Path) -> None:
    shard = slice(0, 5) if rank == 0 else slice(5, 7)
    torch.save({name: two_steps(name, shard) for name in METHODS}, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_uneven_processes_make_the_step_of_one(tmp_path) -> None:
    in_two_processes(_work, tmp_path)
    left, right = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    for name in METHODS:
        alone = two_steps(name, slice(None))
        assert all(torch.equal(a, b) for a, b in zip(left[name], right[name], strict=True))
        worst = max(float((a - b).abs().max()) for a, b in zip(left[name], alone, strict=True))
        assert worst < 1e-12, (name, worst)
    assert max(float((a - b).abs().max()) for a, b in zip(left["at"], left["kl-dro"], strict=True)) > 1e-6


UNASKED = {
    "a leaf": methods.free_at(Linf(EPS)),
    "a last step": methods.fast_bat(Linf(EPS)),
    "a barrier": methods.done_pgd(Linf(EPS)),
    "labels of a plain network": methods.hat(Linf(EPS)).but(solver__plain=0.0),
    "radii of classes": methods.cfa(Linf(EPS)),
}


@pytest.mark.parametrize("case", UNASKED)
def test_no_step_computes_what_nobody_asks_for(case, monkeypatch) -> None:
    read = []
    get = Later.__get__

    def asked(self: Later, instance: object, owner: type) -> Tensor:
        read.extend([self.name] if instance is not None else [])
        return get(self, instance, owner)

    monkeypatch.setattr(Later, "__get__", asked)
    train(Net(), UNASKED[case], minibatches((6, 6)), epoch=(0, 1), epochs=2)
    assert read == []


def test_a_step_asks_for_a_bound_method() -> None:
    (x, y, index), *_ = minibatches((ROWS,))
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(DeprecationWarning, match="tell of train_step is now called summands"),
        pytest.raises(bv.UserError, match="bind it once"),
    ):
        bv.train_step(
            model, optimizer, methods.at(THREAT), Batch(x, y, index), Clock(), tell=lambda record: ()
        )  # pyright: ignore
    with pytest.raises(bv.UserError, match=r"bound = method\.bind\(facts\)"):
        bv.train_step(model, optimizer, methods.at(THREAT), Batch(x, y, index), Clock())  # pyright: ignore


@pytest.mark.parametrize(
    ("value", "kept"),
    [(torch.tensor(True), 1.0), (torch.tensor([0.5], dtype=torch.bfloat16), 0.5), (torch.ones(2), None)],
)
def test_a_part_logs_one_number_of_any_type(value, kept) -> None:
    class Logging(Equal):
        def log(self) -> dict[str, float | Tensor]:
            return {"mine": value}

    method = methods.at(THREAT, steps=1).but(weighting=Logging())
    if kept is None:
        with pytest.raises(bv.UserError, match=r"'mine' as a tensor of shape \(2,\)"):
            train(Net(), method, minibatches((ROWS,)))
    else:
        assert train(Net(), method, minibatches((ROWS,))).records[0].logged["mine"] == kept


def test_the_last_of_replays_that_accumulate_updates() -> None:
    facts = Facts(ROWS, SHAPE, CLASSES)
    added, single = methods.yopo(THREAT, m=3).bind(facts), methods.free_at(THREAT, replays=3).bind(facts)
    assert [added.updates_after(Clock(replay=r)) for r in range(3)] == [False, False, True]
    assert [single.updates_after(Clock(replay=r)) for r in range(3)] == [True, True, True]
