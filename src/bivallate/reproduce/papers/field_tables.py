"""T-S1 and T-C1: single-step and class-wise methods of several papers, trained with one recipe each."""

from __future__ import annotations

from bivallate.reproduce.cell import Cell, Measure
from bivallate.reproduce.paper_table import Claim, PaperTable, asked
from bivallate.reproduce.papers.done_tables import EVAL, TRAIN
from bivallate.reproduce.papers.fast_cells import (
    AA,
    COLLAPSE,
    EPS,
    LAST,
    PGD_COLUMN,
    SA,
    SECONDS,
    Row,
    fast_cell,
)
from bivallate.reproduce.papers.fast_cells import ROWS as FAST
from bivallate.reproduce.scaling import NARROW_NOTE, narrow_20_epochs

__all__ = ["HARDWARE", "TABLES"]

HARDWARE = ""
WORST = Measure("AA worst class", "worst", "autoattack")
LOSS = 0.005  # mean AutoAttack accuracy that a method may lose to gain on its worst class

SINGLE: dict[str, Row] = {
    **FAST,
    "FGSM-AT": ("fgsm-at", {}),
    "FGSM-PGI": ("fgsm-pgi", {}),
    "LIET": ("liet", {}),
    "NuAT": ("nuat", {}),
    "GAT": ("gat", {}),
    "ELLE": ("elle", {}),
    "AAER": ("aaer", {}),
    "SORA": ("sora", {}),
    "Backward smoothing": ("backward-smoothing", {}),
    "PGD-AT": ("at", {}),
}
OTHERS_AT_16: dict[str, Row] = {  # where a paper or its public code states other values for 16/255
    "LIET": ("liet", {"weight": 20.0, "smoothing": 0.4, "least": 0.0, "most": 1.0}),
    "AAER": ("aaer", {"loss_weight": 8.5, "variation_weight": 1.5}),
}
ALONE = ("PGD-2-AT", "PGD-AT")  # attacks of several steps, for comparison
PUBLISHED = ("NuAT", "LIET", "FGSM-PGI")


def _single() -> PaperTable:
    measures = (SA, PGD_COLUMN, LAST, AA, WORST, SECONDS)
    cells = []
    for at, eps in EPS.items():
        rows = SINGLE | (OTHERS_AT_16 if at == "@16" else {})
        cells += [fast_cell(row, f"CIFAR-10 {at}", eps, measures, entry=entry) for row, entry in rows.items()]
    steady = [row for row in SINGLE if row not in ("FAST-AT", "FGSM-AT", *ALONE)]
    claims = asked(
        "single step", [Claim(row, "FAST-AT", LAST.column, "CIFAR-10 @16", theirs=False) for row in steady]
    )
    claims += [Claim(row, "N-FGSM", "AA", "CIFAR-10 @8") for row in PUBLISHED]
    claims += [Claim("N-FGSM", "ELLE", "AA", "CIFAR-10 @8"), Claim("PGD-AT", "NuAT", "AA", "CIFAR-10 @8")]
    claims += [Claim("FAST-BAT", row, "AA", theirs=False) for row in PUBLISHED]
    notes = (
        "The published figures are the FastAT benchmark's (2026): ResNet-18, 100 epochs, averaged weights. "
        "Here all methods have the recipe of T-F1, whose records this table shares: PreActResNet-18, "
        "20 epochs, no averages.",
        "A tenth of the training images is held out, and the epoch that is most robust there is reported.",
        "Methods have the catalogue's parameters; LIET and AAER at 16/255 those that are published for it.",
        COLLAPSE,
    )
    return PaperTable(
        "T-S1", "single-step methods of several papers on CIFAR-10", "FastAT benchmark (2026)", tuple(cells),
        tuple(claims), narrow_20_epochs, NARROW_NOTE.format(epochs="20 epochs"), seeds=3, notes=notes,
    )  # fmt: skip


FAIR = {
    "AT": ("at", EVAL),
    "TRADES": ("trades", EVAL),
    "MAIL": ("mail-at", EVAL),
    "DONE-ADAM": ("done-adam", TRAIN),
    "FAAL": ("faal", EVAL),
    "CFOL": ("cfol", EVAL),
    "CFA": ("cfa", TRAIN),
    "WAT": ("wat", EVAL),
    "DAFA": ("dafa", EVAL),
}
BASES = {
    "MAIL": "AT",
    "DONE-ADAM": "AT",
    "FAAL": "AT",
    "CFOL": "AT",
    "CFA": "AT",
    "WAT": "TRADES",
    "DAFA": "TRADES",
}


def _fair() -> PaperTable:
    of_best = [
        Measure(f"{m.column}, best", m.what, m.attack, weights="best")
        for m in (Measure("RA-AA", "robust", "autoattack"), WORST)
    ]
    measures = (
        Measure("SA", "clean", "pgd-20"),
        Measure("RA-PGD", "robust", "pgd-20"),
        Measure("RA-AA", "robust", "autoattack"),
        WORST,
        Measure("AA Tail-30", "tail", "autoattack"),
        *of_best,
        SECONDS,
    )
    cells = [
        Cell(
            row, "balanced", method, "cifar10", "resnet18", "8/255", "done", measures,
            settings={**settings, "data.imbalance": "none"}, weights="last",
        )
        for row, (method, settings) in FAIR.items()
    ]  # fmt: skip
    lifts = [Claim(row, base, WORST.column, theirs=False) for row, base in BASES.items()]
    lifts += [Claim(row, base, "RA-AA", margin=LOSS, theirs=False) for row, base in BASES.items()]
    notes = (
        "All methods have the recipe of T-D1, whose records this table shares, and the catalogue's "
        "parameters. Their papers train longer, and FAAL mends a trained network in two epochs: no published "
        "figures stand here.",
        "The last epoch's weights are reported, and beside them those of the epoch that was most robust in "
        "the mean on a held-out tenth of the training images.",
        "A worst class of 1,000 test images has about 100 of them: its interval is some 16 points wide.",
    )
    return PaperTable(
        "T-C1", "class-wise methods on CIFAR-10", "methods of several papers, compared here", tuple(cells),
        tuple(asked("fair", lifts)), narrow_20_epochs,
        NARROW_NOTE.format(epochs="20 epochs of the recipe's 60"),
        seeds=3, notes=notes,
    )  # fmt: skip


TABLES = (_single(), _fair())
