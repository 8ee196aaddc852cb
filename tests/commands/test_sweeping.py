"""`bivallate curve`, `distances` and `transfer` on short runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bivallate.cli import run
from bivallate.data.sources import distinct_name
from bivallate.reports.collect import collect

QUICK = ["--batch-size", "400", "--model", "linear", "--set", "validation.steps=1", "--eps", "0.1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sweeps")
    for method in ("fast-at", "plain"):
        assert run(["train", method, "--out", str(root / method), "--epochs", "1", *QUICK]) == 0
    return root


@pytest.fixture(autouse=True)
def quiet(runs, capsys):
    capsys.readouterr()


def names(runs: Path) -> list[str]:
    return [str(runs / "fast-at"), str(runs / "plain")]


def as_json(capsys, *arguments: str) -> dict:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_curve_falls_and_is_kept(runs, tmp_path, capsys):
    stem = tmp_path / "figures" / "eps0.1"
    given = ["--attack", "fgsm", "--eps", "0.1,0,1/20", "--n", "60", "--out", str(stem)]
    data = as_json(capsys, "curve", *names(runs), *given)
    assert data["eps"] == [0, 0.05, 0.1]
    assert data["trained"] == {"fast-at": 0.1, "plain": 0.1}
    assert json.loads(stem.with_name("eps0.1.json").read_text()) == data
    chosen = {key: data[key] for key in ("weights", "seed", "n", "subset", "first")}
    assert chosen == {"weights": "best", "seed": 0, "n": 60, "subset": 60, "first": None}
    for values in data["accuracy"].values():
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1]
    assert {p.name for p in stem.parent.iterdir()} == {f"eps0.1.{k}" for k in ("svg", "png", "pdf", "json")}
    evaluated = as_json(capsys, "evaluate", names(runs)[0], "--attack", "clean", "--n", "60")
    assert data["accuracy"]["fast-at"][0] == evaluated["clean_accuracy"]


def test_an_interrupted_curve_goes_on(runs, tmp_path, capsys, monkeypatch):
    from bivallate.evaluation import progress_display

    given = ["--attack", "fgsm", "--eps", "0,0.05,0.1", "--n", "40", "--out", str(tmp_path / "curve")]
    places = [Path(name) / "evaluation" for name in names(runs)]

    def kept() -> list[int]:
        return [len(list(place.glob(".curve-*"))) for place in places]

    def stop(self, moment):
        if kept() == [3, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress_display.shown_progress, "_update", stop)
    assert run(["curve", *names(runs), *given]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert kept() == [3, 2]
    monkeypatch.undo()
    resumed = as_json(capsys, "curve", *names(runs), *given)
    assert kept() == [0, 0]
    assert resumed == as_json(capsys, "curve", *names(runs), *given)


def test_a_curve_without_radii_takes_the_runs_own(runs, capsys):
    assert (
        run(["curve", names(runs)[0], "--attack", "fgsm", "--n", "20", "--norm", "l2", "--eps", "0,0.5"]) == 0
    )
    out = capsys.readouterr().out
    assert "accuracy under fgsm in L2, 20 test points" in out
    assert (runs / "fast-at" / "diagnosis" / "curve-l2-fgsm-n20.json").exists()


def test_distances_are_summed_up_and_kept(runs, tmp_path, capsys):
    stem = tmp_path / "distances"
    given = ["--n", "30", "--steps", "5", "--targets", "2", "--out", str(stem)]
    data = as_json(capsys, "distances", *names(runs), *given)
    assert json.loads(stem.with_name("distances.json").read_text()) == data
    assert (data["weights"], data["seed"], data["subset"]) == ("best", 0, 30)
    for label in ("fast-at", "plain"):
        summary = data["runs"][label]
        found = sorted(d if d is not None else float("inf") for d in summary["distances"])
        assert summary["wrong"] == found.count(0) < 30
        assert summary["quantiles"]["50"] == found[14]
        share = data["curve"]["accuracy"][label]
        assert share[0] == pytest.approx(1 - found.count(0) / 30)
        assert share == sorted(share, reverse=True)
    assert run(["distances", names(runs)[0], *given[:-2]]) == 0
    assert "clean wrong" in capsys.readouterr().out


def test_transfer_is_kept_as_an_evaluation_of_its_own(runs, capsys):
    first, second = names(runs)
    data = as_json(capsys, "transfer", first, "--from", second, "--attack", "pgd-3", "--n", "60")
    attack = data["attack"]
    assert attack.startswith("transfer-pgd-3-from-plain_")
    assert list(data["stages"]) == ["clean", "plain"]
    white = as_json(capsys, "evaluate", first, "--attack", "pgd-3", "--n", "60")
    assert data["robust_accuracy"] >= white["robust_accuracy"]
    assert run(["transfer", first, "--from", second, "--attack", "pgd-3", "--n", "60"]) == 0
    assert "the same attack on the model itself left" in capsys.readouterr().out
    chosen = ["--attack", attack, "--json"]
    assert as_json(capsys, "compare", first, *chosen[:-1])["attack"] == chosen[1]
    assert run(["compare", first, second, *chosen]) == 2
    assert f"bivallate transfer {second} --attack pgd-3 --n 60 --from ..." in capsys.readouterr().err


def test_surrogates_of_the_same_name_are_told_apart(runs, tmp_path, capsys):
    """Two transfers whose surrogates bear one name are kept beside each other and are no common attack."""
    for place in "one", "two":
        shutil.copytree(runs / "plain", tmp_path / place)
    for k, seed in enumerate("12"):
        out = str(tmp_path / f"exp{k}" / "at")
        assert run(["train", "fast-at", "--out", out, "--epochs", "1", "--seed", seed, *QUICK]) == 0
    first, second = str(tmp_path / "one"), str(tmp_path / "two")
    capsys.readouterr()
    given = ["--attack", "fgsm", "--n", "30"]
    near = as_json(capsys, "transfer", first, "--from", str(tmp_path / "exp0" / "at"), *given)
    far = as_json(capsys, "transfer", first, "--from", str(tmp_path / "exp1" / "at"), *given)
    assert near["attack"] != far["attack"]
    kept = [json.loads(p.read_text()) for p in (tmp_path / "one" / "evaluation").glob("*transfer*.json")]
    assert len(kept) == 2
    assert all(one in kept for one in (near, far))
    same = as_json(capsys, "transfer", second, "--from", str(tmp_path / "exp1" / "at"), *given)
    assert same["attack"] == far["attack"]
    assert as_json(capsys, "compare", first, second)["attack"] == far["attack"]
    assert run(["compare", first, second, "--attack", near["attack"]]) == 2
    assert "two has no evaluation" in capsys.readouterr().err
    assert run(["compare", first, second, "--attack", near["attack"].rpartition("_")[0]]) == 2
    assert f"did you mean '{near['attack']}'" in capsys.readouterr().err.replace(
        far["attack"], near["attack"]
    )


def test_a_transfer_under_its_old_name_is_still_read(runs, tmp_path, capsys):
    shutil.copytree(runs / "plain", tmp_path / "plain")
    first = str(tmp_path / "plain")
    data = as_json(capsys, "transfer", first, "--from", names(runs)[0], "--attack", "fgsm", "--n", "20")
    (path,) = (tmp_path / "plain" / "evaluation").glob("*transfer*.json")
    old = data | {"attack": data["attack"].rpartition("_")[0]}
    path.unlink()
    path.with_name(path.name.replace(data["attack"], old["attack"])).write_text(json.dumps(old))
    found = as_json(capsys, "compare", first, "--attack", old["attack"])
    assert found["rows"][0]["robust_accuracy"] == data["robust_accuracy"]


def test_data_of_the_same_name_are_told_apart(runs, tmp_path, capsys, monkeypatch):
    generator = np.random.default_rng(0)
    shutil.copytree(runs / "plain", tmp_path / "plain")
    for place in "x", "y":
        (tmp_path / place).mkdir()
        x = generator.random((60, 8, 8, 1), np.float32)
        np.savez(tmp_path / place / "photos.npz", x=x, y=np.arange(60) % 10)
    given = ["evaluate", str(tmp_path / "plain"), "--attack", "clean", "--data"]
    kept = [as_json(capsys, *given, str(tmp_path / place / "photos.npz")) for place in "xy"]
    monkeypatch.chdir(tmp_path)
    assert as_json(capsys, *given, "x/photos.npz")["data_fingerprint"] == kept[0]["data_fingerprint"]
    as_json(capsys, *given, "digits")
    stored = {e.data: e.score.data_fingerprint for e in collect([tmp_path / "plain"])[0].evaluations}
    assert len(stored) == 3
    assert "" in stored, "digits are what the run was trained on: its own data"
    assert {one["data_fingerprint"] for one in kept} < set(stored.values())
    assert all(name == "" or name.startswith("photos.npz_") for name in stored)
    assert distinct_name("hub:a/faces") != distinct_name("hub:b/faces")
    assert distinct_name("CIFAR_10") == distinct_name("cifar10") == "cifar10"


def test_many_surrogates_with_long_names_are_kept(runs, capsys):
    first, second = (Path(name) for name in names(runs))
    others = [runs / f"{letter * 70}" for letter in "abcd"]
    for other in others:
        shutil.copytree(second, other)
    given = ["--from", *map(str, others), "--attack", "fgsm", "--n", "20"]
    data = as_json(capsys, "transfer", str(first), *given)
    (kept,) = (first / "evaluation").glob("*transfer-fgsm-from-a*.json")
    assert len(kept.name) < 200
    assert json.loads(kept.read_text()) == data
    assert as_json(capsys, "compare", str(first), "--attack", data["attack"])["attack"] == data["attack"]


MISTAKES = [
    (["curve"], "at least one run"),
    (["curve", "RUN", "--eps", "0,8"], "write 8/255"),
    (["curve", "RUN", "--eps", "0,,1"], "such as 0.03 or 8/255"),
    (["curve", "RUN", "--attack", "pdg-3"], "did you mean"),
    (["curve", "RUN", "--n", "0"], "at least 1"),
    (["distances", "RUN", "--steps", "0"], "steps must be"),
    (["distances", "RUN", "--norm", "l3"], "unknown norm"),
    (["curve", "RUN", "--norm", "l2"], "--norm l2 needs a radius of its own, --eps, such as 0.5"),
    (["distances", "RUN", "--weights", "bst"], "did you mean 'best'"),
    (["transfer", "RUN"], "--from"),
    (["transfer", "RUN", "--from", "nowhere"], "no run in nowhere"),
    (["transfer", "RUN", "--from", "RUN"], "named twice"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: str(v))
def test_a_mistake_is_one_message(runs, capsys, arguments, message):
    assert run([str(runs / "plain") if a == "RUN" else a for a in arguments]) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured


def test_two_seeds_and_a_run_of_another_machine_are_diagnosed(runs, tmp_path, capsys):
    first, second = names(runs)[0], str(tmp_path / "second")
    assert run(["train", "fast-at", "--out", second, "--seed", "1", "--epochs", "1", *QUICK]) == 0
    config = Path(second) / "config.toml"
    text = config.read_text().replace('device = "auto"', 'device = "cuda"')
    config.write_text(text.replace("amp = false", "amp = true"))
    small = ["--n", "20", "--device", "cpu", "--out", str(tmp_path / "drawn")]
    assert run(["diagnose", first, second, "--what", "weight-scatter", *small]) == 0
    assert (tmp_path / "drawn" / "weight-scatter.npz").exists()


def test_a_network_handed_over_in_python_is_named_on_the_command_line(tmp_path, capsys, monkeypatch):
    import bivallate as bv

    (tmp_path / "handed.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import handed  # pyright: ignore[reportMissingImports]

    method, out = bv.methods.fast_at(bv.Linf(0.1)), tmp_path / "run"
    bv.train(handed.net(), "digits", method, epochs=1, batch_size=400, out=out)
    given = ["--attack", "fgsm", "--n", "20"]
    assert run(["evaluate", str(out), *given]) == 2
    assert "--model package.module:factory" in capsys.readouterr().err
    assert run(["evaluate", str(out), *given, "--model", "handed:net"]) == 0


def test_networks_of_ones_own_are_built_by_the_factory_that_is_named(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own, built_in = str(tmp_path / "own"), names(runs)[0]
    quick = [part if part != "linear" else "mynet:net" for part in QUICK]
    assert run(["train", "at", "--out", own, "--epochs", "1", *quick]) == 0
    small, named = ["--n", "20"], ["--model", "mynet:net"]
    assert run(["curve", own, built_in, "--attack", "fgsm", *small, *named]) == 0
    assert run(["distances", own, "--steps", "2", "--targets", "1", *small, *named]) == 0
    assert run(["transfer", built_in, "--from", own, "--attack", "fgsm", *small, *named]) == 0
    assert run(["diagnose", own, built_in, "--what", "eps", "--what", "weights", *small, *named]) == 0
    capsys.readouterr()
    for command in (
        ["curve", own],
        ["transfer", built_in, "--from", own],
        ["diagnose", own, "--what", "eps"],
    ):
        assert run([*command, *small]) == 2
        assert "--model package.module:factory" in capsys.readouterr().err


def test_the_table_of_an_evaluation_gives_every_accuracy_an_interval(runs, capsys):
    assert run(["evaluate", names(runs)[0], "--attack", "fgsm", "--n", "60"]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert "worst class" in out
    assert sum(line.count("[") for line in rows) == 4 + 2 * 10


def test_data_with_fewer_classes_than_the_model_is_scored(runs, tmp_path, capsys):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "three.npz", x=generator.random((60, 8, 8, 1), np.float32), y=np.arange(60) % 3)
    given = ["--attack", "pgd-3", "--data", str(tmp_path / "three.npz")]
    assert run(["evaluate", names(runs)[0], *given]) == 0
    assert "worst class" in capsys.readouterr().out
