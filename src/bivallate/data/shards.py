"""Parquet files in the hub's layout: find the split of each, and check that all are there, each once."""

from __future__ import annotations

import filecmp
import re
from itertools import combinations
from pathlib import Path

from bivallate.data import layout
from bivallate.data.layout import Folder, SkippedFiles, readable
from bivallate.errors import UserError

__all__ = ["find_shards", "is_parquet", "split_of"]

SHARD = re.compile(r"(?P<stem>.+?)-(?P<part>\d{5})-of-(?P<parts>\d{5})(-[0-9a-f]+)?\.parquet$")


def is_parquet(path: Path) -> bool:
    """Whether a file is a Parquet file, by its suffix."""
    return path.suffix.lower() == ".parquet"


def find_shards(root: Folder, left: SkippedFiles) -> dict[str, list[Path]]:
    """The Parquet files below a folder, by split; all shards must be there, and each once.

    The split is a word of the file's name (train-00000-of-00002.parquet, X-test.parquet), else of the nearest
    folder above it that names one. If no file has a split, all are training data.

    Raises:
        UserError: a missing or repeated shard, or several data sets; the message names them.
    """
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    for path in (path for path in root.walk() if is_parquet(path)):
        split = split_of(path.relative_to(root.path))
        (found.setdefault(split, []) if split else others).append(path)
    if not found and others:
        found, others = {"train": others}, []
    for path in others:
        left("Parquet files of no split", path)
    for paths in found.values():
        places = sorted({readable(path.parent.relative_to(root.path)) for path in paths})
        if len(places) > 1:
            raise UserError(
                f"{readable(root.path)} holds several data sets: name one of {', '.join(places)} below it"
            )
        _check_shards(paths)
    _check_copies([path for paths in found.values() for path in paths])
    return found


def split_of(path: Path) -> str | None:
    """The split of a file, by its name or that of a folder above it; None if there is none."""
    stem = SHARD.sub(r"\g<stem>", path.name).removesuffix(".parquet")
    return next(
        (kind for name in (stem, *reversed(path.parent.parts)) if (kind := layout.split_of(name))), None
    )


def _check_shards(paths: list[Path]) -> None:
    """Raise UserError unless the files, of one folder and split, are one complete set of shards."""
    groups: dict[tuple[str, int], dict[int, Path]] = {}
    for path in paths:
        if match := SHARD.match(path.name):
            own = groups.setdefault((match["stem"], int(match["parts"])), {})
            if (part := int(match["part"])) in own:
                raise _side_by_side(own[part], path)
            own[part] = path
    folder = readable(paths[0].parent)
    for (stem, parts), present in groups.items():
        other = next((files for key, files in groups.items() if key[0] == stem and key[1] != parts), None)
        if other is not None:
            raise _side_by_side(*(next(iter(files.values())) for files in (present, other)))
        if (whole := paths[0].with_name(f"{stem}.parquet")) in paths:
            raise _side_by_side(whole, next(iter(present.values())))
        missing = [f"{stem}-{k:05d}-of-{parts:05d}.parquet" for k in range(parts) if k not in present]
        if missing:
            listed = ", ".join(missing[:5])
            raise UserError(f"{folder} lacks {len(missing)} of {parts} shards: {listed}; download them again")


def _side_by_side(first: Path, second: Path) -> UserError:
    return UserError(
        f"{readable(first.parent)} holds old and new files of the same rows side by side, {first.name} and "
        f"{second.name}: with both every image would be there twice; move one set away"
    )


def _check_copies(paths: list[Path]) -> None:
    """Raise UserError for two equal files, whose rows would be read twice."""
    sizes = {path: path.stat().st_size for path in paths if path.exists()}
    for first, second in combinations(sizes, 2):
        if sizes[first] == sizes[second] and filecmp.cmp(first, second, shallow=False):
            raise UserError(
                f"{readable(first)} and {readable(second)} are copies: with both every image would be there "
                "twice; move one away"
            )
