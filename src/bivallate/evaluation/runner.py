"""Run the stages of an attack, one after another, on the points that are still robust.

The words of this file and of `state`:

- point: one image of the evaluation, given by its position 0, ..., n - 1; `index` holds its row in the data;
- stage: one search of the attack, such as apgd-t; turn: one of the stage's restarts or targets;
- pair: a point in a turn; piece: a batch of pairs in one stage, after which the state is saved;
- together: turns that share a piece because few points are living;
- living: not broken before the first turn of a piece, so that all turns of the piece attack it;
- broken: leaves within the search if that stops at a clear success (lower/active_examples.py), with the
  verdict (`State.enter`), and so before the next piece of other turns (`State.living`);
- candidate: a perturbation that a search returns; verdict: what the model says about it in a fresh pass.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluation.batch_size import NO_ROOM
from bivallate.evaluation.evaluation_progress import EvaluationProgress
from bivallate.evaluation.full_precision import full_float32
from bivallate.evaluation.logit_difference import SAMPLE
from bivallate.evaluation.named_attacks import Attack, Stage
from bivallate.evaluation.point_columns import ROBUST
from bivallate.evaluation.points import Points, check_images, check_labels, whole_labels
from bivallate.evaluation.search import stage_bears_rounding
from bivallate.evaluation.search_pool import SearchPool
from bivallate.evaluation.state import Position, State
from bivallate.evaluation.turn_noise import noise_of_turns
from bivallate.evaluation.verify import judge, logits_of
from bivallate.lower.forward import Forward
from bivallate.lower.objective import logit_margin
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import ThreatModel
from bivallate.noise import Noise
from bivallate.types import Batch, Passes

__all__ = ["Runner"]

FEWEST = 8  # smallest number of points for a thread
LEAST = 1 << 24  # smallest number of multiplications for a thread; else threads wait for the interpreter

Candidates = tuple[Tensor, Passes]  # delta (B, C, H, W), and the passes that were spent on it


class Piece(NamedTuple):
    """One piece of work.

    Attributes:
        number: of the stage, from 1.
        stage: the stage.
        turns: that are made together.
        points: (k,) attacked in each of these turns.
        following: position of the piece after it.
    """

    number: int
    stage: Stage
    turns: range
    points: Tensor
    following: Position


@dataclass
class Runner:
    """One evaluation under way: `_pieces` yields its pieces, `_attack_and_judge` searches and judges one.

    Attributes:
        model: gives the verdicts.
        searchers: copies of the model that search; of a faster one, see `search_model`, if that pays.
        source: the data.
        index: (n,) rows of the data that are evaluated.
        threat: the set of perturbations.
        attack: the stages.
        seed: of the noise.
        state: the verdicts so far, and the next piece of work.
        device: of the model's arithmetic.
        dtype: of the model's arithmetic.
        multiplications: in one point's forward pass; 0 if the search has one thread.
        progress: called with the progress, or None.
        file: the progress file, or None.
        key: of this evaluation in the progress file.
        worst_points: (n, C, H, W), filled with the worst image found for each point, or None.
        search_precision: number format of the search.
        low_precision_searcher: the search model in `search_precision`, for stages that tolerate its rounding;
            None for float32.
    """

    model: nn.Module
    searchers: SearchPool
    source: Points
    index: Tensor
    threat: ThreatModel
    attack: Attack
    seed: int
    state: State
    device: torch.device
    dtype: torch.dtype
    multiplications: int
    progress: Callable[[EvaluationProgress], object] | None = None
    file: str | os.PathLike[str] | None = None
    key: str = ""
    worst_points: Tensor | None = None
    search_precision: str = "float32"
    low_precision_searcher: nn.Module | None = None

    def run(self, *, every: bool = False) -> None:
        """Make all verdicts. `every`: also attack points that are misclassified on the clean image."""
        self._began = time.perf_counter() - self.state.seconds
        if not self.state.begun:
            self._clean()
            if every:
                self.state.broken_at.fill_(ROBUST)
                self.state.margin.fill_(torch.inf)
            self._save()
        self._report("clean")
        for piece in self._pieces():  # each is cut after the verdicts on those before it are in the state
            # points (3, 8) in turns (0, 1) are the pairs (3, 0), (8, 0), (3, 1), (8, 1) of one batch
            turn = torch.tensor(piece.turns).repeat_interleave(len(piece.points))
            self._attack_within_memory(piece.points.repeat(len(piece.turns)), turn, piece.number, piece.stage)
            self.state.position = piece.following
            self._save()
            self._report(piece.stage.name)
        self.state.position = Position(len(self.attack.stages) + 1)

    @property
    def _stages(self) -> tuple[Stage, ...]:
        """The stages that run: none at eps 0, where no image can be changed."""
        return () if self.threat.eps == 0 else self.attack.stages

    def sample(self) -> Tensor:
        """(k, K) logits of the first few points."""
        logits = []
        for points in torch.arange(min(SAMPLE, len(self.index))).split(self.state.batch_size):
            x, _ = self.load(points)
            check_images(x)
            logits.append(logits_of(self.model, x, Passes()).cpu())
        return torch.cat(logits)

    def _clean(self) -> None:
        """Judge the clean images."""
        done = 0
        while done < len(self.index):
            points = torch.arange(done, min(done + self.state.batch_size, len(self.index)))
            if self._within_memory(len(points), partial(self._clean_piece, points)):
                done += len(points)

    def _clean_piece(self, points: Tensor) -> None:
        x, y = self.load(points)
        check_images(x)
        logits = logits_of(self.model, x, self.state.passes)
        check_labels(y, logits.shape[1])
        self.state.enter_clean(points, y, logits, logit_margin(logits, y))
        if self.worst_points is not None:
            self.worst_points[points] = x.to(self.worst_points)

    def _within_memory(self, size: int, action: Callable[[], object]) -> bool:
        """Do an action on `size` images; True if it fitted. If a CUDA device has no room, halve batches."""
        try:
            action()
            return True
        except torch.cuda.OutOfMemoryError:
            pass  # what follows is outside of this block, whose traceback keeps the failed action's tensors
        torch.cuda.empty_cache()
        if size == 1:
            raise UserError(NO_ROOM)
        self.state.batch_size = size // 2
        return False

    def load(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) of points, on the device; y is int64."""
        x, y = self.source.tensors(self.index[points])
        if x.is_floating_point():
            x = x.to(self.device, self.dtype)
        return x, whole_labels(y).to(self.device)

    def _pieces(self) -> Iterator[Piece]:
        """Yield the remaining pieces from the state's position on.

        The points that are living when a turn begins are cut by the batch size of that moment. With the same
        batch size a resumed runner cuts the same pieces as the first one, so that rounding, and with it every
        verdict, is the same.
        """
        state, start = self.state, self.state.position
        for number, stage in list(enumerate(self._stages, 1))[start.stage_number - 1 :]:
            turn, count = start.turn if number == start.stage_number else 0, stage.count(state.classes)
            self._report(stage.name)  # before the work, because some stages are one long piece
            while turn < count:
                at = Position(number, turn)
                living = state.living(at)
                done = start.offset if at == replace(start, offset=0) else 0
                # Few living points would leave a batch mostly empty, so several of their turns share it: with
                # 30 points and room for 100, three of nine turns at once.
                room = state.batch_size // max(1, len(living)) if done == 0 else 1
                together = max(1, min(count - turn, room))
                while done < len(living):
                    points = living[done : done + state.batch_size]
                    done += len(points)
                    at_end = done == len(living)
                    following = Position(number, turn + together) if at_end else Position(number, turn, done)
                    yield Piece(number, stage, range(turn, turn + together), points, following)
                turn += together

    def _attack_within_memory(self, points: Tensor, turn: Tensor, number: int, stage: Stage) -> None:
        """Attack pairs (point, turn), in halves if a CUDA device runs out of memory."""
        if self._within_memory(len(points), partial(self._attack_and_judge, points, turn, number, stage)):
            return
        for some, at in zip(points.tensor_split(2), turn.tensor_split(2), strict=True):
            self._attack_within_memory(some, at, number, stage)

    def _attack_and_judge(self, points: Tensor, turn: Tensor, number: int, stage: Stage) -> None:
        """Search a candidate for each pair (point, turn), judge them, and record the verdicts."""
        x, y = self.load(points)
        delta = self._search_in_threads(x, y, self.index[points], turn, stage)
        verdict = judge(self.model, x, y, delta, self.threat, self.state.passes)
        worst = self.state.enter(points, verdict, number, turn)
        if self.worst_points is not None and bool(worst.any()):
            self.worst_points[points[worst]] = verdict.x_adv[worst.to(self.device)].to(self.worst_points)

    def _search_in_threads(self, x: Tensor, y: Tensor, index: Tensor, turn: Tensor, stage: Stage) -> Tensor:
        """Search candidates for pairs (point, turn), on as many threads as have enough to do."""
        worthwhile = len(x) * self.multiplications // LEAST
        threads = max(1, min(self.state.threads, len(x) // FEWEST, worthwhile))
        shares = [t.tensor_split(threads) for t in (x, y, index.to(self.device), turn.to(self.device))]
        searches = [
            partial(self._search, stage, Batch(x, y, index), turn)
            for x, y, index, turn in zip(*shares, strict=True)
        ]
        if self.low_precision_searcher is not None and stage_bears_rounding(stage):
            with full_float32(tf32=self.search_precision == "tf32"):
                candidates = [search(self.low_precision_searcher) for search in searches]
        else:
            candidates = self.searchers.run(searches)
        for _, passes in candidates:
            self.state.passes.forward += passes.forward
            self.state.passes.backward += passes.backward
        return torch.cat([delta for delta, _ in candidates])

    def _search(self, stage: Stage, batch: Batch, turn: Tensor, searcher: nn.Module) -> Candidates:
        """Search candidates for one batch of pairs on one copy of the model.

        Noise belongs to a stage's name without its numbers: pgd-20-5 begins as pgd-20 does (see noise.py).
        """
        kind, turns = re.sub(r"(-\d+)*$", "", stage.name), turn.unique().tolist()
        epoch = zlib.crc32(kind.encode())  # a number for the stage, where training has the epoch
        if len(turns) == 1:
            noise = Noise(self.seed, batch.index, epoch, turns[0])
        else:
            noise = noise_of_turns(self.seed, batch.index, epoch, turn)
        passes = Passes()
        problem = LowerProblem(Forward(searcher, passes), batch, _not_set, self.threat, noise=noise)
        return stage.search(problem, turn), passes

    def _save(self) -> None:
        self.state.seconds = time.perf_counter() - self._began
        if self.file is not None:
            with suppress(UserError):  # a file that cannot be written must not end the evaluation
                self.state.save(Path(self.file), self.key)

    def _report(self, name: str) -> None:
        if self.progress is None:
            return
        state, n = self.state, len(self.index)
        state.seconds = time.perf_counter() - self._began
        living = int((state.broken_at == ROBUST).sum())
        spent, left = state.passes.forward + state.passes.backward, self._left()
        wait = state.seconds * left / spent if name != "clean" else None
        fraction = spent / max(1.0, spent + left)
        self.progress(
            EvaluationProgress(self.attack.name, name, fraction, living / n, n, living, state.seconds, wait)
        )

    def _left(self) -> float:
        """The number of remaining passes if no further point is broken."""
        at, living, left = self.state.position, int((self.state.broken_at == ROBUST).sum()), 0.0
        for number, stage in list(enumerate(self._stages, 1))[at.stage_number - 1 :]:
            turns = float(stage.count(self.state.classes))
            if number == at.stage_number:
                in_turn = len(self.state.living(replace(at, offset=0)))
                turns -= at.turn + (at.offset / in_turn if in_turn else 1.0)
            left += max(0.0, turns) * stage.cost() * living
        return left


def _not_set(problem: LowerProblem, logits: Tensor) -> Tensor:
    """The objective of a problem until its stage has set one."""
    raise UserError("a stage must set what it maximises before it searches: problem.but(objective)")
