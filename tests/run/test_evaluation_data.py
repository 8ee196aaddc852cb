"""The data that a run is evaluated on: labels mean the run's classes, training images are reported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.builders import grow, picture, pixels_of, write_parquet

import bivallate as bv
from bivallate.cli import run as command
from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.evaluation.attacked_images import craft
from bivallate.evaluation.sweeps import minimal_distances
from bivallate.reports.diagnostics.fosc import fosc
from bivallate.reports.diagnostics.gradients import gradient_alignment
from bivallate.reports.diagnostics.landscape import loss_landscape
from bivallate.reports.diagnostics.ranks import accuracy_over_eps, adversarial_rank
from bivallate.reports.diagnostics.weighed_points import weigh_points
from bivallate.run.config import Config
from bivallate.run.evaluation_data import EvaluationData, evaluation_data
from bivallate.types import Clock, Facts

CLASSES = ["cat", "dog", "eel"]
OWN = [f"{name}/{k}.png" for name in CLASSES for k in range(10)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIVALLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BIVALLATE_DATA", raising=False)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run on a folder of 30 images of 4x4, of which six were cut as test data."""
    grow(tmp_path / "own", OWN)
    bv.train(
        "linear",
        str(tmp_path / "own"),
        bv.methods.plain(bv.Linf(0.1)),
        epochs=1,
        batch_size=16,
        out=tmp_path / "run",
    )
    return tmp_path / "run"


def look(run: Path, other: Path | None, **options: bool) -> EvaluationData:
    return evaluation_data(run, Config.read(run / "config.toml"), str(other) if other else None, **options)


def labelled(found: EvaluationData, names: list[str]) -> dict[str, str]:
    """{file: class} of the test images."""
    assert found.data.classes == CLASSES
    by_pixels = {pixels_of(picture(name)): name for name in names}
    test = found.data.test
    images = [by_pixels[image.transpose(1, 2, 0).tobytes()] for image in test.images]
    return dict(zip(images, (CLASSES[k] for k in test.labels), strict=True))


FOLDERS: dict[str, dict[str, str]] = {
    "a class less": {"new/dog/1.png": "dog", "new/eel/1.png": "eel"},
    "other spellings": {"new/Eel/1.png": "eel", "new/DOG/1.png": "dog", "new/cat/7.png": "cat"},
    "the middle one alone": {"new/dog/1.png": "dog"},
    "a test split": {"new/test/eel/1.png": "eel", "new/test/dog/1.png": "dog"},
    "a test split beside training data": {
        "new/test/eel/1.png": "eel",
        "new/train/cat/1.png": "",
        "new/train/eel/1.png": "",
    },
}


@pytest.mark.parametrize("layout", FOLDERS)
def test_folders_mean_the_runs_classes(trained: Path, tmp_path: Path, layout: str) -> None:
    wanted = FOLDERS[layout]
    grow(tmp_path, list(wanted))
    found = look(trained, tmp_path / "new")
    assert labelled(found, list(wanted)) == {name: label for name, label in wanted.items() if label}
    assert found.warnings == ()
    assert found.place.startswith("new_")
    absent = len(set(CLASSES) - set(wanted.values()))
    assert any(f"{absent} of the run's 3 classes have no test image" in n for n in found.data.notes) == bool(
        absent
    )


@pytest.mark.parametrize("layout", FOLDERS)
def test_splits_mean_the_models_classes(trained: Path, tmp_path: Path, layout: str) -> None:
    grow(tmp_path, list(FOLDERS[layout]))
    test, model = look(trained, tmp_path / "new").data.test, bv.load(trained)
    split = bv.data.load(str(tmp_path / "new"), allow_missing_classes=True, validation=0, whole=True).test
    wanted = bv.evaluate(model, test, bv.Linf(0.1), "clean")
    for subject in (trained, model):
        found = bv.evaluate(subject, split.subset(slice(None)), bv.Linf(0.1), "clean")
        assert found.y.tolist() == test.labels.tolist()
        assert (found.data_fingerprint, found.clean_accuracy) == (
            wanted.data_fingerprint,
            wanted.clean_accuracy,
        )
    assert craft(model, split, bv.Linf(0.1), "fgsm").y.tolist() == test.labels.tolist()
    by_number = bv.evaluate(model, split.tensors(), bv.Linf(0.1), "clean")
    assert by_number.y.tolist() == split.labels.tolist()


