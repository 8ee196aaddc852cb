"""The audits that a run keeps, as a report shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivallate.errors import UserError
from bivallate.lower.threat import threat

MOST = 10_000_000  # bytes of a file that can be an audit


@dataclass(frozen=True)
class Audited:
    """What an audit's file says.

    Attributes:
        weights, split: that were audited. verdict, meaning: in words. threat, n, level: how it was attacked.
        claimed, claim: the accuracy held against the evidence, and where it comes from.
        worst, interval_95: accuracy after all attacks.
        against: (check, finding, advice) of what speaks against the model.
        stale: the weights are no longer those that were audited. path: the file.
    """

    weights: str
    split: str
    verdict: str
    meaning: str
    threat: Any
    n: int
    level: str
    claimed: float
    claim: str
    worst: float
    interval_95: tuple[float, float]
    against: tuple[tuple[str, str, str], ...]
    stale: bool
    path: Path


def read_audits(run: Path, prints: Callable[[str], str | None]) -> tuple[Audited, ...]:
    """Those in RUN/audit.

    Args:
        prints: weights -> fingerprint of the run's model with them.

    Raises:
        UserError: a file is damaged.
    """
    return tuple(_read(path, prints) for path in sorted((run / "audit").glob("*-audit-*.json")))


def _read(path: Path, prints: Callable[[str], str | None]) -> Audited:
    label = path.name.split("-linf-")[0].split("-l2-")[0]
    weights, _, split = label.partition("-") if not label.startswith("epoch-") else (label, "", "")
    try:
        if path.stat().st_size > MOST:
            raise ValueError(f"it holds more than {MOST:,} bytes")
        entry = json.loads(path.read_text(encoding="utf-8"))
        low, high = (float(bound) for bound in entry["worst_interval_95"])
        kept = str(entry["model_fingerprint"])
        return Audited(
            weights,
            split or "test",
            str(entry["verdict"]),
            str(entry["meaning"]),
            threat(str(entry["threat"]["kind"]), float(entry["threat"]["eps"])),
            int(entry["n"]),
            str(entry["plan"]["level"]),
            float(entry["claimed"]),
            str(entry["claim"]),
            float(entry["worst"]),
            (low, high),
            tuple(
                (str(c["name"]), str(c["finding"]), str(c["advice"]))
                for c in entry["checks"]
                if c["outcome"] in ("flag", "broken")
            ),
            prints(weights) not in (None, kept),
            path,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(f"{path} is not a readable audit: {error}") from error
