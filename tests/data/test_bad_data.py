"""Bad data: every fault gets one message that names what, where and what to do."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tests.data.builders import pictures, png, write_parquet

from bivallate import data
from bivallate.errors import UserError

LABELS = [0, 1, 2, 0, 1, 2]
GOOD = [png(i) for i in pictures(6)]
GREY = png(pictures(1, (8, 8))[0])
LARGE = png(pictures(1, (8, 12, 3))[0])
TORN = GOOD[3][:60]
NO_TEST = {"validation": 0, "test_fraction": 0.5}


def having(row: int, image: bytes | None) -> list[bytes | None]:
    return [*GOOD[:row], image, *GOOD[row + 1 :]]


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (having(3, TORN), LABELS, {}, r"1 of 6 rows .*row 3 of train.parquet cannot be decoded"),
        (
            having(5, b"just some text"),
            LABELS,
            {},
            r"row 5 of train.parquet cannot be decoded \(not in a known",
        ),
        (having(4, None), LABELS, {}, "row 4 of train.parquet has no image"),
        (
            having(2, LARGE),
            LABELS,
            {},
            "row 2 of train.parquet is 12x8 where the others are 8x8.*data.size=8",
        ),
        (GOOD, [0, 1, None, 0, 1, 2], {}, "row 2 of train.parquet has no label"),
        (
            GOOD,
            [0, 1, 3, 0, 1, 2],
            {},
            "row 2 of train.parquet has the label 3, outside the 3 classes 0 to 2",
        ),
        (GOOD, [0, 1, -7, 0, 1, 2], {}, "row 2 of train.parquet has the label -7"),
        (GOOD, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0], {}, "label column 'label' holds double"),
        (
            GOOD,
            ["cat", "dog", "cow", "cat", "dog", "eel"],
            {},
            "row 2 .*has the label 'cow', which is no class name",
        ),
        (GOOD, ["a", "b", "c", "a", "b", "c"], {"names": None}, "labels are text.*on_bad='convert'"),
        (GOOD, [0, 1, 1, 0, 1, 1], {}, r"1 of 3 classes have no row in the training data: 'eel' \(label 2\)"),
        ([], pa.array([], pa.int64()), {}, "holds no rows"),
        (GOOD, LABELS, {"columns": ("image", "age"), "names": None}, "no label column.*label_column="),
        (GOOD, LABELS, {"columns": ("image", "label"), "names": ["x"]}, "outside the 1 classes 0 to 0"),
    ],
)
def test_rows_are_named(
    make_parquet: Callable[..., Path], images: list, labels: list, options: dict, message: str
) -> None:
    folder = make_parquet(images, labels, **options)
    with pytest.raises(UserError, match=message):
        data.load(folder, **NO_TEST)
    with pytest.raises(UserError, match=message):  # a refused set leaves no cache behind
        data.load(folder, **NO_TEST)


@pytest.mark.parametrize("image", [TORN, None, LARGE])
def test_bad_rows_can_be_skipped(make_parquet: Callable[..., Path], image: bytes | None) -> None:
    folder = make_parquet([*GOOD, *GOOD[:2], image], [*LABELS, 0, 1, 2])
    loaded = data.load(folder, on_bad="skip", **NO_TEST)
    rows = sorted([*loaded.train.index.tolist(), *loaded.test.index.tolist()])
    assert rows == list(range(8))


def test_rows_without_a_label_can_be_skipped(make_parquet: Callable[..., Path]) -> None:
    loaded = data.load(make_parquet([*GOOD, GOOD[0]], [*LABELS, None]), on_bad="skip", **NO_TEST)
    assert 6 not in torch.cat([loaded.train.index, loaded.test.index])


def test_size_and_colour_can_be_converted(make_parquet: Callable[..., Path]) -> None:
    folder = make_parquet([GREY, LARGE, *GOOD[2:]], LABELS)
    loaded = data.load(folder, on_bad="convert", **NO_TEST)
    assert loaded.shape == (3, 8, 8)
    assert np.array_equal(loaded.train.store[np.array([0])][0], np.repeat(pictures(1, (8, 8)), 3, 0))
    with pytest.raises(UserError, match="cannot be decoded"):
        data.load(make_parquet([TORN, *GOOD[1:]], LABELS), on_bad="convert", **NO_TEST)


def test_label_names_can_be_numbered(make_parquet: Callable[..., Path]) -> None:
    folder = make_parquet(GOOD, ["c", "a", "b", "c", "a", "b"], names=None)
    loaded = data.load(folder, on_bad="convert", **NO_TEST)
    assert loaded.classes == ["a", "b", "c"]
    assert torch.equal(loaded.train.labels, (loaded.train.index + 2) % 3)


def test_channels_and_size_as_the_user_says(make_parquet: Callable[..., Path]) -> None:
    loaded = data.load(make_parquet([*GOOD[:5], LARGE], LABELS), channels=1, size=6, **NO_TEST)
    assert loaded.shape == (1, 6, 6)


@pytest.mark.parametrize("on_bad", ["refuse", "skip"])
def test_grey_among_colour_is_read_as_colour_and_counted(
    make_parquet: Callable[..., Path], on_bad: str
) -> None:
    folder = make_parquet([*GOOD, GREY], [*LABELS, 0])
    loaded = data.load(folder, validation=0, test_fraction=0.5, on_bad=on_bad)
    everything = np.concatenate([loaded.train.images, loaded.test.images])
    row = torch.cat([loaded.train.index, loaded.test.index]).tolist().index(6)
    assert len(everything) == 7
    assert np.array_equal(everything[row], np.repeat(pictures(1, (8, 8)), 3, 0))
    assert "train.parquet: 1 of 7 images are grey among colour images: read as colour" in loaded.notes
    asked = data.load(folder, validation=0, test_fraction=0.5, channels=3)
    assert asked.notes == ()


def test_colour_among_grey_is_refused(make_parquet: Callable[..., Path]) -> None:
    folder = make_parquet([GREY, GREY, GREY, GOOD[0]], [0, 1, 2, 0])
    with pytest.raises(UserError, match=r"row 3 of train.parquet has colour among grey images"):
        data.load(folder, **NO_TEST)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([(8, 9), (9, 10), (10, 11), (11, 12)], 8),
        ([(15, 20), (40, 50), (60, 61), (250, 200)], 32),
        ([(28, 28), (30, 29), (31, 40)], 28),
        ([(3000, 4000), (2000, 1500), (600, 800)], 224),
        ([(64, 70), (66, 64), (90, 100)], 64),
    ],
)
def test_photographs_of_many_sizes_need_one(tmp_path: Path, sizes: list, wanted: int) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k, (h, w) in enumerate(sizes):
            Image.new("RGB", (w, h), (k, 99, 0)).save(tmp_path / "photos" / name / f"{k}.png")
    with pytest.raises(UserError, match=rf"different sizes .*size={wanted} \(--set data.size={wanted}\)"):
        data.load(tmp_path / "photos")
    if wanted < 64:
        assert data.load(tmp_path / "photos", size=wanted, **NO_TEST).shape == (3, wanted, wanted)


def test_sizes_are_looked_at_in_all_classes(tmp_path: Path) -> None:
    for name, size in (("a", 8), ("b", 9), ("c", 10)):
        (tmp_path / name).mkdir()
        for k in range(100):
            (tmp_path / name / f"{k}.png").write_bytes(png(pictures(1, (size, size, 3), k)[0]))
    with pytest.raises(UserError, match=r"different sizes .8x8, 9x9, 10x10, .*size=8 "):
        data.load(tmp_path)


def truncate(folder: Path) -> None:
    path = folder / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-50])


def rename_text(folder: Path) -> None:
    (folder / "test.parquet").write_text("label,image\n1,a.png\n")


def spoil(folder: Path) -> None:
    path = folder / "train-00000-of-00002.parquet"
    torn = bytearray(path.read_bytes())
    torn[4:2000] = bytes(1996)
    path.write_bytes(torn)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "train-00001-of-00002.parquet is truncated"),
        (rename_text, r"test.parquet is not a Parquet file \(it begins with b'labe'\)"),
        (spoil, "train-00000-of-00002.parquet"),
        (
            lambda f: (f / "train-00001-of-00002.parquet").unlink(),
            "lacks 1 of 2 shards: train-00001-of-00002.parquet",
        ),
        (lambda f: [p.unlink() for p in f.iterdir()], "holds no data"),
        (lambda f: write_parquet(f / "more" / "train.parquet", GOOD, LABELS), "several data sets.*more"),
        (
            lambda f: write_parquet(f / "test.parquet", [png(i) for i in pictures(3, (9, 9, 3))], [0, 1, 2]),
            "test images are",
        ),
    ],
)
def test_harmed_folders(parquet_set: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(parquet_set)
    with pytest.raises(UserError, match=message):
        data.load(parquet_set)


def test_a_file_that_is_no_image_is_named(image_folder: Path) -> None:
    (image_folder / "pear" / "07.png").write_text("no picture")
    with pytest.raises(UserError, match=r"row 17 \(pear/07.png\) cannot be decoded"):
        data.load(image_folder)


def test_an_unknown_class_in_the_test_data(tmp_path: Path, image_folder: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    image_folder.rename(folder / "train")
    (folder / "test" / "plum").mkdir(parents=True)
    (folder / "test" / "plum" / "0.png").write_bytes(GOOD[0])
    with pytest.raises(UserError, match="class 'plum', which the training data has not"):
        data.load(folder)


X, Y = torch.rand(6, 3, 4, 4), torch.tensor(LABELS)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, r"must lie in \[0, 1\].*divide by 255"),
        (X * 2 - 1, Y, r"must lie in \[0, 1\].*do not normalise"),
        (X + float("nan"), Y, "row 0 holds NaN"),
        (X.long(), Y, "floating point"),
        (X[:, 0], Y, r"shape \(N, C, H, W\), got \(6, 4, 4\)"),
        (X[:0], Y[:0], "no rows"),
        (X[:, :0], Y, "at least one channel"),
        (X, Y[:5], r"labels must have the shape \(6,\)"),
        (X, Y.float(), "labels must be integers"),
        (X, Y - 1, "row 0 has -1"),
    ],
)
def test_tensors_are_checked(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.from_tensors(x, y)


def test_labels_outside_the_classes() -> None:
    with pytest.raises(UserError, match="labels must be 0 to 1; row 2 has 2"):
        data.from_tensors(X, Y, classes=2)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a zip", "not a readable .npz"),
        (npz(image=pictures(4), label=np.arange(4))[:200], "not a readable .npz"),
        (
            npz(pixels=pictures(4), label=np.arange(4)),
            "no array called images or image or x; it has pixels, label",
        ),
        (npz(image=pictures(4), label=np.array([{}] * 4)), "not a readable .npz"),  # a pickle, never loaded
    ],
)
def test_bad_npz(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ("cifar1o", {}, "unknown data set 'cifar1o': did you mean 'cifar10'"),
        ("./nowhere", {}, "no file or folder ./nowhere"),
        ("mnist", {"data_dir": "/no/such/folder"}, "data folder /no/such/folder does not exist"),
        ("hub:justaname", {}, "hub:OWNER/NAME"),
        (3, {}, "must be a name, a path or a pair"),
        ("digits", {"validation": 1500}, "cannot hold out 1500 of 1438 rows"),
        ("digits", {"validation": -0.1}, "cannot hold out"),
        ("digits", {"imbalance": "step:2"}, "imbalance 'step:2'"),
        ("digits", {"imbalance": "stairs:0.2"}, "step:RATIO"),
        ("digits", {"on_bad": "ignore"}, "'refuse', 'convert' or 'skip'"),
        ("digits", {"channels": 2}, "channels must be 1 or 3"),
        ("digits", {"size": 0}, "size must be a whole number of at least 1"),
        ((X, Y, Y), {}, "got 3 things"),
        (((X, Y), (X, Y + 1)), {}, "labels must be 0 to 2; row 2 has 3"),
    ],
)
def test_arguments(arguments: object, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(arguments, **options)


def test_a_damaged_cache_says_which_folder(parquet_set: Path, tmp_path: Path) -> None:
    data.load(parquet_set)
    [file] = (tmp_path / "cache").glob("data/animals-test-*/images.npy")
    file.write_bytes(b"torn")
    with pytest.raises(UserError, match=f"{file.parent.name} is damaged.*delete"):
        data.load(parquet_set)


def test_a_cache_that_cannot_be_written(
    parquet_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BIVALLATE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set BIVALLATE_CACHE"):
        data.load(parquet_set)


def test_a_full_disk(parquet_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"No space left on device; set BIVALLATE_CACHE"):
        data.load(parquet_set)
    assert not any((tmp_path / "cache" / "data").iterdir())


def test_what_a_killed_process_left_is_swept(parquet_set: Path, tmp_path: Path) -> None:
    old, new = (tmp_path / "cache" / "data" / name for name in (".animals-train-old", ".animals-train-new"))
    for left in (old, new):
        left.mkdir(parents=True)
    os.utime(old, (0, 0))
    data.load(parquet_set)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_file_that_cannot_be_read(parquet_set: Path) -> None:
    (parquet_set / "test.parquet").unlink()
    (parquet_set / "test.parquet").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read .*test.parquet: No such file"):
        data.load(parquet_set)


def test_a_decompression_bomb_is_not_opened(
    make_parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # an 8x12 image is above twice that
    bomb = make_parquet([*(png(i) for i in pictures(5, (4, 4, 3))), LARGE], LABELS)
    with pytest.raises(UserError, match=r"row 5 of train.parquet is too large"):
        data.load(bomb, **NO_TEST)


def test_an_empty_array_is_called_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((0, 3, 8, 8), np.float32), y=np.zeros(0, np.int64))
    with pytest.raises(UserError, match=r"x\.npz: no rows, shape"):
        data.load(tmp_path / "x.npz")
