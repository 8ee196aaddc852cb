"""Decoding processes end with their run, however it ends, and ignore signals to the process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.data.builders import pictures, png, write_parquet

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")

SERVE = """
import multiprocessing, sys, time
from pathlib import Path

def main():
    import numpy as np
    from bivallate.data.parquet import ParquetPart
    from bivallate.data.reading import Reading
    from bivallate.data.stream import Stream

    stream = Stream(ParquetPart([Path(sys.argv[1])]).read(Reading(), None), Reading(), workers=1)
    for _ in stream.ahead([np.arange(4), np.arange(4, 8)]):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)

if __name__ == "__main__":
    main()
"""

STOP = """
import multiprocessing, os, signal, sys, threading, time

def strike(number, before):
    while not set(multiprocessing.active_children()) - before:  # a worker that has run no line of ours yet
        time.sleep(0.01)
    os.killpg(0, number)

def main():
    from bivallate.cli import run

    folder, out = sys.argv[1:]
    sets = [f"--set={s}" for s in ("data.stream=always", "data.workers=1", "threads=1", "validation.rows=4")]
    train = ["train", "plain", "--data", folder, "--model", "tiny-cnn", "--eps", "8/255", "--epochs", "50"]
    train += ["--batch-size", "4", "--out", out, *sets]
    for number, arguments in ((signal.SIGTERM, train), (signal.SIGINT, ["resume", out])):
        before = set(multiprocessing.active_children())
        threading.Thread(target=strike, args=(number, before), daemon=True).start()
        print("status", run(arguments), flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 rows in 6 row groups."""
    images = [png(i) for i in pictures(24)]
    write_parquet(tmp_path / "set" / "train.parquet", images, [k % 3 for k in range(24)])
    return tmp_path / "set"


def python(tmp_path: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    return subprocess.Popen(
        [sys.executable, str(path), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "BIVALLATE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
    )


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path, folder: Path) -> None:
    process = python(tmp_path, SERVE, folder / "train.parquet")
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 1
    assert lives(workers[0])
    process.kill()
    rest, _ = process.communicate(timeout=30)  # ends when nobody holds the pipe any more
    assert "Traceback" not in rest
    deadline = time.monotonic() + 5
    while any(map(lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(lives, workers))


def test_signals_to_the_group_interrupt_and_save(tmp_path: Path, folder: Path) -> None:
    process = python(tmp_path, STOP, folder, tmp_path / "run")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("status 130") == 2, output
    assert output.count("all is saved") == 2, output
    assert "Traceback" not in output
    assert "Error" not in output
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_signals_are_as_they_were_after_work_was_given() -> None:
    """In this process nothing stays blocked."""
    from concurrent.futures import ProcessPoolExecutor

    from bivallate.data.workers import SENT_TO_GROUPS, submit

    seen: list[set[signal.Signals]] = []

    class Pool(ProcessPoolExecutor):
        def submit(self, *_: object) -> object:  # type: ignore[override]
            seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            raise RuntimeError

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(RuntimeError):
        submit(Pool(1), print)
    assert set(SENT_TO_GROUPS) <= seen[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
