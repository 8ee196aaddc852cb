"""What a training costs at most in passes, counted before it begins, and how long one can be for a budget.

One minibatch of each kind is trained on in every epoch, by a network of a few numbers that lets no attack end
early. The counts so follow every schedule, and are upper bounds where a method looks at its examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, check_number
from bivallate.method import Method, facts_for
from bivallate.run.config import Config
from bivallate.step import train_step
from bivallate.types import Batch, Clock, Passes

__all__ = [
    "Minibatches",
    "PlannedCost",
    "affordable",
    "costs_of_epochs",
    "epochs_within",
    "minibatches_of",
]

SHAPE = (1, 3, 3)  # of an image, which the number of passes does not depend on
MOST = 10_000  # epochs; every one of them is counted, which takes minutes then


@dataclass(frozen=True)
class PlannedCost:
    """The length of a training, and what it costs at most in passes an example."""

    epochs: int
    passes: float

    @property
    def length(self) -> str:
        """The number of epochs in words."""
        return f"{self.epochs} epoch{'s' * (self.epochs > 1)}"

    @property
    def at_most(self) -> str:
        """The passes as a decimal number, rounded up: a budget of as many pays for the training."""
        return _at_most(self.passes)

    def __str__(self) -> str:
        return f"{self.length}, at most {self.at_most} passes an example"


def _at_most(passes: float) -> str:
    return f"{math.ceil(round(100 * passes, 6)) / 100:.12g}"


@dataclass(frozen=True)
class Minibatches:
    """How the rows of an epoch are cut.

    Attributes:
        rows: number of training rows.
        size: rows of a minibatch, at most `rows`.
        classes: number of classes.
    """

    rows: int
    size: int
    classes: int

    def __len__(self) -> int:
        return self._whole + (self._rest > 0)

    @property
    def _rest(self) -> int:
        """Rows of a last minibatch that is not a whole one; a single row belongs to the one before."""
        rest = self.rows % self.size
        return rest + self.size * (rest == 1 and self.rows > self.size)

    @property
    def _whole(self) -> int:
        return (self.rows - self._rest) // self.size

    def kinds(self) -> Iterator[tuple[int, int, int]]:
        """(step, rows, number) of minibatches alike: whole ones at even steps, at odd steps, and the last."""
        for step in range(min(2, self._whole)):
            yield step, self.size, (self._whole + 1 - step) // 2
        if self._rest:
            yield self._whole, self._rest, 1


class CountingNetwork(nn.Module):
    """A network for counting passes: nothing that looks at the examples ends early with it."""

    costliest: ClassVar = True  # see `Forward.costliest`

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(SHAPE[1] * SHAPE[2], classes))  # YOPO asks for it

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.stem(x)


def minibatches_of(config: Config, rows: int, classes: int) -> Minibatches:
    """The minibatches of a run whose data have so many training rows, a second stream's included.

    Where phases have minibatches of their own, those of the smallest.
    """
    if config.method.weighting.needs_meta:
        rows -= min(config.data.meta, rows // 4)
    share = min((phase.batch for phase in config.phases), default=1.0)
    return Minibatches(rows, min(rows, max(1, round(share * config.batch_size))), classes)


class _Counter:
    """A training on the counting network, of which some minibatches are made."""

    def __init__(self, method: Method, minibatches: Minibatches) -> None:
        self.minibatches, most = minibatches, minibatches.size + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = CountingNetwork(minibatches.classes).train()
            self.x = torch.rand(most, *SHAPE)
        self.index = torch.arange(most)
        self.y = self.index % minibatches.classes
        self.second = self._batch(minibatches.size) if method.weighting.needs_meta else None
        self.method = method.bind(facts_for(self.model, self.x, minibatches.classes))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-9)

    def _batch(self, rows: int, second: Batch | None = None) -> Batch:
        return Batch(self.x[:rows], self.y[:rows], self.index[:rows], meta=second)

    def epoch(self, epoch: int, epochs: int) -> float:
        """Passes a training row of one epoch."""
        kinds = self.minibatches.kinds()
        made = sum(number * self._minibatch(epoch, epochs, step, rows) for step, rows, number in kinds)
        return made / self.minibatches.rows

    def _minibatch(self, epoch: int, epochs: int, step: int, rows: int) -> int:
        spent, batch = Passes(), self._batch(rows, self.second)
        for replay in range(self.method.replays):
            clock = Clock(epoch, epochs, step, len(self.minibatches), replay)
            spent += train_step(self.model, self.optimizer, self.method, batch, clock).passes
        return spent.forward + spent.backward


def costs_of_epochs(method: Method, epochs: int, minibatches: Minibatches) -> list[float]:
    """The most that each epoch of a training costs, in forward and backward passes a training row.

    It may cost less with methods that end attacks early, or that wait for the network before their attack
    grows. Passes on held-out images are not counted, nor the sentinel's and those for an average's
    statistics.

    Raises:
        UserError: a part of the user's own does not run with the small network.

    Example:
        >>> from bivallate import Linf, methods
        >>> growing = methods.curriculum(Linf(0.1), steps=2, until=1.0)
        >>> costs_of_epochs(growing, 3, Minibatches(rows=100, size=10, classes=2))
        [2.0, 4.0, 6.0]
    """
    try:
        counter = _Counter(method, minibatches)
        return [counter.epoch(epoch, epochs) for epoch in range(epochs)]
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(
            f"the passes of {method.name} cannot be counted ({error!r}): give the number of epochs"
        ) from error


def epochs_within(method: Method, passes: float, minibatches: Minibatches) -> int:
    """The largest number of epochs that cost at most `passes` passes a training row.

    Every schedule is that of a training of this length. One epoch more would cost more than `passes`.

    Raises:
        UserError: one epoch costs more, more than 10,000 epochs cost less, or as of `costs_of_epochs`.

    Example:
        >>> from bivallate import Linf, methods
        >>> minibatches = Minibatches(rows=100, size=10, classes=2)
        >>> epochs_within(methods.at(Linf(0.1)), 220, minibatches)  # 11 forwards and 11 backwards each
        10
    """
    return _longest(method, passes, minibatches).epochs


def _longest(method: Method, passes: float, minibatches: Minibatches) -> PlannedCost:
    check_number("passes", passes)
    if not passes > 0:
        raise UserError(f"passes must be above 0, got {passes!r}")
    (first,) = costs_of_epochs(method, 1, minibatches)
    if first > passes:
        raise UserError(
            f"one epoch of {method.name} costs {_at_most(first)} forward and backward passes an example, and "
            f"{passes:.12g} are allowed: allow more passes, or choose a method that costs less"
        )
    if passes > MOST * first:
        raise UserError(
            f"{passes:.12g} passes pay for more than {MOST:,} epochs of {method.name}, which nobody counts: "
            "allow fewer passes, or give the number of epochs"
        )
    best, high, trial = PlannedCost(1, first), math.inf, int(passes / first)
    while best.epochs + 1 < high:
        trial = int(min(max(trial, best.epochs + 1), high - 1))
        total = math.fsum(costs_of_epochs(method, trial, minibatches))
        if total <= passes:
            best = PlannedCost(trial, total)
        else:
            high = trial
        trial = int(trial * passes / total)
    return best


def affordable(config: Config, passes: float, rows: int, classes: int) -> tuple[Config, PlannedCost]:
    """The configuration with as many epochs as `passes` passes an example allow, and what they cost at most.

    Args:
        config: of the run, with its batch size.
        passes: forward and backward passes a training row, over the whole training.
        rows, classes: of the training data; a second stream's rows included.

    Raises:
        UserError: as of `epochs_within`, or the sentinel may make the attack costlier in training.
    """
    sentinel = config.sentinel
    if sentinel.on and sentinel.rollback and sentinel.lowers == "finer":
        raise UserError(
            "a sentinel that answers with a finer attack may spend more passes than are allowed: set "
            "sentinel.lowers to attack, rate or both, or give the number of epochs"
        )
    cost = _longest(config.method, passes, minibatches_of(config, rows, classes))
    return config.set("epochs", cost.epochs), cost
