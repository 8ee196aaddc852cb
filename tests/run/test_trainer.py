"""What a run saves and reports."""

from __future__ import annotations

import json
import math

import pytest
import torch

import bivallate as bv
from bivallate.parts import decode, encode
from bivallate.run.averaging import Average
from bivallate.run.config import Config, Data, Validation
from bivallate.run.execution import execute
from bivallate.run.trainer import Trainer
from bivallate.run.validation import held_out, measured_rows

THREAT = bv.Linf(0.1)
QUICK = {"epochs": 3, "batch_size": 100, "threads": 1, "validation": Validation(2, 60)}


@pytest.fixture(scope="module")
def digits() -> bv.data.Dataset:
    data = bv.data.load("digits")
    return data.but(train=data.train.subset(slice(0, 250)))


def test_a_line_an_epoch_with_what_a_reader_wants(digits, tmp_path):
    method = bv.methods.done_adam(THREAT, steps=2)
    run = bv.train("tiny-cnn", digits, method, out=tmp_path / "run", average=0.9, **QUICK)
    assert [line["epoch"] for line in run.history] == [1, 2, 3]
    wanted = {
        "loss",
        "train_robust",
        "clean",
        "robust",
        "average_robust",
        "weight_mean",
        "effective",
        "weight_quantiles",
        "watched",
        "temperature",
    }
    assert wanted | {"forward", "backward", "total_forward", "seconds", "lr"} <= set(run.history[0])
    assert run.history[-1]["forward"] == 3
    assert run.history[-1]["backward"] == 5
    assert run.history[-1]["total_forward"] == 9
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == run.history


def test_a_recipe_and_a_rate_by_name(digits, tmp_path):
    method, out = bv.methods.fast_at(THREAT), tmp_path / "run"
    run = bv.train("tiny-cnn", "digits", method, recipe="bilaw", epochs=2, lr=0.03, threads=1, out=out)
    config = Config.read(out / "config.toml")
    assert (config.recipe, config.epochs, config.optimizer.lr) == ("bilaw", 2, 0.03)
    assert config.data.validation == 1000
    assert run.history[0]["lr"] == pytest.approx(0.03)
    with pytest.raises(bv.UserError, match="did you mean 'bilaw'"):
        bv.train("tiny-cnn", digits, method, recipe="bilav")
    with pytest.raises(bv.UserError, match="learning rate must be positive, got 0"):
        bv.train("tiny-cnn", digits, method, lr=0.0)


def test_the_same_rows_are_watched_in_every_epoch(digits, tmp_path):
    run = bv.train("tiny-cnn", digits, bv.methods.mail_at(THREAT, steps=1, burn_in=0.34), **QUICK)
    rows = [set(line["watched"]) for line in run.history]
    assert rows[0] == rows[1] == rows[2]
    last = run.history[-1]["watched_clean"]
    x, y = digits.train.tensors(torch.tensor([int(row) for row in last]))
    p = run.model(x).softmax(1)
    own = p.gather(1, y[:, None])[:, 0]
    others = p.scatter(1, y[:, None], -1).amax(1)
    assert list(last.values()) == pytest.approx((own - others).tolist(), abs=2e-6)
    assert 50 <= len(rows[0]) <= 200
    pairs = list(run.history[-1]["watched"].values())
    assert all(-1 <= margin <= 1 and weight >= 0 for margin, weight in pairs)
    light, heavy = min(pairs), max(pairs)  # the lowest margin weighs most
    assert light[1] > heavy[1]
    assert {weight for _, weight in run.history[0]["watched"].values()} == {1.0}  # the burn-in


def test_best_is_the_epoch_with_the_highest_robust_accuracy(digits, tmp_path, monkeypatch):
    from bivallate.run import trainer

    scores = iter([0.3, 0.9, 0.5])
    kept = {}

    def scripted(model, *arguments, **named):
        value = next(scores)
        kept[value] = {k: v.clone() for k, v in model.state_dict().items()}
        return 1.0, value, bv.types.Passes()

    monkeypatch.setattr(trainer, "held_out", scripted)
    bv.train("linear", digits, bv.methods.at(THREAT, steps=1), out=tmp_path / "run", **QUICK)
    best, last = bv.load(tmp_path / "run", "best"), bv.load(tmp_path / "run", "last")
    assert all(torch.equal(v, kept[0.9][k]) for k, v in best.state_dict().items())
    assert all(torch.equal(v, kept[0.5][k]) for k, v in last.state_dict().items())


