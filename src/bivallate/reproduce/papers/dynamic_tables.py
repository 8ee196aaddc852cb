"""T-Y1 to T-Y3: the tables of Dynamic adversarial training (Wang et al., ICML 2019)."""

from __future__ import annotations

from typing import Any

from bivallate.reproduce.cell import Cell, Measure
from bivallate.reproduce.paper_table import Claim, PaperTable, asked
from bivallate.reproduce.scaling import NARROW_NOTE, narrow

__all__ = ["HARDWARE", "TABLES"]

HARDWARE = ""  # the paper names none

PAPER = "Dynamic AT (Wang et al., ICML 2019)"
ATTACKS = {"FGSM": "fgsm", "PGD-10": "pgd-10", "PGD-20": "pgd-20", "C&W": "cw"}
WHITE = (
    Measure("Clean", "clean", "pgd-20"),
    *(Measure(column, "robust", attack) for column, attack in ATTACKS.items()),
    Measure("AA", "robust", "autoattack", n=1000),
    Measure("FOSC", "fosc", "pgd-10", n=1000),
    Measure("FOSC, ball", "fosc-ball", "pgd-10", n=1000),
    Measure("s/epoch", "seconds"),
)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Unsecured": ("plain", {}),
    "Standard": ("at", {}),
    "Curriculum": ("curriculum", {}),
    "Dynamic": ("dynamic", {}),
    "Madry's": ("at", {"steps": 7}),
}
FIXED = {"method.attack_mode": "eval", "data.validation": 0.0, "model.normalise": False}
STAGES = (10 / 120, 60 / 120, 90 / 120, 100 / 120)  # epochs whose weights are kept, for figures of FOSC
MADRYS = {  # its public code: 80,000 minibatches, drops after 40,000 and 60,000, batch statistics
    **FIXED, "method.attack_mode": "train", "optimizer.lr": 0.1, "optimizer.weight_decay": 2e-4,
    "rate.at": (0.5, 0.75),
}  # fmt: skip
MNIST = {**FIXED, "rate.at": (0.4, 0.8)}  # rate drops at 20 and 40 of 50 epochs
NOTES = (
    'FOSC is the mean over test points attacked by PGD-10; lower is better converged. Column "FOSC" is in '
    'the form of the ball within [0, 1], "FOSC, ball" in that of eq. 4, by which Dynamic AT stops. '
    "AutoAttack is not in the paper.",
    "The last weights are reported. At scale full nothing is held out; inputs are not normalised.",
    "The step of every attack is eps/4 (the paper: the same on MNIST, 2/255 on CIFAR-10).",
)


def _cell(
    row: str, group: str, data: str, model: str, eps: str, measures: tuple[Measure, ...], **parameters: Any
) -> Cell:
    method, known = ROWS[row]
    mnist = data == "mnist"
    return Cell(
        row, group, method, data, model, eps, "dynamic", measures, "linf", {**known, **parameters},
        epochs=50 if mnist else None, settings=MNIST if mnist else FIXED, weights="last",
    )  # fmt: skip


def _row(row: str, group: str, measures: tuple[Measure, ...]) -> Cell:
    if group == "MNIST":
        return _cell(row, group, "mnist", "mnist-net", "0.3", measures, **_until(row))
    return _cell(row, group, "cifar10", "small-cnn", "8/255", measures)


def _until(row: str) -> dict[str, Any]:
    """Parameters on MNIST: T' is 40 of 50 epochs."""
    return {"until": 0.8} if row in ("Dynamic", "Curriculum") else {}


def _small(cell: Cell) -> Cell | None:
    """The cell at scale cpu: MNIST with the paper's network for five epochs, or CIFAR-10 narrowed."""
    return cell.but(epochs=5) if cell.data == "mnist" else narrow(cell)


