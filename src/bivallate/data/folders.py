"""Image folders: one folder per class (class/image.png), with or without train/ and test/ above them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bivallate.data.decode import Encoded, Item
from bivallate.data.parquet import SPLITS
from bivallate.errors import UserError

__all__ = ["find_folders", "folder_files", "read_folder"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"}
ROWS = 256


def find_folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits: train/, test/, val/ and the like, else the folder itself for training."""
    below = {child.name.lower(): child for child in _folders(folder)}
    found: dict[str, Path] = {}
    for name, child in below.items():
        if name in SPLITS and _folders(child):
            found.setdefault(SPLITS[name], child)
    if found:
        return found
    return {"train": folder} if any(folder_files(child) for child in below.values()) else {}


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def folder_files(folder: Path) -> list[Path]:
    """The images under one class, at any depth, in the order of their names."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def read_folder(folder: Path, classes: list[str] | None = None) -> tuple[Encoded, list[Path]]:
    """(images, files): the classes are the folders' names in order, or must be among the given ones."""
    names = classes or [child.name for child in _folders(folder)]
    number = {name: k for k, name in enumerate(names)}
    files: list[Path] = []
    labels: list[int] = []
    for child in _folders(folder):
        if child.name not in number:
            raise UserError(
                f"{folder} has the class {child.name!r}, which the training data has not: {', '.join(names)}"
            )
        inside = folder_files(child)
        files += inside
        labels += [number[child.name]] * len(inside)
    if not files:
        raise UserError(f"{folder} holds no images: expected class/image.png or Parquet files")

    return Encoded(str(folder), np.array(labels, np.int64), names, Files(folder, files)), files


@dataclass(frozen=True)
class Files:
    """Files as blocks of encoded images."""

    folder: Path
    files: list[Path]

    @property
    def sizes(self) -> list[int]:
        """Files in each block."""
        whole, rest = divmod(len(self.files), ROWS)
        return [ROWS] * whole + [rest] * (rest > 0)

    def read(self, block: int) -> list[Item]:
        """The files of one block."""
        return list(self.files[block * ROWS : (block + 1) * ROWS])

    def where(self, row: int) -> str:
        """The row and its file."""
        return f"row {row} ({self.files[row].relative_to(self.folder)})"