def test_a_split_with_a_class_that_the_model_has_not_is_refused(trained: Path, tmp_path: Path) -> None:
    grow(tmp_path, ["new/cats/1.png", "new/dog/1.png"])
    split, model = bv.data.load(str(tmp_path / "new"), whole=True, validation=0).test, bv.load(trained)
    ball = bv.Linf(0.1)
    for ask in (
        lambda: bv.evaluate(model, split, ball),
        lambda: bv.audit(model, split, ball),
        lambda: craft(model, split, ball),
        lambda: minimal_distances(model, split, "linf"),
    ):
        with pytest.raises(UserError, match=r"class 'cats', which the model has not .did you mean 'cat'"):
            ask()
    model.classes = None
    assert bv.evaluate(model, split, bv.Linf(0.1), "clean").y.tolist() == split.labels.tolist()


PICTURES = {
    "alignment": lambda model, data: gradient_alignment({"a": model}, data, bv.Linf(0.1)),
    "fosc": lambda model, data: fosc(model, data, bv.Linf(0.1), steps=(1,)),
    "landscape": lambda model, data: loss_landscape(model, data, bv.Linf(0.1), size=3),
    "landscape of a row": lambda model, data: loss_landscape(model, data, bv.Linf(0.1), row=1, size=3),
    "eps": lambda model, data: accuracy_over_eps({"a": model}, data, bv.Linf(0.1), attack="fgsm"),
    "ranks": lambda model, data: adversarial_rank({"a": model}, data, bv.Linf(0.1), attack="fgsm"),
    "weights": lambda model, data: weigh_points(
        model, bv.methods.mail_at(bv.Linf(0.1)).bind(Facts(3, (3, 4, 4), 3)), data, Clock()
    ).margin.tolist(),
}


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_find_labels_by_name_too(trained: Path, tmp_path: Path, picture: str) -> None:
    grow(tmp_path, ["new/eel/1.png", "new/dog/1.png", "new/dog/2.png"])
    split, model = bv.data.load(str(tmp_path / "new"), whole=True, validation=0).test, bv.load(trained)
    x, y = split.tensors()
    assert y.tolist() != [CLASSES.index(split.classes[k]) for k in y]
    moved = torch.tensor([CLASSES.index(split.classes[k]) for k in y])
    told = PICTURES[picture](model, split), PICTURES[picture](model, (x, moved))
    plain = [one if isinstance(one, list) else one.data() for one in told]
    assert json.dumps(plain[0], default=repr) == json.dumps(plain[1], default=repr)


@pytest.mark.parametrize(
    ("rows", "names", "wanted"),
    [
        ([0, 1, 2], ["eel", "dog", "cat"], ["eel", "dog", "cat"]),
        ([1], ["eel", "dog"], ["dog"]),
        ([0, 1], ["cat", "dog", "hen", "eel"], ["cat", "dog"]),
        ([0, 2, 1], None, ["cat", "eel", "dog"]),
        (["eel", "dog"], None, ["eel", "dog"]),
    ],
)
def test_parquet_means_the_runs_classes(
    trained: Path, tmp_path: Path, rows: list, names: list | None, wanted: list
) -> None:
    files = [f"{k}" for k in range(len(rows))]
    path = write_parquet(tmp_path / "new.parquet", [picture(f) for f in files], rows, names)
    config = Config.read(trained / "config.toml").set("data.on_bad", "convert")
    found = evaluation_data(trained, config, str(path))
    assert labelled(found, files) == dict(zip(files, wanted, strict=True))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["new/cat/1.png", "new/cow/1.png"], "class 'cow', which the run has not.*--by-position"),
        (["new/cats/1.png", "new/dog/1.png"], "class 'cats', which the run has not .did you mean 'cat'"),
        (["new/1.png"], "no class folders"),
        (["new/0/1.png", "new/1/1.png", "new/2/1.png"], "class '0', which the run has not"),
    ],
)
def test_unknown_classes_are_refused(trained: Path, tmp_path: Path, names: list[str], message: str) -> None:
    grow(tmp_path, names)
    with pytest.raises(UserError, match=message):
        look(trained, tmp_path / "new")


def test_by_position_on_request(trained: Path, tmp_path: Path) -> None:
    names = ["new/a/1.png", "new/b/1.png"]
    grow(tmp_path, names)
    found = look(trained, tmp_path / "new", by_position=True)
    assert labelled(found, names) == {names[0]: "cat", names[1]: "dog"}
    grow(tmp_path, ["new/c/1.png", "new/d/1.png"])
    with pytest.raises(UserError, match="label 3, but the run has 3 classes"):
        look(trained, tmp_path / "new", by_position=True)


