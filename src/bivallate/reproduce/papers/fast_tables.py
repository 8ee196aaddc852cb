"""T-F1 to T-F6: the tables of Fast-BAT (Zhang et al., ICML 2022)."""

from __future__ import annotations

from dataclasses import replace

from bivallate.reproduce.cell import Cell, Measure
from bivallate.reproduce.paper_table import Claim, PaperTable, asked
from bivallate.reproduce.papers.fast_cells import (
    AA,
    COLLAPSE,
    EPS,
    LAST,
    NOT_THEIRS,
    NOTES,
    PGD_COLUMN,
    ROWS,
    SA,
    SECONDS,
    STEP_AT_16,
    Row,
    fast_cell,
    fast_table,
)
from bivallate.reproduce.scaling import NARROW_NOTE, narrow

__all__ = ["HARDWARE", "TABLES"]

HARDWARE = "one RTX 3090"  # of the paper; the catalogue puts it into its tables

EVERY = tuple(k / 20 for k in range(1, 20))  # fractions of the 20 epochs after which weights are kept


def _f1() -> PaperTable:
    measures = (SA, PGD_COLUMN, LAST, AA, SECONDS)
    drawn = ("FAST-AT", "FAST-AT-GA", "FAST-BAT")
    sets = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "Tiny-ImageNet": "tiny-imagenet"}
    cells = [
        fast_cell(row, f"{label} {radius}", eps, measures, data=data)
        for label, data in sets.items()
        for radius, eps in EPS.items()
        for row in ROWS
    ]
    cells = [  # the figures show the epochs of these
        cell.but(keep=EVERY) if cell.row in drawn and cell.group == "CIFAR-10 @8" else cell for cell in cells
    ]
    large = [f"{label} @16" for label in sets]
    claims = asked("overfitting", [Claim("FAST-BAT", "FAST-AT", LAST.column, g) for g in large])
    claims += [Claim("FAST-BAT", "FAST-AT", c, g) for g in large for c in ("PGD", "AA")]
    claims += [Claim("FAST-BAT", "FAST-AT", c, f"{label} @8") for label in sets for c in ("PGD", "AA")]
    claims += [Claim("FAST-BAT", "FAST-AT-GA", c) for c in ("PGD", "AA")]
    claims += [Claim("FAST-AT-GA", "FAST-AT", "PGD")]
    claims += [
        Claim("FAST-BAT", row, "SA", f"{label} @16") for label in sets for row in ("FAST-AT", "FAST-AT-GA")
    ]
    claims += [Claim("FAST-BAT", "N-FGSM", c, theirs=False) for c in ("PGD", "AA")]
    return fast_table(
        "T-F1", 1, "single-step methods at 8/255 and 16/255", cells, claims,
        notes=(*NOTES, STEP_AT_16, NOT_THEIRS, COLLAPSE),
    )  # fmt: skip


def _f2() -> PaperTable:
    measures = (
        Measure("SA", "clean", "pgd-50-10", "8/255"),  # clean accuracy is read from that evaluation's file
        *(Measure(f"PGD{radius}", "robust", "pgd-50-10", eps) for radius, eps in EPS.items()),
        *(Measure(f"AA{radius}", "robust", "autoattack", eps) for radius, eps in EPS.items()),
    )
    rows = ("FAST-AT", "FAST-AT-GA", "PGD-2-AT", "FAST-BAT")
    cells = [fast_cell(row, f"train {radius}", eps, measures) for radius, eps in EPS.items() for row in rows]
    claims = [
        Claim("FAST-BAT", row, f"{attack}{radius}")
        for row in rows[:3]
        for attack in ("PGD", "AA")
        for radius in EPS
    ]
    notes = (*NOTES, STEP_AT_16)
    return fast_table("T-F2", 2, "trained at one radius, attacked at two", cells, claims, notes=notes)


def _f3() -> PaperTable:
    rows = ("FAST-AT", "FAST-AT-GA", "PGD-2-AT", "FAST-BAT")
    models = {"PARN-50": "preact-resnet50", "WRN-16-8": "wrn-16-8"}
    cells = [
        fast_cell(row, f"{label} {radius}", eps, (SA, PGD_COLUMN, SECONDS), model=model)
        for label, model in models.items()
        for radius, eps in EPS.items()
        for row in rows
    ]
    claims = [Claim("FAST-BAT", row, "PGD") for row in rows[:3]]
    return fast_table("T-F3", 3, "larger networks", cells, claims, notes=(*NOTES, STEP_AT_16))


