"""The state of an evaluation: verdicts so far and position of the search, saved so that it can be resumed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import torch
from torch import Tensor

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import MOST_CLASSES, Packed, pack, unpacked, within
from bivallate.evaluation.score import CLEAN, ROBUST
from bivallate.evaluation.verify import Verdict
from bivallate.files import write_json
from bivallate.schema import MEGABYTE, Amount, Count, Range, Whole, read_json
from bivallate.types import Passes

__all__ = ["Position", "State"]

SCHEMA = "bivallate-progress-3"
POINT_COLUMNS = ("y", "stage", "turn", "predicted", "margin")  # a row for each point
COLUMNS = (*POINT_COLUMNS, "sample")
SAME = 1e-4  # tolerance relative to the largest logit: above rounding by batch size, threads or device


class StateColumns(TypedDict):
    """Columns with one value for each point, and the logits of a few points."""

    y: Packed
    stage: Packed
    turn: Packed
    predicted: Packed
    margin: Packed
    sample: Packed


class WrittenState(TypedDict):
    """A progress file."""

    schema: Literal["bivallate-progress-3"]
    key: str
    batch_size: Count
    shares: Count
    classes: Annotated[int, Range(0, MOST_CLASSES)]
    position: tuple[Whole, Whole, Whole]
    passes: tuple[Whole, Whole]
    seconds: Amount
    columns: StateColumns


@dataclass(frozen=True)
class Position:
    """The next piece of work: turns from `turn` on of a stage, for living points from `offset` on.

    Attributes:
        stage: counted from 1, as in `State.stage`, where 0 is the clean pass.
    """

    stage: int = 1
    turn: int = 0
    offset: int = 0


@dataclass
class State:
    """Verdicts of n points.

    Attributes:
        y, predicted, margin, stage: as in `Score`. turn: (n,) the turn that broke the point.
        position: the next piece of work. passes, seconds: spent so far. batch_size: points in one piece.
        shares: number of parallel shares of a piece.
        classes: number of classes; 0 until the clean pass is done.
        sample: (k, K) logits of a few points, by which a resume recognises the model; empty without a file.
    """

    y: Tensor
    stage: Tensor
    turn: Tensor
    predicted: Tensor
    margin: Tensor
    batch_size: int
    shares: int = 1
    classes: int = 0
    position: Position = field(default_factory=Position)
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0
    sample: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    @classmethod
    def of(cls, n: int, batch_size: int, shares: int = 1) -> State:
        """The state before the first verdict."""
        whole = torch.zeros(n, dtype=torch.int64)
        return cls(whole, whole + ROBUST, whole.clone(), whole.clone(), torch.zeros(n), batch_size, shares)

    def is_of(self, sample: Tensor) -> bool:
        """Whether logits of the same few points agree with the stored ones up to rounding."""
        kept = self.sample
        return kept.shape == sample.shape and bool((kept - sample).abs().max() <= SAME * kept.abs().max())

    def living(self, at: Position) -> Tensor:
        """The points that were not broken before turn `at.turn` of stage `at.stage`, even if they are now."""
        later = (self.stage > at.stage) | ((self.stage == at.stage) & (self.turn >= at.turn))
        return ((self.stage == ROBUST) | later).nonzero()[:, 0]

    def enter_clean(self, rows: Tensor, y: Tensor, logits: Tensor, margin: Tensor) -> None:
        """Record the verdicts on clean images."""
        self.y[rows], self.predicted[rows] = y.cpu(), logits.argmax(1).cpu()
        self.margin[rows] = margin.float().cpu()
        self.stage[rows] = torch.where(self.predicted[rows] == self.y[rows], ROBUST, CLEAN)
        self.classes = logits.shape[1]

    def enter(self, rows: Tensor, verdict: Verdict, stage: int, turn: Tensor) -> Tensor:
        """Record verdicts on points that are still robust; a point may occur with several turns.

        Returns (B,) bool: the rows of the verdict that are the worst so far for their point.
        """
        fooled, margin = verdict.fooled.cpu(), verdict.margin.float().cpu()
        predicted, turn = verdict.predicted.cpu(), turn.cpu()
        lowest = torch.full_like(self.stage, -1)  # row of the verdict with each point's lowest margin
        for t in turn.unique().tolist():  # ascending, because the earliest turn that breaks a point counts
            some = (turn == t).nonzero()[:, 0]
            some = some[self.stage[rows[some]] == ROBUST]
            lower = some[fooled[some] | (margin[some] < self.margin[rows[some]])]
            self.margin[rows[lower]], lowest[rows[lower]] = margin[lower], lower
            broken = some[fooled[some]]
            at = rows[broken]
            self.stage[at], self.turn[at], self.predicted[at] = stage, t, predicted[broken]
        worst = torch.zeros_like(fooled)
        worst[lowest[lowest >= 0]] = True
        return worst

    def save(self, path: str | os.PathLike[str], key: str) -> None:
        """Write the state atomically; `key` identifies the evaluation."""
        at = self.position
        content = {
            "schema": SCHEMA,
            "key": key,
            "batch_size": self.batch_size,
            "shares": self.shares,
            "classes": self.classes,
            "position": [at.stage - 1, at.turn, at.offset],  # files count stages from 0
            "passes": [self.passes.forward, self.passes.backward],
            "seconds": self.seconds,
            "columns": {name: pack(getattr(self, name)) for name in COLUMNS},
        }
        write_json(
            Path(path), content, indent=None, durable=False
        )  # written often; a process that is killed loses nothing

    @classmethod
    def load(cls, path: str | os.PathLike[str], key: str) -> State:
        """Read what `save` wrote. Raises UserError if it is damaged or belongs to another evaluation."""
        try:
            content = read_json(path, "progress file", WrittenState, 1024 * MEGABYTE)
            stage, turn, offset = content["position"]
            columns = {name: unpacked(content["columns"][name], name) for name in COLUMNS}
            made = cls(
                **columns,
                batch_size=content["batch_size"],
                shares=content["shares"],
                classes=content["classes"],
                position=Position(stage + 1, turn, offset),
                passes=Passes(*content["passes"]),
                seconds=content["seconds"],
            )
            made._whole()
        except UserError as error:
            raise UserError(
                f"{path} cannot be resumed, it is not a progress file ({error}); delete it to begin anew"
            ) from error
        if content["key"] != key:
            raise UserError(
                f"{path} belongs to another evaluation (model, points, threat, attack or seed differ); "
                "delete it or name another file"
            )
        return made

    def _whole(self) -> None:
        """Raise UserError if the columns do not fit each other."""
        points = {name: getattr(self, name) for name in POINT_COLUMNS}
        within(len(self.y), **points)
        for name in ("y", "stage", "turn", "predicted"):
            if points[name].dtype != torch.int64:
                raise UserError(f"{name} must hold whole numbers of 64 bits, got {points[name].dtype}")
        if int(self.stage.min()) < ROBUST or self.sample.ndim != 2:
            raise UserError("the columns do not belong together")
