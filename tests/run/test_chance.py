"""The alarm at chance: when it is raised, when it is not, and the rollback that answers it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.run.tiny import AT, Radii, plan, run

import bivallate as bv
from bivallate.run.chance import chance_warning, likely_cause
from bivallate.run.config import Validation
from bivallate.run.from_config import create_model
from bivallate.run.optim import SGD
from bivallate.run.progress import describe, legend
from bivallate.run.rates import Flat
from bivallate.run.sentinel import Sentinel
from bivallate.run.session import Session
from bivallate.run.signals import Interrupted

FAR = bv.methods.at(bv.Linf(0.5), steps=2)
PLAIN = bv.methods.plain(bv.Linf(0.1))
HELP = Sentinel(rollback=True, answers="chance", lower=0.25, chance=0.25)
STUCK = {"optimizer": SGD(0.3), "rate": Flat()}
SLOW = {"optimizer": SGD(0.01), "rate": Flat()}


def alarms(found) -> list[dict]:
    return [alarm for line in found.history for alarm in line["alarms"] if alarm["kind"] == "chance"]


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        (FAR, STUCK, "from the first step"),
        (FAR, {**STUCK, "validation": Validation(0, 143)}, "from the first step"),
        (PLAIN, {"optimizer": SGD(1e-7)}, "too high or too low"),
    ],
)
def test_a_training_at_chance_is_told_so_once_with_its_cause(few, method, changes, said):
    found = run(plan(method, epochs=7, **changes), few)
    assert [alarm["epoch"] for alarm in alarms(found)] == [5]  # after 50 minibatches
    text = alarms(found)[0]["text"]
    assert text.startswith("at chance after 71% of the steps")
    assert said in text
    assert found.history[-1]["at_chance"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"loss": 9.0, "forward": 3}, "the rate is too high: the loss has been 9, where guessing gives 2.3"),
        ({"loss": 2.3, "forward": 3}, "attacked with the full eps 0.4 from the first step"),
        ({"loss": 2.3, "forward": 3, "eps": 0.4}, "eps is beyond these images"),
        ({"loss": 2.3, "forward": 1}, "labels have nothing to do with the images"),
        ({"loss": 9.0, "forward": 3, "effective": 0.03}, "had nearly all of the weight (3% counted"),
    ],
)
def test_the_likely_cause_follows_from_the_record(few, line, said):
    session = Session(plan(), few, create_model(plan().model, few, 0))
    assert said in likely_cause(session, line)
    assert "eps" not in likely_cause(session, {"loss": 2.3, "forward": 1})


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (bv.methods.at(bv.Linf(0.1), steps=2), SLOW),  # 20 % after a quarter, as tried
        (bv.methods.at(bv.Linf(0.1), steps=2), {**SLOW, "sentinel": Sentinel(on=False)}),
        (PLAIN, SLOW),
    ],
)
def test_a_slow_training_that_learns_is_left_alone(few, method, changes):
    found = run(plan(method, epochs=8, **changes), few)
    assert not any(line.get("alarms") or line.get("at_chance") for line in found.history)
    assert found.history[1]["clean"] < 0.35, "it was slow"
    assert found.history[-1]["clean"] > 0.4, "it did learn"


def test_without_held_out_rows_the_training_rows_say_it(few):
    bare = few.but(validation=None)
    found = run(plan(FAR, epochs=7, **STUCK), bare)
    assert len(alarms(found)) == 1
    assert "training images" in alarms(found)[0]["text"]
    assert not alarms(run(plan(PLAIN, epochs=7), bare))


def test_a_network_that_is_right_on_sorted_rows_is_not_at_chance(few):
    order = few.validation.labels.argsort(stable=True)
    held = few.but(validation=few.validation.subset(order))
    found = run(plan(PLAIN, epochs=7, validation=Validation(0, 60), rate=Flat(), optimizer=SGD(0.1)), held)
    assert found.history[-1]["clean"] > 0.5
    assert not alarms(found)


def test_few_right_answers_to_a_rare_class_are_no_chance(few, monkeypatch):
    """Imbalanced: 90 % are of one class, and a network that finds the others is right less often."""
    from bivallate.run import chance

    config = plan()
    session = Session(config, few, create_model(config.model, few, 0))
    labels = torch.tensor([0] * 90 + [1] * 10)
    split = dataclasses.replace(few.validation.subset(slice(0, 100)), labels=labels)
    session.dataset = few.but(validation=split)
    for given, said in (([0] * 75 + [1] * 25, ""), ([0] * 100, "90.0% are of one class")):
        answers = torch.tensor(given).numpy()
        right = float((answers == labels.numpy()).mean())
        monkeypatch.setattr(chance, "_answers", lambda *_, answers=answers: answers)
        assert said in chance.chance_verdict(session, {"clean": right})
        assert bool(said) == bool(chance.chance_verdict(session, {"clean": right}))


@pytest.mark.parametrize(
    ("helps", "rate", "grows"), [("rate", 0.25, False), ("radius", 1, True), ("both", 0.25, True)]
)
def test_on_request_the_training_begins_anew_with_help(few, helps, rate, grows):
    found = run(plan(FAR, epochs=9, sentinel=dataclasses.replace(HELP, helps=helps, limit=1), **STUCK), few)
    alarm = alarms(found)[0]
    assert alarm["rolled_back"]
    assert (alarm["epoch"], alarm["to_epoch"], alarm["to_step"]) == (5, 1, 0)
    after = found.history[5]
    assert (after["rate_scale"], after["lr"]) == (rate, pytest.approx(0.3 * rate))
    assert after.get("eps") == (pytest.approx(0.5 / 2) if grows else None)  # over half of four epochs


def test_help_lets_it_learn_and_repeats_to_the_bit(few, tmp_path):
    config = plan(FAR, epochs=12, sentinel=HELP, **STUCK)
    whole = run(config, few, tmp_path / "whole")
    assert len(alarms(whole)) == 1
    assert not whole.history[-1].get("at_chance")
    assert whole.history[-1]["clean"] > 0.3
    with pytest.raises(Interrupted):
        run(config, few, tmp_path / "cut", Radii(63))
    again = bv.resume(tmp_path / "cut", dataset=few)
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("clean", "robust", "said"),
    [
        ((0.1, 0.9, 0.1), (0.1, 0.5, 0.1), "ended at chance: epoch 2 had 90.0%, 50.0% under attack"),
        ((0.1, 0.9, 0.1), (0.1, 0.0, 0.1), "learned nothing"),  # the best weights are others
        ((0.1, 0.12, 0.1), (0.1, 0.1, 0.1), "learned nothing"),
        ((0.1, 0.9, 0.8), (0.1, 0.5, 0.6), ""),
        ((), (), ""),
    ],
)
def test_a_command_ends_with_what_is_true_of_the_weights(clean, robust, said):
    history = [
        {"epoch": k + 1, "clean": c, "robust": r} for k, (c, r) in enumerate(zip(clean, robust, strict=True))
    ]
    if history and clean[-1] <= 0.1:
        history[-1]["at_chance"] = True
    assert said in chance_warning(history)
    assert bool(said) == bool(chance_warning(history))


def test_a_training_that_does_not_attack_is_not_called_robust(few):
    for method, word in ((PLAIN, "train right"), (AT, "train robust")):
        found = run(plan(method, epochs=1), few)
        assert word in describe(found.history[0], 1)
    session = Session(plan(), few, create_model(plan().model, few, 0))
    text = legend(session)
    assert all(name in text for name in ("w:", "ess:", "F, B:", "PGD-2"))
