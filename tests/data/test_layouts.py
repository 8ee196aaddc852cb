"""Layouts of data folders: the split and class of every file, and what is noted or refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.builders import grow, picture, pixels_of, write_parquet

from bivallate import data
from bivallate.data.decode import Reading
from bivallate.data.layout import split_of
from bivallate.data.sources import find
from bivallate.data.splits import Streaming
from bivallate.errors import UserError

JUNK = "left"
VAL, TEST, TRAIN = "validation", "test", "train"


def placed(root: Path, names: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """({file: "split class"} of the images that were read, the notes)."""
    source = find(root, None, Reading(), Streaming())
    by_pixels = {pixels_of(picture(name)): name for name in names}
    found: dict[str, str] = {}
    for split, rows in source.splits.items():
        for image, label in zip(rows.images, rows.labels.tolist(), strict=True):
            name = by_pixels[image.transpose(1, 2, 0).tobytes()]
            assert name not in found, "read twice"
            found[name] = f"{split} {source.classes[label]}"
    return found, source.notes


READ: dict[str, dict[str, str]] = {
    "kaggle brain tumours": {
        "Training/glioma/1.jpg.png": "train glioma",
        "Training/no_tumor/1.png": "train no_tumor",
        "Testing/glioma/1.png": "test glioma",
        "Testing/no_tumor/1.png": "test no_tumor",
    },
    "kaggle cats": {
        "training_set/cats/1.png": "train cats",
        "training_set/dogs/1.png": "train dogs",
        "test_set/cats/1.png": "test cats",
        "test_set/dogs/1.png": "test dogs",
    },
    "intel scenes, doubled folders": {
        "seg_train/seg_train/sea/1.png": "train sea",
        "seg_train/seg_train/street/1.png": "train street",
        "seg_test/seg_test/street/1.png": "test street",
        "seg_test/seg_test/sea/1.png": "test sea",
        "seg_pred/seg_pred/1.png": JUNK,
    },
    "dev and eval": {
        "train/a/1.png": "train a",
        "train/b/1.png": "train b",
        "dev/a/1.png": "validation a",
        "dev/b/1.png": "validation b",
        "eval/a/1.png": "test a",
        "eval/b/1.png": "test b",
    },
    "roboflow": {
        "train/a/1.png": "train a",
        "train/b/1.png": "train b",
        "valid/b/1.png": "validation b",
        "test/a/1.png": "test a",
        "README.dataset.txt": JUNK,
        "README.roboflow.txt": JUNK,
    },
    "coco years": {
        "train2017/a/1.png": "train a",
        "train2017/b/1.png": "train b",
        "val2017/a/1.png": "test a",
    },
    "numbers behind": {
        "train0/a/1.png": "train a",
        "train0/b/1.png": "train b",
        "test0/a/1.png": "test a",
    },
    "capitals": {"TrainSet/a/1.png": "train a", "TrainSet/b/1.png": "train b", "TESTDATA/a/1.png": "test a"},
    "a wrapper": {
        "dataset/train/a/1.png": "train a",
        "dataset/train/b/1.png": "train b",
        "dataset/test/a/1.png": "test a",
        "dataset/readme.md": JUNK,
        "licence": JUNK,
    },
    "wrapped splits": {
        "train/images/a/1.png": "train a",
        "train/images/b/1.png": "train b",
        "test/images/b/1.png": "test b",
    },
    "a macOS zip": {
        "set/train/a/1.png": "train a",
        "set/train/a/._1.png": JUNK,
        "set/train/b/1.png": "train b",
        "set/test/a/1.png": "test a",
        "__MACOSX/set/train/a/._1.png": JUNK,
        "__MACOSX/set/._train": JUNK,
        "set/.DS_Store": JUNK,
    },
    "chest x-rays, there twice": {
        "train/a/1.png": "train a",
        "train/b/1.png": "train b",
        "test/a/1.png": "test a",
        "val/a/1.png": "validation a",
        "chest_xray/train/a/2.png": JUNK,
        "chest_xray/test/b/2.png": JUNK,
        "__MACOSX/train/a/._1.png": JUNK,
    },
    "notebook leftovers": {
        "a/1.png": "train a",
        "a/.ipynb_checkpoints/1-checkpoint.png": JUNK,
        ".ipynb_checkpoints/x.png": JUNK,
        "b/1.png": "train b",
        "b/Thumbs.db": JUNK,
        "@eaDir/a/1.png": JUNK,
    },
    "a class called train": {
        "bus/1.png": "train bus",
        "car/1.png": "train car",
        "train/1.png": "train train",
    },
    "classes with split words": {
        "steam_train/1.png": "train steam_train",
        "test_tube/1.png": "train test_tube",
        "bus/1.png": "train bus",
    },
    "unlabelled test images": {
        "train/a/1.png": "train a",
        "train/b/1.png": "train b",
        "val/b/1.png": "test b",
        "test/1.png": JUNK,
        "sample_submission.csv": JUNK,
    },
    "keras' test/test": {
        "train/a/1.png": "train a",
        "train/b/1.png": "train b",
        "test/test/1.png": JUNK,
    },
    "test/unknown": {
        "train/a/1.png": "train a",
        "train/b/1.png": "train b",
        "test/unknown/1.png": JUNK,
    },
    "phones": {
        "a/1.png": "train a",
        "a/2.heic": JUNK,
        "a/3": JUNK,
        "b/1.JPG.png": "train b",
        "b/notes.txt": JUNK,
        "0.png": JUNK,
    },
    "annotations beside the classes": {
        "a/1.png": "train a",
        "b/1.png": "train b",
        "annotations/a.xml": JUNK,
    },
    "years below the classes": {"a/2019/1.png": "train a", "a/2020/1.png": "train a", "b/1.png": "train b"},
    "tiny-imagenet's folders": {
        "train/n01/images/1.png": "train n01",
        "train/n02/images/1.png": "train n02",
        "test/n01/images/2.png": "test n01",
    },
    "classes in other spellings": {
        "train/Traffic Light/1.png": "train Traffic Light",
        "train/stop/1.png": "train stop",
        "test/Stop/1.png": "test stop",
        "test/traffic_light/1.png": "test Traffic Light",
    },
    "a test class less": {
        "train/a/1.png": "train a",
        "train/b/1.png": "train b",
        "train/c/1.png": "train c",
        "test/c/1.png": "test c",
        "test/a/1.png": "test a",
        "test/x/": JUNK,
    },
    "a wrapper beside annotations": {
        "101_ObjectCategories/a/1.png": "train a",
        "101_ObjectCategories/b/1.png": "train b",
        "Annotations/a.mat": JUNK,
    },
    "labels beside the splits": {
        "train/a/1.png": "train a",
        "train/b/1.png": "train b",
        "labels/a.txt": JUNK,
    },
    "pascal's trainval": {
        "trainval/a/1.png": "train a",
        "trainval/b/1.png": "train b",
        "test/b/1.png": "test b",
    },
}


@pytest.mark.parametrize("layout", READ)
def test_each_file_lands_where_its_name_says(tmp_path: Path, layout: str) -> None:
    wanted = READ[layout]
    found, notes = placed(grow(tmp_path / "set", list(wanted)), list(wanted))
    assert found == {name: place for name, place in wanted.items() if place != JUNK}
    said = " ".join(notes)
    for name in (name for name, place in wanted.items() if place == JUNK and not name.endswith("/")):
        above = [str(p) for p in Path(name).parents][:-1]
        assert any(f"({p}" in said or f", {p}" in said for p in (name, *above)), (name, notes)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no class folders": (["1.png", "2.png"], r"holds 2 images but no class folders"),
    "dogs vs cats": (
        ["train/cat.1.png", "test/1.png", "labels.csv"],
        "test/, train/ hold images without class",
    ),
    "one flat split": (["train/1.png", "train/2.png"], "train/ hold images without class folders"),
    "two for one split": (
        ["train/a/1.png", "training/a/2.png", "test/a/3.png"],
        "train/ and training/ are both train data",
    ),
    "test and eval": (
        ["train/a/1.png", "test/a/1.png", "eval/a/1.png"],
        "eval/ and test/ are both test data",
    ),
    "a split or a class": (
        ["train/steam/1.png", "train/diesel/1.png", "bus/1.png", "car/1.png"],
        "is train/ a split or a class. It stands beside bus/, car/",
    ),
    "flat splits beside a class": (
        ["train/1.png", "test/1.png", "cat/1.png"],
        "are test/, train/ splits or classes",
    ),
    "splits below the classes": (
        ["a/train/1.png", "a/test/1.png", "b/train/1.png"],
        "splits below the classes",
    ),
    "detection": (["train/images/1.png", "train/labels/1.txt"], "without class folders"),
    "detection at the top": (["images/1.png", "annotations/1.xml"], "as sets for detection have"),
    "an unknown test class": (
        ["train/cat/1.png", "train/dog/1.png", "test/dgo/1.png"],
        "class 'dgo', which the training data has not .did you mean 'dog'",
    ),
    "two splits in one name": (["train_test/a/1.png", "b/1.png"], "names two splits, test and train"),
    "folds": (["fold1/a/1.png", "fold2/a/2.png"], "fold1/, fold2/ classes or parts of one set"),
    "parts": (["HAM_images_part_1/1.png", "HAM_images_part_2/2.png"], "classes or parts of one set"),
    "an archive": (["train.zip"], "holds no data.*1 .zip; unpack the archive"),
    "arrow": (
        ["train/data-00000-of-00001.arrow", "dataset_dict.json"],
        "it holds 1 .arrow, 1 .json; write it as Parquet",
    ),
    "unreadable images alone": (["a/1.heic", "b/1.heic"], "2 .heic"),
}


@pytest.mark.parametrize("layout", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, layout: str) -> None:
    names, message = REFUSED[layout]
    with pytest.raises(UserError, match=message):
        data.load(grow(tmp_path / "set", names), validation=0, test_fraction=0.5)


def test_a_class_without_readable_images_is_no_silent_loss(tmp_path: Path) -> None:
    folder = grow(tmp_path / "set", [f"a/{k}.png" for k in range(6)] + ["b/1.heic", "c/1.png", "c/2.png"])
    with pytest.raises(UserError, match=r"'b' \(label 1\).*left out, .heic files: 1 \(b/1.heic\)"):
        data.load(folder, validation=0, test_fraction=0.5)


def test_links_are_followed_once_and_never_into_the_set_itself(tmp_path: Path) -> None:
    names = ["a/1.png", "b/2.png", "b/more/3.png"]
    grow(tmp_path / "elsewhere", names)
    root = tmp_path / "set"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (root / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (root / "c").symlink_to(tmp_path / "elsewhere" / "a")
    (root / "latest").symlink_to(root)
    (tmp_path / "elsewhere" / "b" / "back").symlink_to(tmp_path / "elsewhere")
    found, notes = placed(root, names)
    assert found == {"a/1.png": "train a", "b/2.png": "train b", "b/more/3.png": "train b"}
    assert "left out, linked folders that are read elsewhere: 3 (b/back, c, latest)" in notes


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9/1.png"), os.fsdecode(b"caf\xe9/\xff.png"), "th\u00e9/1.png"]
    found, _ = placed(grow(tmp_path / "set", names), names)
    assert found == {names[0]: "train caf\\xe9", names[1]: "train caf\\xe9", names[2]: "train thé"}
    (tmp_path / "set" / names[1]).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"caf\\xe9/\\xff.png\) cannot be decoded"):
        data.load(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (n, TRAIN)
            for n in ("train", "Training", "training_set", "seg_train", "X-train", "train0", "TRAIN")
        ),
        *(
            (n, TRAIN)
            for n in ("trainset", "TrainData", "train_images", "img.train", "trainval", "train val")
        ),
        *((n, TEST) for n in ("test", "Testing", "seg_test", "eval", "Evaluation", "test0", "my-test.v2")),
        *((n, VAL) for n in ("val", "valid", "validation", "dev", "val2017", "ValSet")),
        *((n, None) for n in ("latest", "contest", "strain", "trains", "device", "value", "0", "", "devil")),
    ],
)
def test_words_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("files", "wanted", "note"),
    [
        (["X-train", "X-test"], {"X-train": TRAIN, "X-test": TEST}, ""),
        (["train0", "test0"], {"train0": TRAIN, "test0": TEST}, ""),
        (["train", "testing"], {"train": TRAIN, "testing": TEST}, ""),
        (["mnist_training", "mnist_eval"], {"mnist_training": TRAIN, "mnist_eval": TEST}, ""),
        (["data/train/0000", "data/test/0000"], {"data/train/0000": TRAIN, "data/test/0000": TEST}, ""),
        (["train/x/0000", "val/x/0000"], {"train/x/0000": TRAIN, "val/x/0000": TEST}, ""),
        (["part-0", "part-1"], {"part-0": TRAIN, "part-1": TRAIN}, ""),
        (["train", "test", "metadata"], {"train": TRAIN, "test": TEST}, "of no split: 1 (metadata.parquet)"),
        (["train", ".cache/train"], {"train": TRAIN}, "hidden files and folders"),
        (["train", "__MACOSX/._train"], {"train": TRAIN}, "__MACOSX"),
    ],
)
def test_parquet_files_by_their_names(tmp_path: Path, files: list[str], wanted: dict, note: str) -> None:
    root = tmp_path / "set"
    for name in files:
        write_parquet(
            root / f"{name}.parquet", [picture(name + "0"), picture(name + "1")], [0, 1], ["a", "b"]
        )
    found, notes = placed(root, [name + k for name in files for k in "01"])
    assert found == {n + str(k): f"{s} {'ab'[k]}" for n, s in wanted.items() for k in (0, 1)}
    assert note in " ".join(notes)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"],
            "old and new files of the same rows side by side",
        ),
        (["train-00000-of-00001-0123456789abcdef", "train-00000-of-00001-fedcba9876543210"], "side by side"),
        (["train", "train-00000-of-00001"], "side by side"),
        (["train_test"], "names two splits"),
        (["train/a/0000", "train/b/0000"], "several data sets"),
    ],
)
def test_parquet_files_that_would_double_rows(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        write_parquet(tmp_path / f"{name}.parquet", [picture(name + "0"), picture(name + "1")], [0, 1])
    with pytest.raises(UserError, match=message):
        data.load(tmp_path)


@pytest.mark.parametrize("copy", ["train (1)", "test"])
def test_a_file_and_its_copy(tmp_path: Path, copy: str) -> None:
    path = write_parquet(tmp_path / "train.parquet", [picture("0"), picture("1")], [0, 1])
    (tmp_path / f"{copy}.parquet").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="are copies: with both every image would be there twice"):
        data.load(tmp_path)


def test_images_in_both_splits_are_said(tmp_path: Path) -> None:
    root = grow(tmp_path, ["train/a/1.png", "train/b/2.png", "train/b/3.png", "test/b/4.png", "test/a/5.png"])
    (root / "test" / "b" / "copy of 2.png").write_bytes(picture("train/b/2.png"))
    [note] = data.load(root, validation=0).notes
    assert note.startswith(
        "1 of 3 test images are among the training images, pixel for pixel (the first is row 2)"
    )


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((6, 32, 32, 3), (3, 32, 32)),
        ((6, 28, 28, 1), (1, 28, 28)),
        ((6, 9, 7, 4), (4, 9, 7)),
        ((6, 3, 32, 32), (3, 32, 32)),
        ((6, 1, 8, 8), (1, 8, 8)),
        ((6, 3, 8, 3), (3, 8, 3)),
        ((6, 16, 4, 4), (16, 4, 4)),
    ],
)
@pytest.mark.parametrize("torch_too", [False, True])
def test_arrays_with_channels_last(shape: tuple[int, ...], wanted: tuple[int, ...], torch_too: bool) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    given = torch.from_numpy(x) if torch_too else x
    loaded = data.load((given, np.arange(6) % 2), validation=0, test_fraction=0.5)
    assert loaded.shape == wanted
    stored = np.concatenate([loaded.train.images, loaded.test.images])
    order = torch.cat([loaded.train.index, loaded.test.index])
    moved = x.transpose(0, 3, 1, 2) if wanted != shape[1:] else x
    assert np.array_equal(stored, moved[order])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Digit", "did you mean 'digits'"),
        ("FASHON MNIST", "did you mean 'fashion-mnist'"),
        ("{tmp}/Photos", "no file or folder .*: did you mean .*/photos"),
        ("hub:a--b/c", "no name that the hub could have"),
        ("hub:../x", "no name that the hub could have"),
        ("hub:a/" + "b" * 99, "no name that the hub could have"),
        ("{tmp}/photos.zip", "neither a folder nor .*: unpack it"),
    ],
)
def test_names_that_are_nearly_right(tmp_path: Path, name: str, message: str) -> None:
    grow(tmp_path, ["photos/a/1.png", "photos.zip"])
    with pytest.raises(UserError, match=message):
        data.load(name.format(tmp=tmp_path))


@pytest.mark.parametrize("name", ["Digits", "DIGITS", "FashionMNIST", "CIFAR-10", "tiny_imagenet", "MNIST"])
def test_published_sets_in_the_spellings_that_people_use(name: str) -> None:
    assert data.registry.by_name_or_raise(name).name in (
        "digits",
        "fashion-mnist",
        "cifar10",
        "tiny-imagenet",
        "mnist",
    )


def test_validation_data_that_serve_as_test_data_are_said(tmp_path: Path) -> None:
    names = [
        f"{split}/{label}/{k}.png" for split in ("MyTrainData", "my-valid") for label in "ab" for k in (1, 2)
    ]
    grow(tmp_path / "set", names)
    where, notes = placed(tmp_path / "set", names)
    assert {place.split()[0] for name, place in where.items() if name.startswith("my-valid")} == {"test"}
    assert "there are no test data: the validation data serve as test data" in notes
    names += ["test/a/1.png", "test/b/1.png"]
    grow(tmp_path / "whole", names)
    _, notes = placed(tmp_path / "whole", names)
    assert not any("serve as test data" in note for note in notes)
