"""Measure the overhead of sharing an evaluation: processor time of two processes relative to one.

    PYTHONPATH=src python -m benchmarks.shared_evaluation [--times 7]

The labels are the network's own predictions, and no attack succeeds within the ball, so that every attack
runs to its end on all 359 test images of digits. Processor time is measured because other work on the machine
affects wall time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

import bivallate as bv
from bivallate.evaluation import evaluate

ATTACKS = ("pgd-20", "apgd-ce-50")


def measured(shared: bool) -> dict[str, float]:
    """The processor seconds of each attack in this process."""
    torch.set_num_threads(1)
    model = bv.models.create("small-cnn", num_classes=10, shape=(1, 8, 8), seed=0, width=0.5).eval()
    x, _ = bv.data.load("digits").test.tensors()
    with torch.no_grad():
        y = model(x).argmax(1)
    found = {}
    for attack in ATTACKS:
        evaluate(model, (x[:8], y[:8]), bv.Linf(1e-4), attack, shared=shared)
        began = time.process_time()
        score = evaluate(model, (x, y), bv.Linf(1e-4), attack, shared=shared)
        found[attack] = time.process_time() - began
        assert score.robust_accuracy == 1
    return found


def joined(rank: int, folder: Path) -> None:
    """Run one of the two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(measured(shared=True)), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def both() -> dict[str, float]:
    """Run two processes; returns the sums of their times."""
    with tempfile.TemporaryDirectory() as place:
        folder, context = Path(place), multiprocessing.get_context("spawn")
        ranks = [context.Process(target=joined, args=(rank, folder)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        parts = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    return {attack: sum(part[attack] for part in parts) for attack in ATTACKS}


def main() -> None:
    """Print median, smallest and largest of the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=7)
    ratios: dict[str, list[float]] = {attack: [] for attack in ATTACKS}
    for _ in range(parser.parse_args().times):
        alone, together = measured(shared=False), both()
        for attack in ATTACKS:
            ratios[attack].append(together[attack] / alone[attack])
    for attack, values in ratios.items():
        print(f"{attack}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
