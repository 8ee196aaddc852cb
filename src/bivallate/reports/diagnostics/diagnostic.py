"""The result of a diagnostic: numbers, a figure of them, and files of both."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bivallate.errors import UserError
from bivallate.files import make_folder, write_text, write_whole
from bivallate.style import literally, styled
from bivallate.style import save as save_figure

KINDS = ("svg", "png", "pdf")
SUFFIXES = (".svg", ".png", ".pdf", ".json", ".npz")


class Diagnostic(ABC):
    """A result that can be saved as data and as a figure."""

    @abstractmethod
    def data(self) -> dict[str, Any]:
        """All numbers of the figure; long ones as NumPy arrays."""

    @abstractmethod
    def draw(self) -> Figure:
        """Draw the figure; called with the package's style in force."""

    def figure(self) -> Figure:
        """Draw the figure in the package's style."""
        with styled():
            return literally(self.draw())

    def save(self, stem: str | Path, kinds: tuple[str, ...] = KINDS) -> Path:
        """Write the data as stem.npz (if it holds arrays) or stem.json, and the figure in each format.

        If `stem` ends in the suffix of one of these files, the suffix is dropped. Returns the path of the
        first figure.
        """
        place = stem_of(stem)
        try:
            make_folder(place.parent)
        except OSError as error:
            raise UserError(f"cannot write to {place.parent}: {error.strerror or error}") from error
        write_data(place, self.data())
        with styled():
            return save_figure(self.figure(), place, kinds)


def stem_of(path: str | Path) -> Path:
    """The path without the suffix of a figure or data file.

    Example:
        >>> [stem_of(name).name for name in ("at.svg", "at", "eps0.1")]
        ['at', 'at', 'eps0.1']
    """
    place = Path(path)
    return place.with_suffix("") if place.suffix in SUFFIXES else place


def write_data(stem: Path, data: dict[str, Any]) -> Path:
    """Write the data as stem.npz if it holds arrays, else as stem.json; return the path.

    Numbers within dictionaries become arrays of their own, with their keys behind one another as the name, so
    that a file has nothing that only unpickling could read.
    """
    if not any(isinstance(value, np.ndarray) for value in data.values()):
        path = stem.with_name(f"{stem.name}.json")
        write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
        return path
    path = stem.with_name(f"{stem.name}.npz")
    arrays = dict(_named_arrays(data))

    def write(place: Path) -> None:
        with place.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    write_whole(path, write)
    return path


def _named_arrays(data: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _named_arrays(value, f"{before}{name} ")
            continue
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError(f"{before}{name} cannot be an array: {value!r}")
        yield f"{before}{name}", array
