"""A contact sheet of near-duplicates, to check them by eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from bivallate.data.dataset import Dataset
from bivallate.data.duplicates import Duplicate
from bivallate.files import write_whole
from bivallate.quoting import line
from bivallate.style import literally, styled

__all__ = ["caption", "pairs_sheet"]

COLUMNS, MOST = 6, 90  # pairs in a row, and in all
CELL, GAP, HEAD = 0.6, 0.25, 0.45  # inches


def pairs_sheet(dataset: Dataset, pairs: Sequence[Duplicate], path: str | Path) -> Path:
    """Draw up to 90 pairs, the most similar first, as PNG, SVG or PDF; test images are on the left."""
    shown = list(pairs)[:MOST]
    rows = max(1, -(-len(shown) // COLUMNS))
    width, height = COLUMNS * (2 * CELL + GAP) + 0.2, HEAD + rows * (CELL + GAP) + 0.1
    figure = Figure((width, height), dpi=150)
    FigureCanvasAgg(figure)
    title = f"{dataset.name}: {len(pairs):,} test images (left) with near-duplicates in the training data"
    title += f", the first {len(shown)}" if len(shown) < len(pairs) else ""
    figure.text(0.1 / width, 1 - 0.25 / height, line(title, 110), fontsize=8, weight="bold", va="center")
    for k, pair in enumerate(shown):
        left, top = 0.1 + (k % COLUMNS) * (2 * CELL + GAP), HEAD + (k // COLUMNS) * (CELL + GAP) + GAP
        text = caption(pair, dataset.classes)
        figure.text(left / width, 1 - (top - 0.03) / height, text, fontsize=4.5, va="bottom")
        sides = dataset.test.tensors([pair.test])[0][0], dataset.train.tensors([pair.train])[0][0]
        for j, image in enumerate(sides):
            size = 0.96 * CELL / width, 0.96 * CELL / height
            _draw(figure, image, ((left + j * CELL) / width, 1 - (top + CELL) / height, *size))
    with styled():
        write_whole(Path(path), literally(figure).savefig)
    return Path(path)


def _draw(figure: Figure, image: Tensor, place: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(place)
    axes.set_axis_off()
    grey = len(image) == 1
    picture = (image[0] if grey else image.permute(1, 2, 0)).numpy()
    axes.imshow(picture, cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest")


def caption(pair: Duplicate, classes: Sequence[str]) -> str:
    """The caption of a pair: rows, similarity, and the class, or both classes if they differ."""
    one, other = (line(classes[label], 12) for label in pair.labels)
    names = one if one == other else f"{one} / {other}"
    return f"{pair.test} | {'extra ' if pair.extra else ''}{pair.train}  {pair.alike:.2f}  {names}"
