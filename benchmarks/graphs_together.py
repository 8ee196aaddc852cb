"""Do CUDA graphs change a training, and how much faster are several on one card with them?

    BIVALLATE_DATA=data python -m benchmarks.graphs_together [--jobs 8] [--seconds 5]

Trains the first cells of `benchmarks/campaign_gpu.py --scale cpu`, all at once, a process each: four steps
without graphs, four again and four with them, of which the largest differences of a parameter from the first
are printed, then the images a second of each while all others train too, first without graphs and then with
them. What differs from one training to the next without graphs is not theirs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.synchronize import Barrier
from typing import Any

from benchmarks import campaign_gpu
from benchmarks.filling import endless, made_of, pace
from bivallate.lower.modes import set_train_mode
from bivallate.run.arithmetic import computing, limit_threads
from bivallate.run.memory_layout import whole_step
from bivallate.run.session import Session

STEPS, PATIENCE = 4, 300.0  # seconds that the processes wait for each other


def session_of(place: int, device: str, *more: str) -> Session:
    """The session of the campaign's cell at a place, at its first step and full rate."""
    given = ["--scale", "cpu", "--device", device, "--threads", "1", *more]
    session = Session(*made_of(campaign_gpu.plan(campaign_gpu.arguments(given))[place]))
    set_train_mode(session.model)
    return session


def work(place: int, device: str, seconds: float, together: Barrier, put: Any) -> None:
    """Compare and time one cell, in step with the other processes."""
    limit_threads(1)
    plain, again = session_of(place, device), session_of(place, device)
    graphs = session_of(place, device, "--graphs")
    batches = endless(plain)
    first = list(islice(batches, STEPS))
    for session in (plain, again, graphs):
        with _ready(session):
            for batch in first:
                whole_step(session, batch)
    row: dict[str, Any] = {"method": plain.config.method.name}
    for name, session in (("apart without graphs", again), ("apart with graphs", graphs)):
        pairs = zip(plain.model.parameters(), session.model.parameters(), strict=True)
        row[name] = max(float((a - b).detach().abs().max()) for a, b in pairs)
    made = graphs.acceleration.graphs
    row["launches of graphs"] = 0 if made is None else made.launches
    for name, session in (("plain", plain), ("graphs", graphs)):
        together.wait(PATIENCE)
        with _ready(session):
            row[f"images a second, {name}"] = round(pace(session, batches, seconds)[0])
        together.wait(PATIENCE)
    put(row)


@contextmanager
def _ready(session: Session) -> Iterator[None]:
    """The arithmetic and the accelerations of a training."""
    config = session.config
    exact = computing(config.precision, config.deterministic, session.device)
    with exact, session.acceleration.used(print):
        yield


def main(given: list[str] | None = None) -> None:
    """Start the processes, and print what they find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args(given)
    context = multiprocessing.get_context("spawn")
    together, rows = context.Barrier(chosen.jobs), context.Queue()
    for place in range(chosen.jobs):
        given_to = (place, chosen.device, chosen.seconds, together, rows.put)
        context.Process(target=work, args=given_to, daemon=True).start()
    for _ in range(chosen.jobs):
        print(json.dumps(rows.get(timeout=2 * PATIENCE)), flush=True)


if __name__ == "__main__":
    main()
