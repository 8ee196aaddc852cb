"""Measure the overhead of sharing an evaluation: processor time of two processes relative to one.

    PYTHONPATH=src python -m benchmarks.shared_evaluation [--times 5] [--images 1797] [--attacks pgd-20 ...]

The labels are the network's own predictions, and no attack succeeds within the ball, so that every attack
runs to its end: on all 1,797 images of digits, which fill batches on both processes, or with --images 359 on
the test images, of which two processes make two batches where one makes one. Processor time is measured
because other work on the machine affects wall time. The start of Python, imports and the first attack in a
process are left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

import bivallate as bv
from bivallate.evaluation import attack_and_score

ATTACKS = ("pgd-20", "apgd-ce-50")


def measured(shared: bool, images: int, attacks: Sequence[str]) -> dict[str, float]:
    """The processor seconds of each attack in this process."""
    torch.set_num_threads(1)
    model = bv.models.create("small-cnn", num_classes=10, shape=(1, 8, 8), seed=0, width=0.5).eval()
    digits = bv.data.load("digits")
    x = torch.cat([part.tensors()[0] for part in (digits.test, digits.validation, digits.train)])[:images]
    with torch.no_grad():
        y = model(x).argmax(1)
    found = {}
    for attack in attacks:
        attack_and_score(model, (x[:8], y[:8]), bv.Linf(1e-4), attack, shared=shared)
        began = time.process_time()
        score = attack_and_score(model, (x, y), bv.Linf(1e-4), attack, shared=shared)
        found[attack] = time.process_time() - began
        assert score.robust_accuracy == 1
    return found


def joined(rank: int, folder: Path, images: int, attacks: Sequence[str]) -> None:
    """Run one of the two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(measured(True, images, attacks)), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def both(images: int, attacks: Sequence[str]) -> dict[str, float]:
    """Run two processes; returns the sums of their times."""
    with tempfile.TemporaryDirectory() as place:
        folder, context = Path(place), multiprocessing.get_context("spawn")
        ranks = [context.Process(target=joined, args=(rank, folder, images, attacks)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        parts = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    return {attack: sum(part[attack] for part in parts) for attack in attacks}


def main() -> None:
    """Prints median, smallest and largest of the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--attacks", nargs="+", default=ATTACKS)
    asked = parser.parse_args()
    ratios: dict[str, list[float]] = {attack: [] for attack in asked.attacks}
    for _ in range(asked.times):
        alone = measured(False, asked.images, asked.attacks)
        together = both(asked.images, asked.attacks)
        for attack in asked.attacks:
            ratios[attack].append(together[attack] / alone[attack])
            print(f"{attack}: {alone[attack]:.2f} s alone, {together[attack]:.2f} s together", flush=True)
    for attack, values in ratios.items():
        print(f"{attack}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
