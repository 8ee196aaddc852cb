"""The hunt: runs the parts of an attack, one after another, on the points that are still robust."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluate.attacks import Attack, Part
from bivallate.evaluate.ledger import Ledger, Position
from bivallate.evaluate.points import Points, check_images, check_labels
from bivallate.evaluate.progress import Progress
from bivallate.evaluate.score import ROBUST
from bivallate.evaluate.verdict import Verdict, judge, logits_of
from bivallate.lower.objective import cross_entropy, logit_margin
from bivallate.lower.problem import Forward, LowerProblem
from bivallate.lower.threat import ThreatModel
from bivallate.noise import Noise
from bivallate.types import Batch

__all__ = ["Hunt", "Turns"]


TURN = 1 << 40  # rows are below this


@dataclass(frozen=True)
class Turns:
    """The noise of several turns at once: each row has the draws that it has when its turn is alone.

    Attributes:
        index: (B,) turn * 2^40 + row of the data, so that it can be selected from like any index.
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

    def normal(self, *args: Any, **options: Any) -> Tensor:
        """As `Noise.normal`."""
        return self._draw("normal", *args, **options)

    def sign(self, *args: Any, **options: Any) -> Tensor:
        """As `Noise.sign`."""
        return self._draw("sign", *args, **options)

    def integers(self, *args: Any, **options: Any) -> Tensor:
        """As `Noise.integers`."""
        return self._draw("integers", *args, **options)


@dataclass
class Hunt:
    """One evaluation under way.

    Attributes:
        model: judges. scout: the same function, perhaps faster, used for searching.
        source, index: the points. threat, attack, seed: as the user gave them.
        ledger: the verdicts. device, dtype: of the model's arithmetic.
        keep: (n, ...) where the worst points found are kept, or None.
    """

    model: nn.Module
    scout: nn.Module
    source: Points
    index: Tensor
    threat: ThreatModel
    attack: Attack
    seed: int
    ledger: Ledger
    device: torch.device
    dtype: torch.dtype
    progress: Callable[[Progress], object] | None = None
    file: str | os.PathLike[str] | None = None
    key: str = ""
    keep: Tensor | None = None

    def __post_init__(self) -> None:
        self._began = time.perf_counter() - self.ledger.seconds

    def run(self, *, every: bool = False) -> None:
        """Fills the ledger. `every`: also attack points that are wrong on the clean image."""
        if self.ledger.classes == 0:
            self._clean()
            if every:
                self.ledger.stage.fill_(ROBUST)
                self.ledger.margin.fill_(torch.inf)
            self._save()
        self._report("clean")
        if self.threat.eps == 0:
            return
        for position, part, turns, rows in self._work():
            self._strike(rows, part, turns, position.part)
            self._save()
            self._report(part.name)

    def _clean(self) -> None:
        for rows in torch.arange(len(self.index)).split(self.ledger.batch_size):
            x, y = self.load(rows)
            check_images(x)
            logits = logits_of(self.model, x, self.ledger.passes)
            check_labels(y, logits.shape[1])
            self.ledger.enter_clean(rows, y, logits, logit_margin(logits, y.long()))
            if self.keep is not None:
                self.keep[rows] = x.to(self.keep)

    def load(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) of rows of the ledger, on the device."""
        x, y = self.source.tensors(self.index[rows])
        if x.is_floating_point():
            x = x.to(self.device, self.dtype)
        return x, y.to(self.device)

    def _work(self) -> Iterator[tuple[Position, Part, range, Tensor]]:
        """Pieces of work from the ledger's position on; a resumed hunt cuts them exactly as the first did."""
        ledger = self.ledger
        start = ledger.position
        for p, part in enumerate(self.attack.parts):
            turn, count = 0, part.turns(ledger.classes)
            while turn < count:
                at = Position(p, turn)
                living = ledger.living(at)
                together = max(1, min(count - turn, ledger.batch_size // max(1, len(living))))
                done = start.offset if (p, turn) == (start.part, start.turn) else 0
                if (p, turn) < (start.part, start.turn):
                    done = len(living)
                while done < len(living):
                    rows = living[done : done + ledger.batch_size]
                    done += len(rows)
                    ledger.position = Position(p, turn, done)
                    yield at, part, range(turn, turn + together), rows
                turn += together
        ledger.position = Position(len(self.attack.parts))

    def _strike(self, rows: Tensor, part: Part, turns: range, p: int) -> None:
        """Attacks rows in some turns at once; halves the batch when a CUDA device runs out of memory."""
        try:
            turn = torch.tensor(turns, device=self.device).repeat_interleave(len(rows))
            verdict = self._attempt(rows, part, turns, turn)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(rows) * len(turns) == 1:
                raise UserError("one point does not fit into the device's memory; use --device cpu") from None
            self.ledger.batch_size = max(1, len(rows) // 2)
            halves = [(rows, range(t, t + 1)) for t in turns] if len(turns) > 1 else []
            for some, few in halves or [(half, turns) for half in rows.tensor_split(2)]:
                self._strike(some, part, few, p)
            return
        repeated = rows.repeat(len(turns))
        worst = self.ledger.enter(repeated, verdict, p, turn)
        if self.keep is not None and bool(worst.any()):
            self.keep[repeated[worst]] = verdict.x_adv[worst.to(self.device)].to(self.keep)

    def _attempt(self, rows: Tensor, part: Part, turns: range, turn: Tensor) -> Verdict:
        x, y = self.load(rows.repeat(len(turns)))
        y = y.long()
        index = self.index[rows].to(self.device)
        purpose = zlib.crc32(
            part.name.rstrip("-0123456789").encode()
        )  # as kinds of part, so that restarts nest
        batch = Batch(x, y, index.repeat(len(turns)))
        if len(turns) == 1:
            noise = Noise(self.seed, index, purpose, turns[0])
        else:
            noise = cast(Noise, Turns(self.seed, batch.index + TURN * turn, purpose))
        forward = Forward(self.scout, self.ledger.passes)
        problem = LowerProblem(forward, batch, cross_entropy, self.threat, noise=noise)
        delta = part.search(problem, turn)
        return judge(self.model, x, y, delta, self.threat, self.ledger.passes)

    def _save(self) -> None:
        self.ledger.seconds = time.perf_counter() - self._began
        if self.file is not None:
            self.ledger.save(Path(self.file), self.key)

    def _report(self, name: str) -> None:
        if self.progress is None:
            return
        ledger, n = self.ledger, len(self.index)
        ledger.seconds = time.perf_counter() - self._began
        living = int((ledger.stage == ROBUST).sum())
        spent, left = ledger.passes.forward + ledger.passes.backward, self._left()
        wait = ledger.seconds * left / spent if name != "clean" else None
        fraction = spent / max(1.0, spent + left)
        self.progress(Progress(self.attack.name, name, fraction, living / n, n, living, ledger.seconds, wait))

    def _left(self) -> float:
        """Passes that remain if no further point breaks."""
        at, living, left = self.ledger.position, int((self.ledger.stage == ROBUST).sum()), 0.0
        for p, part in enumerate(self.attack.parts):
            if p < at.part or self.threat.eps == 0:
                continue
            turns = float(part.turns(self.ledger.classes))
            if p == at.part:
                begun = len(self.ledger.living(replace(at, offset=0)))
                turns -= at.turn + (at.offset / begun if begun else 1.0)
            left += max(0.0, turns) * part.cost() * living
        return left
