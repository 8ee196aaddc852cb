"""The sentinel: its allowance, its alarms, its rollback; a resumed run repeats them bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bivallate as bv
from bivallate.errors import UserError
from bivallate.lower.pgd import PGD
from bivallate.methods.entries import create
from bivallate.noise import Noise
from bivallate.run.config import Config, Model, Validation
from bivallate.run.execution import execute
from bivallate.run.folder import RunFolder
from bivallate.run.from_config import create_model
from bivallate.run.progress import Progress
from bivallate.run.sentinel import Sentinel
from bivallate.run.sentinel_loop import SentinelLoop
from bivallate.run.session import Session
from bivallate.run.signals import Interrupted
from bivallate.run.validation import inspect_rows

TIMES = ("seconds",)


@pytest.fixture(scope="module")
def digits():
    data = bv.data.load("digits")
    return data.but(train=data.train.subset(slice(0, 320)), test=data.test.subset(slice(0, 40)))


def plan(method: bv.Method, sentinel: Sentinel, epochs: int = 6) -> Config:
    return Config(
        method=method,
        model=Model("fc1"),
        epochs=epochs,
        batch_size=32,
        sentinel=sentinel,
        validation=Validation(2, 40),
    )


def run(config: Config, digits, out: Path, progress: Progress | None = None):
    return execute(config, digits, create_model(config.model, digits, 0), out, progress=progress)


TRIGGER = Sentinel(share=0.2, gap=0.03, rollback=True, limit=2)  # so eager that a short run sees alarms
AT = bv.methods.at(bv.Linf(0.3), steps=2)


class Stop(Progress):
    """Interrupts a run after so many minibatches, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, session, record, lr):
        import signal

        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


class Listener(Progress):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def alarm(self, session, text):
        self.heard.append(text)


