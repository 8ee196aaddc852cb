"""What an audit says: checks with their numbers, and the verdict that follows from them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bivallate.evaluation.evaluation_identity import Identity
from bivallate.files import write_json

__all__ = ["VERDICTS", "Audit", "AuditProgress", "Check"]

SCHEMA = "bivallate-audit-1"
Outcome = Literal["pass", "note", "flag", "broken", "skipped"]
VERDICTS = {
    "believable": "no attack here did better than it should have, and the accuracy holds",
    "weak but honest": "little accuracy survives, and every attack says so",
    "suspect": "something hides this model from its attacks: its accuracy under attack proves nothing yet",
    "not robust as claimed": "an attack here takes far more than the claim admits",
}
LIMIT = 0.05  # gap between the headline and the strongest attack that is worth a flag
WEAK = 0.25  # of the clean accuracy, below which nothing much is left


@dataclass(frozen=True)
class Check:
    """One question to the model.

    Attributes:
        name: for programs. question: what was measured. outcome: "pass", "note", "flag" (makes the model
            suspect), "broken" (refutes the claim) or "skipped".
        numbers: by name; accuracies and gaps are fractions in [0, 1], intervals are 95 % pairs.
        finding: the answer in words. advice: what to do; empty where there is nothing to do.
    """

    name: str
    question: str
    outcome: Outcome
    numbers: dict[str, Any]
    finding: str
    advice: str = ""


class CostEstimate(NamedTuple):
    """What the attacks of an audit are likely to take."""

    passes: float
    seconds: float


@dataclass(frozen=True)
class AuditProgress:
    """How far an audit is, for whoever shows it.

    Attributes:
        attack: what runs now. fraction: of the passes that are likely. passes, seconds: spent so far.
        likely: seconds of all attacks, by what was measured before them; None where nothing was.
    """

    attack: str
    fraction: float
    passes: int
    seconds: float
    likely: float | None = None

    @property
    def title(self) -> str:
        """What runs now."""
        return f"audit / {self.attack}"

    @property
    def numbers(self) -> str:
        """What was spent."""
        return f"{self.passes:,} passes"

    @property
    def seconds_left(self) -> float | None:
        """At the present pace, which counts fully after a fifth; None where neither it nor an outlook is."""
        if not self.fraction:
            return self.likely
        at_this_pace = self.seconds / self.fraction
        trust = 1.0 if self.likely is None else min(1.0, 5 * self.fraction)
        return (1 - self.fraction) * (trust * at_this_pace + (1 - trust) * (self.likely or 0.0))


@dataclass(frozen=True, repr=False)
class Audit:
    """The evidence on one model.

    Attributes:
        checks: every question asked. accuracy: fraction left after each attack, by its name.
        clean, worst: accuracy before any attack, and after all of them together; with 95 % intervals.
        claimed: the accuracy under attack that is held against `worst`, and where it comes from.
        n, seed, threat, classes: of the points and radii. plan: what was going to be spent. passes, seconds:
            what was. identity: which run's weights and split; None for a model that is of no run.
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
        if any(check.name == "learned" and check.outcome == "note" for check in self.checks):
            return "weak but honest"  # what has learned nothing has nothing to hide
        if "flag" in outcomes:
            return "suspect"
        guesses = self.classes > 1 and self.clean_interval_95[0] <= 1 / self.classes
        return "weak but honest" if guesses or self.worst < WEAK * self.clean else "believable"

    @property
    def accused(self) -> bool:
        """Whether the verdict speaks against the model's honesty."""
        return self.verdict in ("suspect", "not robust as claimed")

    @property
    def evidence(self) -> tuple[Check, ...]:
        """The checks that speak against the model."""
        return tuple(c for c in self.checks if c.outcome in ("flag", "broken"))

    def named(self, name: str) -> Check:
        """The check of that name."""
        return next(check for check in self.checks if check.name == name)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        entry = asdict(self)
        entry["threat"] = {"kind": type(self.threat).__name__, "eps": self.threat.eps}
        return {"schema": SCHEMA, "verdict": self.verdict, "meaning": VERDICTS[self.verdict], **entry}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON, whole or not at all."""
        write_json(Path(path), self.to_json())

    def __str__(self) -> str:
        lines = [f"verdict: {self.verdict} ({VERDICTS[self.verdict]})"]
        low, high = self.worst_interval_95
        lines.append(
            f"clean {self.clean:.1%}, after all attacks {self.worst:.1%} [{low:.1%}, {high:.1%}], "
            f"claimed {self.claimed:.1%} ({self.claim}); {self.n} points"
        )
        lines += [f"  {c.outcome:<8}{c.name}: {c.finding}" for c in self.checks]
        lines += [f"  do: {c.advice}" for c in self.evidence if c.advice]
        return "\n".join(lines)
