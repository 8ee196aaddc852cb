"""Scan a folder, and read names: which ones name a split, and which are no data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bivallate.errors import UserError

__all__ = ["Folder", "SkippedFiles", "is_split_alone", "readable", "scan", "split_of"]

WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
GLUED = re.compile(rf"({'|'.join(WORDS)})(sets?|data|dir|images?|imgs?|split)")
BESIDE = {"set", "sets", "data", "dataset", "dir", "folder", "images", "image", "imgs", "img", "split", "x"}
SYSTEM = {
    *("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information"),
    *("lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"}
SHOWN = 5


def split_of(name: str) -> str | None:
    """The split in the name of a file or folder; None if it names none.

    A word counts anywhere between separators, digits or capitals.

    Raises:
        UserError: the name has two splits.

    Example:
        >>> [split_of(name) for name in ("X-train.parquet", "Testing", "seg_train", "val2017", "latest")]
        ['train', 'test', 'train', 'validation', None]
    """
    found = {kind for word in _words(name) if (kind := _kind(word))}
    if found == {"train", "validation"}:  # as in Pascal's trainval
        return "train"
    if len(found) > 1:
        raise UserError(
            f"{name!r} names two splits, {' and '.join(sorted(found))}: rename it, or move it away"
        )
    return next(iter(found), None)


def is_split_alone(name: str) -> bool:
    """Whether a name is a split and nothing else: training_set, not train_station."""
    return split_of(name) is not None and all(_kind(w) or w in BESIDE for w in _words(name))


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _kind(word: str) -> str | None:
    glued = GLUED.fullmatch(word)
    return WORDS.get(glued[1] if glued else word)


def readable(path: Path | str) -> str:
    r"""A path or name as text that can be stored and printed; bytes that are not UTF-8 become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass
class SkippedFiles:
    """Files and folders that are not read, for a note; call it with a kind ('.heic files') and a path."""

    root: Path
    found: dict[str, list[str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __call__(self, kind: str, path: Path) -> None:
        self.found.setdefault(kind, []).append(readable(path.relative_to(self.root)) or ".")

    def files(self, paths: Sequence[Path]) -> None:
        """Add files by their suffixes."""
        for path in paths:
            self(f"{path.suffix.lower()} files" if path.suffix else "files without a suffix", path)

    def says(self, note: str) -> None:
        """Add a note on how something was read."""
        self.said.append(note)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes on how names were read, then a line for each kind that was left out."""
        left = (f"left out, {kind}: {_listed(paths)}" for kind, paths in sorted(self.found.items()))
        return *self.said, *left


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"{len(paths):,} ({', '.join(paths[:SHOWN])}{more})"


@dataclass(frozen=True)
class Folder:
    """A folder as it was found.

    Attributes:
        path: of the folder.
        entries: names of files, and folders, in alphabetical order; without hidden ones, those of operating
            systems and repeated links.
    """

    path: Path
    entries: tuple[Folder | str, ...]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    @property
    def folders(self) -> list[Folder]:
        """The folders directly below."""
        return [entry for entry in self.entries if isinstance(entry, Folder)]

    @property
    def files(self) -> list[Path]:
        """The files directly below."""
        return [self.path / entry for entry in self.entries if isinstance(entry, str)]

    def walk(self) -> Iterator[Path]:
        """All files at any depth."""
        for entry in self.entries:
            if isinstance(entry, Folder):
                yield from entry.walk()
            else:
                yield self.path / entry

    @property
    def images(self) -> list[Path]:
        """The images at any depth, in the order of their paths."""
        return [path for path in self.walk() if path.suffix.lower() in IMAGES]

    @cached_property
    def has_images(self) -> bool:
        """Whether there is an image at any depth."""
        return any(path.suffix.lower() in IMAGES for path in self.walk())

    @property
    def filled(self) -> list[Folder]:
        """The folders directly below that hold images, at any depth."""
        return [folder for folder in self.folders if folder.has_images]


def scan(root: Path, left: SkippedFiles) -> Folder:
    """List everything below a folder, once.

    Links to folders elsewhere are followed, each folder once. Links to folders that are read anyway are not
    followed, because their images would be read twice.

    Raises:
        UserError: a folder that cannot be listed.
    """
    return _scan(root, left, os.path.realpath(root), set())


def _scan(path: Path, left: SkippedFiles, root: str, linked: set[str]) -> Folder:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise UserError(f"cannot list the folder {readable(path)}: {error.strerror}") from None
    entries: list[Folder | str] = []
    for name in names:
        child = path / name
        if name.startswith(".") or name.lower() in SYSTEM:
            left("hidden files and folders and those of systems", child)
        elif child.is_dir():
            if _followed(child, root, linked):
                entries.append(_scan(child, left, root, linked))
            else:
                left("linked folders that are read elsewhere", child)
        elif child.exists() and not child.is_file():
            left("pipes and devices", child)
        else:  # also a broken link, which is reported when it is read
            entries.append(name)
    return Folder(path, tuple(entries))


def _followed(folder: Path, root: str, linked: set[str]) -> bool:
    """Whether to enter a folder; of links only the first to each folder outside of the root."""
    if not folder.is_symlink():
        return True
    place = os.path.realpath(folder)
    nested = any(os.path.commonpath((place, other)) in (place, other) for other in (root, *linked))
    linked.add(place)
    return not nested
