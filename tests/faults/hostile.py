"""Files that were made to harm: each is read as something harmless or refused in one line; nothing starts or
blocks.

`python -m tests.faults` counts them all. The witness: programs of Ghostscript's names that leave a file
behind, a payload that does so where a pickle is opened, and Python's own audit of the processes that start.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from tests.data import test_hostile as images
from tests.data.test_unpacking import HOSTILE as ARCHIVES
from tests.models import test_disguised as checkpoints
from tests.models.test_foreign import HOSTILE as ENTRIES
from tests.reports.hostile import STRINGS, poisoned, trained
from tests.reports.test_quoting import Markup

import bivallate as bv
from bivallate import data
from bivallate.cli import run as command
from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.reports.collect import collect
from bivallate.reports.page import write_report
from bivallate.run import checkpoint
from bivallate.run.config import Config
from bivallate.run.folder import FOLDERS, RunFolder

Case = tuple[
    str, Callable[[Path], object]
]  # what kind of file, and what makes and reads it in an empty folder
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.startfile", "subprocess.Popen"}
SECONDS = 20  # after which a file blocks
STARTED: list[str] = []  # while one is watched
WATCHED = [False]
sys.addaudithook(lambda event, _: STARTED.append(event) if WATCHED[0] and event in STARTS else None)


class Payload:
    """A pickle that leaves a file behind when it is opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def attempts(root: Path, every: int = 1) -> Iterator[tuple[str, str]]:
    """(kind, how it ended) of every so many-th case: "read", "refused", "executed" or "traceback"."""
    whole = trained(root / "run")
    for number, (kind, act) in list(enumerate(cases(whole)))[::every]:
        place = root / f"case-{number}"
        place.mkdir()
        yield kind, attempt(place, act)
        shutil.rmtree(place, ignore_errors=True)


def attempt(place: Path, act: Callable[[Path], object]) -> str:
    """How one ends."""
    with _watched(place):
        try:
            act(place)
            ended = "read"
        except UserError as error:
            ended = "refused" if "\n" not in str(error) else "traceback"
        except Exception:
            ended = "traceback"
    return "executed" if STARTED or (place / "ran").exists() else ended


@contextmanager
def _watched(place: Path) -> Iterator[None]:
    """In the folder, with programs that tell, a cache of its own and an end to waiting."""
    for name in ("gs", "gswin64c", "gswin32c", "djpeg"):
        program = place / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ntouch {place / 'ran'}\n")
        program.chmod(0o755)
    (place / "evil.py").write_text(f"open({str(place / 'ran')!r}, 'w')\nmake = print\n")
    here = Path.cwd()
    variables = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "BIVALLATE_CACHE": str(place / "cache")}
    before = signal.signal(signal.SIGALRM, _blocked)
    with mock.patch.dict(os.environ, variables), mock.patch.object(sys, "path", [str(place), *sys.path]):
        os.chdir(place)
        STARTED.clear()
        WATCHED[0] = True
        signal.alarm(SECONDS)
        try:
            yield
        finally:
            signal.alarm(0)
            WATCHED[0] = False
            os.chdir(here)
            signal.signal(signal.SIGALRM, before)


def _blocked(*_: object) -> None:
    raise TimeoutError("it blocks")


def cases(whole: Path) -> Iterator[Case]:
    """Every file, of data, checkpoints, runs and configurations."""
    yield from _data()
    yield from _weights(whole)
    yield from _runs(whole)
    yield from _configurations(whole)
    yield from _reports(whole)


CONTENTS = (
    images.EPS, images.EPS_IN_A_SHELL, images.LFS, images.HTML, images.SAFETENSORS, b"\x80\x04\x95", b"",
    pickle.dumps(Payload()), images.dds(2**31, 2**31), images.bomb_png(), images.bomb_bmp(1 << 20, 1 << 7),
    images.bomb_tiff(2**32 - 1, 2**32 - 1), images.bomb_tiff(0, 0),
)  # fmt: skip


def _data() -> Iterator[Case]:
    for content in CONTENTS:
        for make in (images.in_a_folder, images.in_parquet):
            yield (
                "an image",
                lambda at, c=content, m=make: images.read_all(
                    data.load(m(at / "set", c), workers=0, **images.NO_TEST)
                ),
            )
    for make, _ in ARCHIVES.values():
        yield "an archive", lambda at, m=make: data.load(m(at))
    for shape, descr in (("(4, 10**12)", "|u1"), ("(2**62, 8)", "|u1"), ("(4,)", "|O"), ("(-1,)", "|u1")):
        body = pickle.dumps(Payload()) if descr == "|O" else bytes(64)
        held = images.npz(x=images.header(shape, descr, body), y=images.header("(4,)"))
        yield "arrays", lambda at, c=held: data.load(_written(at / "set.npz", c))


