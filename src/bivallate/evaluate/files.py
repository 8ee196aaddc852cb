"""Arrays as text, and files that are either whole or not there."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

__all__ = ["evaluation_name", "pack", "unpack"]


def pack(values: Tensor) -> dict[str, Any]:
    """A tensor as its type, shape and compressed little-endian bytes."""
    array = values.detach().cpu().contiguous().numpy()
    array = array.astype(array.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(array.tobytes(), 6)).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "zlib": data}


def unpack(entry: dict[str, Any]) -> Tensor:
    """The inverse of `pack`. Raises ValueError for damaged text."""
    try:
        raw = zlib.decompress(base64.b64decode(entry["zlib"]))
    except zlib.error as error:
        raise ValueError(f"a column is damaged: {error}") from error
    array = np.frombuffer(raw, np.dtype(entry["dtype"]).newbyteorder("<")).reshape(entry["shape"])
    return torch.from_numpy(array.astype(entry["dtype"]))


def evaluation_name(
    weights: str, threat: Any, attack: str, seed: int, points: str = "", data: str = ""
) -> str:
    """File name that no other evaluation of the same run has.

    Args:
        points: which of them (n500, first500), if not all. data: name of another set than the run's own; it
            is quoted, so that no name of a set can be taken for a seed or for a number of points.

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