def _f4() -> PaperTable:
    rows = ("FAST-AT", "PGD-2-AT", "FAST-AT-GA", "FAST-BAT")
    models = {"PARN-18": "preact-resnet18", "PARN-50": "preact-resnet50", "WRN-16-8": "wrn-16-8"}
    measures = (
        Measure("RA-PGD", "robust", "pgd-20"),
        *(Measure(name, "robust", "pgd-20", source=name) for name in models),
    )
    cells = [fast_cell(row, "@8", "8/255", measures) for row in rows]
    sources = {
        label: fast_cell(label, "plain", "8/255", (), model=model, entry=("plain", {})).but(weights="last")
        for label, model in models.items()
    }
    claims = [Claim("FAST-BAT", row, name) for name in models for row in rows[:3]]
    notes = (
        *NOTES,
        "Transfer columns are the accuracy on examples made on plainly trained networks (PGD-20), with "
        "their last weights: the most robust epoch of plain training is one of its first.",
    )
    return fast_table(
        "T-F4", 4, "transfer from plainly trained networks", cells, claims, notes=notes, sources=sources
    )


def _f5() -> PaperTable:
    entries: dict[str, Row] = {
        "Hessian-free": ("fast-bat", {}),
        "Hessian-aware": ("fast-bat", {"curvature_steps": 5}),
    }
    cells = [
        fast_cell(row, radius, eps, (SA, PGD_COLUMN, SECONDS), entry=entry)
        for radius, eps in EPS.items()
        for row, entry in entries.items()
    ]
    claims = [
        Claim("Hessian-aware", "Hessian-free", "PGD", margin=0.01),
        Claim("Hessian-free", "Hessian-aware", "s/epoch", lower=True),
    ]
    notes = (*NOTES, "Five conjugate-gradient steps; the paper does not say how many it took.", STEP_AT_16)
    return fast_table("T-F5", 5, "Hessian-free and Hessian-aware", cells, claims, notes=notes)


def _f6() -> PaperTable:
    measures = (SA, Measure("RA-PGD", "robust", "pgd-50-10"))
    entries: dict[str, Row] = {
        "FAST-AT": ("fast-at", {}),
        "FAST-BAT": ("fast-bat", {"step_size": 3000 / 255}),
    }
    cells = [
        fast_cell(
            row, "RN-50 @2", "2/255", measures, data="imagenet", model="resnet50", entry=entry,
            recipe="imagenet", **{"model.stem": "imagenet"},
        )
        for row, entry in entries.items()
    ]  # fmt: skip
    notes = (
        *NOTES[:1],
        "The training is Wong et al.'s, as the paper says (recipe imagenet): 15 epochs, on images of "
        "128, then 224, then 288 pixels. At scale cpu the images have 28, 50 and 64 pixels, the minibatches "
        "128, 56 and 32 images, and the rate is a quarter.",
        "ResNet-50 has the stem for large images (7 x 7 with stride 2, then pooling), at scale cpu that for "
        "small ones.",
        "Scale cpu uses Tiny-ImageNet (the images that the data folder has). Scale smoke does too, or digits "
        "if there are none.",
        "The paper's text says that Fast-BAT gains 1.23 points; its table gives 1.21.",
    )
    found = fast_table(
        "T-F6", 6, "ImageNet", cells, [Claim("FAST-BAT", "FAST-AT", "RA-PGD")], notes=notes, seeds=1,
        smoke_data="tiny-imagenet",
    )  # fmt: skip
    note = NARROW_NOTE.format(epochs="the paper's 15 epochs")
    return replace(found, cpu=_on_tiny_imagenet, cpu_note=note)


def _on_tiny_imagenet(cell: Cell) -> Cell:
    """A cell of T-F6 at scale cpu: on images of 64 x 64, with the first layer for small images."""
    settings = {path: value for path, value in cell.settings.items() if path != "model.stem"}
    settings |= {"batch_size": 128, "optimizer.lr": 0.1}
    return narrow(cell.but(data="tiny-imagenet", settings=settings), 15)


TABLES = (_f1(), _f2(), _f3(), _f4(), _f5(), _f6())
