"""Our own files, mutated at random: each loads with a meaning or is refused by one UserError, nothing else.

`run(count)` makes any number of cases; `tests/faults/test_mutations.py` a short round of them.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from tests.reports.hostile import trained

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.evaluation.state import State
from bivallate.reports.collect import collect
from bivallate.reports.tables import alarms_table, evaluations_table, runs_table
from bivallate.reproduce.records import read_record, worst_class_of
from bivallate.run import checkpoint
from bivallate.run.config import Config
from bivallate.run.folder import RunFolder
from bivallate.toml import to_toml

DEEP = 100_000
VALUES: tuple[Any, ...] = (
    None, True, False, "false", "no", "", "x", "\ud800", "../../x", "x" * 100_000, -1, 0, 1, 2.5, -1e300,
    1e39, 10**30, 10**400, float("inf"), float("nan"), [], {}, [[]], [None], {"": 0},
    {"kind": []}, {"kind": "SGD"},
)  # fmt: skip
RECORD = "results/T-B1/cpu/at-mnist-tiny-cnn-linf-seed0.json"


def prepare(root: Path) -> Path:
    """A run with an evaluation, one that was broken off, and a record."""
    run = trained(root / "run")
    state = State.of(20, 4)
    state.sample = state.margin[:4].view(2, 2).clone()
    state.save(run / "evaluation" / ".x.partial", "key")
    repository = Path(__file__).parents[2]
    shutil.copy(repository / RECORD, run / "record.json")
    return run


def read_config(run: Path) -> None:
    """The configuration, written down again."""
    config = Config.read(run / "config.toml")
    copy = run / "copy.toml"
    config.write(copy)
    assert Config.read(copy) == config


def read_run(run: Path) -> None:
    """Manifest and weights, and what a report makes of all."""
    record = collect([run])[0]
    for table in (runs_table([record]), evaluations_table([record]), alarms_table([record])):
        assert table is None or all(isinstance(cell, str) for row in table.rows for cell in row)


def read_model(run: Path) -> None:
    """The network."""
    bv.load(run)


def read_metrics(run: Path) -> None:
    """The record of epochs, as reports read it."""
    RunFolder.open(run).read_metrics()
    read_run(run)


def read_score(run: Path) -> None:
    """An evaluation and what follows from its points."""
    score = Score.load(next((run / "evaluation").glob("best*.json")))
    assert 0 <= score.robust_accuracy <= score.clean_accuracy <= 1
    assert int(score.confusion.sum()) == score.n
    assert len(score.stages) <= 1 + len(score.stage_names)
    assert len(score.per_class) == score.classes


def read_partial(run: Path) -> None:
    """An evaluation that was broken off."""
    state = State.load(run / "evaluation" / ".x.partial", "key")
    assert state.batch_size >= 1


def read_checkpoint(run: Path) -> None:
    """The newest checkpoint."""
    checkpoint.load(checkpoint.list_all(run / "checkpoints")[0])


def read_one_record(run: Path) -> None:
    """A record of `reproduce`."""
    record = read_record(run / "record.json")
    own = record.entry["columns"].keys()
    assert record.columns.keys() - {worst_class_of(column) for column in own} <= own <= record.columns.keys()
    assert record.chosen["epoch"] >= 0
    assert record.unweighted in (True, False)
    assert record.passes is None or record.passes >= 0


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None]]] = {
    "configuration": (lambda run: run / "config.toml", read_config),
    "manifest": (lambda run: run / "model.json", read_model),
    "metrics": (lambda run: run / "metrics.jsonl", read_metrics),
    "evaluation": (lambda run: next((run / "evaluation").glob("best*.json")), read_score),
    "partial": (lambda run: run / "evaluation" / ".x.partial", read_partial),
    "checkpoint": (lambda run: checkpoint.list_all(run / "checkpoints")[0], read_checkpoint),
    "record": (lambda run: run / "record.json", read_one_record),
}


def run(count: int, root: Path, seed: int = 0) -> Counter[str]:
    """Reads `count` mutated files, all kinds in turn.

    Returns:
        How often each kind was read and refused.

    Raises:
        AssertionError: anything but a meaning or a UserError of one line; says how to repeat the case.
    """
    whole, found = prepare(root), Counter[str]()
    for case in range(count):
        kind = list(KINDS)[case % len(KINDS)]
        place, read = KINDS[kind]
        path = place(whole)
        kept, chance = path.read_bytes(), random.Random(f"{seed} {case}")
        what = mutated(path, kind, chance)
        said = _read(read, whole, f"seed {seed}, case {case}: {kind}, {what}")
        path.write_bytes(kept)
        assert "\n" not in said.strip(), (seed, case, kind, what, said)
        found[f"{kind} {'refused' if said else 'read'}"] += 1
    return found


def _read(read: Callable[[Path], None], whole: Path, case: str) -> str:
    """What was said; empty where the file has a meaning."""
    try:
        read(whole)
    except UserError as error:
        return str(error)
    except BaseException as error:
        raise AssertionError(f"{case}: {error!r}") from error
    return ""


def mutated(path: Path, kind: str, chance: random.Random) -> str:
    """Damages a file, and says how."""
    if chance.random() < 0.3:
        data = path.read_bytes()
        name = chance.choice(sorted(BYTES))
        path.write_bytes(BYTES[name](data, chance))
        return name
    if kind == "checkpoint":
        return _header(path, chance)
    text = path.read_text(encoding="utf-8")
    if kind == "configuration":
        tree = tomllib.loads(text)
        what = _node(tree, chance)
        text = to_toml(tree)
    elif kind == "metrics":
        lines = [json.loads(line) for line in text.splitlines()]
        what = _node(lines, chance)
        text = "".join(json.dumps(line) + "\n" for line in lines)
    else:
        tree = json.loads(text)
        what = _node(tree, chance)
        text = json.dumps(tree)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return what


def _header(path: Path, chance: random.Random) -> str:
    """A value of the header; the checksum stays as it was."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    key = chance.choice(sorted(metadata))
    try:
        tree = json.loads(metadata[key])
        what = _node(tree, chance)
        metadata[key] = json.dumps(tree)
    except ValueError:
        what, metadata[key] = f"{key} = x", "x"
    save_file(tensors, path, metadata)
    return what


