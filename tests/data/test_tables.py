"""Folders of images whose labels are in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data.builders import grow, pixels_of

from bivallate import data
from bivallate.errors import UserError

TEN = [f"{k}.png" for k in range(10)]
WORDS = ["ant", "cat"]


def rows(pattern: str) -> str:
    """Ten lines."""
    return "\n".join(pattern.format(k=k, word=WORDS[k % 2], number=k % 2) for k in range(10))


CATS, NUMBERS = rows("{k}.png,{word}"), rows("{k}.png,{number}")
WITHIN: dict[str, Any] = {"validation": 0, "test_fraction": 0.5}


def labels_of(folder: Path, names: list[str], **options: Any) -> tuple[dict[str, str], data.Dataset]:
    """'split class' of each image, recognised by its pixels; and the data set."""
    loaded = data.load(folder, **{**WITHIN, **options})
    known = {pixels_of((folder / name).read_bytes()): name for name in names}
    found: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        part = getattr(loaded, split)
        for image, label in zip(part.images, part.labels, strict=True) if part is not None else ():
            name = known.get(image.transpose(1, 2, 0).tobytes())
            if name is not None:
                found[name] = f"{split} {loaded.classes[int(label)]}"
    return found, loaded


def made(root: Path, images: list[str], tables: dict[str, str]) -> Path:
    grow(root, images)
    for name, text in tables.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


READ: dict[str, tuple[list[str], dict[str, str], dict[str, Any]]] = {
    "metadata.csv as the hub's": (TEN, {"metadata.csv": f"file_name,label\n{CATS}"}, {}),
    "other names": (TEN, {"labels.csv": f"image,class\n{CATS}\n"}, {}),
    "names without suffixes": (TEN, {"labels.csv": "id,breed\n" + CATS.replace(".png", "")}, {}),
    "semicolons, spaces, a mark, CRLF": (
        TEN,
        {"a.csv": "\ufeffname; label\r\n" + CATS.replace(",", " ; ").replace("\n", "\r\n")},
        {},
    ),
    "tabs": (TEN, {"labels.tsv": f"file\tkind\n{CATS}".replace(",", "\t")}, {}),
    "quotes": (TEN, {"labels.csv": "file,note,label\n" + rows('"{k}.png","a, b","{word}"')}, {}),
    "no header": (TEN, {"labels.csv": CATS}, {}),
    "JSON lines": (
        TEN,
        {"metadata.jsonl": rows('{{"file_name": "{k}.png", "label": "{word}"}}')},
        {},
    ),
    "images in a folder": ([f"images/{n}" for n in TEN], {"labels.csv": f"file,label\n{CATS}"}, {}),
    "parts of one set": (
        [f"part_{k % 2}/{n}" for k, n in enumerate(TEN)], {"labels.csv": f"file,label\n{CATS}"}, {}
    ),
    "paths below the folder": (
        [f"x/y/{n}" for n in TEN],
        {"labels.csv": "path,label\n" + "\n".join(f"x/y/{line}" for line in CATS.split("\n"))},
        {},
    ),
    "paths of Windows": (
        [f"images/{n}" for n in TEN],
        {"labels.csv": "path,label\n" + "\n".join(f"images\\{line}" for line in CATS.split("\n"))},
        {},
    ),
    "a column chosen": (
        TEN,
        {"labels.csv": "file,class,label\n" + "\n".join(f"{line},x" for line in CATS.split("\n"))},
        {"label_column": "class"},
    ),
    "a table of its own to hand in": (
        TEN, {"labels.csv": f"id,label\n{CATS}", "sample_submission.csv": f"id,label\n{NUMBERS}"}, {}
    ),
    "rows without images, skipped": (
        TEN, {"labels.csv": f"file,label\n{CATS}\n77.png,cat\n,\n"}, {"on_bad": "skip"}
    ),
    "a row twice": (TEN, {"labels.csv": f"file,label\n{CATS}\n1.png,cat"}, {}),
    "beside class folders, when asked": (
        [f"{'x' if k < 5 else 'y'}/{n}" for k, n in enumerate(TEN)],
        {"labels.csv": f"file,label\n{CATS}"},
        {"label_column": "label"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_labels_are_those_of_the_table(case: str, tmp_path: Path) -> None:
    images, tables, options = READ[case]
    found, loaded = labels_of(made(tmp_path / "set", images, tables), images, **options)
    assert loaded.classes == WORDS
    assert loaded.named
    assert len(found) == 10
    assert {name: label.split()[1] for name, label in found.items()} == {
        name: WORDS[k % 2] for k, name in enumerate(images)
    }


@pytest.mark.parametrize("text", [NUMBERS, NUMBERS.replace(",0", ",0.0").replace(",1", ",1.0")])
def test_whole_numbers_are_labels_as_they_are(text: str, tmp_path: Path) -> None:
    found, loaded = labels_of(made(tmp_path / "set", TEN, {"labels.csv": f"file,label\n{text}"}), TEN)
    assert loaded.classes == ["0", "1"]
    assert not loaded.named
    assert all(label.endswith(str(int(name[0]) % 2)) for name, label in found.items())


BOTH = ("train", "test")
SPLITS: dict[str, tuple[list[str], dict[str, str]]] = {
    "a table in each folder": (
        [f"{split}/{n}" for split in ("train", "test") for n in TEN],
        {f"{split}/metadata.csv": f"file_name,label\n{CATS}" for split in ("train", "test")},
    ),
    "a table of each split": (
        [f"{split}/{split}{n}" for split in ("train", "test") for n in TEN],
        {f"{s}.csv": "id,label\n" + rows(s + "{k}.png,{word}") for s in ("train", "test")},
    ),
    "one table, folders": (
        [f"{split}/{n}" for split in ("train", "test") for n in TEN],
        {"labels.csv": "\n".join(["file,label", *(rows(s + "/{k}.png,{word}") for s in ("train", "test"))])},
    ),
    "a column": (
        [f"{split}{n}" for split in ("train", "test") for n in TEN],
        {"all.csv": "\n".join(["file,label,set", *(rows(s + "{k}.png,{word}," + s) for s in BOTH)])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLITS)
def test_splits_of_tables(case: str, tmp_path: Path) -> None:
    images, tables = SPLITS[case]
    found, _ = labels_of(made(tmp_path / "set", images, tables), images)
    assert found == {
        name: f"{'train' if name.startswith('train') else 'test'} {WORDS[int(name[-5]) % 2]}"
        for name in images
    }


@pytest.mark.parametrize("cell", ["", "holdout", "train/test"])
@pytest.mark.parametrize("header", ["split", "Subset"])
def test_a_cell_that_names_no_split_is_refused_with_its_line(header: str, cell: str, tmp_path: Path) -> None:
    table = f"file,label,{header}\n" + rows("{k}.png,{word},test").replace(
        "7.png,cat,test", f"7.png,cat,{cell}"
    )
    words = rf"line 9 of labels.csv has '{cell}' in its column '{header}'.*write train, validation or test"
    with pytest.raises(UserError, match=words):
        data.load(made(tmp_path / "set", TEN, {"labels.csv": table}), **WITHIN)


@pytest.mark.parametrize(
    ("header", "cells", "noted"),
    [("split", ("1", "2"), True), ("set", ("red", ""), True), ("fold", ("test", "2"), False)],
)
def test_a_column_without_any_split_is_ignored_and_said(
    header: str, cells: tuple[str, str], noted: bool, tmp_path: Path
) -> None:
    lines = [f"{k}.png,{WORDS[k % 2]},{cells[k // 5]}" for k in range(10)]
    table = "\n".join((f"file,label,{header}", *lines))
    folder = made(tmp_path / "set", TEN, {"labels.csv": table})
    found, loaded = labels_of(folder, TEN, label_column="label")
    assert sorted(label.split()[0] for label in found.values()) == ["test"] * 5 + ["train"] * 5
    said = f"labels.csv: the column '{header}' is not read as a split"
    assert any(note.startswith(said) for note in loaded.notes) == noted


def test_classes_with_the_words_of_splits_are_no_splits(tmp_path: Path) -> None:
    table = "file,set\n" + CATS.replace("cat", "train")
    folder = made(tmp_path / "set", TEN, {"labels.csv": table})
    assert data.load(folder, **WITHIN, label_column="set").classes == ["ant", "train"]


def test_test_images_without_labels_are_left_out_and_said(tmp_path: Path) -> None:
    images = [*(f"train/{n}" for n in TEN), "test/a.png", "test/b.png"]
    tables = {
        "train.csv": f"id,label\n{CATS}",
        "test.csv": "id\na.png\nb.png\n",
        "notes.csv": "author,year\nsmith,1999",
    }
    found, loaded = labels_of(made(tmp_path / "set", images, tables), images)
    assert len(found) == 10
    assert {label.split()[0] for label in found.values()} == {"train", "test"}
    said = "\n".join(loaded.notes)
    assert "images that no table of labels names: 2 (test/a.png, test/b.png)" in said
    assert "tables without labels: 1 (test.csv)" in said
    assert "1 (notes.csv)" in said


def test_class_folders_go_before_a_table(tmp_path: Path) -> None:
    images = [f"{'x' if k < 5 else 'y'}/{n}" for k, n in enumerate(TEN)]
    loaded = data.load(made(tmp_path / "set", images, {"labels.csv": f"file,label\n{CATS}"}), **WITHIN)
    assert loaded.classes == ["x", "y"]
    assert any(".csv files" in note for note in loaded.notes)


REFUSED: dict[str, tuple[list[str], dict[str, str], dict[str, Any], str]] = {
    "no such image": (
        TEN, {"labels.csv": f"file,label\n{CATS}\n77.png,cat"}, {},
        r"1 of 11 rows name no image below .*: line 12 \('77.png'\).*on_bad=skip",
    ),
    "no image at all": (TEN, {"labels.csv": "file,label\nx.png,cat\n"}, {}, r"1 of 1 rows name no image"),
    "outside of the folder": (
        TEN, {"labels.csv": f"file,label\n{CATS}\n../../a.png,cat"}, {}, r"line 12 \('../../a.png'\)"
    ),
    "no such column": (
        TEN, {"labels.csv": f"file,label\n{CATS}"}, {"label_column": "lable"},
        "no column 'lable' .did you mean 'label'.*: its columns are file, label",
    ),
    "two labels": (
        TEN, {"labels.csv": "file,class,label\n" + CATS.replace("\n", ",0\n") + ",1"}, {},
        "2 columns that could be the label: class, label; choose one by label_column=",
    ),
    "no label column": (
        TEN, {"labels.csv": "file,a,b\n" + CATS.replace("\n", ",0\n") + ",1"}, {}, "which column is the label"
    ),
    "two image columns": (
        TEN,
        {"labels.csv": "left,right,label\n" + "\n".join(f"{k}.png,{9 - k}.png,a" for k in range(10))},
        {},
        "2 columns that could be the image: left, right",
    ),
    "two labels of one image": (
        TEN, {"labels.csv": f"file,label\n{CATS}\n1.png,ant"}, {},
        "line 3 of labels.csv and line 12 of labels.csv give 1.png two labels, 'cat' and 'ant'",
    ),
    "two images of one name": (
        [f"{d}/{n}" for d in ("part1", "part2") for n in TEN], {"labels.csv": f"file,label\n{CATS}"}, {},
        "line 2 of labels.csv: '0.png' may be part1/0.png, part2/0.png: give the path",
    ),
    "an empty label": (
        TEN, {"labels.csv": f"file,label\n{CATS[:-3]}"}, {}, r"line 11 of labels.csv \(9.png\) has no label"
    ),
    "ragged": (
        TEN, {"labels.csv": f"file,label\n{CATS}, dog"}, {}, "line 11: 3 cells where the first line has 2"
    ),
    "an open quote": (TEN, {"labels.csv": f'file,label\n"{CATS}'}, {}, "line 1[01]: "),
    "empty": (TEN, {"labels.csv": "\n\n"}, {}, "is an empty table"),
    "two columns of one name": (TEN, {"labels.csv": f"file,file\n{CATS}"}, {}, "two columns 'file'"),
    "a class that training has not": (
        [f"{s}/{s}{n}" for s in ("train", "test") for n in TEN],
        {
            "train.csv": "id,label\n" + "\n".join(f"train{x}" for x in CATS.split("\n")),
            "test.csv": "id,label\n" + "\n".join(f"test{x}" for x in CATS.replace("ant", "cta").split("\n")),
        },
        {},
        "line 2 of test.csv has the class 'cta', which the training data has not .did you mean 'cat'",
    ),
    "labels from 1": (
        TEN, {"labels.csv": "file,label\n" + "\n".join(f"{k}.png,{1 + k % 2}" for k in range(10))}, {},
        "numbered from 1 to 2",
    ),
    "below zero": (TEN, {"labels.csv": f"file,label\n{NUMBERS[:-1]}-7"}, {}, "has the label -7"),
    "damaged JSON": (
        TEN, {"metadata.jsonl": '{"file_name": "1.png"\n'}, {}, "metadata.jsonl, line 1 is not a readable row"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_table_does_not_say_is_asked(case: str, tmp_path: Path) -> None:
    images, tables, options, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as told:
        data.load(made(tmp_path / "set", images, tables), **WITHIN, **options)
    assert "\n" not in str(told.value)


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    folder = made(tmp_path / "set", TEN, {})
    (folder / "labels.csv").write_bytes(f"file,label\n{CATS}".encode("utf-16"))
    with pytest.raises(UserError, match=r"labels.csv is no table of labels: byte 0 is not UTF-8"):
        data.load(folder, **WITHIN)


def test_changed_labels_are_read_again(tmp_path: Path) -> None:
    folder = made(tmp_path / "set", TEN, {"labels.csv": f"file,label\n{CATS}"})
    first, _ = labels_of(folder, TEN)
    (folder / "labels.csv").write_text(f"file,label\n{CATS.replace('ant', 'bee')}")
    second, loaded = labels_of(folder, TEN)
    assert loaded.classes == ["bee", "cat"]
    assert {k: v.replace("ant", "bee") for k, v in first.items()} == second
