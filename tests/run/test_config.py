"""The configuration file and the settings of the data, down to what the loader is asked for."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bivallate import Linf, data, methods
from bivallate.cli import run
from bivallate.commands.configuration import plan_of
from bivallate.commands.settings import own_parameters
from bivallate.errors import UserError
from bivallate.methods.entries import create, registry
from bivallate.parts import decode, encode
from bivallate.run.config import METHOD_PARTS, Config, Data, Model
from bivallate.run.cycles import Cycles
from bivallate.run.from_config import load_data


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIVALLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BIVALLATE_DATA", raising=False)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Thirty JPEGs of three classes, no two sizes alike; one of them is grey."""
    folder, rng = tmp_path / "photographs", np.random.default_rng(0)
    for k in range(30):
        place = folder / ("ant", "bee", "cow")[k % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + k, 24 + k, 3), np.uint8)
        picture = Image.fromarray(pixels)
        (picture.convert("L") if k == 29 else picture).save(place / f"{k}.jpg")
    return folder


# setting, text -> the loader's argument
PASSED = {
    ("size", "16"): ("size", 16),
    ("channels", "1"): ("channels", 1),
    ("on_bad", "skip"): ("on_bad", "skip"),
    ("image_column", "photo"): ("image_column", "photo"),
    ("label_column", "kind"): ("label_column", "kind"),
    ("test_fraction", "1/4"): ("test_fraction", 0.25),
    ("allow_missing_classes", "true"): ("allow_missing_classes", True),
    ("stream", "always"): ("stream", True),
    ("stream", "never"): ("stream", False),
    ("workers", "0"): ("workers", 0),
    ("validation", "500"): ("validation", 500),
    ("imbalance", "step:0.2"): ("imbalance", "step:0.2"),
    ("extra", "more.npz"): ("extra", "more.npz"),
    ("extra_ratio", "0.7"): ("extra_ratio", 0.7),
    ("data_dir", "there"): ("data_dir", "there"),
}


def asked(spec: Data, monkeypatch) -> dict:
    found = {}
    monkeypatch.setattr(data, "load", lambda name, **options: found.update(options, name=name))
    load_data(spec, 3)
    return found


@pytest.mark.parametrize(("key", "text"), PASSED)
def test_every_setting_of_the_data_reaches_the_loader(key, text, monkeypatch):
    config = Config(methods.at(Linf(0.1))).set(f"data.{key}", text)
    argument, value = PASSED[key, text]
    found = asked(config.data, monkeypatch)
    assert found[argument] == value
    assert type(found[argument]) is type(value)


def test_settings_left_alone_are_the_loaders_defaults(monkeypatch):
    import inspect

    defaults = {k: p.default for k, p in inspect.signature(data.load).parameters.items()}
    found = asked(Data("digits"), monkeypatch)
    assert found.pop("name") == "digits"
    assert found.pop("seed") == 3
    assert {k: defaults[k] for k in found} == found
    assert defaults.keys() - found.keys() == {"data", "seed"}


def test_the_file_repeats_every_value(tmp_path):
    config = Config(methods.done_adam(Linf(8 / 255)), data=Data("x", stream="never", workers=2, channels=3))
    config.write(tmp_path / "config.toml")
    assert Config.read(tmp_path / "config.toml") == config
    written = tomllib.loads((tmp_path / "config.toml").read_text())["data"]
    assert written.keys() - {"kind"} == {f.name for f in dataclasses.fields(Data)}


def test_a_wrong_way_to_stream_names_the_right_ones():
    with pytest.raises(UserError, match="never"):
        Config(methods.at(Linf(0.1))).set("data.stream", "nevr")


def test_photographs_of_all_sizes_train_once_the_message_is_followed(photographs, tmp_path, capsys):
    command = ["train", "plain", "--data", str(photographs), "--epochs", "1", "--batch-size", "8"]
    command += ["--model", "linear", "--set", "validation.steps=1", "--out", str(tmp_path / "run")]
    assert run(command) == 2
    assert "--set data.size=32" in capsys.readouterr().err  # their shorter sides are 20 to 50 pixels
    command += ["--set", "data.size=16"]
    cut = photographs / "ant" / "cut.jpg"
    cut.write_bytes((photographs / "ant" / "0.jpg").read_bytes()[:300])
    assert run(command) == 2
    message = capsys.readouterr().err
    assert "cut.jpg" in message
    assert "--set data.on_bad=skip" in message
    assert run([*command, "--set", "data.on_bad=skip"]) == 0
    assert "1 of 30 images are grey among colour" in capsys.readouterr().err
    kept = Config.read(tmp_path / "run" / "config.toml").data
    assert (kept.size, kept.on_bad) == (16, "skip")


def test_datasets_reads_as_training_does(photographs, capsys):
    assert run(["datasets", str(photographs), "--set", "data.size=16", "--set", "on_bad=convert"]) == 0
    out = capsys.readouterr().out
    assert "[3, 16, 16]" in out
    assert "cow" in out
    assert run(["datasets", str(photographs), "--set", "data.sizes=16"]) == 2
    assert "did you mean 'size'" in capsys.readouterr().err
    words = ["--set", "size=16", "--set", "on_bad=convert", "--set", "augment=crop:2,flip", "--json"]
    assert run(["datasets", str(photographs), *words]) == 0
    assert json.loads(capsys.readouterr().out)["augmentation"] == "crop:2,flip"


