"""`bivallate predict` and `bivallate attack`, and the functions behind them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bivallate as bv
from bivallate.cli import run
from bivallate.evaluation import craft

QUICK = ["--batch-size", "100", "--model", "linear", "--set", "validation.steps=1", "--epochs", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("images") / "run"
    assert run(["train", "plain", "--out", str(out), "--lr", "0.05", *QUICK]) == 0
    return out


@pytest.fixture(autouse=True)
def quiet(trained, capsys):
    capsys.readouterr()


def two_classes(gap: float) -> nn.Module:
    """Logits (0, sum of x - gap) of images of one pixel: the boundary lies at x = gap."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [10.0]]))
        model[1].bias.copy_(torch.tensor([0.0, -10 * gap]))
    return model


def test_a_prediction_survives_where_the_boundary_is_further_than_eps():
    x = torch.tensor([0.30, 0.45, 0.55, 0.70]).view(4, 1, 1, 1)
    found = bv.predict(two_classes(0.5), x, bv.Linf(0.1), "pgd-20")
    assert [each.label for each in found] == [0, 0, 1, 1]
    assert [each.survives for each in found] == [True, False, False, True]
    assert [each.becomes for each in found] == [None, 1, 0, None]
    assert found[0].confidence == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert found[0].top[0] == (0, found[0].confidence)
    assert sum(share for _, share in found[0].top) == pytest.approx(1)


def test_without_a_threat_nothing_is_attacked():
    (found,) = bv.predict(two_classes(0.5), torch.full((1, 1, 1, 1), 0.49))
    assert (found.survives, found.becomes) == (None, None)


@pytest.mark.parametrize("threat", [None, bv.Linf(0.1)])
@pytest.mark.parametrize("x", [torch.full((1, 1, 1, 1), 2), torch.full((1, 1, 1, 1), 1.5)])
def test_images_beyond_the_box_are_refused(x, threat):
    with pytest.raises(bv.UserError, match=r"images must (be floating point|lie) in \[0, 1\]"):
        bv.predict(two_classes(0.5), x, threat, "fgsm")


def test_crafted_images_are_those_that_an_evaluation_judges(trained):
    model, data = bv.load(trained), bv.data.load("digits")
    made = craft(model, data.test, bv.Linf(0.1), "pgd-3", n=30, seed=4)
    score = bv.evaluate(model, data.test, bv.Linf(0.1), "pgd-3", n=30, seed=4)
    assert torch.equal(made.index, score.index.cpu())
    assert torch.equal(made.correct & ~made.fooled, score.robust)
    assert 0 < made.fooled.sum() < 30
    assert float((made.x_adv - made.x).abs().max()) <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("x", "boundary", "eps", "fooled", "kept"),
    [
        (0.4985, 0.4990, 0.001, True, False),  # 0.4995 is stored as 127/255 = 0.49804
        (0.4980, 0.4985, 0.003, True, True),  # 0.5010 is stored as 128/255 = 0.50196
        (0.5000, 0.5015, 0.001, False, False),  # 0.5010 too, which is beyond the boundary by rounding alone
    ],
)
def test_rounding_can_undo_an_attack(x, boundary, eps, fooled, kept):
    points = torch.full((1, 1, 1, 1), x), torch.tensor([0])
    made = craft(two_classes(boundary), points, bv.Linf(eps), "pgd-20")
    assert (made.fooled.tolist(), made.fooled_in_8_bits.tolist()) == ([fooled], [kept])


def test_a_loaded_model_knows_its_classes(trained, tmp_path):
    model = bv.load(trained)
    assert model.classes == [str(k) for k in range(10)]
    bv.models.save(model, tmp_path)
    assert bv.models.load(tmp_path).classes == model.classes
    named = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**named, "classes": ["only one"]}))
    assert bv.models.load(tmp_path).classes is None


def test_attack_keeps_pictures_arrays_and_a_sheet(trained, tmp_path, capsys):
    place = tmp_path / "adv"
    given = ["attack", str(trained), "--save", str(place), "--attack", "fgsm", "--n", "9", "--eps", "0.1"]
    assert run(given) == 0
    assert "9 images" in capsys.readouterr().out
    kept = np.load(place / "adversarial.npz", allow_pickle=False)
    assert kept["x_adv"].shape == kept["x"].shape == (9, 1, 8, 8)
    assert np.abs(kept["x_adv"] - kept["x"]).max() <= 0.1 + 1e-6
    pictures = sorted((place / "images").iterdir())
    assert [int(p.name[:5]) for p in pictures] == kept["index"].tolist()
    with Image.open(pictures[0]) as image:
        assert np.array_equal(np.asarray(image), np.rint(kept["x_adv"][0, 0] * 255))
    with Image.open(place / "sheet.png") as image:
        assert image.width > image.height > 100
    assert run(given) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run([*given[:-4], "--n", "2", "--overwrite"]) == 0
    assert len(list((place / "images").iterdir())) == 2


