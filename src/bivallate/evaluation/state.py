"""The state of an evaluation: verdicts so far and position of the search, saved so that it can be resumed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor

from bivallate.errors import UserError, listed
from bivallate.evaluation.evaluation_file import MOST_CLASSES, Packed, pack, unpacked, within
from bivallate.evaluation.point_columns import CLEAN, FILE_KEYS, MORE_COLUMNS, ROBUST, more_columns
from bivallate.evaluation.verify import Verdict
from bivallate.files import write_json
from bivallate.schema import MEGABYTE, Amount, Count, Range, Whole, read_json
from bivallate.types import Passes

__all__ = ["Position", "State"]

SCHEMA = "bivallate-progress-3"


class StateColumns(TypedDict):
    """Columns with one value for each point, and the logits of a few points; beside them `MORE_COLUMNS`."""

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
    """The next piece of work.

    Attributes:
        stage_number: number of the stage, from 1; files count from 0.
        turn: the first turn (restart or target) of the piece, from 0.
        offset: number of living points that are done in this turn.
    """

    stage_number: int = 1
    turn: int = 0
    offset: int = 0


@dataclass
class State:
    """Verdicts of n points; a point is given by its position in the columns, 0, ..., n - 1.

    Attributes:
        y: (n,) labels.
        broken_at: (n,) the stage that broke the point, as in `Score`.
        broken_in_turn: (n,) the turn of that stage.
        predicted: (n,) as in `Score`.
        margin: (n,) as in `Score`.
        batch_size: points in one piece of work.
        threads: largest number of threads that share a piece.
        classes: number of classes; 0 until the clean pass is done, see `begun`.
        position: the next piece of work.
        passes: spent so far.
        seconds: spent so far.
        sample: (k, K) logits of a few points, by which a resume recognises the model; empty without a file.
        more: name -> (n,) the values of `point_columns.MORE_COLUMNS`.
    """

    y: Tensor
    broken_at: Tensor
    broken_in_turn: Tensor
    predicted: Tensor
    margin: Tensor
    batch_size: int
    threads: int = 1
    classes: int = 0
    position: Position = field(default_factory=Position)
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0
    sample: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    more: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, n: int, batch_size: int, threads: int = 1) -> State:
        """The state before the first verdict."""
        whole = torch.zeros(n, dtype=torch.int64)
        return cls(
            y=whole,
            broken_at=whole + ROBUST,
            broken_in_turn=whole.clone(),
            predicted=whole.clone(),
            margin=torch.zeros(n, dtype=torch.float32),
            batch_size=batch_size,
            threads=threads,
            more={name: torch.zeros(n, dtype=torch.float32) for name in MORE_COLUMNS},
        )

    @property
    def begun(self) -> bool:
        """Whether the clean pass is done."""
        return self.classes > 0

    @property
    def point_columns(self) -> dict[str, Tensor]:
        """Key in files -> column (n,), for every column with one value for each point."""
        return {key: getattr(self, name) for name, key in FILE_KEYS.items()} | self.more

    def select(self, points: slice) -> State:
        """The state of some of the points; everything else is the same."""
        columns = {name: getattr(self, name)[points] for name in FILE_KEYS}
        return replace(self, **columns, more={name: column[points] for name, column in self.more.items()})

    def living(self, at: Position) -> Tensor:
        """(k,) the points that this turn of this stage has to attack.

        They are broken neither on the clean image nor by an earlier turn. Points that this or a later turn
        has broken since are among them, so that a resumed evaluation cuts the same pieces.
        """
        same = self.broken_at == at.stage_number
        later = (self.broken_at > at.stage_number) | (same & (self.broken_in_turn >= at.turn))
        return ((self.broken_at == ROBUST) | later).nonzero()[:, 0]

    def enter_clean(self, points: Tensor, y: Tensor, logits: Tensor, margin: Tensor) -> None:
        """Record the verdicts on clean images."""
        self.y[points], self.predicted[points] = y.cpu(), logits.argmax(1).cpu()
        self.margin[points] = margin.float().cpu()
        self.broken_at[points] = torch.where(self.predicted[points] == self.y[points], ROBUST, CLEAN)
        for name, values in more_columns(logits, y).items():
            self.more[name][points] = values
        self.classes = logits.shape[1]

    def enter(self, points: Tensor, verdict: Verdict, stage_number: int, turn: Tensor) -> Tensor:
        """Record verdicts on points that are still robust; a point may occur with several turns.

        The earliest turn that breaks a point counts; verdicts of later turns on it are ignored.

        Args:
            points: (B,) the points.
            verdict: on these points.
            stage_number: number of the stage, from 1.
            turn: (B,) the turn of each verdict.

        Returns:
            (B,) bool: for each point at most one row, that of its worst image if it is worse than all before.
            `attack` returns these images; an evaluation does not need them.
        """
        fooled, margin = verdict.fooled.cpu(), verdict.margin.float().cpu()
        predicted, turn = verdict.predicted.cpu(), turn.cpu()
        row_of = torch.full_like(self.broken_at, -1)  # (n,) row of each point's worst image here, or -1
        for t in turn.unique().tolist():  # ascending, because the earliest turn that breaks a point counts
            rows = (turn == t).nonzero()[:, 0]
            rows = rows[self.broken_at[points[rows]] == ROBUST]
            worse = rows[fooled[rows] | (margin[rows] < self.margin[points[rows]])]
            self.margin[points[worse]], row_of[points[worse]] = margin[worse], worse
            for name, column in self.more.items():
                column[points[worse]] = verdict.more[name][worse]
            breaking = rows[fooled[rows]]
            broken = points[breaking]
            self.broken_at[broken], self.broken_in_turn[broken] = stage_number, t
            self.predicted[broken] = predicted[breaking]
        worst = torch.zeros_like(fooled)
        worst[row_of[row_of >= 0]] = True
        return worst

    def save(self, path: str | os.PathLike[str], key: str) -> None:
        """Write the state atomically; `key` identifies the evaluation."""
        at = self.position
        content = {
            "schema": SCHEMA,
            "key": key,
            "batch_size": self.batch_size,
            "shares": self.threads,
            "classes": self.classes,
            "position": [at.stage_number - 1, at.turn, at.offset],  # files count stages from 0
            "passes": [self.passes.forward, self.passes.backward],
            "seconds": self.seconds,
            "columns": {
                key: pack(column) for key, column in (self.point_columns | {"sample": self.sample}).items()
            },
        }
        # written often; a process that is killed loses nothing
        write_json(Path(path), content, indent=None, durable=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str], key: str) -> State:
        """Read what `save` wrote. Raises UserError if it is damaged or belongs to another evaluation."""
        try:
            content = read_json(path, "progress file", WrittenState, 1024 * MEGABYTE)
            state = cls._of(content) if content["key"] == key else None
        except UserError as error:
            raise UserError(
                f"{path} cannot be resumed, it is not a progress file ({error}); delete it to begin anew"
            ) from error
        if state is None:
            raise UserError(
                f"{path} belongs to another evaluation (model, points, threat, attack, seed or the columns "
                "kept differ); delete it or name another file"
            )
        return state

    @classmethod
    def _of(cls, content: dict[str, Any]) -> State:
        """The state in a file's content. Raises UserError if it is damaged."""
        stage, turn, offset = content["position"]
        packed = content["columns"]
        absent = [name for name in MORE_COLUMNS if name not in packed]
        if absent:
            raise UserError(f"it lacks {listed(absent)}")
        state = cls(
            **{name: unpacked(packed[key], key) for name, key in FILE_KEYS.items()},
            sample=unpacked(packed["sample"], "sample"),
            more={name: unpacked(packed[name], name) for name in MORE_COLUMNS},
            batch_size=content["batch_size"],
            threads=content["shares"],
            classes=content["classes"],
            position=Position(stage + 1, turn, offset),
            passes=Passes(*content["passes"]),
            seconds=content["seconds"],
        )
        state._check_columns()
        return state

    def _check_columns(self) -> None:
        """Raise UserError if the columns do not fit each other."""
        columns = self.point_columns
        within(len(self.y), **columns)
        for key in ("y", "stage", "turn", "predicted"):
            if columns[key].dtype != torch.int64:
                raise UserError(f"{key} must hold whole numbers of 64 bits, got {columns[key].dtype}")
        if int(self.broken_at.min()) < ROBUST or self.sample.ndim != 2:
            raise UserError("the columns do not belong together")
