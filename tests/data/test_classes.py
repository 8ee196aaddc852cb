"""Labels of several files and splits are matched by name; ambiguous names are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.data.builders import pictures, png, write_parquet

from bivallate import data
from bivallate.data.classes import positions
from bivallate.data.decode import Reading
from bivallate.data.sources import find
from bivallate.data.splits import Streaming
from bivallate.errors import UserError

ABC = ["cat", "dog", "eel"]
IMAGES = [png(i) for i in pictures(60)]


@pytest.mark.parametrize(
    ("names", "known", "wanted"),
    [
        (ABC, ABC, [0, 1, 2]),
        (["eel", "cat"], ABC, [2, 0]),
        (["Eel", " cat", "DOG"], ABC, [2, 0, 1]),
        (["cow", "cat"], ABC, [-1, 0]),
        (["T-shirt/top", "Ankle boot"], ["ankle_boot", "T-shirt/top"], [1, 0]),
        (["traffic light"], ["traffic_light", "stop"], [0]),
        (["00000", "00001", "00010"], ["0", "1", "10"], [0, 1, 2]),
        (["1", "-1"], ["1"], [0, -1]),
        (["cafe\u0301"], ["caf\u00e9"], [0]),
        (["c", "C"], ["c", "C"], [0, 1]),
        (["C"], ["c", "C"], [1]),
        (["a b"], ["ab", "a_b"], [-1]),  # either could be meant
        (["a_b", "ab"], ["a b"], [-1, -1]),
        (["a b", "ab"], ["ab"], [-1, 0]),
        (["c++", "c"], ["c", "c++", "c#"], [1, 0]),
    ],
)
def test_names_find_their_places(names: list[str], known: list[str], wanted: list[int]) -> None:
    assert positions(names, known) == wanted


def labels(folder: Path, **options: object) -> dict[str, list[str]]:
    """The class names of the rows of each split, in the order of the files."""
    source = find(folder, None, Reading(**options), Streaming())  # type: ignore[arg-type]
    names = source.named(True).classes
    return {split: [names[k] for k in rows.labels] for split, rows in source.splits.items()}


def write(folder: Path, files: dict[str, tuple[list, list[str] | None]]) -> Path:
    start = 0
    for name, (rows, names) in files.items():
        write_parquet(folder / f"{name}.parquet", IMAGES[start : start + len(rows)], rows, names)
        start += len(rows)
    return folder


def typed(rows: list, kind: pa.DataType) -> pa.Array:
    return pa.array(rows, kind)


TRAIN = ([0, 1, 2], ABC)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            {"train": TRAIN, "test": ([0, 1, 2], ["eel", "dog", "cat"])},
            {"train": ABC, "test": ["eel", "dog", "cat"]},
        ),
        ({"train": TRAIN, "test": ([1, 0], ["eel", "dog"])}, {"train": ABC, "test": ["dog", "eel"]}),
        ({"train": TRAIN, "test": ([1], ["dog", "Cat", "hen"])}, {"train": ABC, "test": ["cat"]}),
        ({"train": TRAIN, "test": ([2, 0], None)}, {"train": ABC, "test": ["eel", "cat"]}),
        ({"train": TRAIN, "test": (["eel", "cat"], None)}, {"train": ABC, "test": ["eel", "cat"]}),
        (
            {"train-00000-of-00002": TRAIN, "train-00001-of-00002": ([0, 1], ["dog", "cat"])},
            {"train": [*ABC, "dog", "cat"]},
        ),
        (
            {"train": TRAIN, "test": ([-1, -1], ABC), "validation": ([2, 1], ABC)},
            {"train": ABC, "test": ["eel", "dog"]},
        ),
        ({"train": TRAIN, "test": ([None, None], ABC), "dev": ([0], ABC)}, {"train": ABC, "test": ["cat"]}),
        ({"train": TRAIN, "test": ([-1, -1, -1], ABC)}, {"train": ABC}),
        (
            {"train": (typed([0, 1, 2], pa.uint8()), ABC), "test": (typed([2, 1], pa.uint64()), ABC)},
            {"train": ABC, "test": ["eel", "dog"]},
        ),
        ({"train": (typed([0, 1, 1], pa.int8()), None)}, {"train": ["0", "1", "1"]}),
    ],
)
def test_labels_mean_names(tmp_path: Path, files: dict, wanted: dict) -> None:
    assert labels(write(tmp_path / "set", files)) == wanted


def test_hidden_labels_are_said(tmp_path: Path) -> None:
    files = {"train": ([0, 1, 2] * 4, ABC), "validation": TRAIN, "test": ([-1, -1], ABC)}
    loaded = data.load(write(tmp_path / "set", files), validation=0)
    assert "the labels of the test data are hidden: the validation data serve as test data" in loaded.notes
    assert np.array_equal(loaded.test.images, pictures(60)[12:15].transpose(0, 3, 1, 2))
    several(tmp_path / "blind", {"image": 20}, {"id": [7, 8]}, {"image": IMAGE})
    (tmp_path / "blind" / "train.parquet").rename(tmp_path / "set" / "test.parquet")
    assert data.load(tmp_path / "set", validation=0).test.fingerprint == loaded.test.fingerprint
    del files["validation"]
    alone = data.load(write(tmp_path / "alone", files), validation=0, test_fraction=0.25)
    assert "hidden: a part of the training data serves" in alone.notes[0]
    assert torch.cat([alone.train.index, alone.test.index]).sort().values.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train": TRAIN, "test": ([0, 1], ["cat", "cow"])},
            "row 1 of test.parquet has the class 'cow', which the other data have not",
        ),
        (
            {"train-00000-of-00002": TRAIN, "train-00001-of-00002": ([1, 0], ["eal", "cat"])},
            r"row 1 of train-00001-of-00002.parquet has the class 'eal'.*did you mean 'eel'",
        ),
        (
            {"train": TRAIN, "test": ([0, 3], None)},
            "row 1 of test.parquet has the label 3, outside the 3 classes",
        ),
        (
            {"train": (["a", "b"], None), "test": ([0, 1], None)},
            "text in one split and bare numbers in another",
        ),
        ({"train": ([1, 2, 3], ABC)}, "label 3, outside .*: the labels are numbered from 1 to 3; subtract 1"),
        (
            {"train": ([1, 2, 3, 1, 2, 3], None)},
            "'0' .label 0.: the labels are numbered from 1 to 3; subtract 1",
        ),
        ({"train": (typed([0, 2**63 + 1], pa.uint64()), ABC)}, "label column 'label'.*9223372036854775809"),
        ({"train": (typed([0, 200], pa.uint8()), ABC)}, "row 1 of train.parquet has the label 200"),
        ({"test": ([-1, -1], ABC)}, "the labels of the test data are hidden, and there are no other data"),
        ({"train": ([0, -1, 2], ABC)}, "row 1 of train.parquet has no label"),
    ],
)
def test_labels_that_nothing_explains(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(write(tmp_path / "set", files), validation=0, test_fraction=0.5, on_bad="convert")


def several(folder: Path, images: dict[str, int], columns: dict[str, list], marked: dict[str, dict]) -> Path:
    """A Parquet file of such columns; `images` gives each image column's first picture."""
    import json

    import pyarrow.parquet as pq

    rows = len(next(iter(columns.values())))
    table = {name: pa.array([{"bytes": b} for b in IMAGES[k : k + rows]]) for name, k in images.items()}
    made = pa.table({**table, **{name: pa.array(values) for name, values in columns.items()}})
    info = {"info": {"features": marked}}
    folder.mkdir()
    pq.write_table(made.replace_schema_metadata({"huggingface": json.dumps(info)}), folder / "train.parquet")
    return folder