def test_predict_reads_files_and_folders(trained, tmp_path, capsys):
    x, _ = bv.data.load("digits").test.tensors(torch.arange(3))
    for k in range(3):
        Image.fromarray((x[k, 0] * 255).byte().numpy()).save(tmp_path / f"{k}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    colour = Image.new("RGB", (20, 20), "white")
    colour.save(tmp_path / "large.png")
    names = [str(tmp_path), str(tmp_path / "0.png")]
    assert run(["predict", str(trained), *names, "--attack", "fgsm", "--eps", "0.2", "--json"]) == 0
    said = {entry["image"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(said) == {"0.png", "1.png", "2.png", "broken.png", "large.png", names[1]}
    model = bv.load(trained)
    expected = model(x).argmax(1).tolist()
    assert [said[f"{k}.png"]["class"] for k in range(3)] == [str(k) for k in expected]
    assert "error" in said["broken.png"]
    assert said["0.png"] | {"image": ""} == said[names[1]] | {"image": ""}
    assert all(isinstance(said[f"{k}.png"]["survives"], bool) for k in range(3))
    assert run(["predict", str(trained), *names, "--attack", "clean"]) == 0
    assert "not attacked" in " ".join(capsys.readouterr().out.split())


def test_the_name_of_an_image_is_shown_whole(trained, tmp_path, capsys):
    place = tmp_path / ("d" * 120) / "the-one.png"
    place.parent.mkdir()
    Image.new("L", (8, 8), 128).save(place)
    assert run(["predict", str(trained), str(place), "--attack", "clean"]) == 0
    cells = [row.split("│")[1].strip() for row in capsys.readouterr().out.splitlines() if row.count("│") > 1]
    assert str(place) in "".join(cells)


def test_predict_refuses_what_would_be_black(trained, tmp_path, capsys):
    """One image says less than a set: a byte in 16 bits is no dark photograph, and a pipe would never end."""
    values = (np.arange(64).reshape(8, 8) * 4).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "byte.png")
    Image.fromarray(values * 257).save(tmp_path / "whole.png")
    os.mkfifo(tmp_path / "pipe.png")
    names = [str(tmp_path / f"{name}.png") for name in ("byte", "whole", "pipe")]
    assert run(["predict", str(trained), *names[:2], "--json"]) == 0
    byte, whole = json.loads(capsys.readouterr().out)
    assert "reaches 0.38% of white" in byte["error"]
    assert "class" in whole
    assert run(["predict", str(trained), names[2]]) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["nowhere.png"], "there is no image at nowhere.png"),
        (["EMPTY"], "holds no image"),
        (["BROKEN"], "none of the images could be read"),
        (["BROKEN", "--top", "0"], "--top must be a whole number"),
        (["BROKEN", "--attack", "pgd"], "must be written"),
    ],
)
def test_mistakes_are_named(trained, tmp_path, capsys, given, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    places = {"EMPTY": str(tmp_path / "empty"), "BROKEN": str(tmp_path / "broken.png")}
    assert run(["predict", str(trained), *(places.get(g, g) for g in given)]) == 2
    assert expected in capsys.readouterr().err


def test_labels_of_other_data_go_by_the_names_of_their_classes(trained, tmp_path, capsys):
    """A folder that lacks classes counts its own from 0; what is kept has the run's labels."""
    x, y = bv.data.load("digits").test.tensors(torch.arange(60))
    for k in range(60):
        if int(y[k]) in (3, 7):
            place = tmp_path / "set" / str(int(y[k]))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((x[k, 0] * 255).round().byte().numpy()).save(place / f"{k}.png")
    given = ["--data", str(tmp_path / "set"), "--attack", "fgsm", "--eps", "0.1"]
    assert run(["attack", str(trained), "--save", str(tmp_path / "adv"), *given]) == 0
    kept = np.load(tmp_path / "adv" / "adversarial.npz", allow_pickle=False)
    assert set(kept["y"].tolist()) == {3, 7}
    assert kept["classes"].tolist() == [str(k) for k in range(10)]
