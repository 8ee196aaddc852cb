"""Values from files have the types that are required, wherever they come from."""

from __future__ import annotations

import ast
import os
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import bivallate as bv
from bivallate.cli import run as command
from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import pack, unpack
from bivallate.parts import decode, encode
from bivallate.run.config import Config, Data
from bivallate.run.optim import SGD
from bivallate.schema import Count, check_fits, parse, read_json, read_text
from bivallate.toml import to_toml


def written(**changes: Any) -> dict[str, Any]:
    """An encoded configuration with values replaced by dotted path (`__` for the dot)."""
    entry = encode(Config(bv.methods.at(bv.Linf(0.1))))
    for path, value in changes.items():
        *tables, key = path.split("__")
        table = entry
        for name in tables:
            table = table[name]
        table[key] = value
    return entry


WRONG = [
    ("channels_last", "false", "true or false"),
    ("channels_last", 1, "true or false"),
    ("sentinel__on", "no", "true or false"),
    ("model__normalise", "false", "true or false"),
    ("method__accumulate", "no", "true or false"),
    ("batch_size", True, "a whole number"),
    ("epochs", 2.9, "a whole number"),
    ("epochs", "3", "a whole number"),
    ("epochs", 10**30, "64 bits"),
    ("seed", False, "whole number"),
    ("optimizer__lr", "0.1", "a number"),
    ("optimizer__lr", True, "a number"),
    ("optimizer__lr", 1e39, "fits 32 bits"),
    ("optimizer__lr", float("nan"), "a finite number"),
    ("method__threat__eps", [0.1], "a number"),
    ("method__solver__steps", 2.5, "a whole number"),
    ("method__solver__start", "zero", "a part"),
    ("method__attack_mode", "evil", "attack mode"),
    ("data__name", 3, "text"),
    ("data__test_fraction", 1, "between 0 and 1"),
    ("data__meta", -1, "at least 0"),
    ("data__workers", -2, "at least 0"),
    ("keep", [1, "2"], "a whole number"),
    ("keep", 3, "a list"),
    ("kind", [], "method"),
    ("method__kind", [], "part"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG)
def test_values_of_another_type_are_refused_with_their_key(path, value, words, tmp_path):
    entry = written(**{path: value})
    if path == "kind":
        entry["method"] = 3
    place = tmp_path / "config.toml"
    place.write_text(to_toml(entry), encoding="utf-8")
    with pytest.raises(UserError, match=words) as error:
        Config.read(place)
    said = str(error.value)
    assert said.startswith(str(place))
    assert path.split("__")[-1] in said.replace(" ", "_") or path.endswith("kind")


def test_numbers_of_numpy_are_numbers_and_stay_no_others():
    made = SGD(np.float32(0.5), nesterov=np.bool_(True))  # pyright: ignore[reportArgumentType]
    assert (type(made.lr), made.nesterov) == (float, True)
    count = Config(bv.methods.at(bv.Linf(0.1)), epochs=np.int64(3)).epochs  # pyright: ignore[reportArgumentType]
    assert (type(count), count) == (int, 3)


@pytest.mark.parametrize("where", ["python", "set", "option"])
def test_the_same_holds_in_python_for_settings_and_for_options(where, tmp_path, capsys):
    if where == "python":
        with pytest.raises(UserError, match=r"Data\.allow_missing_classes must be true or false"):
            Data(allow_missing_classes="false")  # pyright: ignore[reportArgumentType]
        return
    more = ["--set", "optimizer.lr=1e39"] if where == "set" else ["--lr", "1e39"]
    assert command(["train", "at", "--out", str(tmp_path / "run"), *more]) == 2
    assert "fits 32 bits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, 3), (float, 3), (float, 0.5), (float, float("inf")), (bool, False), (str, ""),
        (int | None, None),
        (tuple[int, ...], (1, 2)), (list[str], []), (dict[str, float], {"a": 1.0}), (Literal["a"], "a"),
        (tuple[int, str], (1, "x")), (Count, 1), (Any, object),
    ],
)  # fmt: skip
def test_right_values_stay_as_they_are(hint, value):
    assert check_fits(hint, value, "x") == value