def test_all_of_a_flat_set_is_evaluated(trained: Path, tmp_path: Path) -> None:
    names = [f"new/{label}/{k}.png" for label in CLASSES for k in range(20)]
    grow(tmp_path, names)
    found = look(trained, tmp_path / "new")
    assert labelled(found, names) == {name: name.split("/")[1] for name in names}
    assert "there is no test split: all 60 images are test data" in found.data.notes
    x = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "many.npz", images=x, labels=np.arange(200) % 3)
    assert np.array_equal(look(trained, tmp_path / "many.npz").data.test.images, x.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("place", ["own", "copy"])
def test_the_runs_own_data_keep_their_cut(trained: Path, tmp_path: Path, place: str) -> None:
    grow(tmp_path / "copy", OWN)
    own, found = look(trained, None), look(trained, tmp_path / place)
    assert len(own.data.test) == 6
    assert found.data.fingerprint == own.data.fingerprint
    assert (found.place, found.warnings) == ("", ())


def test_images_of_the_training_are_said(trained: Path, tmp_path: Path) -> None:
    own = look(trained, None).data
    grow(tmp_path / "copy", [*OWN, "cat/new.png"])
    found = look(trained, tmp_path / "copy")
    assert found.warnings == (
        f"{len(own.train)} of 31 images are training images of this run: it has seen the answers",
    )


def test_other_sizes_are_fitted(trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name, size in (("dog", (9, 7)), ("eel", (4, 4)), ("cat", (30, 20))):
        (tmp_path / "new" / name).mkdir(parents=True)
        Image.new("RGB", size, "red").save(tmp_path / "new" / name / "1.png")
    found = look(trained, tmp_path / "new")
    assert (
        found.data.test.images.tolist()
        == np.broadcast_to(np.array([255, 0, 0])[:, None, None], (3, 3, 4, 4)).tolist()
    )
    assert "images are fitted to the model's 4x4 with 3 channels" in found.data.notes


def test_a_class_folder_that_went_since_training_moves_no_label(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "cat").rename(tmp_path / "cat-away")
    found = look(trained, None)
    assert found.data.classes == CLASSES
    assert set(found.data.test.labels.tolist()) == {1, 2}


def test_the_command_says_what_it_evaluates(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    grow(tmp_path, ["new/dog/1.png", "new/eel/1.png", "new/eel/2.heic"])
    assert command(["evaluate", str(trained), "--data", str(tmp_path / "new"), "--attack", "fgsm"]) == 0
    out = capsys.readouterr()
    assert "2 points" in out.out
    for said in (
        "no test split: all 2 images",
        "left out, .heic files: 1 (eel/2.heic)",
        "no test image here: cat",
    ):
        assert said in out.err
    [kept] = (trained / "evaluation").glob("*-on_new_*.json")
    assert Score.load(kept).y.tolist() == [1, 2]


def test_relative_names_are_recorded_absolute_and_moved_data_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    grow(tmp_path / "here" / "own", OWN)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    quick = ["--epochs", "1", "--batch-size", "16", "--model", "linear", "--out", str(tmp_path / "run")]
    assert command(["train", "plain", "--data", "own", *quick]) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert Config.read(tmp_path / "run" / "config.toml").data.name == str(tmp_path / "here" / "own")
    assert "here" not in (tmp_path / "run" / "model.json").read_text()
    assert command(["evaluate", str(tmp_path / "run"), "--attack", "clean"]) == 0
    (tmp_path / "here" / "own").rename(tmp_path / "there" / "moved")
    assert command(["resume", str(tmp_path / "run")]) == 2
    assert command(["resume", str(tmp_path / "run"), "--data", "moved"]) == 0
    (tmp_path / "there" / "moved" / "cat" / "0.png").unlink()
    assert command(["resume", str(tmp_path / "run"), "--data", "moved"]) == 2
    assert "not what this run was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Digits", "DIGITS", "digits"])
def test_names_in_any_case(tmp_path: Path, name: str) -> None:
    quick = ["--epochs", "1", "--batch-size", "400", "--model", "linear", "--out", str(tmp_path / "run")]
    assert command(["train", "plain", "--data", name, *quick]) == 0
    config = Config.read(tmp_path / "run" / "config.toml")
    assert (config.data.name, config.method.threat.eps) == ("digits", 0.15)
