"""Image folders: one folder per class (class/image.png), with or without train/ and test/ above them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bivallate.data.classes import positions, unknown_class
from bivallate.data.decode import Encoded, Item, Reading
from bivallate.data.layout import IMAGES, Folder, SkippedFiles, is_split_alone, readable, split_of
from bivallate.errors import UserError

__all__ = ["TABLE", "FolderPart", "find_folders", "has_classes"]

TABLE = "put a table labels.csv with the columns file_name,label beside them"

PICTURES = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".raw", ".cr2", ".nef", ".arw", ".psd", ".svg"}
WRAPPERS = {"images", "image", "imgs", "data", "dataset"}  # folders between a split and its classes
KINDS = {*WRAPPERS, "labels", "annotations", "masks", "jpegimages"}  # folders of data sets for detection
UNLABELLED = {"unknown", "unlabeled", "unlabelled", *WRAPPERS}
PARTS = re.compile(r"(fold|part|batch|chunk|shard)s?[-_ ]*\d+$", re.IGNORECASE)
ROWS = 256


def find_folders(root: Folder, left: SkippedFiles) -> dict[str, FolderPart]:
    """Split -> its folder: by the folders' names, else the folder itself as training data; {} without images.

    Raises:
        UserError: the folder could be read in two ways, or nothing gives the labels.
    """
    return {split: FolderPart(_classes_of(folder, left)) for split, folder in _divided(root, left).items()}


def _divided(root: Folder, left: SkippedFiles) -> dict[str, Folder]:
    named = [folder for folder in root.filled if split_of(folder.name)]
    deep = [folder for folder in named if not _flat(folder)]
    others = [folder for folder in root.filled if folder not in named]
    if not named:
        if len(others) == 1 and not _flat(others[0]) and not _own(root):
            _leave_rest(root, left)
            return _divided(others[0], left)  # a single folder is no class but wraps the data set
        _check_below(root)
        _check_parts(root)
        return {"train": root} if others else {}
    if not deep:
        return _among_classes(root, named, others, left)
    if others:
        _check_others(root, deep, others)
    for folder in others:
        left("folders beside those of the splits", folder.path)
    found: dict[str, Folder] = {}
    for folder in named:
        split = split_of(folder.name)
        assert split is not None
        if folder not in deep:
            left("folders without class folders, so without labels", folder.path)
        elif split in found:
            raise UserError(
                f"{_where(root)}: {found[split].name}/ and {folder.name}/ are both {split} data: join them, "
                "or keep one"
            )
        else:
            found[split] = _unwrapped(folder, split)
    _leave_rest(root, left)
    return found


def _leave_rest(root: Folder, left: SkippedFiles) -> None:
    """Note what lies beside the folders with images."""
    left.files(root.files)
    for folder in root.folders:
        if not folder.has_images:
            left("folders without images", folder.path)


def has_classes(root: Folder) -> bool:
    """Whether the names of folders are the labels.

    They are not if all images lie in one folder, in parts of one set, or directly in folders of splits.
    """
    named = [folder for folder in root.filled if _says_split(folder.name)]
    others = [folder for folder in root.filled if folder not in named]
    if named:
        return any(not _flat(folder) for folder in named) or not all(map(_says_nothing, others))
    if len(others) == 1:
        return not _flat(root) and has_classes(others[0])
    together = all(PARTS.search(folder.name) for folder in others) or all(map(_says_nothing, others))
    return not together


def _says_split(name: str) -> bool:
    try:
        return is_split_alone(name)
    except UserError:
        return True


def _says_nothing(folder: Folder) -> bool:
    return folder.name.lower() in {*KINDS, *UNLABELLED}


def _flat(folder: Folder) -> bool:
    """Whether a folder has no class folders.

    Its images then lie directly in it, or in one folder whose name is no class: test/test, test/unknown.
    """
    if not folder.filled:
        return True
    inner = folder.filled[0]
    says = inner.name.lower() in {*UNLABELLED, folder.name.lower()} or is_split_alone(inner.name)
    return len(folder.filled) == 1 and says and _flat(inner)


def _own(folder: Folder) -> list[Path]:
    """The images directly in a folder."""
    return [path for path in folder.files if path.suffix.lower() in IMAGES]


def _where(folder: Folder) -> str:
    return readable(folder.path)


def _among_classes(
    root: Folder, named: list[Folder], others: list[Folder], left: SkippedFiles
) -> dict[str, Folder]:
    """Take folders with a split's name but without class folders as classes, if that is unambiguous."""
    alone = [folder.name for folder in named if is_split_alone(folder.name)]
    listed = ", ".join(f"{folder.name}/" for folder in named)
    if not others and alone:
        raise UserError(
            f"{_where(root)}: {listed} hold images without class folders, so nothing says their labels: put "
            f"each class into a folder of its own, train/cat/1.jpg, or {TABLE}"
        )
    if len({split_of(name) for name in alone}) > 1:
        raise UserError(
            f"{_where(root)}: are {listed} splits or classes? They hold images without class folders and "
            f"stand beside {_some(others)}: move away what is no class, or rename them"
        )
    if alone:
        left.says(f"{alone[0]}/ is taken as a class, for it has no class folders and stands beside others")
    return {"train": root}


