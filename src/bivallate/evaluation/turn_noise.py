"""The noise of several turns (restarts or targets) of an attack in one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from bivallate.noise import Noise

__all__ = ["TurnNoise", "noise_of_turns"]

TURN = 1 << 40  # offset between the indices of turns; row numbers are below it


def noise_of_turns(seed: int, index: Tensor, epoch: int, turn: Tensor) -> Noise:
    """The noise for rows (B,) of the data, each in its own turn (B,); see `TurnNoise`."""
    return cast(Noise, TurnNoise(seed, index + TURN * turn, epoch))  # it draws as a Noise does


@dataclass(frozen=True)
class TurnNoise:
    """The noise of several turns in one batch: each row has the same draws as if its turn were alone.

    Attributes:
        index: (B,) turn * 2^40 + row of the data. With both in one tensor, `LowerProblem.select` selects rows
            of it as of any index.
        epoch: as of `Noise`; in an evaluation a number for the stage.
    """

    seed: int
    index: Tensor
    epoch: int

    def _draw(self, kind: str, *args: Any, **options: Any) -> Tensor:
        turns = self.index // TURN
        places, pieces = [], []
        for turn in turns.unique().tolist():
            places.append((turns == turn).nonzero()[:, 0])
            noise = Noise(self.seed, self.index[places[-1]] % TURN, self.epoch, turn)
            pieces.append(getattr(noise, kind)(*args, **options))
        return torch.cat(pieces)[torch.cat(places).argsort()]

    def uniform(self, *args: Any, **options: Any) -> Tensor:
        """As `Noise.uniform`."""
        return self._draw("uniform", *args, **options)

    def symmetric(self, *args: Any, **options: Any) -> Tensor:
        """As `Noise.symmetric`."""
        return self._draw("symmetric", *args, **options)

    def normal(self, *args: Any, **options: Any) -> Tensor:
        """As `Noise.normal`."""
        return self._draw("normal", *args, **options)

    def sign(self, *args: Any, **options: Any) -> Tensor:
        """As `Noise.sign`."""
        return self._draw("sign", *args, **options)

    def integers(self, *args: Any, **options: Any) -> Tensor:
        """As `Noise.integers`."""
        return self._draw("integers", *args, **options)