def _node(tree: Any, chance: random.Random) -> str:
    """Replaces, deletes, renames or doubles one value somewhere in nested tables."""
    where, node = "", tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return f"{where} is empty"
        key = chance.choice(keys)
        where += f".{key}"
        inner = node[key]
        if not (isinstance(inner, dict | list) and inner) or chance.random() < 0.2:
            break
        node = inner
    deed = chance.choice(("replace", "replace", "replace", "delete", "rename", "nest"))
    if deed == "delete":
        del node[key]
    elif deed == "rename" and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    elif deed == "nest":
        for _ in range(chance.choice((1, 60, 150))):
            inner = [inner]
        node[key] = inner
    else:
        node[key] = copy.deepcopy(chance.choice(VALUES))
        return f"{where} = {str(node[key])[:40]!r}"
    return f"{deed} {where}"


def _flipped(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda data, chance: data[: chance.randrange(len(data))],
    "empty": lambda data, chance: b"",
    "zeroed": lambda data, chance: bytes(len(data)),
    "flipped": _flipped,
    "byte order mark": lambda data, chance: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data, chance: data.decode("latin-1").encode("utf-16"),
    "Latin-1": lambda data, chance: data.replace(b'"', '"ä'.encode("latin-1"), 1),
    "carriage returns": lambda data, chance: data.replace(b"\n", b"\r\n"),
    "deep": lambda data, chance: b"[" * DEEP + b"]" * DEEP,
    "deep tables": lambda data, chance: b'{"x":' * DEEP + b"1" + b"}" * DEEP,
    "deep keys": lambda data, chance: b"x" + b".x" * 2000 + b" = 1\n",
    "deep TOML": lambda data, chance: b"x = " + b"[" * 5000 + b"]" * 5000 + b"\n" + data,
    "a number": lambda data, chance: b"7",
    "a long number": lambda data, chance: b"1" * 100_000,
    "a page": lambda data, chance: b"<!doctype html><html>404</html>",
    "doubled": lambda data, chance: data + data,
}
