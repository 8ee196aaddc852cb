"""Loading: the same pixels and labels from every layout, found by name, cached, with names and statistics."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.builders import NAMES, pictures, png, write_parquet

from bivallate import data
from bivallate.data import Augment, registry, tensors


def test_digits_are_built_in() -> None:
    digits = data.load("digits")
    assert digits.shape == (1, 8, 8)
    assert digits.classes == [str(k) for k in range(10)]
    assert digits.validation is not None
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1294, 144, 359)
    rows = torch.cat([s.index for s in (digits.train, digits.validation, digits.test)])
    assert rows.sort().values.tolist() == list(range(1797))
    x, y = digits.test.tensors()
    assert x.dtype == torch.float32
    assert torch.equal(x * 16, (x * 16).round())
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert torch.bincount(y).min() > 30
    assert digits.augment.identity
    other = data.load("digits", seed=1)
    assert torch.equal(other.test.index, digits.test.index)
    assert not torch.equal(other.train.index, digits.train.index)
    assert other.fingerprint != digits.fingerprint
    assert data.load("digits").fingerprint == digits.fingerprint
    assert data.load(digits) is digits


def test_a_built_in_set_is_made_by_its_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(40, 1, 4, 4)
    known = registry.KnownDataset(
        "noise", "noise", shape=(1, 4, 4), classes=2, train=32, test=8, built_in="noise"
    )
    monkeypatch.setitem(registry.KNOWN, "noise", known)
    made = tensors.from_tensors(x, torch.arange(40) % 2)
    monkeypatch.setattr(tensors, "noise", lambda: (made, ["even", "odd"]), raising=False)
    loaded = data.load("noise", validation=4)
    assert (loaded.name, loaded.shape, loaded.classes) == ("noise", (1, 4, 4), ["even", "odd"])


def test_parquet_shards(parquet_set: Path) -> None:
    loaded = data.load(parquet_set, validation=6)
    images = pictures(36).transpose(0, 3, 1, 2)
    assert (loaded.name, loaded.classes, loaded.shape) == ("animals", NAMES, (3, 8, 8))
    assert loaded.validation is not None
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (24, 6, 6)
    assert loaded.validation.counts(3) == [2, 2, 2]
    assert np.array_equal(loaded.train.images, images[loaded.train.index])
    assert torch.equal(loaded.train.labels, loaded.train.index % 3)
    assert np.array_equal(loaded.test.images, images[30:])
    x, _ = loaded.test.tensors([2, 4])
    assert torch.equal(x, torch.from_numpy(images[[32, 34]]).float() / 255)
    assert loaded.mean == pytest.approx((images[:30] / 255).mean((0, 2, 3)), abs=1e-6)
    assert loaded.std == pytest.approx((images[:30] / 255).std((0, 2, 3)), abs=1e-6)
    assert loaded.augment == Augment(pad=1)
    assert loaded.summary()["counts"]["test"] == [2, 2, 2]
    json.dumps(loaded.summary())


def test_the_cache_is_used_and_notices_changed_files(
    parquet_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data.load(parquet_set)
    opened = []
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *a, **k: opened.append(a))
        again = data.load(parquet_set)
    assert not opened
    assert again.fingerprint == first.fingerprint
    write_parquet(parquet_set / "test.parquet", [png(i) for i in pictures(6, seed=9)], [0, 1, 2, 0, 1, 2])
    changed = data.load(parquet_set)
    assert not np.array_equal(changed.test.images, first.test.images)
    assert changed.train.fingerprint == first.train.fingerprint
    assert changed.fingerprint != first.fingerprint


def test_the_fingerprint_is_of_the_content_not_the_place(parquet_set: Path, tmp_path: Path) -> None:
    first = data.load(parquet_set).fingerprint
    moved = parquet_set.rename(tmp_path / "elsewhere")
    assert data.load(moved).fingerprint == first


def test_image_folders(image_folder: Path, tmp_path: Path) -> None:
    loaded = data.load(image_folder, validation=0, test_fraction=0.3)
    assert loaded.classes == ["apple", "pear"]
    assert loaded.validation is None
    assert loaded.train.counts(2) == [7, 7]
    assert loaded.test.counts(2) == [3, 3]
    stored = np.concatenate([pictures(10), pictures(10, seed=1)]).transpose(0, 3, 1, 2)
    assert np.array_equal(loaded.train.images, stored[loaded.train.index])
    parted = tmp_path / "parted"
    parted.mkdir()
    image_folder.rename(parted / "train")
    (parted / "val" / "pear").mkdir(parents=True)
    (parted / "val" / "pear" / "x.png").write_bytes(png(pictures(1)[0]))
    parts = data.load(parted)
    assert len(parts.train) == 18
    assert parts.test.labels.tolist() == [1]


def test_npz_and_pairs(tmp_path: Path) -> None:
    images, labels = pictures(20), np.arange(20) % 2
    np.savez(tmp_path / "made.npz", image=images, label=labels)
    loaded = data.load(tmp_path / "made.npz", validation=0)
    assert loaded.shape == (3, 8, 8)
    assert np.array_equal(loaded.train.images, images.transpose(0, 3, 1, 2)[loaded.train.index])
    x = torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 255
    pair = data.load((x, torch.from_numpy(labels)), validation=0)
    assert torch.equal(pair.train.index, loaded.train.index)
    assert torch.allclose(pair.train.tensors()[0], loaded.train.tensors()[0])
    both = data.load(((x, labels), (x[:4], labels[:4])), validation=4)
    assert (len(both.train), len(both.test)) == (16, 4)


@pytest.mark.parametrize("folder", [False, True])
def test_mean_and_std_are_not_of_test_images(tmp_path: Path, folder: bool) -> None:
    images, labels = pictures(40), np.arange(40) % 2
    if folder:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = tmp_path / "made" / f"class{label}" / f"{row:02}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)
    else:
        np.savez(tmp_path / "made.npz", image=images, label=labels)
    loaded = data.load(tmp_path / ("made" if folder else "made.npz"), validation=8, test_fraction=0.5)
    assert loaded.validation is not None
    own = torch.cat([loaded.train.tensors()[0], loaded.validation.tensors()[0]]).double()
    assert len(own) == 20
    for found, expected in ((loaded.mean, own.mean((0, 2, 3))), (loaded.std, own.std((0, 2, 3), False))):
        assert torch.allclose(torch.tensor(found, dtype=torch.float64), expected, atol=1e-6)


def test_known_names_are_found_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = pictures(40, (28, 28))
    folder = tmp_path / "sets" / "fashion_mnist"
    names = [f"c{k}" for k in range(10)]
    write_parquet(folder / "train.parquet", [png(i) for i in grey[:30]], [k % 10 for k in range(30)], names)
    write_parquet(folder / "test.parquet", [png(i) for i in grey[30:]], list(range(10)), names)
    by_option = data.load("fashion-mnist", data_dir=tmp_path / "sets", validation=0)
    monkeypatch.setenv("BIVALLATE_DATA", str(tmp_path / "sets"))
    for name in ("fashion-mnist", "fashion_mnist"):
        loaded = data.load(name, validation=0)
        assert loaded.fingerprint == by_option.fingerprint
        assert (loaded.mean, loaded.std) == ((0.286,), (0.353,))
        assert loaded.shape == (1, 28, 28)
        assert loaded.augment.identity
        assert "30 of the 60,000 published train images" in loaded.notes[0]
    assert data.registry.describe("fashion-mnist")["found"] == str(folder)


def test_a_subset_is_taken_and_said(tmp_path: Path) -> None:
    folder = tmp_path / "gtsrb_small"
    write_parquet(folder / "train.parquet", [png(i) for i in pictures(6, (40, 30, 3))], [0, 1, 2, 0, 1, 2])
    loaded = data.load("gtsrb", data_dir=tmp_path, validation=0, test_fraction=0.5)
    assert loaded.name == "gtsrb_small"
    assert loaded.shape == (3, 32, 32)
    assert loaded.augment == Augment(pad=4)
    assert any("of the 39,209 published" in note for note in loaded.notes)


def test_a_set_with_test_data_alone_can_be_evaluated_on(parquet_set: Path) -> None:
    for shard in parquet_set.glob("train*"):
        shard.unlink()
    loaded = data.load(parquet_set)
    assert (len(loaded.train), loaded.validation, len(loaded.test)) == (0, None, 6)


@pytest.mark.parametrize("columns", [("img", "fine_label"), ("picture", "kind")])
def test_columns_by_metadata_or_name(tmp_path: Path, columns: tuple[str, str]) -> None:
    images = [png(i) for i in pictures(6)]
    write_parquet(tmp_path / "a" / "train.parquet", images, [0, 1, 2, 0, 1, 2], NAMES, columns)
    write_parquet(tmp_path / "b" / "train.parquet", images, [0, 1, 2, 0, 1, 2], None, columns)
    options = {} if columns[0] == "img" else {"image_column": columns[0], "label_column": columns[1]}
    assert data.load(tmp_path / "a", validation=0, test_fraction=0.5).classes == NAMES
    assert data.load(tmp_path / "b", validation=0, test_fraction=0.5, **options).classes == ["0", "1", "2"]


def test_modes_of_images(tmp_path: Path) -> None:
    grey = pictures(1, (8, 8))[0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    palette = Image.fromarray(pictures(1)[0]).quantize(16)
    for name, images in (("deep", [grey, deep]), ("palette", [palette, palette])):
        (tmp_path / name / "a").mkdir(parents=True)
        for k, image in enumerate(images):
            (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
                tmp_path / name / "a" / f"{k}.png"
            )
    deep_set = data.load(tmp_path / "deep", validation=0, test_fraction=0.5)
    assert np.array_equal(np.concatenate([deep_set.train.images, deep_set.test.images])[:, 0], [grey, grey])
    palette_set = data.load(tmp_path / "palette", validation=0, test_fraction=0.5)
    assert np.array_equal(palette_set.train.images[0].transpose(1, 2, 0), np.asarray(palette.convert("RGB")))


def test_photographs_stand_upright(tmp_path: Path) -> None:
    tall = np.zeros((16, 8, 3), np.uint8)
    tall[:8] = 255  # bright top
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 90 degrees clockwise to view
    (tmp_path / "p" / "a").mkdir(parents=True)
    for k in range(2):
        Image.fromarray(np.rot90(tall)).save(tmp_path / "p" / "a" / f"{k}.jpg", exif=exif, quality=95)
    loaded = data.load(tmp_path / "p", size=(16, 8), validation=0, test_fraction=0.5)
    assert loaded.shape == (3, 16, 8)
    assert loaded.train.images[0, :, :6].min() > 200
    assert loaded.train.images[0, :, 10:].max() < 50
