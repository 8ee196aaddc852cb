"""The same fault is handled in the same way in every kind of data source."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.builders import pictures, png, write_parquet

import bivallate as bv
from bivallate.errors import UserError

X, Y = pictures(30), np.arange(30) % 3
NAMES = np.array(["cat", "dog", "eel"])
ONE_CLASS = "there is one class, .*: nothing to tell apart"


def npz(root: Path, x: np.ndarray, y: np.ndarray) -> Any:
    np.savez(root / "set.npz", images=x, labels=y)
    return root / "set.npz"


def pair(root: Path, x: np.ndarray, y: np.ndarray) -> Any:
    return x.transpose(0, 3, 1, 2), y


def parquet(root: Path, x: np.ndarray, y: np.ndarray) -> Any:
    return write_parquet(root / "set.parquet", [png(image) for image in x], y.tolist(), None)


def table(root: Path, x: np.ndarray, y: np.ndarray) -> Any:
    (root / "set").mkdir()
    for k, image in enumerate(x):
        (root / "set" / f"{k}.png").write_bytes(png(image))
    rows = [f'{k}.png,"{label}"' for k, label in enumerate(y.tolist())]
    (root / "set" / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    return root / "set"


def folder(root: Path, x: np.ndarray, y: np.ndarray) -> Any:
    for k, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
        (root / "set" / f"{label}").mkdir(parents=True, exist_ok=True)
        (root / "set" / f"{label}" / f"{k}.png").write_bytes(png(image))
    return root / "set"


def a_dark_channel(x: np.ndarray) -> np.ndarray:
    return x * np.array([1, 1, 0], np.uint8)


Kind = Callable[[Path, np.ndarray, np.ndarray], Any]
ALL: tuple[Kind, ...] = (npz, pair, parquet, table, folder)
ARRAYS: tuple[Kind, ...] = (npz, pair)
TEXTS: tuple[Kind, ...] = (npz, pair, parquet, table)

NOTED = {
    "a dark channel": (ALL, a_dark_channel(X), Y, "channel 2 is 0 in every image"),
    "one class": (ALL, X, Y * 0, ONE_CLASS),
    "case": ((*TEXTS, folder), X, np.array(["Cat", "cat", "eel"])[Y], "'Cat', 'cat' differ in case"),
}
REFUSED = {
    "fractions": (ARRAYS, Y + 0.5, r"labels must be integers .*float64; row 0 has 0.5"),
    "missing": (ARRAYS, np.where(Y == 1, np.nan, Y), "row 1 has nan"),
    "whole": (ARRAYS, Y.astype(float), r"they are whole numbers, use y.astype\(int\)"),
    "switches": (ARRAYS, Y == 1, r"false and true are 0 and 1, use y.astype\(int\)"),
    "one-hot": (ARRAYS, np.eye(3)[Y], r"\(30, 3\): they are one-hot, use y.argmax\(1\)"),
    "one-hot switches": (ARRAYS, np.eye(3)[Y] > 0, "they are one-hot"),
    "shares": (ARRAYS, np.full((30, 3), 1 / 3), r"got \(30, 3\)$"),
    "fractions in a file": ((parquet,), Y + 0.5, "holds double"),
    "switches in a file": ((parquet,), Y == 1, "holds bool"),
    "empty text": (ARRAYS, np.array(["", "dog", "eel"])[Y], "row 0 has no label"),
    "empty text in a file": ((parquet,), np.array([" ", "dog", "eel"])[Y], "row 0 .*has no label"),
}


def each(table: dict[str, Any]) -> list[Any]:
    """(kind of source, what else the row says) for every row and every kind that it names."""
    return [
        pytest.param(kind, *rest, id=f"{kind.__name__}, {name}")
        for name, (kinds, *rest) in table.items()
        for kind in kinds
    ]


@pytest.mark.parametrize(("kind", "x", "y", "words"), each(NOTED))
def test_it_is_noted(tmp_path, kind, x, y, words):
    loaded = bv.data.load(kind(tmp_path, x, y), on_bad="convert")
    assert len([note for note in loaded.notes if re.search(words, note)]) == 1, loaded.notes


@pytest.mark.parametrize(("kind", "y", "words"), each(REFUSED))
def test_it_is_refused_in_a_line_that_names_the_source(tmp_path, kind, y, words):
    with pytest.raises(UserError, match=words) as raised:
        bv.data.load(kind(tmp_path, X, y), on_bad="convert")
    assert ("train images" if kind is pair else "set.") in str(raised.value)


@pytest.mark.parametrize("kind", TEXTS)
def test_spaces_around_a_label_do_not_make_another_class(tmp_path, kind):
    y = np.array([" cat", "cat ", "eel"])[Y]
    assert bv.data.load(kind(tmp_path, X, y), on_bad="convert").classes == ["cat", "eel"]


@pytest.mark.parametrize("kind", TEXTS)
def test_text_is_noted_no_further(tmp_path, kind):
    loaded = bv.data.load(kind(tmp_path, X, NAMES[Y]), on_bad="convert")
    assert loaded.notes == ()


@pytest.mark.parametrize("target", ["loop.png", "nowhere.png"])
def test_a_link_that_leads_nowhere_is_a_bad_row(tmp_path, target):
    root = folder(tmp_path, X, Y)
    os.symlink(target, root / "1" / "loop.png")
    wrong = r"row 20 \(1/loop.png\) cannot be read \((Too many|No such)"
    with pytest.raises(UserError, match=f"1 of 31 rows cannot be used as they are: {wrong}"):
        bv.data.load(root)
    loaded = bv.data.load(root, on_bad="skip", validation=0)
    assert len(loaded.train) + len(loaded.test) == 30
    [note] = loaded.notes
    assert re.search(f"1 of 31 rows are left out: {wrong}", note)


def test_one_class_is_not_trained_on():
    loaded = bv.data.load((X.transpose(0, 3, 1, 2), Y * 0))
    with pytest.raises(UserError, match="one class"):
        bv.train("linear", loaded, "plain", eps=0.1, epochs=1)
