"""The result of an audit: checks with their numbers, and the verdict that follows from them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bivallate.evaluation.evaluation_identity import Identity
from bivallate.files import write_json

__all__ = ["VERDICTS", "Audit", "AuditProgress", "Check"]

SCHEMA = "bivallate-audit-1"
LEARNED = "learned"  # name of the check that the verdict "weak but honest" follows from
Outcome = Literal["pass", "note", "flag", "broken", "skipped"]
VERDICTS = {
    "believable": "no attack here did better than it should have, and the accuracy holds",
    "weak but honest": "little accuracy survives, and every attack says so",
    "suspect": "something hides this model from its attacks: its accuracy under attack proves nothing yet",
    "not robust as claimed": "an attack here takes far more than the claim admits",
}
GAP_FLAG = 0.05  # a larger gap between the claim and the strongest attack is worth a flag
WEAK_SHARE = 0.25  # a model that keeps a smaller share of its clean accuracy is weak


@dataclass(frozen=True)
class Check:
    """One check of an audit.

    Attributes:
        name: an identifier.
        question: what was tested, as a question.
        outcome: "pass", "note", "flag" (the model is suspect), "broken" (the claim is refuted) or "skipped".
        numbers: name -> value; accuracies and gaps are fractions in [0, 1], intervals are 95 % pairs.
        finding: the answer in words.
        advice: what to do; empty if there is nothing to do.
    """

    name: str
    question: str
    outcome: Outcome
    numbers: dict[str, Any]
    finding: str
    advice: str = ""


class CostEstimate(NamedTuple):
    """The estimated cost of the attacks of an audit, in passes and in seconds."""

    passes: float
    seconds: float


@dataclass(frozen=True)
class AuditProgress:
    """The progress of an audit, as its callback receives it.

    Attributes:
        attack: name of the attack that begins.
        fraction: passes spent over those expected, in [0, 1].
        passes: spent so far.
        seconds: spent so far.
        estimated_seconds: of all attacks, estimated before the first; None without an estimate.
    """

    attack: str
    fraction: float
    passes: int
    seconds: float
    estimated_seconds: float | None = None

    @property
    def title(self) -> str:
        """The heading of a progress display: "audit / ATTACK"."""
        return f"audit / {self.attack}"

    @property
    def numbers(self) -> str:
        """The passes spent so far, in words."""
        return f"{self.passes:,} passes"

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds that remain; None before the first pass if there was no estimate.

        The estimate made before the audit is blended with the pace so far, which counts alone once a fifth
        of the passes is done.
        """
        if not self.fraction:
            return self.estimated_seconds
        at_this_pace = self.seconds / self.fraction
        trust = 1.0 if self.estimated_seconds is None else min(1.0, 5 * self.fraction)
        return (1 - self.fraction) * (trust * at_this_pace + (1 - trust) * (self.estimated_seconds or 0.0))


@dataclass(frozen=True, repr=False)
class Audit:
    """The evidence on one model.

    Attributes:
        checks: all checks, that of the claim first.
        accuracy: name of an attack -> accuracy after it alone, in [0, 1].
        clean: accuracy without an attack.
        clean_interval_95: its 95 % interval.
        worst: accuracy after all attacks together.
        worst_interval_95: its 95 % interval.
        claimed: the robust accuracy that is compared with `worst`.
        claim: where `claimed` comes from.
        n: number of points.
        seed: of the choice of points and of the attacks.
        threat: norm and radius.
        plan: strength and largest cost, as plain data.
        passes: spent.
        seconds: spent.
        data_fingerprint: digest of the points.
        model_fingerprint: digest of the model.
        classes: number of classes of the model.
        identity: which run's weights and split; None for a model that belongs to no run.
    """

    checks: tuple[Check, ...]
    accuracy: dict[str, float]
    clean: float
    clean_interval_95: tuple[float, float]
    worst: float
    worst_interval_95: tuple[float, float]
    claimed: float
    claim: str
    n: int
    seed: int
    threat: Any
    plan: dict[str, Any]
    passes: int
    seconds: float
    data_fingerprint: str
    model_fingerprint: str
    classes: int = 0
    identity: Identity | None = None

    def __repr__(self) -> str:
        low, high = self.worst_interval_95
        return (
            f"<Audit on {self.n} points: {self.verdict}; clean {self.clean:.1%}, after all attacks "
            f"{self.worst:.1%} [{low:.1%}, {high:.1%}]>"
        )

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        outcomes = {check.outcome for check in self.checks}
        if "broken" in outcomes:
            return "not robust as claimed"
        if any(check.name == LEARNED and check.outcome == "note" for check in self.checks):
            return "weak but honest"  # gradients of a model at chance level hide no robustness
        if "flag" in outcomes:
            return "suspect"
        at_chance = self.classes > 1 and self.clean_interval_95[0] <= 1 / self.classes
        return "weak but honest" if at_chance or self.worst < WEAK_SHARE * self.clean else "believable"

    @property
    def is_suspicious(self) -> bool:
        """Whether the verdict is "suspect" or "not robust as claimed"."""
        return self.verdict in ("suspect", "not robust as claimed")

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        """The checks whose outcome is "flag" or "broken"."""
        return tuple(c for c in self.checks if c.outcome in ("flag", "broken"))

    def named(self, name: str) -> Check:
        """The check of that name. Raises StopIteration if there is none."""
        return next(check for check in self.checks if check.name == name)

    def to_json(self) -> dict[str, Any]:
        """All fields, the verdict and its meaning as plain data."""
        entry = asdict(self)
        entry["threat"] = {"kind": type(self.threat).__name__, "eps": self.threat.eps}
        return {"schema": SCHEMA, "verdict": self.verdict, "meaning": VERDICTS[self.verdict], **entry}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON; the file appears whole or not at all."""
        write_json(Path(path), self.to_json())

    def __str__(self) -> str:
        lines = [f"verdict: {self.verdict} ({VERDICTS[self.verdict]})"]
        low, high = self.worst_interval_95
        lines.append(
            f"clean {self.clean:.1%}, after all attacks {self.worst:.1%} [{low:.1%}, {high:.1%}], "
            f"claimed {self.claimed:.1%} ({self.claim}); {self.n} points"
        )
        lines += [f"  {c.outcome:<8}{c.name}: {c.finding}" for c in self.checks]
        lines += [f"  do: {c.advice}" for c in self.failed_checks if c.advice]
        return "\n".join(lines)