def _check_others(root: Folder, deep: list[Folder], others: list[Folder]) -> None:
    """Raise UserError unless the named folders can only be splits."""
    kinds = {split_of(folder.name) for folder in deep}
    alone = all(is_split_alone(folder.name) for folder in deep)
    if len(kinds) > 1 and (alone or all(map(_flat, others))):
        return
    names = ", ".join(f"{folder.name}/" for folder in deep)
    raise UserError(
        f"{_where(root)}: is {names} a split or a class? It stands beside {_some(others)}: keep only splits "
        "beside it (train/ and test/, classes below them), or rename it"
    )


def _some(folders: list[Folder]) -> str:
    more = ", ..." if len(folders) > 3 else ""
    return ", ".join(f"{readable(folder.name)}/" for folder in folders[:3]) + more


def _check_below(root: Folder) -> None:
    """Raise UserError if splits lie below the classes: cat/train, cat/test."""
    for folder in root.filled:
        kinds = {split_of(child.name) for child in folder.filled if is_split_alone(child.name)}
        if len(kinds) > 1:
            inner = ", ".join(f"{folder.name}/{child.name}/" for child in folder.filled)
            raise UserError(
                f"{_where(root)} has its splits below the classes ({inner}): put train/ and test/ above "
                "them, train/cat/1.jpg"
            )


def _check_parts(root: Folder) -> None:
    """Raise UserError if all folders have the names of parts of one set: fold1, fold2."""
    if len(root.filled) > 1 and all(PARTS.search(folder.name) for folder in root.filled):
        raise UserError(
            f"{_where(root)}: are {_some(root.filled)} classes or parts of one set? Join parts below the "
            "folders of the classes; rename them if they are classes"
        )


def _unwrapped(folder: Folder, split: str) -> Folder:
    """The folder that holds the classes, below wrappers such as seg_train/seg_train or train/images."""
    if len(folder.filled) != 1 or _own(folder):
        return folder
    inner = folder.filled[0]
    wraps = inner.name.lower() in {*WRAPPERS, folder.name.lower()} or (
        is_split_alone(inner.name) and split_of(inner.name) == split
    )
    return _unwrapped(inner, split) if wraps and inner.filled else folder


def _classes_of(folder: Folder, left: SkippedFiles) -> Folder:
    """The folder with only its class folders; everything else in it is noted as left out."""
    kept: list[Folder] = []
    for child in folder.folders:
        files = list(child.walk())
        if not child.has_images and files and not any(map(_picture, files)):
            left("folders without images", child.path)
            continue
        kept.append(child)
        left.files([path for path in files if path.suffix.lower() not in IMAGES])
    if kept and all(child.name.lower() in KINDS for child in kept):
        raise UserError(
            f"{_where(folder)} has no class folders but {_some(kept)}, as sets for detection have: put the "
            "images of each class into a folder of its own, train/cat/1.jpg"
        )
    for path in _own(folder):
        left("images outside of the class folders", path)
    left.files([path for path in folder.files if path.suffix.lower() not in IMAGES])
    below = sorted({readable(inner.name) for child in kept for inner in child.filled})
    if below:
        left.says(f"the classes are {_some(kept)}; folders below them do not count: {', '.join(below[:5])}")
    return Folder(folder.path, tuple(kept))


def _picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES or not path.suffix


@dataclass(frozen=True)
class FolderPart:
    """The images of one split, one folder for each class."""

    folder: Folder

    @property
    def files(self) -> list[Path]:
        """In the order of the rows."""
        return self.folder.images

    def key(self) -> tuple[str, ...]:
        """What determines the labels besides the files: the folders' names."""
        return tuple(readable(child.name) for child in self.folder.folders)

    def read(self, reading: Reading, classes: list[str] | None) -> Encoded:
        """The encoded images; classes are the folders' names in order, or must be among the given ones."""
        where, own = readable(self.folder.path), [readable(child.name) for child in self.folder.folders]
        names = classes or own
        number = positions(own, names)
        labels: list[int] = []
        for name, label, child in zip(own, number, self.folder.folders, strict=True):
            if label < 0 and child.has_images:
                raise unknown_class(where, name, names, "the training data has")
            labels += [label] * len(child.images)
        if not labels:
            raise UserError(f"{where} holds no images: expected class/image.png or Parquet files")
        return Encoded(where, np.array(labels, np.int64), names, Files(self.folder.path, self.files))


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
        return f"row {row} ({readable(self.files[row].relative_to(self.folder))})"
