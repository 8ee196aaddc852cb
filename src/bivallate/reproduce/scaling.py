"""The scales of a table: `full` is the paper's setting, `cpu` one for two cores, `smoke` one for tests."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bivallate.errors import unknown
from bivallate.from_text import parse_number
from bivallate.methods.entries import registry
from bivallate.reproduce.cell import Cell, Measure
from bivallate.reproduce.measuring import SHORT
from bivallate.reproduce.paper_table import SCALES, PaperTable, Scale

__all__ = ["NARROW_NOTE", "at_scale", "describe", "narrow", "quick", "smoke", "sources_at_scale"]

SMOKE_ROWS, SMOKE_POINTS, SMOKE_STEPS = 256, 20, 3
SHORTER = {
    "pgd-50-10": "pgd-5-2",
    "pgd-20": "pgd-5",
    "pgd-10": "pgd-3",
    "pgd-zero-20": "pgd-zero-3",
    "cw": "cw-3-1",
    "autoattack": SHORT,
}
PARTS_OF_TINY_IMAGENET = "tiny_imagenet_10"


def at_scale(table: PaperTable, scale: Scale) -> tuple[Cell, ...]:
    """The cells of a table at a scale. Raises UserError for an unknown scale."""
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale == "full":
        return table.cells
    names = _originals(table, scale)
    cells = (_shrunk(table, cell, scale) for cell in table.cells)
    return _distinct(_from_originals(cell, names) for cell in cells if cell is not None)


def sources_at_scale(table: PaperTable, scale: Scale) -> dict[str, Cell]:
    """The networks for transfer columns at a scale, by name."""
    if scale == "full":
        return table.sources
    originals = dict.fromkeys(_originals(table, scale).values())
    shrunk = {name: _shrunk(table, table.sources[name], scale) for name in originals}
    return {name: cell for name, cell in shrunk.items() if cell is not None}


def _shrunk(table: PaperTable, cell: Cell, scale: Scale) -> Cell | None:
    return smoke(cell, table.smoke_data) if scale == "smoke" else table.cpu(cell)


def _originals(table: PaperTable, scale: Scale) -> dict[str, str]:
    """Name of every source -> name of the first source that is the same network at this scale."""
    seen: dict[str, Cell] = {}
    found: dict[str, str] = {}
    for name, source in table.sources.items():
        cell = _shrunk(table, source, scale)
        if cell is not None:
            same = (n for n, other in seen.items() if cell.but(row=other.row, group=other.group) == other)
            found[name] = next(same, name)
            seen.setdefault(found[name], cell)
    return found


def _from_originals(cell: Cell, names: Mapping[str, str]) -> Cell:
    """Drop the transfer columns whose source this scale leaves out, or that would repeat another."""
    kept: dict[tuple[Any, ...], Measure] = {}
    for measure in cell.measures:
        if measure.source is None:
            kept[measure.column, measure.what, measure.key] = measure
        elif measure.source in names:
            chosen = dataclasses.replace(measure, source=names[measure.source])
            kept.setdefault((chosen.source, chosen.what, chosen.key), chosen)
    return cell.but(measures=tuple(kept.values()))


def smoke(cell: Cell, data: str = "digits") -> Cell:
    """The cell at scale smoke: one epoch of a tiny network on 256 images, and 20 attacked points.

    Every network becomes FC1 (tiny-CNN on colour images), and FC1 becomes linear. FC1 learns enough in eight
    minibatches for some points to be robust, which the tests need.
    """
    place = Path(os.environ.get("BIVALLATE_DATA", "")) / PARTS_OF_TINY_IMAGENET
    colour = data == "tiny-imagenet" and place.is_dir()
    settings = {path: value for path, value in cell.settings.items() if path != "model.stem"}
    settings |= {"batch_size": 32, "validation.rows": 20, "validation.steps": 2}
    settings |= {"data.validation": 0.1, "data.meta": 64, "phases": ()}
    steps = {"steps": SMOKE_STEPS} if registry()[cell.method].parameters.get("steps", 0) > SMOKE_STEPS else {}
    return cell.but(
        data=data if colour else "digits",
        model="tiny-cnn" if colour else ("linear" if cell.model == "fc1" else "fc1"),
        eps=_radius(cell.eps, cell.norm),
        parameters={**cell.parameters, **steps},
        epochs=1,
        rows=SMOKE_ROWS,
        settings=settings,
        measures=tuple(_shorter(measure) for measure in cell.measures),
    )


def _shorter(measure: Measure) -> Measure:
    attack = SHORTER.get(measure.attack, measure.attack)
    eps = None if measure.eps is None else _radius(measure.eps, "linf")
    return dataclasses.replace(measure, attack=attack, n=SMOKE_POINTS, eps=eps)


def _radius(eps: str, norm: str) -> str:
    """A radius for digits; the larger of two if the paper's radius is large."""
    large = parse_number(eps) > (9 / 255 if norm == "linf" else 0.3)
    return {"linf": ("0.1", "0.15"), "l2": ("0.3", "0.6")}[norm][large]


