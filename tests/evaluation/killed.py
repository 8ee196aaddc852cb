"""A process that is killed in the middle of a search: `python -m tests.evaluation.killed FOLDER`.

For each part of a short AutoAttack it forks a child, which sends itself SIGKILL at a forward pass inside that
part's second search, and prints how each child ended. The progress files stay in FOLDER.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import bivallate as bv
from bivallate.evaluation import Score, attack_and_score
from bivallate.evaluation.named_attacks import ensemble
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB
from bivallate.lower.square import Square

SHORT = ensemble("short", APGD(6), FAB(5), Square(40), targets=3)
STAGES = tuple(stage.name for stage in SHORT.stages)
FORWARDS = 3  # inside the search, before the end


class Net(nn.Module):
    """A smooth network that ends its process at a forward pass, once it is armed."""

    left: ClassVar[int | None] = None

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        if Net.left is not None:
            Net.left -= 1
            if Net.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.body(x)


def attacked(file: Path | None) -> Score:
    """The evaluation, kept in a file and resumed from it."""
    model = Net()
    x = torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    return attack_and_score(model, (x, y), bv.Linf(0.03), SHORT, batch_size=8, seed=5, resume=file)


def die_in(name: str, file: Path) -> None:
    """Runs the evaluation to its end, which comes early."""
    kind: Any = type(SHORT.stages[STAGES.index(name)])
    search, seen = kind.search, 0

    def armed(part: Any, *args: Any) -> Tensor:
        nonlocal seen
        seen += part.name == name
        if seen == 2:
            Net.left = FORWARDS
        return search(part, *args)

    kind.search = armed
    attacked(file)


def main(folder: Path) -> None:
    """Forks a child for each part."""
    torch.set_num_threads(1)
    ends = {}
    for name in STAGES:
        child = os.fork()
        if child == 0:
            die_in(name, folder / f"{name}.json")
            os._exit(0)
        ends[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
