"""The short measurement on held-out data after each epoch."""

from __future__ import annotations

import torch
from torch import nn

from bivallate.data import Split
from bivallate.lower.objective import cross_entropy
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import Forward, LowerProblem, evaluating
from bivallate.lower.threat import L2, Linf
from bivallate.noise import Noise
from bivallate.types import Batch, Clock, Passes

BATCH = 500


def held_out(
    model: nn.Module,
    split: Split,
    threat: Linf | L2,
    *,
    steps: int,
    rows: int,
    seed: int,
    device: torch.device,
) -> tuple[float, float, Passes]:
    """Clean and robust accuracy on the first rows of a split (which is shuffled), and the passes it took.

    PGD with step eps/4 from the same uniform start at every call; robust implies clean-correct. Eval mode;
    the model is left as found.
    """
    forward, clean, robust = Forward(model), 0, 0
    n = min(rows, len(split))
    solver = PGD(steps, threat.eps / 4)
    with evaluating(model):
        for start in range(0, n, BATCH):
            chosen = torch.arange(start, min(start + BATCH, n))
            x, y = (t.to(device) for t in split.tensors(chosen))
            index = chosen.to(device)
            noise = Noise(seed, index, turn=-1)
            problem = LowerProblem(
                forward, Batch(x, y, index), cross_entropy, threat, Clock(seed=seed), noise
            )
            with torch.no_grad():
                right = forward(x).argmax(1) == y
                held = right & (forward(x + solver.solve(problem).delta).argmax(1) == y)
            clean, robust = clean + int(right.sum()), robust + int(held.sum())
    return clean / n, robust / n, forward.passes
