"""Measure the speedup by `compile=true` on a processor, with steps of AT on one minibatch.

    PYTHONPATH=src python -m benchmarks.compiled [--width 0.25] [--precision bf16] [--out FILE]

Steps with and without compilation alternate. Times are processor seconds of the process, which other work on
the machine disturbs less than wall time. The first compiled step, which includes compilation, is reported
separately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import bivallate as bv
from bivallate.lower.compiled import Compiled, compiling
from bivallate.method import facts_for
from bivallate.run.arithmetic import autocast_of
from bivallate.run.origin import commit
from bivallate.step import train_step
from bivallate.types import Batch, Clock

WAYS = ("eager", "eager, channels last", "compiled")


def step_of(way: str, chosen: argparse.Namespace) -> Callable[[], object]:
    """Build a training step of AT with PGD-10; the weights and images are always the same."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(chosen.rows, 3, 32, 32, generator=generator), torch.arange(chosen.rows) % 10
    options = {"num_classes": 10, "shape": (3, 32, 32), "seed": 0, "width": chosen.width}
    model = bv.models.create("preact-resnet18", **options).train()
    if way.endswith("channels last"):
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.autocast_dtype = autocast_of(chosen.precision, torch.device("cpu"))  # pyright: ignore
    method = bv.methods.at(bv.Linf(8 / 255)).bind(facts_for(model, x, 10))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    batch = Batch(x, y, torch.arange(chosen.rows))
    compiled = Compiled(model, {tuple(x.shape)}) if way == "compiled" else None

    def step() -> None:
        with compiling(compiled):
            train_step(model, optimizer, method, batch, Clock())

    return step


def main() -> None:
    """Print the medians, and their ratios to the faster one without compilation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--precision", default="bf16", choices=("float32", "bf16"))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    steps = {way: step_of(way, chosen) for way in WAYS}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    begun = time.perf_counter()
    steps["compiled"]()
    first = time.perf_counter() - begun
    for k in range(chosen.times + 1):
        for way, step in steps.items():
            began = time.process_time()
            step()
            if k:
                found[way].append(time.process_time() - began)
    told = {way: statistics.median(seconds) for way, seconds in found.items()}
    ratio = min(told["eager"], told["eager, channels last"]) / told["compiled"]
    entry = {"seconds": told, "ratio": ratio, "first": first, "every": found, "commit": commit().get("id")}
    entry |= {"width": chosen.width, "rows": chosen.rows, "precision": chosen.precision}
    print(json.dumps(entry, indent=1))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
