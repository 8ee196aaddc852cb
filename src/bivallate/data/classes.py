"""Match the classes of two data sets by their names, never by position."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bivallate.errors import UserError, nearest

__all__ = ["check_distinct", "class_notes", "numbered", "numbered_from_one", "positions", "unknown_class"]


def positions(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """For each name its position among the known ones, -1 if it is not known.

    Names that differ only in case, spaces, underscores, hyphens, leading zeros or Unicode form count as equal
    if the match is unambiguous.

    Example:
        >>> positions(["Dog", "cow", "cat"], ["cat", "dog"])
        [1, -1, 0]
    """
    if list(names) == list(known):
        return list(range(len(known)))
    exact = {name: k for k, name in enumerate(known)}
    plain = _unique([_plain(name) for name in known])
    own = _unique([_plain(name) for name in names])
    found = [exact.get(n, plain.get(_plain(n), -1) if _plain(n) in own else -1) for n in names]
    doubled = {
        k for k, count in Counter(found).items() if count > 1
    }  # two names for one class: leave it open
    return [exact.get(n, -1) if k in doubled else k for n, k in zip(names, found, strict=True)]


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold().strip()
    text = re.sub(r"[\s_]+|(?<=\w)-(?=\w)", "", text)
    return text.lstrip("0") or "0" if text.isdecimal() else text


def _unique(names: list[str]) -> dict[str, int]:
    counts = Counter(names)
    return {name: k for k, name in enumerate(names) if counts[name] == 1}


def check_distinct(names: Sequence[str], where: str) -> None:
    """Raise UserError if two classes have the same name."""
    for name, count in Counter(names).items():
        if count > 1:
            labels = ", ".join(str(k) for k, other in enumerate(names) if other == name)
            raise UserError(
                f"{where} calls {count} classes {name!r} (labels {labels}): rename them, or give "
                "their rows one label"
            )


def class_notes(names: Sequence[str]) -> list[str]:
    """Notes for the user about a data set's classes: a single class, or names that are nearly equal.

    Example:
        >>> class_notes(["Cat", "cat", "dog"])
        ["the classes 'Cat', 'cat' differ in case, spaces or the like alone: are they one?"]
    """
    if len(names) == 1:
        return [f"there is one class, {names[0]!r}: nothing to tell apart"]
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_plain(name), []).append(name)
    doubles = [", ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    return [f"the classes {same} differ in case, spaces or the like alone: are they one?" for same in doubles]


def numbered(names: Sequence[str]) -> bool:
    """Whether the names are the numbers of the labels."""
    return list(names) == [str(k) for k in range(len(names))]


def numbered_from_one(labels: np.ndarray, classes: int) -> str:
    """The end of a message if labels are numbered from 1, else ""; `classes` is 0 if it is not known."""
    known = labels[labels >= 0]
    if not len(known) or int(known.min()) != 1 or (classes and int(known.max()) != classes):
        return ""
    return f": the labels are numbered from 1 to {int(known.max())}; subtract 1 from each"


def unknown_class(where: str, name: str, known: Sequence[str], whose: str) -> UserError:
    """The error for a class that the other data set does not have; it names the nearest one."""
    close = nearest(name, known)
    hint = f" (did you mean {close!r}?)" if close else ""
    some = ", ".join(map(repr, known[:10])) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    return UserError(f"{where} has the class {name!r}, which {whose} not{hint}: {some}")