def _distinct(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Drop the cells that equal a cell of another group at this scale."""
    seen: list[Cell] = []
    for cell in cells:
        if not any(cell.but(group=other.group) == other for other in seen):
            seen.append(cell)
    return tuple(seen)


def narrow(cell: Cell, epochs: int = 10) -> Cell:
    """A cell of a CIFAR table at a size that two cores can train.

    It has the paper's network, recipe and images, with a quarter of the channels and fewer epochs.

    Methods whose attack uses only the signs of input gradients compute in bfloat16, if the machine has it,
    which halves the time of the attack (`benchmarks/bfloat16.py`); gradients of couplings stay float32. The
    others compute in float32 on a processor and in TensorFloat-32 on CUDA.
    """
    settings = {**cell.settings, "validation.rows": 500, "validation.steps": 10}
    settings |= {"model.width": 0.25, "data.validation": 0.1}
    return quick(cell.but(epochs=epochs, settings=settings))


def narrow_20_epochs(cell: Cell) -> Cell:
    """The cell as `narrow` makes it, for tables of papers with 20 epochs at scale cpu."""
    return narrow(cell, 20)


def quick(cell: Cell) -> Cell:
    """The cell with the fastest suitable precision, which does not change its definition.

    That is bfloat16, or TensorFloat-32 for methods whose attack uses the magnitudes of input gradients. A
    device without the precision computes in float32.
    """
    precision = "tf32" if cell.method.startswith(EXACT) else "bf16"
    return cell.but(settings={**cell.settings, "precision": precision, "channels_last": True})


EXACT = ("done-adam", "done-fast", "done-gd", "fast-bat")  # autocast leaves their input gradients in float32
NARROW_NOTE = (
    "The paper's networks with a quarter of their channels, also where examples are transferred from, "
    "{epochs} with milestones in proportion, bfloat16 where a method uses the signs of its attack's "
    "gradients alone and the processor has it, all test images of the data folder (CIFAR-10: 1,000)"
)


def describe(table: PaperTable, scale: Scale) -> str:
    """A text that explains a scale of a table."""
    plural = "s" if table.seeds > 1 else ""
    notes: Mapping[str, str] = {
        "smoke": f"{SMOKE_ROWS} images, one epoch, a tiny network, {SMOKE_POINTS} attacked points: this "
        "tests the path from training to table, and its figures mean nothing",
        "cpu": table.cpu_note + _held_out(at_scale(table, "cpu")),
        "full": "the paper's setting, with as much of each data set as the data folder holds; the paper's "
        f"figures are of {table.seeds} training{plural}",
    }
    return notes[scale]


def _held_out(cells: Iterable[Cell]) -> str:
    """What narrow cells do with the images that they hold out; empty if there are none such."""
    cells = [cell for cell in cells if "model.width" in cell.settings]
    own = {cell.weights for cell in cells}
    more = {measure.weights for cell in cells for measure in cell.measures} - {"", *own}
    if not own:
        return ""
    use = "chooses the best epoch" if "best" in own | more else "follows the training"
    elsewhere = f", in columns that say so of the {_named(more)} epoch" if more else ""
    return (
        ", a tenth of the training images held out, where PGD-10 on 500 of them "
        f"{use}; the weights reported are those of the {_named(own)} epoch{elsewhere}"
    )


def _named(weights: Iterable[str]) -> str:
    return " or ".join(sorted(weights))
