"""The audits in a run's folder, read for reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import WrittenIdentity
from bivallate.evaluation.evaluation_identity import Identity
from bivallate.evaluation.older_files import identity_from_name
from bivallate.files import json_files
from bivallate.lower.threat import threat
from bivallate.reports.stored_evaluations import RunFingerprints
from bivallate.schema import MEGABYTE, check_fits, read_json

MOST = 10 * MEGABYTE  # bytes of a file that can be an audit
FAMILY = "bivallate-audit-"  # with it the schema of every version begins


@dataclass(frozen=True)
class StoredAudit:
    """The content of an audit's file.

    Attributes:
        weights, split: the weights and the split that were audited.
        verdict, meaning: the result in a word, and a sentence that explains it.
        threat, n, level: threat, number of points, and level of the attacks.
        claimed, claim: the robust accuracy that was examined, and where it comes from.
        worst, interval_95: accuracy after all attacks, and its 95 % interval.
        against: (check, finding, advice) for each check that speaks against the model.
        stale: whether the run's weights have changed since.
        path: the file.
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


def read_audits(run: Path, fingerprints: RunFingerprints) -> tuple[StoredAudit, ...]:
    """Read the audits in RUN/audit that were made on the run's own data.

    Raises:
        UserError: a file is damaged.
    """
    found = (_read(path, fingerprints) for path in json_files(run / "audit"))
    return tuple(audit for audit in found if audit is not None)


def _read(path: Path, fingerprints: RunFingerprints) -> StoredAudit | None:
    """Read one file; None if the audit is of another run or other data, or the file is not an audit."""
    entry = read_json(path, "audit", Any, MOST)
    if not isinstance(entry, dict) or not str(entry.get("schema")).startswith(FAMILY):
        return None
    try:
        low, high = (float(bound) for bound in entry["worst_interval_95"])
        identity = _identity(entry, path.name)
        if identity is None or identity.data:
            return None
        stale, foreign = fingerprints.stale_or_foreign(identity, str(entry["model_fingerprint"]))
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
        raise UserError(f"{path} is not a readable audit: {error}") from error


def _identity(entry: dict[str, Any], name: str) -> Identity | None:
    """The identity that an audit states; that of its file's name if it is older than the entry for it."""
    if "identity" not in entry:
        return identity_from_name(name)
    given = entry["identity"]
    return None if given is None else Identity.of(check_fits(WrittenIdentity, given, "identity"))
