"""A contact sheet: some images of each class of a data set."""

from __future__ import annotations

from pathlib import Path

import torch

from bivallate.data.dataset import Dataset, Split
from bivallate.files import write_whole
from bivallate.noise import permutation
from bivallate.quoting import line

__all__ = ["contact_sheet"]

MOST_CLASSES = 50
LETTERS = 30  # of a class name that are shown


def contact_sheet(dataset: Dataset, path: str | Path, columns: int = 10, seed: int = 0) -> Path:
    """Draw `columns` images of each of the first 50 classes, with the classes' names, as PNG, SVG or PDF.

    The images are chosen by the seed from the training data, else the test data. Returns the path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from bivallate.style import literally, styled

    split = dataset.train if len(dataset.train) else dataset.test
    names = dataset.classes[:MOST_CLASSES]
    longest = min(LETTERS, max(map(len, names)))
    left = min(2.6, 0.25 + 0.085 * longest)
    cell, head = 0.55, 0.55
    width, height = left + columns * cell + 0.1, head + len(names) * cell + 0.1
    figure = Figure((width, height), dpi=150)
    FigureCanvasAgg(figure)
    c, h, w = dataset.shape
    more = (
        f", first {len(names)} of {len(dataset.classes)} classes" if len(names) < len(dataset.classes) else ""
    )
    title = f"{dataset.name}: {len(split):,} images of {w}x{h}{more}"
    figure.text(0.1 / width, 1 - 0.3 / height, title, fontsize=9, weight="bold", va="center")
    for k, name in enumerate(names):
        bottom = height - head - (k + 1) * cell
        figure.text(
            (left - 0.1) / width,
            (bottom + cell / 2) / height,
            line(name, LETTERS),
            fontsize=7,
            ha="right",
            va="center",
        )
        for column, image in enumerate(_images(split, k, columns, seed)):
            place = (left + column * cell) / width, bottom / height, 0.94 * cell / width, 0.94 * cell / height
            axes = figure.add_axes(place)
            picture = image[0] if c == 1 else image.permute(1, 2, 0)
            axes.imshow(
                picture.numpy(), cmap="gray" if c == 1 else None, vmin=0, vmax=1, interpolation="nearest"
            )
            axes.set_axis_off()
    with styled():
        return _save(literally(figure), Path(path))


def _images(split: Split, label: int, count: int, seed: int) -> torch.Tensor:
    members = (split.labels == label).nonzero()[:, 0]
    chosen = members[permutation(seed, "contact sheet", 0, len(members))[:count]]
    return split.tensors(chosen)[0]


def _save(figure: object, path: Path) -> Path:
    write_whole(path, figure.savefig)  # pyright: ignore[reportAttributeAccessIssue]
    return path