SMALL_NOTE = (
    "MNIST: the paper's network and all images, 5 epochs of the paper's 50 with T' and the rate's drops in "
    "proportion, AutoAttack on 1,000 random points. CIFAR-10: "
    + NARROW_NOTE.format(epochs="10 epochs of the paper's 120")
)
MADRYS_EPOCHS = 205


def _y1() -> PaperTable:
    rows = ("Unsecured", "Standard", "Curriculum", "Dynamic")
    cells = [_row(row, group, WHITE).but(keep=STAGES) for group in ("MNIST", "CIFAR-10") for row in rows]
    robust = tuple(ATTACKS)
    claims = [Claim("Dynamic", other, column) for other in ("Standard", "Curriculum") for column in robust]
    lower = [Claim("Dynamic", "Standard", column, lower=True) for column in ("FOSC, ball", "FOSC")]
    claims += asked("fosc", lower)
    claims += [Claim("Dynamic", "Standard", "AA", theirs=False)]
    return PaperTable(
        "T-Y1",
        "white-box attacks",
        f"{PAPER}, Table 1",
        tuple(cells),
        tuple(claims),
        _small,
        SMALL_NOTE,
        notes=NOTES,
    )


def _y2() -> PaperTable:
    measures = tuple(
        Measure(column, "robust", attack, source="Standard") for column, attack in ATTACKS.items()
    )
    rows = ("Standard", "Curriculum", "Dynamic")
    cells: list[Cell] = []
    sources: dict[str, Cell] = {}
    for group in ("MNIST", "CIFAR-10"):
        mine = tuple(Measure(m.column, m.what, m.attack, source=f"Standard {group}") for m in measures)
        cells += [_row(row, group, mine) for row in rows]
        model = "mnist-net" if group == "MNIST" else "resnet50"
        sources[f"Standard {group}"] = _row("Standard", group, ()).but(model=model)
    claims = [Claim("Dynamic", other, column) for other in rows[:2] for column in ATTACKS]
    notes = (
        *NOTES[1:],
        "Examples are made on a separately trained Standard network (another seed): the same architecture on "
        "MNIST, ResNet-50 on CIFAR-10 (at scale cpu with a quarter of its channels, for ten epochs).",
    )
    return PaperTable(
        "T-Y2", "black-box attacks", f"{PAPER}, Table 2", tuple(cells), tuple(claims), _small, SMALL_NOTE,
        sources=sources, notes=notes,
    )  # fmt: skip


def _y3() -> PaperTable:
    measures = tuple(m for m in WHITE if m.column != "PGD-10" and not m.what.startswith("fosc"))
    rows = ("Madry's", "Curriculum", "Dynamic")
    cells = [_cell(row, "CIFAR-10 WRN", "cifar10", "wrn-34-10", "8/255", measures) for row in rows]
    cells[0] = cells[0].but(epochs=MADRYS_EPOCHS, settings=MADRYS)
    claims = [Claim("Dynamic", other, column) for other in rows[:2] for column in ("FGSM", "PGD-20", "C&W")]
    notes = (
        *NOTES,
        "The paper says WideResNet, 10 times wider: WRN-34-10 is used.",
        f"The row of Madry et al. is trained as theirs: PGD-7 with steps of 2/255, {MADRYS_EPOCHS} epochs "
        "(their 80,000 minibatches) at 0.1, a tenth and a hundredth of it from 1/2 and 3/4 on, weight decay "
        "2e-4, batch statistics in the attack. The others are trained as in the paper's other CIFAR-10 "
        'table, while the paper has all of them "using the same settings as Madry et al.": so "Dynamic '
        "above Madry's\" compares recipes here, not methods alone.",
    )
    epochs = f"10 epochs of the paper's 120 (Madry's row: of {MADRYS_EPOCHS})"
    return PaperTable(
        "T-Y3",
        "WideResNet on CIFAR-10",
        f"{PAPER}, Table 3",
        tuple(cells),
        tuple(claims),
        _small,
        NARROW_NOTE.format(epochs=epochs),
        notes=notes,
    )


TABLES = (_y1(), _y2(), _y3())