def test_kept_epochs_are_the_weights_of_that_epoch(digits, tmp_path):
    method, flat = bv.methods.at(THREAT, steps=1), {"rate": bv.Flat()}
    whole = bv.train("linear", digits, method, out=tmp_path / "whole", keep=(1, 3), **flat, **QUICK)
    short = bv.train("linear", digits, method, **flat, **{**QUICK, "epochs": 1})
    first, last = bv.load(whole.path, "epoch-1"), bv.load(whole.path, "epoch-3")
    assert same(first, short.model)
    assert same(last, whole.model)
    assert not same(first, last)
    assert not (whole.path / "epoch-2.safetensors").exists()
    with pytest.raises(bv.UserError, match="it has the weights best, epoch-1, epoch-3, last"):
        bv.load(whole.path, "epoch-2")
    with pytest.raises(bv.UserError, match="epoch 4, but training ends with epoch 3"):
        bv.train("linear", digits, method, keep=(4,), out=tmp_path / "late", **QUICK)
    with pytest.raises(bv.UserError, match="name one with out="):
        bv.train("linear", digits, method, keep=(1,), **QUICK)
    listed, whole = "keep must be a list", "must be a whole number"
    told = [((0,), "counted from 1"), (3, listed), (True, listed), ((True,), whole), ((1.0,), whole)]
    for bad, words in [*told, ({1}, listed), (range(1, 3), listed)]:
        with pytest.raises(bv.UserError, match=words):
            bv.train("linear", digits, method, keep=bad, out=tmp_path / "bad", **QUICK)
    assert not (tmp_path / "late").exists()
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("who", ["sentinel", "curriculum"])
def test_saved_weights_are_those_that_were_measured_whatever_is_restored_next(
    digits, tmp_path, monkeypatch, who
):
    from bivallate.run.cai_curriculum import CaiCurriculum
    from bivallate.run.sentinel_loop import SentinelLoop

    def go_back(self, line):
        with torch.no_grad():
            self.session.model.network.stem[1].weight.zero_()
        line["alarms"] = [{"kind": "robust", "rolled_back": True}] if who == "sentinel" else []
        line |= {"level_reloaded": 1} if who == "curriculum" else {}
        return []

    restoring = SentinelLoop if who == "sentinel" else CaiCurriculum
    monkeypatch.setattr(restoring, "after_epoch", go_back)
    method = bv.methods.plain(THREAT)
    run = bv.train("linear", digits, method, out=tmp_path / "run", keep=(1, 3), **QUICK)
    assert not run.model.network.stem[1].weight.any()
    for name in ("best", "epoch-1", "epoch-3"):
        assert bv.load(run.path, name).network.stem[1].weight.any()
        (run.path / f"{name}.safetensors").unlink()
    with pytest.warns(UserWarning, match="in no checkpoint: "):  # nothing else is passed off as them
        bv.resume(run.path, dataset=digits)
    assert {file.stem for file in run.path.glob("*.safetensors")} == {"model"}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in one.state_dict().items())


def test_the_manifest_says_how_its_weights_were_made(digits, tmp_path, monkeypatch):
    """A model that is copied out of its run keeps the configuration, infinities included."""
    robust = iter((0.5, 0.7, 0.6))
    monkeypatch.setattr(Trainer, "_measure", lambda self: {"clean": 0.9, "robust": next(robust)})
    method = bv.methods.gairat(THREAT, steps=1, shift=math.inf)
    config = Config(method, data=Data("digits", data_dir=str(tmp_path)), **QUICK)
    network = bv.models.create("linear", num_classes=10, shape=digits.shape, seed=0)
    execute(config, digits, network, tmp_path / "run")
    place = tmp_path / "run" / "model.json"
    described = json.loads(place.read_text())
    assert (described["epoch"], described["best_epoch"]) == (3, 2)
    kept = described["config"]
    assert kept["data"]["data_dir"] == ""
    assert kept["method"]["weighting"]["rule"]["shift"] == "inf"
    assert kept["epochs"] == 3
    kept["method"]["weighting"] = encode(config.method.weighting)
    assert decode(kept) == config.set("data.data_dir", "")
    place.write_text(json.dumps(described | {"config": "config.toml"}))  # as it was written before
    assert bv.load(tmp_path / "run").num_classes == 10


