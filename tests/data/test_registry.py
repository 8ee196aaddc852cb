"""The table of known sets, and the picture of one."""

from pathlib import Path

import pytest
from PIL import Image

from bivallate import data
from bivallate.data import registry
from bivallate.errors import UserError

DIGITS_AND_SIGNS = {"digits", "mnist", "svhn", "gtsrb"}


@pytest.mark.parametrize("name", registry.names())
def test_every_entry_is_whole(name: str) -> None:
    known = registry.by_name_or_raise(name)
    entry = registry.describe(name)
    assert entry["name"] == name
    assert str(data.Augment.parse(entry["augment"])) == known.augment, "as it is written"
    for statistics in (known.mean, known.std):
        assert statistics is None or len(statistics) == known.shape[0]
        assert statistics is None or all(0 < value < 1 for value in statistics)
    assert known.hub is not None or name == "digits"
    if name in DIGITS_AND_SIGNS:
        assert not data.Augment.parse(known.augment).flip
    assert entry["found"] == ("built in" if name == "digits" else None)


def test_the_table_covers_the_papers_sets() -> None:
    assert registry.names() == [
        *(
            "digits",
            "mnist",
            "fashion-mnist",
            "cifar10",
            "cifar100",
            "svhn",
            "stl10",
            "gtsrb",
            "tiny-imagenet",
        ),
        "imagenet",
    ]
    with pytest.raises(UserError, match="did you mean 'tiny-imagenet'"):
        registry.by_name_or_raise("tiny-imagnet")


def test_digits_are_as_described() -> None:
    loaded, known = data.load("digits", validation=0), registry.by_name_or_raise("digits")
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (known.train, known.test, known.shape)
    assert loaded.notes == ()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_contact_sheet_shows_every_class(parquet_set: Path, tmp_path: Path, suffix: str) -> None:
    path = data.contact_sheet(data.load(parquet_set), tmp_path / "out" / f"sheet.{suffix}", columns=4)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if suffix == "png":
        with Image.open(path) as image:
            pixels = image.convert("RGB")
        colours = pixels.getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 100  # random colours of the images, not a blank page
        assert pixels.height > 250
    else:
        assert path.read_text().count("<image") == 12