@pytest.mark.parametrize(
    "hint", [int, float, bool, str, list[int], dict[str, int], Literal["a"], Count, None]
)
@pytest.mark.parametrize("value", [object(), [object()], b"x", {1: 2}, -1.5, "b"])
def test_wrong_values_are_refused_by_name(hint, value):
    if (hint, value) in ((float, -1.5), (str, "b")):
        return
    with pytest.raises(UserError, match="the key"):
        check_fits(hint, value, "the key")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[" * 60 + "]" * 60, "NaN", "1" * 5000, "", "\x00"]
)
def test_text_that_is_no_plain_data_is_refused_in_a_line(text):
    with pytest.raises(UserError, match="not a readable thing") as error:
        parse(text, "x.json", "thing", Any)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("x.json")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_and_carriage_returns_are_read(mark, tmp_path):
    plan = Config(bv.methods.at(bv.Linf(0.1)))
    place = tmp_path / "config.toml"
    place.write_bytes(mark + to_toml(encode(plan)).replace("\n", "\r\n").encode())
    assert Config.read(place) == plan


@pytest.mark.parametrize("name", ["a\x1b[2J\"'\\", "\x7f\u202e\n\t", "ä 你", "{x}"])
def test_any_name_is_written_as_toml_that_reads_back(name, tmp_path):
    plan = Config(bv.methods.at(bv.Linf(0.1)), data=Data(name))
    plan.write(tmp_path / "config.toml")
    assert Config.read(tmp_path / "config.toml") == plan


@pytest.mark.parametrize("kind", ["folder", "pipe", "large", "page", "UTF-16", "absent"])
def test_what_is_no_text_file_of_its_size_is_refused(kind, tmp_path):
    place = tmp_path / "x.json"
    made = {
        "folder": place.mkdir,
        "pipe": lambda: os.mkfifo(place),
        "large": lambda: place.write_text("x" * 1001),
        "page": lambda: place.write_text("<!doctype html>"),
        "UTF-16": lambda: place.write_bytes('{"ä": 1}'.encode("utf-16")),
        "absent": lambda: None,
    }
    made[kind]()
    found: list[str] = []

    def look() -> None:
        with pytest.raises(UserError, match=r"x\.json") as error:
            read_text(place, "thing", 1000)
        found.append(str(error.value))

    thread = threading.Thread(target=look, daemon=True)  # a pipe would wait for ever
    thread.start()
    thread.join(30)
    assert len(found) == 1


def test_columns_unpack_to_what_they_promise():
    kept = pack(torch.arange(1_000_000))
    assert torch.equal(unpack(kept), torch.arange(1_000_000))
    for shape in ([10], [0], [2_000_000]):
        with pytest.raises(ValueError, match="does not hold"):
            unpack({**kept, "shape": shape})


def test_faults_name_the_row_and_the_key(tmp_path):
    place = tmp_path / "x.json"
    place.write_text('{"a": {"b": [1, "x"]}}')
    with pytest.raises(UserError, match=r"x\.json: thing\.a\.b\[1\] must be a whole number, got 'x'"):
        read_json(place, "thing", dict[str, dict[str, list[int]]])


def test_parts_of_a_users_own_are_checked_too():
    @bv.part
    class Steps:
        count: int = 1
        label: NotThere = None  # noqa: F821  # pyright: ignore

    assert Steps(2, "anything").count == 2
    with pytest.raises(UserError, match=r"Steps\.count must be a whole number"):
        decode({"kind": "Steps", "count": "2"})


def test_files_are_named_as_paths_and_as_text(tmp_path):
    for place in (Path(tmp_path / "x"), str(tmp_path / "x")):
        with pytest.raises(UserError, match="cannot read the thing"):
            read_text(place, "thing", 10)


OWN_TEXT = {
    "commands/stored_lists.py",
    "evaluation/shared_points.py",
    "checksummed.py",
    "run/reopen.py",
    "reproduce/paper_table.py",
}  # what this program has just written itself, or another process of it, or what belongs to the package


def test_files_are_parsed_in_one_place():
    root = Path(bv.__file__).parent
    calls = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("load", "loads")
        if isinstance(node.value, ast.Name) and node.value.id in ("json", "tomllib", "pickle", "yaml")
    }
    assert calls == {"schema.py", *OWN_TEXT}