def _weights(whole: Path) -> Iterator[Case]:
    for make in (checkpoints.packed, checkpoints.overlapping, checkpoints.two_directories,
                 checkpoints.commented, checkpoints.repeated, checkpoints.endless, os.mkfifo):  # fmt: skip
        yield "a public checkpoint", lambda at, m=make: _public(at, m)
    for protocol in range(6):
        content = pickle.dumps(Payload(), protocol)
        yield "a public checkpoint", lambda at, c=content: _public(at, lambda file: file.write_bytes(c))
        yield "a public checkpoint", lambda at, c=content: _public(at, lambda file: _torch_zip(file, c))
        for name, weights in (("best", "best"), ("model", "last")):
            yield (
                "weights",
                lambda at, c=content, n=name, w=weights: bv.load(_with(whole, at, f"{n}.safetensors", c), w),
            )
    for entry in ENTRIES:
        for name in ("timm:resnet18", "tiny-cnn"):
            yield "a manifest", lambda at, e=entry, n=name: bv.load(_described(whole, at, {"name": n} | e))


def _runs(whole: Path) -> Iterator[Case]:
    readers = {
        "config.toml": lambda run: Config.read(run / "config.toml"),
        "model.json": bv.load,
        "metrics.jsonl": lambda run: RunFolder.open(run).read_metrics(),
        "evaluation": lambda run: Score.load(next((run / "evaluation").glob("*.json"))),
        "checkpoints": lambda run: checkpoint.load(checkpoint.list_all(run / "checkpoints")[0]),
    }
    for name, read in readers.items():
        for protocol in (0, 2, 4):
            content = pickle.dumps(Payload(), protocol)
            yield "a file of a run", lambda at, n=name, c=content, r=read: r(_with(whole, at, n, c))
        for make in (checkpoints.endless, os.mkfifo):
            yield "a file of a run", lambda at, n=name, m=make, r=read: r(_with(whole, at, n, m))
    for name in FOLDERS:
        yield "a linked folder of a run", lambda at, n=name: bv.resume(_linked(whole, at, n))


NAMES = (
    "evil:make",
    "os:system",
    "../../x",
    "/etc/passwd",
    "$(touch ran)",
    "hub:../../x",
    "x\0y",
    "timm:local-dir:.",
)
KEYS = (
    "model.name",
    "data.name",
    "method.name",
    "method.solver.kind",
    "method.weighting.kind",
    "optimizer.kind",
)


def _configurations(whole: Path) -> Iterator[Case]:
    for key in KEYS:
        for name in NAMES:
            yield "a configuration", lambda at, k=key, n=name: _planned(whole, at, k, n)


def _reports(whole: Path) -> Iterator[Case]:
    for text in STRINGS.values():
        yield "a report", lambda at, t=text: _reported(poisoned(whole, at, t), at / "page.html")


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _public(at: Path, make: Callable[[Path], object]) -> None:
    make(at / "net.pt")
    bv.models.load_robustbench(at / "net.pt", "linear", shape=(1, 2, 2))


def _torch_zip(file: Path, content: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")


def _copied(whole: Path, at: Path) -> Path:
    return Path(shutil.copytree(whole, at / "run", symlinks=True))


def _with(whole: Path, at: Path, name: str, content: bytes | Callable[[Path], object]) -> Path:
    """The run with a file, or the first in a folder, that holds or is something else."""
    run = _copied(whole, at)
    place = run / name
    file = next(iter(sorted(place.iterdir()))) if place.is_dir() else place
    file.unlink()
    file.write_bytes(content) if isinstance(content, bytes) else content(file)
    return run


def _described(whole: Path, at: Path, entry: dict[str, object]) -> Path:
    run = _copied(whole, at)
    about = json.loads((run / "model.json").read_text())
    about["spec"] = {"num_classes": 10, "shape": [1, 8, 8], "mean": None, "std": None} | copy.deepcopy(entry)
    (run / "model.json").write_text(json.dumps(about))
    (run / "model.pt").write_bytes(pickle.dumps(Payload()))
    return run


def _linked(whole: Path, at: Path, name: str) -> Path:
    run = _copied(whole, at)
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(at)
    return run


def _planned(whole: Path, at: Path, key: str, name: str) -> None:
    """A configuration with one text changed, trained with as far as its plan. Raises UserError if refused."""
    table, _, last = key.rpartition(".")
    entry, sections = (whole / "config.toml").read_text(encoding="utf-8"), f"[{table}]"
    head, found, tail = entry.partition(sections)
    assert found, key
    lines = tail.split("\n")
    own = next(k for k, line in enumerate(lines) if line.startswith(f"{last} ="))
    lines[own] = f"{last} = {json.dumps(name)}"
    file = _written(at / "config.toml", (head + found + "\n".join(lines)).encode())
    with (
        open(os.devnull, "w") as nowhere,
        mock.patch.object(sys, "stdout", nowhere),
        mock.patch.object(sys, "stderr", nowhere),
    ):
        status = command(["train", "--config", str(file), "--dry-run"])
    assert status in (0, 2), status
    assert {path.name for path in at.iterdir()} <= {"bin", "evil.py", "config.toml", "cache"}
    if status:
        raise UserError("refused")


def _reported(run: Path, page: Path) -> None:
    assert collect([run])
    write_report([run], page)
    seen = Markup(page.read_text(encoding="utf-8"))
    assert "script" not in seen.tags
    assert not [name for name in seen.attributes if name.startswith("on")]
