"""A table of a paper as data: cells, reported figures, claims, and its smaller scales."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

from bivallate.reproduce.cell import Cell

__all__ = ["QUESTIONS", "SCALES", "Claim", "PaperTable", "Reported", "Scale", "asked", "reported"]

Scale = Literal["smoke", "cpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "full")


QUESTIONS = {
    "reweighting": "Do reweighting methods gain under PGD and lose under AutoAttack?",
    "tail": "Does DONE lift the tail without losing AutoAttack accuracy?",
    "overfitting": "Does Fast-BAT avoid catastrophic overfitting at large eps?",
    "fosc": "Does Dynamic AT end with lower FOSC than Standard?",
    "single step": "Which single-step methods end at 16/255 without catastrophic overfitting?",
    "fair": "Do class-wise methods lift the worst class at no more than half a point of AutoAttack accuracy?",
    "bilaw": "Does BiLAW beat the heuristic weights at equal data?",
}


@dataclass(frozen=True)
class Claim:
    """A claim: method A is above method B in column C, within one group.

    Attributes:
        better, worse: rows A and B.
        column: the column C.
        group: the group; "" means every group that has both rows.
        lower: whether lower values are better.
        margin: how far `better` may fall below `worse` without contradicting the claim, in the column's unit;
            above 0 if the claim is that a method loses nothing.
        theirs: whether the claim is the paper's; the others are questions of our own.
        question: key of the question in `QUESTIONS` that the claim helps to answer, or "".
    """

    better: str
    worse: str
    column: str
    group: str = ""
    lower: bool = False
    margin: float = 0.0
    theirs: bool = True
    question: str = ""

    @property
    def text(self) -> str:
        """The claim in words."""
        if self.margin:
            points = f"{100 * self.margin:g} points"
            return f"{self.better} not more than {points} below {self.worse} in {self.column}"
        return f"{self.better} {'below' if self.lower else 'above'} {self.worse} in {self.column}"


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper.

    Attributes:
        name, title, source: name such as T-D1, subject, and place in the paper.
        cells: the cells at full scale, in the order of the paper.
        claims: the claims to judge.
        cpu: a function from a cell to the cell at scale cpu, or to None if that scale leaves it out.
        cpu_note: a text that explains the scale cpu.
        smoke_data: data set of the scale smoke.
        sources: networks for transfer columns, by name.
        seeds: number of seeds in the paper.
        notes: decisions that a reader must know.
        hardware: hardware of the paper's times; "" if the paper names none.
    """

    name: str
    title: str
    source: str
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...]
    cpu: Callable[[Cell], Cell | None]
    cpu_note: str
    smoke_data: str = "digits"
    sources: dict[str, Cell] = field(default_factory=dict)
    seeds: int = 1
    notes: tuple[str, ...] = ()
    hardware: str = ""

    @property
    def reported(self) -> dict[str, dict[str, dict[str, str]]]:
        """Row -> group -> column -> the paper's figure, as printed."""
        return reported().get(self.name, {})


@dataclass(frozen=True)
class Reported:
    """A number reported in a paper: its value, and its standard deviation over runs if printed.

    Example:
        >>> Reported.read("82.39+-0.14")
        Reported(value=82.39, std=0.14)
    """

    value: float
    std: float | None = None

    @staticmethod
    def read(text: str) -> Reported:
        """Read the number from its printed form."""
        value, _, std = text.partition("+-")
        return Reported(float(value.split()[0]), float(std) if std else None)


def asked(question: str, claims: Iterable[Claim]) -> list[Claim]:
    """The claims, marked as answers to a question in `QUESTIONS`."""
    return [replace(claim, question=question) for claim in claims]


@cache
def reported() -> dict[str, Any]:
    """All reported numbers of the papers, as printed: table -> row -> group -> column -> text."""
    place = resources.files("bivallate.reproduce") / "reported.json"
    return json.loads(place.read_text(encoding="utf-8"))