def untimed(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def eager(digits, tmp_path: Path, **changes):
    """A run whose every third check is told that robustness is gone."""
    return run(plan(AT, dataclasses.replace(TRIGGER, **changes)), digits, tmp_path)


@pytest.fixture
def unsteady(monkeypatch):
    """FGSM leaves half of the points and PGD none, at every third check."""

    def told(model, x, y, threat, noise, steps):
        seen = inspect_rows(model, x, y, threat, noise, steps)
        return dataclasses.replace(seen, fgsm=1.0, pgd=0.0 if noise.epoch % 3 == 2 else 1.0)

    monkeypatch.setattr("bivallate.run.sentinel_loop.inspect_rows", told)


def test_the_allowance_is_never_exceeded_and_is_used(digits, tmp_path):
    for share in (0.06, 0.2):
        line = run(plan(AT, Sentinel(share=share)), digits, tmp_path / str(share)).history[-1]
        assert line["sentinel_checks"] >= 1
        assert share / 3 < line["sentinel_share"] <= share


def test_it_is_on_by_default_and_leaves_the_run_alone(digits, tmp_path):
    assert Config(AT).sentinel.on
    assert not Config(AT).sentinel.rollback
    with_it = run(plan(AT, Sentinel(share=0.2)), digits, tmp_path / "on")
    without = run(plan(AT, Sentinel(on=False)), digits, tmp_path / "off")
    assert with_it.history[-1]["sentinel_checks"] >= 1
    assert "sentinel_checks" not in without.history[-1]
    for a, b in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_plain_training_has_nothing_to_watch(digits, tmp_path):
    line = run(plan(bv.methods.plain(bv.Linf(0.3)), Sentinel(share=0.5)), digits, tmp_path).history[-1]
    assert line["sentinel_checks"] == 0
    assert line["alarms"] == []


def test_alarms_are_recorded_and_told(digits, tmp_path, unsteady):
    listener = Listener()
    run(plan(AT, dataclasses.replace(TRIGGER, rollback=False)), digits, tmp_path, listener)
    alarms = [alarm for line in untimed(tmp_path) for alarm in line["alarms"]]
    assert len(alarms) == len(listener.heard) >= 2
    assert {a["kind"] for a in alarms} == {"catastrophic"}
    assert not any(a["rolled_back"] for a in alarms)


@pytest.mark.parametrize("stop", [3, 19, 27, 44])
def test_a_resumed_run_repeats_rollbacks_to_the_bit(digits, tmp_path, unsteady, stop):
    config = plan(AT, dataclasses.replace(TRIGGER, lowers="both"))
    whole = run(config, digits, tmp_path / "whole")
    alarms = [a for line in whole.history for a in line["alarms"] if a["rolled_back"]]
    steps = [10 * (a["epoch"] - 1) + a["step"] for a in alarms]
    assert len(alarms) == 2
    assert min(steps) > 3  # the first stop lies before every rollback, the last after them all
    assert max(steps) < 44
    with pytest.raises(Interrupted):
        run(config, digits, tmp_path / "cut", Stop(stop))
    again = bv.resume(tmp_path / "cut", dataset=digits)
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    for a, b in zip(again.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert again.history[-1]["rate_scale"] == again.history[-1]["attack_scale"] == 0.25


def test_a_rollback_restores_model_and_optimiser_and_lowers_the_step(digits, monkeypatch):
    config = plan(bv.methods.atta(bv.Linf(0.3)), dataclasses.replace(TRIGGER, lowers="both"))
    session = Session(config, digits, create_model(config.model, digits, 0))
    watch = SentinelLoop(session)
    for batch in session.batches.epoch(0):
        bv.train_step(session.model.train(), session.optimizer, session.method, batch, session.clock())
        session.step += 1
        if session.step == 5:
            watch._keep("catastrophic")
            tensors, _ = session.learned()
            kept = {k: v.clone() for k, v in tensors.items()}
    assert any(not torch.equal(v, kept[k]) for k, v in session.learned()[0].items())
    for scale in (0.5, 0.25):  # twice to the same state: the first return must not have spoilt it
        watch._alarm("catastrophic", "told")
        back = session.learned()[0]
        assert back.keys() == kept.keys()
        assert all(torch.equal(v, kept[k]) for k, v in back.items())
        assert session.sentinel.length == session.sentinel.rate == scale
        inner, own = session.method.spec.solver.inner, config.method.solver.inner
        assert inner.step_size == scale * own.step_size
        session.method.solver.bank += 1
        for p in session.model.parameters():
            p.data += 1


def test_a_finer_attack_reaches_as_far_and_repeats_to_the_bit(digits, tmp_path, unsteady):
    config = plan(AT, dataclasses.replace(TRIGGER, lowers="finer"))
    whole = run(config, digits, tmp_path / "whole")
    last = whole.history[-1]
    assert (last["attack_scale"], last["attack_steps"], last["rate_scale"]) == (0.25, 4, 1)
    first, end = whole.history[0], whole.history[-1]
    assert first["forward"] + first["backward"] == 6  # two steps of attack, then eight
    assert end["forward"] + end["backward"] == 18
    with pytest.raises(Interrupted):
        run(config, digits, tmp_path / "cut", Stop(44))
    again = bv.resume(tmp_path / "cut", dataset=digits)
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    for a, b in zip(again.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_finer_ends_where_it_would_cost_too_much(digits):
    config = plan(bv.methods.fgsm_at(bv.Linf(0.3)), Sentinel(rollback=True))
    session = Session(config, digits, create_model(config.model, digits, 0))
    watch = SentinelLoop(session)
    seen = []
    for _ in range(5):
        watch._alarm("catastrophic", "told")
        solver = session.method.spec.solver
        seen.append((solver.steps, session.sentinel.rate))
        assert solver.steps * solver.step_size == pytest.approx(0.3)
    assert seen == [(2, 1), (4, 1), (8, 1), (8, 0.5), (8, 0.25)]


def test_finer_multiplies_the_steps_of_what_has_them():
    threat, finer = bv.Linf(0.1), (0.5, 2.0)
    fgsm = bv.methods.fgsm_at(threat).stepped(*finer).solver
    assert (fgsm.steps, fgsm.step_size) == (2, 0.05)
    atta = bv.methods.atta(threat).solver.inner
    inner = bv.methods.atta(threat).stepped(*finer).solver.inner
    assert (inner.steps, inner.step_size) == (2 * atta.steps, atta.step_size / 2)
    assert bv.methods.trades(threat).stepped(1.0, 1.0) == bv.methods.trades(threat)


def test_a_whole_step_size_is_not_rounded_away():
    method = bv.methods.fgsm_at(bv.L2(1.0)).but(solver=PGD(1, 1))
    assert method.stepped(0.5).solver.step_size == 0.5


def test_an_attack_whose_steps_a_schedule_sets_cannot_be_finer():
    threat = bv.Linf(0.1)
    finer = {name: create(name, threat).solver.can_be_finer() for name in ("fast-at", "atta", "bastion")}
    assert finer == {"fast-at": True, "atta": True, "bastion": False}
    with pytest.raises(UserError, match="whole"):
        Sentinel(rollback=True, lower=0.7)


def test_shorter_reaches_every_step_and_nothing_else():
    threat = bv.Linf(0.1)
    bat = bv.methods.fast_bat(threat).stepped(0.5)
    assert bat.solver.step_size == bv.methods.fast_bat(threat).solver.step_size / 2
    assert bat.coupling.step_size == bv.methods.fast_bat(threat).coupling.step_size / 2
    assert bat.but(
        solver=bv.methods.fast_bat(threat).solver, coupling=bv.methods.fast_bat(threat).coupling
    ) == (bv.methods.fast_bat(threat))
    assert bv.methods.backward_smoothing(threat).stepped(0.5).solver.start.step_size == 0.5
    assert bat.stepped(1.0) is bat


class Masked(nn.Module):
    """Robust to one large step from the clean image, lost to any random start: the sign of a collapse."""

    def __init__(self) -> None:
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        away = (x - 0.5).abs().flatten(1)
        corner = (away > 0.0999).all(1).float()  # every pixel moved by eps, as FGSM does
        moved = (away.mean(1) > 0.001).float() * (1 - corner)
        score = 1 - 4 * moved + 0.01 * (mean - 0.5) + self.dummy[0]
        return torch.stack([score, -score], 1)


def test_a_masked_model_is_seen_and_an_honest_one_is_not():
    x, y = torch.full((40, 1, 3, 3), 0.5), torch.zeros(40, dtype=torch.long)
    noise = Noise(0, torch.arange(40))
    seen = inspect_rows(Masked(), x, y, bv.Linf(0.1), noise, 1)
    assert seen.fgsm == 1
    assert seen.pgd < 1 / 8
    assert seen.passes.forward + seen.passes.backward <= 40 * Sentinel(steps=1).cost
    rule = Sentinel()
    assert rule.collapsed(seen.fgsm, seen.pgd)
    assert not rule.collapsed(0.5, 0.4)
    assert not rule.collapsed(0.2, 0.0)


@pytest.mark.parametrize(("bend", "least", "most"), [(0.0, 0.999, 1.0), (40.0, -0.3, 0.3)])
def test_a_look_sees_how_much_the_loss_bends(bend, least, most):
    torch.manual_seed(0)
    steady = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))

    class Rippled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return steady(x + bend * torch.sin(bend * x))

    x, y = torch.rand(64, 1, 5, 5), torch.zeros(64, dtype=torch.long)
    seen = inspect_rows(Rippled(), x, y, bv.Linf(0.2), Noise(0, torch.arange(64)), 2)
    assert least <= seen.alignment <= most
    assert seen.passes.forward + seen.passes.backward <= 64 * Sentinel(steps=2).cost


def test_alignment_is_recorded_every_epoch(digits, tmp_path):
    history = run(plan(AT, Sentinel(share=0.5)), digits, tmp_path).history
    scores = [line["sentinel_alignment"] for line in history]
    assert len(scores) == 6
    assert all(-1 <= score <= 1 for score in scores)
    assert len(set(scores)) == 6


def test_robust_overfitting_is_a_lasting_fall_while_training_rises():
    rule = Sentinel()
    rise = [0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70]
    fall = [0.30, 0.40, 0.50, 0.50, 0.50, 0.45, 0.42, 0.40, 0.40]
    assert rule.overfitted(fall, rise, 1000) == pytest.approx((0.5, 1.22 / 3))
    assert rule.overfitted(fall, rise, 60) is None  # two standard errors are 13 points
    assert rule.overfitted(rise, rise, 1000) is None
    assert rule.overfitted(fall, fall, 1000) is None  # training falls too: something else is wrong
    assert rule.overfitted([0.5] * 4 + [0.2, 0.5, 0.5, 0.5], rise[:8], 1000) is None  # one bad epoch


def test_robust_overfitting_is_answered_by_the_rate_alone(digits, tmp_path, monkeypatch):
    held = iter([0.3, 0.4, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1])
    monkeypatch.setattr(
        "bivallate.run.trainer.Trainer._measure", lambda self: {"clean": 1.0, "robust": next(held)}
    )
    monkeypatch.setattr("bivallate.run.sentinel.Sentinel.collapsed", lambda *_: False)
    rule = Sentinel(rollback=True, answers="robust", drop=0.01)
    history = run(plan(AT, rule, 10), digits, tmp_path).history
    alarms = [a for line in history for a in line["alarms"]]
    assert [a["kind"] for a in alarms] == ["robust"]
    assert alarms[0]["to_epoch"] == 5  # the latest of the best
    assert history[-1]["rate_scale"] == 0.5
    assert history[-1]["attack_scale"] == 1.0


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"share": 0}, {"rows": 0}, {"lowers": "hope"}, {"answers": "all"}, {"lower": 1.5}):
        with pytest.raises(UserError):
            Sentinel(**wrong)


def test_a_rolled_back_run_folder_reads_back(digits, tmp_path, unsteady):
    eager(digits, tmp_path)
    config = Config.read(RunFolder(tmp_path).config)
    assert config.sentinel == TRIGGER
    assert PGD(1, 0.1).step_size == 0.1
