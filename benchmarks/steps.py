"""Compare the training steps of two checkouts by ratios of their processor times.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.steps /tmp/before

Two processes, one for each checkout's sources, alternate with the same steps from the same state, so that
other work on the machine affects both alike. A ratio is the median of now / before over the rounds, where a
round is a few steps of each; its 95 % interval is that of a sign test. One thread; processor time, not wall
time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1] / "src"
METHODS = ("at", "fast-bat", "done-pgd")
NETWORKS = {
    "tiny-cnn": ((1, 8, 8), 64, 1.0, 10),
    "preact-resnet18": ((3, 32, 32), 16, 0.25, 1),
    "resnet18": ((3, 32, 32), 16, 0.25, 1),
}

# glibc returns large blocks to the system when they are freed, and whether the next step has to map them
# again varies from process to process: up to 20 ms of a step
KEPT = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}

WORKER = """
import json, sys, time
import torch
import bivallate as bv
from bivallate.types import Facts

torch.set_num_threads(1)
states = {}
for line in sys.stdin:
    name, network, shape, batch, width, steps, last = json.loads(line)
    if (name, network) not in states:
        options = {} if width == 1 else {"width": width}
        model = bv.models.create(network, num_classes=10, shape=tuple(shape), seed=0, **options).train()
        model = model.to(memory_format=torch.channels_last) if last else model
        method = getattr(bv.methods, name.replace("-", "_"))(bv.Linf(8 / 255))
        bound = method.bind(Facts(batch, tuple(shape), 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        draw = torch.Generator().manual_seed(0)
        x, y = torch.rand(batch, *shape, generator=draw), torch.arange(batch) % 10
        states[name, network] = model, optimizer, bound, bv.Batch(x, y, torch.arange(batch))
    began = time.process_time()
    for k in range(steps):
        bv.train_step(*states[name, network], bv.Clock(0, 1, k, steps))
    print(time.process_time() - began, flush=True)
"""


def worker(sources: Path) -> subprocess.Popen[str]:
    """Start a process that imports the package from these sources and times steps on request."""
    environment = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1", **KEPT}
    command = [sys.executable, "-c", WORKER]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def seconds(process: subprocess.Popen[str], task: list[object]) -> float:
    """The processor time of one task."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def median(ratios: list[float]) -> tuple[float, float, float]:
    """The median and its 95 % interval, from order statistics."""
    ordered, n = sorted(ratios), len(ratios)
    away = math.ceil(0.98 * math.sqrt(n))
    return statistics.median(ordered), ordered[max(0, n // 2 - away)], ordered[min(n - 1, n // 2 + away)]


def ratios(before: Path, task: list[object], pairs: int, rounds: int) -> tuple[list[float], float]:
    """The ratios of all rounds and pairs of processes, and the median time of a task now."""
    found, now = [], []
    for _ in range(pairs):
        old, new = worker(before / "src"), worker(HERE)
        for process in (old, new):
            seconds(process, task)  # the first builds the state
        for k in range(rounds):
            order = (old, new) if k % 2 else (new, old)
            took = {process.pid: seconds(process, task) for process in order}
            found.append(took[new.pid] / took[old.pid])
            now.append(took[new.pid])
        for process in (old, new):
            process.kill()
            process.wait()
    return found, statistics.median(now)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the steps of two checkouts against each other.")
    parser.add_argument("before", type=Path, help="root of the other checkout")
    parser.add_argument("--rounds", type=int, default=8, help="of each pair of processes")
    parser.add_argument(
        "--pairs", type=int, default=5, help="of processes: where pages lie is chosen once in each"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--batch", type=int, help="images a step, instead of 64 and 16")
    parser.add_argument("--channels-last", action="store_true", help="the memory layout of convolutions")
    chosen = parser.parse_args()
    for network in chosen.networks:
        shape, usual, width, steps = NETWORKS[network]
        for name in chosen.methods:
            batch, last = chosen.batch or usual, chosen.channels_last
            task: list[object] = [name, network, shape, batch, width, steps, last]
            found, took = ratios(chosen.before, task, chosen.pairs, chosen.rounds)
            middle, low, high = median(found)
            pace = f"{1000 * took / steps:.1f} ms a step"
            print(f"{network} {name}: {middle:.3f} [{low:.3f}, {high:.3f}], {pace}", flush=True)


if __name__ == "__main__":
    main()
