"""An evaluation's identity, and the name of its file: a label, read for files of the first schema alone."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote

__all__ = ["Identity", "evaluation_name"]


@dataclass(frozen=True)
class Identity:
    """The run and weights that were attacked, and the points; the rest of the identity is in the `Score`.

    Attributes:
        run: id of the run, sixteen digits (of configuration, data and architecture); empty if unknown.
        weights: best, last, ema or epoch-N; for a checkpoint of another project the stem of its file; empty
            if unknown.
        split: test, validation or train; empty if unknown.
        data: name of another data set than the run's; empty for the run's.
        data_set: fingerprint of the data set that has the split; empty if unknown.
        n, first: size of a seeded random subset, or number of leading points; all points if both are None.
        split_fingerprint: of the split that was given in Python, whose name is not known then; else empty.
    """

    run: str = ""
    weights: str = "best"
    split: str = "test"
    data: str = ""
    data_set: str = ""
    n: int | None = None
    first: int | None = None
    split_fingerprint: str = ""

    @property
    def known(self) -> bool:
        """Whether it names the weights and the split; that of an evaluation in Python does not.

        In a run's folder its fingerprints say them, see `reports.stored_evaluations`.
        """
        return bool(self.weights and self.split)

    @property
    def label(self) -> str:
        """Weights and split, as the file name has them."""
        return self.weights if self.split == "test" else f"{self.weights}-{self.split}"

    @property
    def subset_label(self) -> str:
        """The chosen points, as the file name has them; empty for all points."""
        return f"n{self.n}" if self.n is not None else f"first{self.first}" if self.first is not None else ""

    @property
    def options(self) -> list[str]:
        """The options of a command that choose these points."""
        if self.n is not None:
            return ["--n", str(self.n)]
        return [] if self.first is None else ["--first", str(self.first)]

    def file_name(self, threat: Any, attack: str, seed: int, precision: str = "float32") -> str:
        """The file name of such an evaluation; precision: of the search."""
        points = "-".join(filter(None, [self.subset_label, precision if precision != "float32" else ""]))
        return evaluation_name(self.label, threat, attack, seed, points, self.data)

    def to_json(self) -> dict[str, Any]:
        """The identity as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, entry: dict[str, Any] | None) -> Identity | None:
        """The inverse of `to_json`; None gives None. Keys of later versions are ignored."""
        return (
            None if entry is None else cls(**{f.name: entry[f.name] for f in fields(cls) if f.name in entry})
        )


def evaluation_name(
    weights: str, threat: Any, attack: str, seed: int, points: str = "", data: str = ""
) -> str:
    """A file name that no other evaluation of the same run has.

    Args:
        points: the chosen points (n500, first500), if not all, and the precision of a search that was not in
            float32.
        data: name of another data set than the run's; it is quoted, so that it cannot be mistaken for a seed
            or a number of points.

    Long names end with a hash.

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
    """Cut a name to `limit` characters; a cut name ends with a hash of the full one."""
    if len(name) <= limit:
        return name
    mark = hashlib.blake2b(full.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{name[: limit - len(mark) - 1]}_{mark}"
