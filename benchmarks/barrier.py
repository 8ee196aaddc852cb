"""Measure where the inner steps of DONE end: `python -m benchmarks.barrier`.

Trains a small network with Fast-AT on a part of MNIST and of CIFAR-10, and attacks held-out images with every
kind of inner step. The tables between the markers of docs/barrier.md show how many coordinates end on a
bound, how much of the implicit gradient is left, how strong the attack is, and how uniform the weights are
at every temperature. Takes some minutes on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bivallate as bv
from bivallate.coupling.barrier import barrier_inverse
from bivallate.files import write_text
from bivallate.lower.direction import adam, raw, steepest
from bivallate.lower.interior import BarrierAscent, barrier_strength
from bivallate.lower.modes import evaluating
from bivallate.lower.objective import cross_entropy
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.start import uniform
from bivallate.reproduce.machine import commit
from bivallate.reproduce.running import cut
from bivallate.types import Batch

PAGE, BEGIN, END = Path("docs/barrier.md"), "<!-- barrier: begin -->", "<!-- barrier: end -->"
STEPS, POINTS, BATCH = 10, 512, 128
TEMPERATURES = 10.0, 1.0, 0.5, 0.3, 0.1
DIRECTIONS = {"raw": raw, "sign": steepest, "Adam": adam}


@dataclass(frozen=True)
class Setting:
    """A data set and a network to attack."""

    data: str
    model: str
    eps: float
    rows: int
    epochs: int
    lr: float


SETTINGS = (
    Setting("mnist", "tiny-cnn", 0.1, 6000, 8, 0.05),
    Setting("cifar10", "preact-resnet18-narrow", 8 / 255, 4000, 8, 0.1),
)


def trained(setting: Setting) -> tuple[bv.models.Classifier, Batch]:
    """Train the network; returns it with held-out images."""
    data = cut(bv.data.load(setting.data, validation=1000, seed=0), setting.rows)
    run = bv.train(
        setting.model, data, bv.methods.fast_at(bv.Linf(setting.eps)), epochs=setting.epochs, lr=setting.lr,
        batch_size=32, seed=0, threads=1,
    )  # fmt: skip
    index = torch.arange(POINTS)
    assert data.validation is not None
    x, y = data.validation.tensors(index)
    return run.model, Batch(x, y, index)


def solvers(threat: bv.Linf) -> dict[str, tuple[Any, float]]:
    """Name -> (solver, c of the implicit gradient)."""
    found: dict[str, tuple[Any, float]] = {}
    whole = barrier_strength(threat, None)
    for name, direction in DIRECTIONS.items():
        size = 1250 / 255 if name == "raw" else 0.25 * threat.eps
        found[f"{name}, projected"] = PGD(STEPS, size, uniform, direction), whole
        for share in (1.0, 0.1, 0.01):
            c = share * whole
            label = f"{name}, barrier, c = {share:g} eps^2 / 0.2"
            found[label] = BarrierAscent(STEPS, size, c, uniform, direction), c
    return found


def rows(setting: Setting, model: bv.models.Classifier, points: Batch) -> list[str]:
    """The rows of both tables for one network."""
    threat, lines, losses = bv.Linf(setting.eps), [], torch.zeros(POINTS)
    for label, (solver, c) in solvers(threat).items():
        problem = LowerProblem(model, points, cross_entropy, threat)
        with evaluating(model):
            delta = solver.solve(problem).delta
            logits, loss = problem.value(delta)
        bound = 1 - float(threat.interior(delta, points.x).float().mean())
        gain = float(barrier_inverse(delta, points.x, threat, c).mean())
        most = threat.eps**2 / (2 * c)
        right = float((logits.argmax(1) == points.y).float().mean())
        cells = (
            setting.data,
            label,
            f"{bound:.2f}",
            f"{gain:.4f} of {most:.3g}",
            f"{float(loss.mean()):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} | {100 * right:.1f} |")
        if label == "Adam, projected":
            losses = loss
    lines.append("")
    for r in TEMPERATURES:
        w = torch.cat([(part / r).softmax(0) for part in losses.split(BATCH)])
        above = (w > 1e-3).float()
        classes = [float(above[points.y == k].mean()) for k in points.y.unique()]
        effective = sum(1 / float((part / r).softmax(0).square().sum()) for part in losses.split(BATCH))
        shares = f"{float(above.mean()):.2f} | {min(classes):.2f} | {max(classes):.2f}"
        lines.append(f"| {setting.data} | {r:g} | {shares} | {effective * BATCH / POINTS:.1f} |")
    return lines


def main() -> None:
    """Train, attack, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="print, leave docs/barrier.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ends, weights = [], []
    for setting in SETTINGS:
        lines = rows(setting, *trained(setting))
        cut_at = lines.index("")
        ends, weights = ends + lines[:cut_at], weights + lines[cut_at + 1 :]
        print("\n".join(lines), flush=True)
    head = "| data | inner steps | on a bound | mean gain | loss | accuracy % |\n"
    head += "| --- | --- | --: | --: | --: | --: |"
    other = "| data | r | weights above 0.001 | in the class with fewest | with most | effective of 128 |\n"
    other += "| --- | --: | --: | --: | --: | --: |"
    made = f"`python -m benchmarks.barrier`, commit {commit().get('id', 'unknown')[:7]}, seed 0, one thread."
    body = "\n\n".join(("\n".join((head, *ends)), "\n".join((other, *weights)), made))
    if not options.dry:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        write_text(PAGE, f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
