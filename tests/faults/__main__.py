"""The long version: `python -m tests.faults [--kills 1000] [--inputs 1000] [--seed 0]` prints its counts as a
table: run folders, mutated files of our own and of data, files that were made to harm."""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tests.faults.crash import END, crash, in_child, kill, operations, started
from tests.faults.damage import BYTES, PLACES, outcome, victims
from tests.faults.hostile import attempts
from tests.faults.mutated_data import run as mutate_data
from tests.faults.mutations import run as mutate_files
from tests.faults.scenarios import AT, SCENARIOS, Scenario, resume, same_run, train

import bivallate as bv
from bivallate.run import checkpoint

Rows = dict[str, Counts[str]]
Faults = Iterator[tuple[str, str]]  # which fault, what came of it
BANK = 3000  # bytes; larger tensors are files of their own: here some of every checkpoint
NAMED = {
    "pipe": "a named pipe",
    "device": "a link to a device",
    "folder": "a folder",
    "dangling": "a link to nothing",
}
NAMES = ("best", "model", "ema", "epoch-1")


def main() -> None:
    """Runs all kinds of faults, and fails if one ended otherwise than it may."""
    parser = argparse.ArgumentParser()
    for name, default in (("kills", 1000), ("inputs", 1000), ("rivals", 30), ("seed", 0), ("minutes", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint.LARGE = BANK
    rng, begun, rows = random.Random(asked.seed), time.monotonic(), Rows()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        place = Path(folder)
        sections: list[tuple[float, Faults]] = [
            (0.5, crashes(place, asked.kills * 7 // 10, rng)),
            (0.6, chains(place, asked.kills // 10, rng, SCENARIOS[:-1])),
            (0.7, kills(place, asked.kills // 5, rng, SCENARIOS[:5])),
            (0.75, rivals(place, asked.rivals // 3)),
            (0.85, damages(place, asked.inputs, rng)),
            (0.95, mutations(place / "own", asked.inputs, asked.seed)),
            (1.0, hostile(place / "hostile")),
        ]
        for share, faults in sections:
            tally(faults, rows, begun + share * 60 * asked.minutes)
    print(table(rows))
    total = sum(sum(row.values()) for row in rows.values())
    wrong = sum(row[ended] for row in rows.values() for ended in ("different", "traceback", "executed"))
    print(f"\n{total} faults in {time.monotonic() - begun:.0f} s; {wrong} ended otherwise than they may")
    sys.exit(1 if wrong else 0)


def tally(faults: Faults, rows: Rows, until: float = math.inf) -> Rows:
    """Counts faults until there are no more, or the time is over."""
    for name, ended in faults:
        rows.setdefault(name, Counts())[ended] += 1
        if time.monotonic() > until:
            break
    return rows


def clean(folder: Path) -> Path:
    """A folder that is not there."""
    for path in (folder, folder.with_name(f"{folder.name}-elsewhere")):
        shutil.rmtree(path, ignore_errors=True)
    return folder


def ready(template: Path, run: Path) -> None:
    """The folder as it is before the scenario; made once."""
    clean(run)
    if template.exists():
        shutil.copytree(template, run, symlinks=True)


def judged(scenario: Scenario, run: Path, whole: Path) -> str:
    """What comes of going on after a crash."""
    try:
        scenario.again(run)
        scenario.matches(run, whole)
    except AssertionError:
        return "different"
    except bv.UserError:
        return "refused"
    except Exception:
        return "traceback"
    return "same"


def prepared(place: Path, scenarios: Sequence[Scenario]) -> Iterator[tuple[Scenario, Path, Path, int]]:
    """Scenarios, each with a template of its folder, its uncrashed end, and how many operations it makes."""
    place.mkdir(exist_ok=True)
    for number, scenario in enumerate(scenarios):
        template, whole = place / f"template-{number}", place / f"whole-{number}"
        scenario.prepare(template)
        ready(template, whole)
        scenario.act(whole)
        ready(template, place / "run")
        yield scenario, template, whole, operations(lambda s=scenario: s.act(place / "run"), place / "run")


def crashes(place: Path, most: int, rng: random.Random) -> Faults:
    """A crash at each file operation, or at as many of them as may be, drawn from all."""
    run = place / "run"
    points = [(entry, at) for entry in prepared(place, SCENARIOS) for at in range(1, entry[-1] + 1)]
    for (scenario, template, whole, _), at in rng.sample(points, min(most, len(points))):
        ready(template, run)
        ended = crash(lambda s=scenario: s.act(run), run, at)
        name = f"crash at a file operation: {scenario.name}"
        yield name, judged(scenario, run, whole) if ended == END else "traceback"


def chains(place: Path, most: int, rng: random.Random, scenarios: Sequence[Scenario]) -> Faults:
    """Crashes of what goes on after a crash, up to three more in a row; each counts."""
    run, done = place / "run", 0
    choices = list(prepared(place / "chains", scenarios))
    while done < most:
        scenario, template, whole, count = rng.choice(choices)
        ready(template, run)
        crash(lambda s=scenario: s.act(run), run, rng.randint(1, count))
        again = rng.randint(1, 3)
        for _ in range(again):
            crash(lambda s=scenario: s.again(run), run, rng.randint(1, count))
        ended = judged(scenario, run, whole)
        for _ in range(again + 1):
            yield "crash while going on after a crash", ended
        done += again + 1


def kills(place: Path, most: int, rng: random.Random, scenarios: Sequence[Scenario]) -> Faults:
    """Signals at random moments: half of them one that kills, the others those that ask to stop."""
    run = place / "run"
    choices = list(prepared(place / "kills", scenarios))
    polite = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
    for k in range(most):
        scenario, template, whole, _ = choices[k % len(choices)]
        number = signal.SIGKILL if k % 2 else polite[k // 2 % len(polite)]
        ready(template, run)
        begun = time.monotonic()
        in_child(lambda s=scenario: s.act(run))
        took = time.monotonic() - begun
        ready(template, run)
        kill(lambda s=scenario: s.act(run), rng.uniform(0, took), number)
        yield f"{signal.Signals(number).name} at a random moment", judged(scenario, run, whole)


def rivals(place: Path, times: int) -> Faults:
    """Two processes in one folder: one trains, the other overwrites, resumes or trains too."""
    run, whole = place / "run", place / "rival"
    train(clean(whole), AT)
    acts = {
        "trains": lambda: train(run, AT),
        "overwrites": lambda: train(run, AT, overwrite=True),
        "resumes": lambda: resume(run),
    }
    for k in range(times):
        for name, act in acts.items():
            clean(run)
            first = started(lambda: train(run, AT))
            time.sleep(0.02 * (k + 1))
            in_child(act)
            os.waitpid(first, 0)
            try:
                same_run(run, whole)
                yield f"another process {name} in a run's folder", "same"
            except (AssertionError, OSError):
                yield f"another process {name} in a run's folder", "different"


def damages(place: Path, most: int, rng: random.Random) -> Faults:
    """Damaged files of a finished run and of one that stands in its second epoch."""
    run, whole = place / "run", place / "at"
    atta = next(s for s in SCENARIOS if s.name.startswith("atta"))
    atta.act(clean(whole))
    half = clean(place / "half")
    count = operations(lambda: atta.act(half), half)
    clean(half)
    crash(lambda: atta.act(half), half, count * 3 // 5)
    after = {n: bv.load(whole, "last" if n == "model" else n).state_dict() for n in NAMES}
    early = {n: bv.load(half, "last" if n == "model" else n).state_dict() for n in NAMES}
    kinds = [*BYTES] * (most * 9 // 10 // len(BYTES)) + [*PLACES] * (most // 10 // len(PLACES))
    for kind in rng.sample(kinds, len(kinds)):
        source = rng.choice([whole, half])
        shutil.copytree(source, clean(run), symlinks=True)
        kind(rng.choice(victims(run)), rng)
        ended = outcome(run, whole, after if source == whole else early, after)
        yield f"a file is {NAMED.get(kind.__name__, kind.__name__)}", ended


def mutations(place: Path, most: int, seed: int) -> Faults:
    """Mutated files of our own, half as many as of data: each has a meaning or is refused in one line."""
    place.mkdir()
    for result in mutate_data(most, seed)[0]:
        ended = "read" if result.outcome == "loaded" else result.outcome
        yield "mutated data", ended if ended in ("read", "refused") else "traceback"
    try:
        for kind, count in mutate_files(most // 2, place, seed).items():
            what, _, ended = kind.rpartition(" ")
            for _ in range(count):
                yield f"mutated {what}", ended
    except AssertionError as error:
        print(error, file=sys.stderr)
        yield "mutated files of our own", "traceback"


def hostile(place: Path) -> Faults:
    """Every file that was made to harm."""
    place.mkdir()
    for kind, ended in attempts(place):
        yield f"made to harm: {kind}", ended


def table(rows: Rows) -> str:
    """Markdown."""
    columns = (
        *("same", "refused, then mended", "partly lost", "read", "refused"),
        *("different", "traceback", "executed"),
    )
    lines = ["| fault | tried | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) + 1)]
    for name, row in sorted(rows.items()):
        cells = [str(sum(row.values())), *(str(row[column] or "") for column in columns)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
