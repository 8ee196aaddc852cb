"""Arrays as text, and files that are either whole or not there."""

from __future__ import annotations

import base64
import re
import zlib
from typing import Any

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


def evaluation_name(weights: str, threat: Any, attack: str, seed: int, points: str = "") -> str:
    """File name that no other evaluation of the same run has; `points` says which, if not all of the test
    set.

    Example:
        >>> from bivallate.lower.threat import Linf
        >>> evaluation_name("best", Linf(8 / 255), "pgd-20", 0)
        'best-linf-0.0313725-pgd-20-seed0.json'
    """
    kind = type(threat).__name__.lower()
    name = "-".join(filter(None, [weights, kind, f"{threat.eps:.6g}", attack, f"seed{seed}", points]))
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name) + ".json"
