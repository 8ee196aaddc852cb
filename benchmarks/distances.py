"""Measure how much smaller perturbations become when FMN and DDN search besides FAB-T.

`python -m benchmarks.distances RUN` prints a table for the best weights of a trained run. For each norm it
shows the distances that FAB-T alone finds for the first test points, and the smallest of all searches. It
takes hours for a large network on a processor, and minutes for a small one.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import bivallate as bv
from bivallate.evaluation.points import as_points, select
from bivallate.evaluation.sweeps import distances_by_search
from bivallate.lower.threat import threat
from bivallate.reproduce.machine import commit

NORMS = "linf", "l2", "l1"
HEAD = "| norm | right | found by FAB-T / all | median | mean | fallen | most | nearest by |"
TOLD = 1e-3  # a smaller relative decrease does not count


def found(model: torch.nn.Module, data: object, norm: str, first: int, steps: int) -> dict[str, Tensor]:
    """The distances that each search finds for the first points."""
    source = as_points(data, model)
    index = select(len(source), None, first, 0)
    x, y = source.tensors(index)
    return distances_by_search(model.eval(), x, y, index, threat(norm, 1.0), steps, 9)


def line(norm: str, by: dict[str, Tensor]) -> str:
    """A row of the table, on correctly classified points; distances are of those that FAB-T breaks too."""
    alone, least = by["fab-t"], torch.stack(list(by.values())).amin(0)
    right = alone > 0
    both = right & alone.isfinite()
    a, b = alone[both], least[both]
    fall = 1 - b / a
    wins = {name: int((own[right] <= least[right] * (1 + TOLD)).sum()) for name, own in by.items()}
    cells = (
        type(threat(norm, 1.0)).__name__,
        int(right.sum()),
        f"{int(both.sum())} / {int((right & least.isfinite()).sum())}",
        f"{float(a.median()):.4g} to {float(b.median()):.4g}",
        f"{float(a.mean()):.4g} to {float(b.mean()):.4g}",
        int((fall > TOLD).sum()),
        f"{100 * float(fall.max()):.1f} %",
        ", ".join(f"{name} {count}" for name, count in wins.items()),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of a trained run")
    parser.add_argument("--data", default="mnist", help="its data set")
    parser.add_argument("--norms", nargs="*", default=NORMS, choices=NORMS)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args()
    model, data = bv.load(asked.run, weights="best"), bv.data.load(asked.data).test
    print(f"commit {str(commit()['id'])[:7]}, first {asked.first} of {asked.data}, {asked.steps} steps")
    print(HEAD)
    print("| --- " * HEAD.count(" | ") + "| --- |")
    for norm in asked.norms:
        began = time.perf_counter()
        print(line(norm, found(model, data, norm, asked.first, asked.steps)), flush=True)
        print(f"<!-- {norm}: {time.perf_counter() - began:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
