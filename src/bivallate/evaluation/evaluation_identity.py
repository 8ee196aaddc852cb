"""An evaluation's identity, and the name of its file, which is read only where the file holds none."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote

__all__ = ["Identity", "evaluation_name"]


@dataclass(frozen=True)
class Identity:
    """Which run's weights were attacked on which points; what else tells an evaluation is in its `Score`.

    Attributes:
        run: the run's own sixteen digits (of its configuration, data and architecture); empty if not known.
        weights: best, last, ema or epoch-N; of a checkpoint of another project its file's stem.
        split: test, validation or train. data: name of another set than the run's own; empty for its own.
        data_set: fingerprint of the set that the split was cut from; empty if not known.
        n, first: a seeded random subset of so many points, or the leading ones; None for both: all.
    """

    run: str = ""
    weights: str = "best"
    split: str = "test"
    data: str = ""
    data_set: str = ""
    n: int | None = None
    first: int | None = None

    @property
    def label(self) -> str:
        """The weights and the split as part of a file's name."""
        return self.weights if self.split == "test" else f"{self.weights}-{self.split}"

    @property
    def points(self) -> str:
        """Which of the points were taken, as part of a file's name; empty for all of them."""
        return f"n{self.n}" if self.n is not None else f"first{self.first}" if self.first is not None else ""

    @property
    def options(self) -> list[str]:
        """The words of a command that choose these points."""
        if self.n is not None:
            return ["--n", str(self.n)]
        return [] if self.first is None else ["--first", str(self.first)]

    def file_name(self, threat: Any, attack: str, seed: int, precision: str = "float32") -> str:
        """What the file of such an evaluation is called; precision: of the search."""
        points = "-".join(filter(None, [self.points, precision if precision != "float32" else ""]))
        return evaluation_name(self.label, threat, attack, seed, points, self.data)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def of(cls, entry: dict[str, Any] | None) -> Identity | None:
        """The inverse of `to_json`; None for nothing. Keys of later versions are passed over."""
        return None if entry is None else cls(**{f.name: entry[f.name] for f in fields(cls)})


def evaluation_name(
    weights: str, threat: Any, attack: str, seed: int, points: str = "", data: str = ""
) -> str:
    """File name that no other evaluation of the same run has.

    Args:
        points: which of them (n500, first500), if not all; after it the format of a search that was not in
            float32.
        data: name of another set than the run's own; it is quoted, so that no name of a set can be taken for
            a seed or for a number of points.

    Long names end in a hash.

    Example:
        >>> from bivallate.lower.threat import Linf
        >>> evaluation_name("best", Linf(8 / 255), "pgd-20", 0)
        'best-linf-0.0313725-pgd-20-seed0.json'
    """
    kind = type(threat).__name__.lower()
    attack = _short(re.sub(r"[^A-Za-z0-9._-]+", "_", attack), attack, 100)
    other = (
        f"on_{_short(quote(data, safe='', errors='surrogatepass').replace('-', '%2D'), data, 60)}"
        if data
        else ""
    )
    start = [weights, kind, f"{threat.eps:.6g}", attack, f"seed{seed}", other, points]
    return "-".join(filter(None, start)) + ".json"


def _short(name: str, full: str, limit: int) -> str:
    """At most so many letters; where some are left out, a hash of the full name tells it from others."""
    if len(name) <= limit:
        return name
    mark = hashlib.blake2b(full.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{name[: limit - len(mark) - 1]}_{mark}"
