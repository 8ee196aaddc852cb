"""Test the package on a GPU in under ten minutes: does it run, is it exact, how fast is it.

    PYTHONPATH=src python -m benchmarks.device_suite --out device.json [--only ratios epochs] [--minutes 9]

Each question runs in its own process with a time budget. One that fails or takes too long becomes a row of
the table, and the others go on. The table is printed at the end. All data are synthetic. `--device cpu
--size toy` tests the script in a minute. The questions are in `benchmarks/device_questions.py` (is it right?)
and `benchmarks/device_speed.py` (how fast is it?).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what deterministic matrix products ask of CUDA


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        what: the quantity that was measured. value: as text. goal: in words, or empty.
        met: whether the goal was reached; None without a goal. number: the value as a number.
    """

    what: str
    value: str
    goal: str = ""
    met: bool | None = None
    number: float | None = None


@dataclass(frozen=True)
class Place:
    """The device and the size of a measurement.

    Attributes:
        size: "full" or "toy". until: time of `time.time` at which the budget ends. folder: for files.
    """

    device: str
    size: str
    until: float
    folder: Path

    @property
    def toy(self) -> bool:
        """Whether only the script is tested."""
        return self.size == "toy"

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.startswith("cuda")

    def left(self) -> float:
        """The seconds that are left of the budget."""
        return self.until - time.time()


@dataclass(frozen=True)
class Question:
    """A question: its time budget in seconds, and the function that answers it."""

    name: str
    seconds: float
    answer: Callable[[Place], Iterator[Row]]


def questions() -> dict[str, Question]:
    """All questions by name, in the order in which they are asked."""
    from benchmarks import device_questions, device_speed

    every = (*device_questions.QUESTIONS, *device_speed.QUESTIONS)
    return {question.name: question for question in every}


def answer(question: Question, place: Place, put: Callable[[Row], object]) -> None:
    """Yield every row of an answer; an error becomes a row too."""
    try:
        for row in question.answer(place):
            put(row)
    except Exception as error:  # a failing question must not end the others
        traceback.print_exc()
        put(Row(question.name, f"failed: {type(error).__name__}: {str(error)[:300]}", met=False))


def asked_apart(question: Question, chosen: argparse.Namespace, seconds: float) -> list[Row]:
    """Answer a question in a separate process; returns the rows that it has made when its time ends."""
    rows, command = chosen.folder / f"{question.name}.rows", [sys.executable, "-m", "benchmarks.device_suite"]
    command += ["--device", chosen.device, "--size", chosen.size, "--folder", str(chosen.folder)]
    command += ["--seconds", str(seconds), "--answer", question.name]
    rows.unlink(missing_ok=True)
    process = subprocess.Popen(command, env={**os.environ, **REPEATABLE})
    try:
        status, late = process.wait(seconds), False
    except subprocess.TimeoutExpired:
        process.kill()
        status, late = process.wait(), True
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    found = [Row(**json.loads(line)) for line in lines]
    if late:
        found.append(Row(question.name, f"stopped: not done in {seconds:.0f} s", met=False))
    elif status:
        found.append(Row(question.name, f"failed: its process ended with status {status}", met=False))
    return found


def ask(chosen: argparse.Namespace) -> dict[str, list[Row]]:
    """Ask the chosen questions, each within its budget and all within the total time."""
    until = time.time() + 60 * chosen.minutes
    known, found = questions(), dict[str, list[Row]]()
    for name in chosen.only or known:
        seconds = min(known[name].seconds * chosen.patience, until - time.time())
        if seconds < 5:
            found[name] = [Row(name, "not run: the time was up", met=False)]
            continue
        begun = time.time()
        if chosen.here:
            found[name] = []
            place = Place(chosen.device, chosen.size, begun + seconds, chosen.folder)
            answer(known[name], place, found[name].append)
        else:
            found[name] = asked_apart(known[name], chosen, seconds)
        found[name].append(Row("seconds", f"{time.time() - begun:.0f}", number=time.time() - begun))
        write(chosen, found)
    return found


def write(chosen: argparse.Namespace, found: dict[str, list[Row]]) -> None:
    """Write the rows so far, with GPU and commit."""
    entry = {"machine": described(chosen.device), "commit": chosen.commit, "size": chosen.size}
    entry["rows"] = {name: [asdict(row) for row in rows] for name, rows in found.items()}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def described(device: str) -> dict[str, Any]:
    """The GPU and the versions of the software."""
    import torch

    from bivallate.reproduce.machine import machine

    known = machine(device, 0)
    if known["device"] == "cuda":
        known |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return known


def table(found: dict[str, list[Row]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| question | what | answer | goal |", "| --- | --- | --- | --- |"]
    for name, rows in found.items():
        for row in rows:
            mark = "" if row.met is None else (" (met)" if row.met else " (NOT met)")
            lines.append(f"| {name} | {row.what} | {row.value} | {row.goal}{mark} |")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> int:
    """Ask the questions; returns 0 if all were answered, whatever the answers, else 1."""
    chosen = arguments(given)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.answer:
        place = Place(chosen.device, chosen.size, time.time() + chosen.seconds, chosen.folder)
        with (chosen.folder / f"{chosen.answer}.rows").open("a", encoding="utf-8") as file:

            def put(row: Row) -> None:
                file.write(json.dumps(asdict(row)) + "\n")
                file.flush()
                print(f"{chosen.answer}: {row.what}: {row.value}", file=sys.stderr, flush=True)

            answer(questions()[chosen.answer], place, put)
        return 0
    found = ask(chosen)
    machine = described(chosen.device)
    print(f"\n{machine['gpu'] or machine['processor']}, torch {machine['torch']}, commit {chosen.commit}\n")
    print(table(found))
    unanswered = ("failed", "stopped", "not run")
    return int(any(row.value.startswith(unanswered) for rows in found.values() for row in rows))


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    from bivallate.run.origin import commit

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="full", choices=("full", "toy"))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(questions()))
    parser.add_argument("--minutes", type=float, default=9.0, help="for all questions together")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of each question's budget")
    parser.add_argument("--out", type=Path, default=Path("results") / "device.json")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "device", help="for runs and rows")
    parser.add_argument("--commit", default=str(commit().get("id", ""))[:9], help="where git does not tell")
    parser.add_argument("--here", action="store_true", help="in this process, without limits")
    parser.add_argument("--answer", choices=list(questions()), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
