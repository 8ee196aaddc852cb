"""Cells, columns and notes that the tables of Fast-BAT (Zhang et al., ICML 2022) have in common."""

from __future__ import annotations

from typing import Any

from bivallate.reproduce.cell import Cell, Measure
from bivallate.reproduce.paper_table import Claim, PaperTable
from bivallate.reproduce.scaling import NARROW_NOTE, narrow_20_epochs

PAPER = "Fast-BAT (Zhang et al., ICML 2022)"
SA = Measure("SA", "clean", "pgd-50-10")  # read from the evaluation under that attack
PGD_COLUMN = Measure("PGD", "robust", "pgd-50-10")
LAST = Measure("PGD, last epoch", "robust", "pgd-50-10", weights="last")
AA, SECONDS = Measure("AA", "robust", "autoattack"), Measure("s/epoch", "seconds")
EPS = {"@8": "8/255", "@16": "16/255"}
Row = tuple[str, dict[str, Any]]
ROWS: dict[str, Row] = {
    "FAST-AT": ("fast-at", {}),
    "FAST-AT-GA": ("fast-at-ga", {}),
    "FAST-BAT": ("fast-bat", {}),
    "PGD-2-AT": ("at", {"steps": 2, "step_size": 0.5}),
    "N-FGSM": ("n-fgsm", {}),
}
NOTES = (
    "A tenth of the training images is held out, drawn by class (the paper: the last tenth). The best of all "
    "epochs is reported, at scale full judged by PGD-50 with one restart on 1,000 of them.",
    "AutoAttack is the standard ensemble; the paper's code bundles untargeted FAB, which is weaker.",
)
STEP_AT_16 = (
    "At 16/255 Fast-BAT's step is 2500/255, as in the paper's section 5 and in Table 7, whose row of 2500 is "
    "the result of Table 1; its appendix C.1 and the public code have 2000/255."
)
NOT_THEIRS = (
    "PGD-2-AT and N-FGSM are not in the paper's table; they were trained with its recipe for comparison."
)

COLLAPSE = (
    "Catastrophic overfitting is a fall of the last epochs, which choosing the best hides: the last "
    "weights have a column of their own, which is not in the paper."
)


def fast_cell(
    row: str,
    group: str,
    eps: str,
    measures: tuple[Measure, ...],
    *,
    data: str = "cifar10",
    model: str = "preact-resnet18",
    entry: Row | None = None,
    recipe: str = "fast",
    **settings: Any,
) -> Cell:
    """A cell with the paper's training, for the method of its row or for `entry`, with further settings."""
    method, parameters = entry or ROWS[row]
    fixed = {"method.attack_mode": "train", "model.normalise": True, "data.validation": 0.1}
    return Cell(
        row, group, method, data, model, eps, recipe, measures, "linf", parameters, settings=fixed | settings
    )


def fast_table(
    name: str,
    number: int,
    title: str,
    cells: list[Cell],
    claims: list[Claim],
    *,
    notes: tuple[str, ...] = NOTES,
    seeds: int = 10,
    smoke_data: str = "digits",
    sources: dict[str, Cell] | None = None,
) -> PaperTable:
    """A table of the Fast-BAT paper."""
    return PaperTable(
        name, title, f"{PAPER}, Table {number}", tuple(cells), tuple(claims), narrow_20_epochs,
        NARROW_NOTE.format(epochs="the paper's 20 epochs"), smoke_data, sources or {}, seeds, notes,
    )  # fmt: skip
