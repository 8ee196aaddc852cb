"""Adversarial images on disk: as pictures, as arrays, and on one overview sheet."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from bivallate.evaluation.attacked_images import AttackedImages, in_8_bits
from bivallate.files import write_whole
from bivallate.quoting import file_name
from bivallate.reports.image_panel import change, class_label, panel
from bivallate.style import literally, styled

__all__ = ["sheet", "write"]

COLUMNS, MOST = 8, 64  # columns of the sheet, and most images on it
STRIPS = ("clean", "attacked", "change")


def write(made: AttackedImages, folder: Path, classes: Sequence[str]) -> None:
    """Write `sheet.png`, `adversarial.npz` and `images/` into a folder; replace those of an earlier call.

    Raises UserError if the folder cannot be written.
    """
    pictures = folder / "images"
    if pictures.is_dir() and not pictures.is_symlink():
        shutil.rmtree(pictures)
    for k, picture in enumerate(in_8_bits(made.x_adv).numpy()):
        image = Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0))
        true, taken_for = (_name(classes, label[k]) for label in (made.y, made.attacked_prediction))
        words = f"{int(made.index[k]):05d}-{true}-as-{taken_for}"
        write_whole(pictures / f"{file_name(words, 100)}.png", lambda to, i=image: i.save(to, "PNG"))
    arrays = {name: getattr(made, name).numpy() for name in ("x", "x_adv", "y", "index")}
    arrays |= {"predicted": made.attacked_prediction.numpy(), "classes": np.array([str(c) for c in classes])}

    def fill(place: Path) -> None:
        with place.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    write_whole(folder / "adversarial.npz", fill)
    with styled():
        drawn = sheet(made, classes)
        write_whole(folder / "sheet.png", lambda place: drawn.savefig(place, format="png"))


def sheet(made: AttackedImages, classes: Sequence[str]) -> Figure:
    """Draw each image clean, attacked, and the change between the two, for at most 64 images.

    The change is scaled so that the largest change of all images fills the scale. The predicted class is
    written above each image, in red if it is wrong.
    """
    count = min(len(made.y), MOST)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    cell, head, title = 0.85, 0.22, 0.45
    block = 3 * cell + 2 * head + 0.15
    width, height = 0.6 + columns * cell, title + rows * block
    figure = Figure((width, height), dpi=150)
    FigureCanvasAgg(figure)
    words = f"{made.attack}: {int(made.fooled.sum())} of {len(made.y)} images fool the model"
    figure.text(0.1 / width, 1 - 0.2 / height, words, fontsize=9, weight="bold", va="center")
    largest = float((made.x_adv - made.x).abs().max()) or 1.0
    for k in range(count):
        top = height - title - (k // columns) * block
        left = 0.55 + (k % columns) * cell
        clean, attacked = made.x[k].numpy(), made.x_adv[k].numpy()
        images = (clean, attacked, change(clean, attacked, largest))
        said = (made.clean_prediction[k], made.attacked_prediction[k], None)
        for strip, (image, answer) in enumerate(zip(images, said, strict=True)):
            top -= cell + (head if answer is not None else 0.02)
            place = (left / width, top / height, 0.95 * cell / width, 0.95 * cell / height)
            panel(figure.add_axes(place), image)
            if k % columns == 0:
                at = (0.1 / width, (top + cell / 2) / height)
                figure.text(*at, STRIPS[strip], fontsize=6, va="center", rotation=90)
            if answer is not None:
                wrong = bool(answer != made.y[k])
                at = (left + cell / 2) / width, (top + cell) / height
                shown = {
                    "fontsize": 6,
                    "ha": "center",
                    "va": "bottom",
                    "color": "#C0392B" if wrong else "#222",
                }
                figure.text(*at, class_label(classes, answer), **shown)
    return literally(figure)


def _name(classes: Sequence[str], label: Any) -> str:
    return str(classes[int(label)]) if int(label) < len(classes) else str(int(label))