def test_average_is_the_recursion_with_a_warm_start():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average, by_hand = Average(model, 0.5), float(model[0].weight.detach())
    for n, value in enumerate([1.0, 3.0, -2.0]):
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(10 * value)
        average.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        by_hand = decay * by_hand + (1 - decay) * value
    assert float(average.model[0].weight) == pytest.approx(by_hand, rel=1e-6)
    assert float(average.model[1].running_mean) == -20  # buffers are copied, not averaged


def test_held_out_is_a_function_of_its_arguments_and_leaves_the_model_alone(digits):
    model = bv.models.create("small-cnn", num_classes=10, shape=(1, 8, 8), seed=0).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = {"steps": 3, "rows": 100, "seed": 0, "device": torch.device("cpu")}
    first = held_out(model, digits.test, (THREAT,), **settings)
    torch.rand(5)
    second = held_out(model, digits.test, (THREAT,), **settings)
    assert first[:2] == second[:2]
    assert first[1] <= first[0]
    assert (first[2].forward, first[2].backward) == (100 * 5, 100 * 3)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_rows_of_sorted_data_are_measured_from_all_classes(digits):
    mixed = digits.test
    ordered = mixed.subset(mixed.labels.argsort(stable=True))
    assert torch.equal(measured_rows(mixed, 100, 0), torch.arange(100)), "as they are stored"
    assert torch.equal(measured_rows(ordered, len(ordered), 0), torch.arange(len(ordered)))
    chosen = measured_rows(ordered, 100, 0)
    assert len(chosen.unique()) == 100
    assert all(n >= 3 for n in torch.bincount(ordered.labels[chosen], minlength=10))
    assert torch.equal(chosen, measured_rows(ordered, 100, 0))
    assert not torch.equal(chosen, measured_rows(ordered, 100, 1))
    settings = {"steps": 1, "rows": 100, "seed": 0, "device": torch.device("cpu")}
    model = bv.models.create("linear", num_classes=10, shape=(1, 8, 8), seed=0)
    x, y = ordered.tensors(chosen)
    clean, _, _ = held_out(model, ordered, (THREAT,), **settings)
    assert clean * 100 == int((model(x).argmax(1) == y).sum())


DROPS = {"epochs": 1, "validation": Validation(0, 60)}


@pytest.mark.parametrize(
    ("network", "method", "settings"),
    [("tiny-cnn", bv.methods.fast_at(THREAT), {}), ("wrn-16-8", bv.methods.plain(THREAT), DROPS)],
    ids=["tiny-cnn", "dropout"],
)
def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(digits, network, method, settings):
    width = {"width": 0.06} if network.startswith("wrn") else {}

    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)  # the state of the global generator must not matter
        before = torch.get_rng_state()
        made = bv.models.create(network, num_classes=10, shape=(1, 8, 8), seed=seed, **width)
        run = bv.train(made, digits, method, seed=seed, **{**QUICK, **settings})
        assert torch.equal(torch.get_rng_state(), before), "and is left alone"
        return torch.cat([p.flatten() for p in run.model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_configurations_survive_being_written(tmp_path):
    for name in ("done-adam", "fast-bat", "bilaw", "atta", "trades-awp", "dynamic"):
        method = bv.methods.entries.create(name, bv.L2(0.5) if name == "dynamic" else THREAT)
        config = Config(method=method, optimizer=bv.AdamW(), rate=bv.Cosine(), average=0.99)
        config.write(tmp_path / "config.toml")
        assert Config.read(tmp_path / "config.toml") == config, name


def test_a_run_in_memory_writes_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = bv.train("linear", digits, bv.methods.plain(THREAT), **QUICK)
    assert run.path is None
    assert list(tmp_path.iterdir()) == []
    assert not run.model.training


class Pooled(torch.nn.Module):
    """BatchNorm behind a global pool: it cannot normalise a minibatch of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(x).mean((2, 3), keepdim=True)).flatten(1))


def test_a_single_image_at_the_end_of_an_epoch_joins_its_neighbour(digits, tmp_path):
    data = digits.but(train=digits.train.subset(slice(0, 33)))
    settings = {**QUICK, "batch_size": 16, "epochs": 2}
    run = bv.train(Pooled(), data, bv.methods.fast_at(THREAT), **settings)
    assert run.history[-1]["total_forward"] == 4  # two forwards a row and epoch: every row was there
    with pytest.raises(bv.UserError, match="BatchNorm cannot normalise a minibatch of 1 image"):
        bv.train(Pooled(), data, bv.methods.fast_at(THREAT), **{**settings, "batch_size": 1})
