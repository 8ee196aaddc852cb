"""Arrays and pairs: text labels, sizes and channels, labels too large for classes, wrong arguments."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tests.data.builders import pictures

from bivallate import data
from bivallate.errors import UserError

IMAGES = pictures(20)
X = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2)).float() / 255
Y = np.arange(20) % 2
TEXT = ["cow", "ant"] * 10
WHOLE: dict[str, Any] = {"validation": 0, "test_fraction": 0.5}


def saved(path: Path, labels: Any, images: np.ndarray = IMAGES) -> Path:
    np.savez(path, images=images, labels=labels)
    return path


@pytest.mark.parametrize("labels", [TEXT, np.array(TEXT), np.array(TEXT, "S"), np.array(TEXT, object)])
def test_text_labels_of_pairs(labels: Any) -> None:
    with pytest.raises(UserError, match=r"labels are text \('ant', 'cow', ...\).*on_bad='convert'"):
        data.load((X, labels))
    loaded = data.load((X, labels), on_bad="convert", **WHOLE)
    assert loaded.classes == ["ant", "cow"]
    assert torch.equal(loaded.train.labels, 1 - loaded.train.index % 2)


def test_text_labels_of_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "str.npz", TEXT)
    with pytest.raises(UserError, match=r"str.npz: the labels are text.*on_bad='convert'"):
        data.load(path)
    loaded = data.load(path, on_bad="convert", **WHOLE)
    assert loaded.classes == ["ant", "cow"]
    assert torch.equal(loaded.test.labels, 1 - loaded.test.index % 2)


def test_text_labels_of_extra_data_are_numbered_by_the_sets_own_names(tmp_path: Path) -> None:
    path = saved(tmp_path / "str.npz", ["cow"] * 20)
    mixed = data.load((X, TEXT), on_bad="convert", extra=path, **WHOLE)
    added = mixed.train.index >= 20
    assert int(added.sum()) == 10
    assert mixed.train.labels[added].tolist() == [1] * 10  # alone, "cow" would be 0
    with pytest.raises(UserError, match=r"str.npz: row 0 has the label 'cow', which is no class name"):
        data.load((X, Y), extra=path)


def test_text_labels_of_test_data() -> None:
    both = data.load(((X, TEXT), (X[:3], ["cow"] * 3)), on_bad="convert")
    assert both.test.labels.tolist() == [1, 1, 1]
    with pytest.raises(UserError, match="row 1 has the label 'eel', which is no class name"):
        data.load(((X, TEXT), (X[:2], ["cow", "eel"])), on_bad="convert")
    with pytest.raises(UserError, match="test labels are text and the training labels integers"):
        data.load(((X, Y), (X[:2], ["cow", "ant"])), on_bad="convert")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((X.tolist(), Y), "must be a tensor or an array, got a list"),
        ((X.tolist()[:2], [0, 1]), "must be a tensor or an array, got a list"),
        (((X, Y), (X,)), r"test images must be a pair \(x, y\), got 1 things"),
        ((X, None), "labels must be integers 0, 1, ..., got object"),
        ((X, [[0], [0, 1]]), "labels must be integers"),
        ((X, np.int64(3)), r"labels must have the shape \(20,\)"),
        ((X, [10**10, *Y[1:]]), "largest label is 10000000000, of 20 rows.*at most 20"),
    ],
)
def test_misfit_pairs(pair: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(pair, on_bad="convert")


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        (np.int64(3), (20, 8, 8, 3), r"labels must have the shape \(20,\), one per image, got \(\)"),
        (Y, (20, 8, 8, 4), r"1 or 3 channels.*got the shape \(20, 8, 8, 4\)"),
        (Y, (20, 2, 8, 8), r"1 or 3 channels.*got the shape \(20, 2, 8, 8\)"),
        (Y + 10**10, (20, 8, 8, 3), "largest label is 10000000001"),
    ],
)
def test_misfit_files(tmp_path: Path, labels: Any, shape: tuple[int, ...], message: str) -> None:
    path = saved(tmp_path / "x.npz", labels, np.resize(np.arange(256, dtype=np.uint8), shape))
    with pytest.raises(UserError, match=message):
        data.load(path)


def test_large_labels_are_allowed_within_reason() -> None:
    sparse = Y * 999
    with pytest.raises(UserError, match=r"largest label is 999, .*or load with allow_missing_classes=True"):
        data.load((X, sparse))
    assert len(data.load((X, sparse), allow_missing_classes=True).classes) == 1000
    with pytest.raises(UserError, match="at most 1000000"):
        data.load((X, Y * 10**6), allow_missing_classes=True)


@pytest.mark.parametrize("kind", ["npz", "float", "uint8"])
def test_size_and_channels_hold_for_arrays(tmp_path: Path, kind: str) -> None:
    pairs = {"npz": saved(tmp_path / "x.npz", Y), "float": (X, Y), "uint8": (IMAGES.transpose(0, 3, 1, 2), Y)}
    loaded = data.load(pairs[kind], size=(4, 6), channels=1, **WHOLE)
    plain = data.load(pairs[kind], **WHOLE)
    assert (loaded.shape, len(loaded.mean)) == ((1, 4, 6), 1)
    assert loaded.test.fingerprint != plain.test.fingerprint
    x, y = loaded.test.tensors()
    assert torch.equal(y, loaded.test.index % 2)
    grey = [Image.fromarray(IMAGES[row]).convert("L") for row in loaded.test.index]
    wanted = np.stack([np.asarray(ImageOps.fit(image, (6, 4), Image.Resampling.BICUBIC)) for image in grey])
    assert (x[:, 0] * 255 - torch.from_numpy(wanted).float()).abs().max() <= 1.5  # roundings of Pillow


def test_grey_becomes_colour_and_extra_data_follow() -> None:
    grey = X[:, :1]
    loaded = data.load((grey, Y), channels=3, size=4, extra=(X, Y), **WHOLE)
    assert loaded.shape == (3, 4, 4)
    x, _ = loaded.test.tensors()
    assert torch.equal(x[:, 0], x[:, 2])
    assert (float(x.min()) >= 0, float(x.max()) <= 1) == (True, True)
    with pytest.raises(UserError, match="have 2 channels: only 1 or 3"):
        data.load((X[:, :2], Y), channels=3)
    assert data.load("digits", size=6, channels=3).shape == (3, 6, 6)


@pytest.mark.parametrize("validation", [1.0, 5.0, float("nan")])
def test_a_number_of_rows_is_an_int(validation: float) -> None:
    with pytest.raises(UserError, match=r"cannot hold out .* use a fraction below 1 or an int from 1 to"):
        data.load("digits", validation=validation)


def test_an_unknown_name_lists_each_set_once(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(UserError) as error:
        data.load("nothing", data_dir=tmp_path)
    assert str(error.value).count("cifar10,") == 1


def test_extra_data_are_a_pair() -> None:
    with pytest.raises(UserError, match=r"extra images must be a pair \(x, y\), got 3 things"):
        data.load((X, Y), extra=(X, Y, Y))  # pyright: ignore[reportArgumentType]


def unusual(x: np.ndarray) -> dict[str, Any]:
    """The same images as memory may hold them."""
    wide = np.empty((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    return {
        "big-endian": x.astype(x.dtype.newbyteorder(">")),
        "reversed": np.ascontiguousarray(x[::-1])[::-1],
        "mirrored": np.ascontiguousarray(x[..., ::-1])[..., ::-1],
        "with gaps": wide[..., 0],
        "Fortran": np.asfortranarray(x),
        "read only": np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    }


@pytest.mark.parametrize("kind", unusual(X.numpy()))
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.longdouble])
def test_arrays_as_memory_holds_them(kind: str, dtype: Any) -> None:
    wanted = IMAGES.transpose(0, 3, 1, 2).astype(dtype) / (1 if dtype == np.uint8 else dtype(255))
    x, y = unusual(wanted.astype(dtype))[kind], unusual(Y[:, None])[kind][:, 0]
    split = data.from_tensors(x, y)
    assert np.array_equal(split.images, wanted.astype(np.uint8 if dtype == np.uint8 else np.float32))
    assert split.labels.tolist() == Y.tolist()
    assert split.tensors([3, 1])[0].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_floating_type(dtype: torch.dtype) -> None:
    split = data.from_tensors(X.to(dtype).requires_grad_(), torch.from_numpy(Y))
    assert np.array_equal(split.images, X.to(dtype).float().numpy())


@pytest.mark.parametrize("dtype", ["u1", "i1", ">u2", "u4", ">i4", "u8", ">u8"])
def test_labels_of_any_integer_type(dtype: str) -> None:
    assert data.from_tensors(X, Y.astype(dtype)).labels.tolist() == Y.tolist()
    if not dtype.startswith(">"):
        assert data.from_tensors(X, torch.from_numpy(Y.astype(dtype))).labels.tolist() == Y.tolist()


class Stubborn:
    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("no\nvalues here")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (Stubborn(), Y, "one tensor or array.*: no$"),
        (X, Stubborn(), "labels must be integers.*: no$"),
        (X.to("meta"), Y, "one tensor or array"),
        (X.to_sparse(), Y, "one tensor or array"),
        (X.to(torch.complex64), Y, "floating point in"),
        (
            X,
            Y.astype(np.uint64) + np.uint64(2**63),
            "labels must be integers 0, 1, ..., got 9223372036854775809",
        ),
        (np.zeros(3, [("r", "u1")]), Y, "floating point in"),
    ],
)
def test_objects_without_usable_values(x: Any, y: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.from_tensors(x, y)