def test_another_threat_is_followed_also_from_a_file(tmp_path) -> None:
    made = Config(method=methods.at(Linf(0.1), step_size=0.5))
    assert made.set("threat.eps", "0.2").method == methods.at(Linf(0.2), step_size=0.5)
    made.write(tmp_path / "config.toml")

    def plan(*settings: str) -> Config:
        return plan_of(None, tmp_path / "config.toml", None, None, "linf", None, settings)

    with pytest.raises(UserError, match="give it too, as solver__step_size="):
        plan("threat.eps=0.2", "epochs=3")
    given = plan("threat.eps=0.2", "solver.step_size=0.1", "epochs=3")
    assert (given.method, given.epochs) == (made.set("threat.eps", "0.2").method, 3)
    Config(method=methods.at(Linf(0.1))).write(tmp_path / "config.toml")
    assert plan("method.threat.eps=0.2").method == methods.at(Linf(0.2))


@pytest.mark.parametrize(("field", "word"), Data.WRITTEN_NONE.items())
def test_none_is_written_by_the_word_that_it_always_had(field: str, word: object, tmp_path) -> None:
    """Files of before are read as they are, new ones are written alike, and records keep their definition."""
    config = Config(methods.plain(Linf(0.1)))
    assert getattr(config.data, field) is None
    assert getattr(config.set(f"data.{field}", str(word)).data, field) is None
    assert dataclasses.replace(config.data, **{field: word}) == config.data  # pyright: ignore
    config.write(tmp_path / "config.toml")
    assert tomllib.loads((tmp_path / "config.toml").read_text())["data"][field] == word
    assert Config.read(tmp_path / "config.toml") == config
    assert decode(encode(config)) == config


def test_a_stem_that_nobody_chose_is_none() -> None:
    assert Model(stem="") == Model() == decode({"kind": "Model", "stem": ""})
    assert encode(Model())["stem"] == ""
    with pytest.raises(UserError, match="workers"):
        Data(workers=-2)


SHARED = {
    "rate": ("0.25", "Cycles"),
    "warm_up": ("0", "0.5"),
    "patience": ("3", "4"),
    "coupling": ("none", "Detached"),
    "attack_mode": ("train", "eval"),
    "replays": ("3", "2"),
}  # names of parameters and of the configuration: a value for either


@pytest.mark.parametrize("name", registry())
def test_no_parameter_of_a_method_hides_a_key_of_the_configuration(name) -> None:
    """A name that both have needs a line above: each is reached by its prefix, and by a value of its own."""
    known = registry()[name].parameters
    parts = {*METHOD_PARTS}
    for key in known.keys() & ({f.name for f in dataclasses.fields(Config)} | parts):
        mine, its = SHARED[key]
        config = Config(methods.at(Linf(0.1)))
        other = config.set(key, its)
        assert config.set(f"config.{key}", its) == other
        assert own_parameters(name, [(f"config.{key}", its)]) == ({}, [(f"config.{key}", its)])
        ours, rest = own_parameters(name, [(key if key in parts else f"method.{key}", mine)])
        assert (list(ours), rest) == ([key], [])
        create(name, Linf(0.1), **ours)
        assert own_parameters(name, [(key, mine)]) == (ours, [])


@pytest.mark.parametrize(
    ("method", "key", "own", "others"),
    [("wat", "rate", "0.2", "Cycles"), ("done-gd", "coupling", "mask", "Leaf")],
)
def test_a_value_that_does_not_fit_the_method_is_the_configurations(method, key, own, others, capsys) -> None:
    assert own_parameters(method, [(key, own)])[1] == []
    assert own_parameters(method, [(key, others), (f"{key}.length", "2")])[0] == {}
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=rf"{key}.*config.{key}, which is not of the method"):
        own_parameters(method, [(key, "Zzz")])


def test_a_value_that_fits_both_is_the_methods_with_a_note(capsys) -> None:
    plan = plan_of("dafa", None, None, None, "linf", None, ("warm_up=0.25",))
    assert plan.method.made[1] == {"warm_up": 0.25}
    assert plan.warm_up != 0.25
    assert "method.warm_up=0.25 or config.warm_up=0.25" in capsys.readouterr().err
    both = ("method.warm_up=0.25", "config.warm_up=0.5", "rate=Cycles", "rate.length=2")
    plan = plan_of("dafa", None, None, None, "linf", None, both)
    assert (plan.method.made[1], plan.warm_up, plan.rate) == ({"warm_up": 0.25}, 0.5, Cycles(length=2))
    assert capsys.readouterr().err == ""


def test_what_was_done_is_no_setting() -> None:
    """`recipe` in a configuration says which one was applied; to set it would apply nothing."""
    with pytest.raises(UserError, match="--recipe"):
        Config(methods.at(Linf(0.1))).set("recipe", "done")


@pytest.mark.parametrize(
    ("robust", "patience", "over"),
    [
        ([0.1, 0.3, 0.2], 0, False),
        ([0.1, 0.3, 0.2], 1, True),
        ([0.1, 0.3, 0.2], 2, False),
        ([0.3, 0.3, 0.2], 2, True),  # as good as the best is no improvement
        ([None, None, None], 1, False),
        ([], 1, False),
        ([0.1] * 6, 0, True),
    ],
)
def test_a_training_that_ran_out_of_patience_is_over(robust: list, patience: int, over: bool) -> None:
    config = Config(methods.at(Linf(0.1)), epochs=6, patience=patience)
    assert config.ended([{"robust": value} for value in robust]) is over