LABEL, IMAGE = {"_type": "ClassLabel", "names": ABC}, {"_type": "Image"}
TWO = {"fine_label": LABEL, "coarse_label": {**LABEL, "names": ["pet", "fish", "other"]}, "image": IMAGE}


@pytest.mark.parametrize(
    ("images", "columns", "marked", "message"),
    [
        (
            {"image": 0},
            {"fine_label": [0, 1, 2], "coarse_label": [0, 0, 1]},
            TWO,
            "2 columns that could be the label: fine_label, coarse_label.*--set data.label_column=fine_label",
        ),
        (
            {"image": 0, "mask": 3},
            {"label": [0, 1, 2]},
            {"image": IMAGE, "mask": IMAGE, "label": LABEL},
            "2 columns that could be the image: image, mask.*--set data.image_column=image",
        ),
        ({"image": 0}, {"label": [0, 1, 2], "target": [0, 0, 1]}, {}, "2 columns that could be the label"),
        ({"left": 0, "right": 3}, {"label": [0, 1, 2]}, {}, "2 columns that could be the image: left, right"),
    ],
)
def test_two_columns_are_asked_for(
    tmp_path: Path, images: dict, columns: dict, marked: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        data.load(several(tmp_path / "set", images, columns, marked), validation=0, test_fraction=0.5)


@pytest.mark.parametrize(
    ("column", "wanted"), [("fine_label", ABC), ("coarse_label", ["pet", "pet", "fish"])]
)
def test_the_chosen_column_counts(tmp_path: Path, column: str, wanted: list[str]) -> None:
    columns = {"fine_label": [0, 1, 2], "coarse_label": [0, 0, 1]}
    folder = several(tmp_path / "set", {"image": 0}, columns, TWO)
    assert labels(folder, label_column=column) == {"train": wanted}


def test_one_marked_column_among_others_needs_no_question(tmp_path: Path) -> None:
    marked = {"label": LABEL, "image": IMAGE}
    folder = several(
        tmp_path / "set", {"thumbnail": 3, "image": 0}, {"y": [2, 2, 2], "label": [0, 1, 2]}, marked
    )
    assert labels(folder) == {"train": ABC}
    loaded = find(folder, None, Reading(), Streaming()).splits["train"]
    assert np.array_equal(loaded.images, pictures(60)[:3].transpose(0, 3, 1, 2))


def test_a_published_set_with_two_label_columns_has_a_choice_of_its_own(tmp_path: Path) -> None:
    folder = several(
        tmp_path / "cifar100", {"image": 0}, {"coarse_label": [0, 0, 1], "fine_label": [0, 1, 2]}, TWO
    )
    assert labels(folder) == {"train": ABC}


@pytest.mark.parametrize("stream", [False, True])
def test_two_classes_of_one_name_are_refused(tmp_path: Path, stream: bool) -> None:
    names = ["cat", "dog", "cat"]
    folder = write_parquet(
        tmp_path / "set" / "train.parquet", [png(i) for i in pictures(6)], [0, 1, 2] * 2, names
    )
    with pytest.raises(UserError, match=r"column 'label' calls 2 classes 'cat' \(labels 0, 2\): rename them"):
        data.load(folder.parent, stream=stream, workers=0)
