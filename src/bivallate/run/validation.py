"""The short measurements on held-out data, after each epoch and for the sentinel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.data import Split
from bivallate.evaluation.geometry import alignment
from bivallate.lower.forward import Forward
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.modes import evaluating
from bivallate.lower.objective import cross_entropy
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.start import Given
from bivallate.lower.threat import Threat, ThreatModel
from bivallate.noise import Noise, permutation
from bivallate.run.out_of_memory import in_pieces, room_for
from bivallate.types import Batch, Clock, Passes, probability_margin

BATCH = 500


def held_out(
    model: nn.Module,
    split: Split,
    threats: Sequence[ThreatModel],
    *,
    steps: int,
    rows: int,
    seed: int,
    device: torch.device,
) -> tuple[float, float, Passes]:
    """Measure clean and robust accuracy on `rows` rows of a split (see `measured_rows`).

    The attack is PGD with steps of eps/4, from the same uniform start at every call. Rows count as robust
    that are correct without an attack and under the attack within each of the threats. The model is in eval
    mode meanwhile, and its mode is restored. Rows are processed 500 at a time, or as many as fit into memory.
    Several processes share the rows, use the first one's BatchNorm statistics and return the same numbers.

    Returns:
        Clean accuracy, robust accuracy, and the passes spent.
    """
    measured = measured_rows(split, rows, seed)
    n, own = len(measured), measured[collective.rank() :: collective.world_size()]
    collective.broadcast(model.buffers())
    clean, robust, passes = 0, 0, Passes()

    def measure(start: int, stop: int) -> None:
        nonlocal clean, robust, passes
        forward, chosen = Forward(model), own[start:stop]
        x, y = (t.to(device) for t in split.tensors(chosen))
        index = chosen.to(device)
        noise = Noise(seed, index, turn=-1)
        batch, clock = Batch(x, y, index), Clock(seed=seed)
        with torch.no_grad():
            held = right = forward(x).argmax(1) == y
            for threat in threats:
                problem = LowerProblem(forward, batch, cross_entropy, threat, clock, noise)
                delta = PGD(steps, threat.eps / 4).solve(problem).delta
                held = held & (forward(x + delta).argmax(1) == y)
        clean, robust = clean + int(right.sum()), robust + int(held.sum())
        passes = passes + forward.passes

    with evaluating(model):
        in_pieces(len(own), _room(model, split, device), measure)
    clean, robust, *counts = collective.sums(clean, robust, passes.forward, passes.backward)
    return clean / n, robust / n, Passes(*counts)


def measured_rows(split: Split, rows: int, seed: int) -> Tensor:
    """(n,) the held-out rows that are measured: all of them, or `rows`.

    These are the first ones if their classes are those of the split, as they are in data sets that are stored
    mixed. In data that are sorted by class they would be of a few classes alone: rows are drawn there.
    """
    first = torch.arange(min(rows, len(split)))
    if len(first) == len(split) or not _sorted(split.labels, len(first)):
        return first
    return permutation(seed, "held out", 0, len(split))[: len(first)]


def _sorted(labels: Tensor, n: int) -> bool:
    """Whether the classes of the first n labels differ from those of all: a chi-squared test at 1e-6."""
    from scipy.stats import chi2

    every = torch.bincount(labels).double()
    seen, there = torch.bincount(labels[:n], minlength=len(every)).double(), every > 0
    expected = n * every / len(labels)
    away = ((seen - expected) ** 2 / expected)[there].sum()
    return float(chi2.sf(away.item(), int(there.sum()) - 1)) < 1e-6


def _room(model: nn.Module, split: Split, device: torch.device) -> int:
    """Number of rows that fit into memory at once, in eval mode."""
    one, _ = split.tensors(torch.arange(1))
    return room_for(model, one.to(device), BATCH)


@torch.no_grad()
def clean_margins(model: nn.Module, split: Split, rows: list[int], device: torch.device) -> list[float]:
    """The margins p_y - max_k p_k of rows of a split on their clean images; -1 if logits are not finite.

    The model is in eval mode meanwhile, and its mode is restored. Images are not augmented.

    Cost: one forward pass per row. No total counts it, because there are a few hundred rows at most. A split
    that streams reads the row groups that contain the rows.
    """
    found: list[float] = []

    def measure(start: int, stop: int) -> None:
        x, y = (t.to(device) for t in split.tensors(torch.tensor(rows[start:stop])))
        found.extend(probability_margin(call_unharmed(model, x), y).nan_to_num(nan=-1.0).tolist())

    with evaluating(model):
        in_pieces(len(rows), BATCH, measure)
    return [round(value, 6) for value in found]


@dataclass(frozen=True)
class Inspection:
    """The sentinel's measurement on some rows.

    Attributes:
        fgsm: accuracy under FGSM.
        pgd: accuracy under both FGSM and PGD.
        alignment: mean cosine, in [-1, 1], between the input gradients at a point and at a random point in
            the threat around it.
        passes: passes spent.
    """

    fgsm: float
    pgd: float
    alignment: float
    passes: Passes


def inspect_rows(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Noise, steps: int
) -> Inspection:
    """Attack rows with FGSM, attack those that withstand it with PGD, and measure gradient alignment.

    The model is in eval mode meanwhile, and its mode is restored.

    Cost: 3 forward and 2 backward passes per row, and steps + 1 forward and steps backward passes per row
    that withstands FGSM.

    Reference: the alignment is the GA score of Andriushchenko and Flammarion 2020, section 4.
    """
    seen: list[tuple[Tensor, int, int, Passes]] = []

    def measure(start: int, stop: int) -> None:
        rows = slice(start, stop)
        batch, clock = Batch(x[rows], y[rows], noise.index[rows]), Clock(seed=noise.seed)
        own = replace(noise, index=noise.index[rows])
        seen.append(_inspect(LowerProblem(Forward(model), batch, cross_entropy, threat, clock, own), steps))

    with evaluating(model):
        in_pieces(len(y), len(y), measure)
    cosines, left, held, passes = zip(*seen, strict=True)
    mean = float(torch.cat(cosines).mean())
    return Inspection(sum(left) / len(y), sum(held) / len(y), mean, sum(passes, Passes()))


def _inspect(problem: LowerProblem, steps: int) -> tuple[Tensor, int, int, Passes]:
    """Cosines (B,), the numbers of rows that withstand FGSM and both attacks, and the passes spent."""
    threat, held = problem.threat, 0
    cosine, here = alignment(problem)
    step = problem.project(threat.eps * threat.steepest(here))
    left = _withstands(problem, step).nonzero()[:, 0]
    if len(left):
        rest = problem.select(left)
        start = threat.random(rest.noise, rest.x, "sentinel")
        solver = PGD(steps, threat.eps / 2, Given(start))
        held = int(_withstands(rest, solver.solve(rest).delta).sum())
    return cosine, len(left), held, problem.forward.passes


def _withstands(problem: LowerProblem, delta: Tensor) -> Tensor:
    """Whether each row is classified correctly at x + delta, (B,) bool."""
    with torch.no_grad():
        return problem.forward(problem.x + delta).argmax(1) == problem.y
