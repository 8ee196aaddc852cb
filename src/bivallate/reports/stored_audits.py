"""The audits that a run keeps, as a report shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import WrittenIdentity
from bivallate.evaluation.evaluation_identity import Identity
from bivallate.evaluation.older_files import identity_from_name
from bivallate.lower.threat import threat
from bivallate.reports.stored_evaluations import Fit
from bivallate.schema import MEGABYTE, check, read_json

MOST = 10 * MEGABYTE  # bytes of a file that can be an audit


@dataclass(frozen=True)
class StoredAudit:
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


def read_audits(run: Path, fit: Fit) -> tuple[StoredAudit, ...]:
    """Those in RUN/audit that are of the run's own data.

    Raises:
        UserError: a file is damaged.
    """
    found = (_read(path, fit) for path in sorted((run / "audit").glob("*.json")))
    return tuple(audit for audit in found if audit is not None)


def _read(path: Path, fit: Fit) -> StoredAudit | None:
    """None for another run's, or for a file that says of nothing what it is."""
    named = identity_from_name(path.name)
    try:
        entry = read_json(path, "audit", dict[str, Any], MOST)
        low, high = (float(bound) for bound in entry["worst_interval_95"])
        given = entry.get("identity")
        identity = named if given is None else Identity.of(check(WrittenIdentity, given, "identity"))
        if identity is None or identity.data:
            return None
        stale, foreign = fit.mismatch(identity, str(entry["model_fingerprint"]))
        return (
            None
            if foreign
            else StoredAudit(
                identity.weights,
                identity.split,
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
                stale,
                path,
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        if named is None:  # somebody else's file
            return None
        raise UserError(f"{path} is not a readable audit: {error}") from error
