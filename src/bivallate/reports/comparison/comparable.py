"""Choose the stored evaluations by which several runs can be compared."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bivallate.errors import UserError, unknown
from bivallate.evaluation import attack_named
from bivallate.evaluation.threat_union import (
    SAME_RADIUS,
    ThreatUnion,
    members,
    radius,
    same_threat,
    spelt,
    union_of,
)
from bivallate.from_text import parse_number
from bivallate.lower.threat import CUSTOMARY, ThreatModel
from bivallate.lower.threat import threat as make
from bivallate.reports.collect import RunRecord
from bivallate.reports.stored_evaluations import Evaluation, within_union
from bivallate.reports.strength import strongest_first


class Kind(NamedTuple):
    """What makes evaluations comparable: the attack, and a threat or the union of several."""

    attack: str
    threat: Any

    def __str__(self) -> str:
        return f"{self.attack} at {radius(self.threat)}"


@dataclass(frozen=True)
class EvaluationFilter:
    """The evaluations that the user asks for; a field that is None allows every value.

    Attributes:
        weights, split: names of the weights and of the split.
        attack: name of the attack.
        norm: Linf, L2 or L1.
        eps: radius of the threat.
        threat: the threat, or the union of several.
        points: the points and the seed, as n and first of `Identity` and the seed of a `Score`.
    """

    weights: str
    split: str
    attack: str | None = None
    norm: str | None = None
    eps: float | None = None
    threat: Any = None
    points: tuple[int | None, int | None, int] | None = None

    @classmethod
    def of(
        cls,
        weights: str,
        split: str,
        attack: str | None,
        norm: str | None,
        eps: str | None,
        threats: Sequence[ThreatModel],
        known: set[str],
    ) -> EvaluationFilter:
        """Make a filter from the command line's texts; `known`: names of the attacks that the runs have.

        Raises UserError for an unknown attack or norm, for an eps that is not a number, and for threats
        beside a norm or an eps.
        """
        if threats and (norm, eps) != (None, None):
            raise UserError("threats have norms and radii; leave out norm and eps")
        if len(threats) > 1 and attack == "clean":
            raise UserError("clean is no attack, and the same within every threat: leave out the threats")
        if attack is not None and attack.startswith("transfer-") and attack not in known:
            if not known:
                raise UserError(f"no run has {attack}: `bivallate transfer RUN --from OTHER` makes one")
            raise unknown("stored attack", attack, known)
        name = attack if attack is None or attack in known else attack_named(attack).name
        kind = type(make(norm, 0.0)).__name__ if norm is not None else None
        size = parse_number(eps) if eps is not None else None
        return cls(weights, split, name, kind, size, union_of(threats) if threats else None)

    def fits(self, found: Evaluation) -> bool:
        """Whether an evaluation is one that the user asks for."""
        return (
            (found.weights, found.split, found.data) == (self.weights, self.split, "")  # of the run's own set
            and self.attack in (None, found.score.attack)
            and self._is_on_points(found)
            and self._allows(found.score.threat)
        )

    def _is_on_points(self, found: Evaluation) -> bool:
        parts = found.parts or (found,)
        return self.points is None or all(
            self.points == (e.identity.n, e.identity.first, e.score.seed) for e in parts
        )

    def _allows(self, threat: Any) -> bool:
        if self.threat is not None:
            return same_threat(self.threat, threat)
        if isinstance(threat, ThreatUnion):
            return self.norm is self.eps is None
        same_norm = self.norm in (None, type(threat).__name__)
        return same_norm and (self.eps is None or math.isclose(self.eps, threat.eps, rel_tol=SAME_RADIUS))

    def candidates(self, runs: Sequence[RunRecord]) -> list[list[Evaluation]]:
        """The evaluations of each run that the user asks for, also within all threats of a union.

        A union is that of the filter, or the threats of a run that was trained under several.
        """
        unions = [self.threat] if self.threat is not None else [run.home for run in runs]
        different = [
            u for k, u in enumerate(unions) if not any(same_threat(u, other) for other in unions[:k])
        ]
        joining = [union for union in different if isinstance(union, ThreatUnion)]
        found = [
            (*run.evaluations, *(e for union in joining for e in self._within(run, union))) for run in runs
        ]
        return [[e for e in some if self.fits(e)] for some in found]

    def _within(self, run: RunRecord, union: ThreatUnion) -> list[Evaluation]:
        """The evaluations of a run within a union; of the filter's points only those on them are joined."""
        if self.points is None:
            return run.within(union)
        return within_union([e for e in run.evaluations if self._is_on_points(e)], union)

    def __str__(self) -> str:
        where = " ".join(filter(None, [self.norm, f"{self.eps:.6g}" if self.eps is not None else None]))
        where = where if self.threat is None else radius(self.threat)
        parts = [f"of the {self.weights} weights on the {self.split} data"]
        parts += [f"by {self.attack}"] if self.attack else []
        return " ".join(parts + ([f"at {where}"] if where else []))


def kind_of(found: Evaluation) -> Kind:
    """Attack and threat of an evaluation."""
    return Kind(found.score.attack, found.score.threat)


def is_of_kind(kind: Kind, found: Evaluation) -> bool:
    """Whether an evaluation is of this kind; radii may differ by rounding."""
    return kind.attack == found.score.attack and same_threat(kind.threat, found.score.threat)


def choose(runs: Sequence[RunRecord], paths: Sequence[Path], wanted: EvaluationFilter) -> list[Evaluation]:
    """Choose one evaluation of each run, all by one attack in one threat, on the same points if possible.

    The threat may be a union of several. If the filter allows several choices, take the threat that most runs
    were trained for, and then the strongest evaluations (see `strongest_first`).

    Args:
        runs: the runs.
        paths: their folders as the user named them, for the commands in an error.
        wanted: the filter.

    Raises:
        UserError: a run has no such evaluation; the error says which command makes it.
    """
    fitting = wanted.candidates(runs)
    offers = []
    for kind in sorted({kind_of(e) for e in fitting[0]}, key=str):
        same = [[e for e in some if is_of_kind(kind, e)] for some in fitting]
        offers += [_pick(same)] if all(same) else []
    if not offers:
        raise _missing(runs, paths, fitting, wanted)
    most = max(_at_home(runs, offer) for offer in offers)
    offers = [offer for offer in offers if _at_home(runs, offer) == most]
    return offers[strongest_first(offers)[0]]


def _pick(candidates: Sequence[Sequence[Evaluation]]) -> list[Evaluation]:
    """Choose one candidate of each run, on the same points if possible.

    The largest set of shared points is taken, and if possible evaluations with the same seed. If no points
    are shared, each run's evaluation on most points is taken. Stale ones count only if a run has no other.
    """
    fresh = [[e for e in some if not e.stale] for some in candidates]
    candidates = fresh if all(fresh) else candidates
    shared = set.intersection(*({e.score.data_fingerprint for e in some} for some in candidates))
    if shared:
        found = {e.score.data_fingerprint: e.score.n for e in candidates[0]}
        best = max(shared, key=lambda key: (found[key], key))
        same = [[e for e in some if e.score.data_fingerprint == best] for some in candidates]
        seeds = set.intersection(*({e.score.seed for e in some} for some in same))
        if seeds:
            same = [[e for e in some if e.score.seed == max(seeds)] for some in same]
        return [_lowest(some) for some in same]
    most = [max(e.score.n for e in some) for some in candidates]
    return [_lowest([e for e in some if e.score.n == n]) for some, n in zip(candidates, most, strict=True)]


def _lowest(found: Iterable[Evaluation]) -> Evaluation:
    """The evaluation with the lowest robust accuracy; of equal ones one whose search was in float32."""
    return min(
        found,
        key=lambda e: (e.score.robust_accuracy, e.score.search_precision != "float32", e.path.name),
    )


def _at_home(runs: Sequence[RunRecord], offer: Sequence[Evaluation]) -> tuple[int, int]:
    """How many runs were trained under just the threat of these evaluations, and how many under others too.

    So the union of several leads where all were trained under it.
    """
    pairs = list(zip(runs, offer, strict=True))
    alone = sum(same_threat(run.home, e.score.threat) for run, e in pairs)
    return alone, sum(trained_for(run, e) for run, e in pairs)


def trained_for(run: RunRecord, evaluation: Evaluation) -> bool:
    """Whether the run was trained under the threat of the evaluation, or under each of a union."""
    own = run.config.method.threats
    return all(any(same_threat(one, mine) for mine in own) for one in members(evaluation.score.threat))


def _missing(
    runs: Sequence[RunRecord],
    paths: Sequence[Path],
    fitting: Sequence[Sequence[Evaluation]],
    wanted: EvaluationFilter,
) -> UserError:
    """The error that names the runs without a common evaluation, and the commands that make it."""
    example = _most_common(fitting)
    kind = kind_of(example) if example is not None else None
    lines, lacking = [], []
    for run, path, some in zip(runs, paths, fitting, strict=True):
        if kind is None or not any(is_of_kind(kind, e) for e in some):
            lacking.append(run.label)
            lines.append("  " + _command(run, path, wanted, example))
    asked = f"{wanted}"
    if kind is not None:
        asked += f" that the others have: {kind}" if wanted.attack is None else ""
    verb = "has" if len(lacking) == 1 else "have"
    return UserError(f"{', '.join(lacking)} {verb} no evaluation {asked}; make it with\n" + "\n".join(lines))


def _most_common(fitting: Sequence[Sequence[Evaluation]]) -> Evaluation | None:
    """An evaluation of the kind that most runs have; of equally many, the strongest."""
    every = [e for some in fitting for e in some if not e.mixed]
    holders = {
        kind_of(e): sum(any(is_of_kind(kind_of(e), o) for o in some) for some in fitting) for e in every
    }
    top = max(holders.values(), default=0)
    candidates = [e for e in every if holders[kind_of(e)] == top]
    return candidates[strongest_first([[e] for e in candidates])[0]] if candidates else None


def _command(run: RunRecord, path: Path, wanted: EvaluationFilter, example: Evaluation | None) -> str:
    """The command that makes the evaluation that a run lacks."""
    attack = example.score.attack if example is not None else wanted.attack or "pgd-20"
    words = ["bivallate", "evaluate", str(path), "--attack", attack]
    if attack.startswith("transfer-"):  # of the command `transfer`; the name lacks the surrogates' folders
        made_by = attack.split("-from-")[0][len("transfer-") :]
        words = ["bivallate", "transfer", str(path), "--attack", made_by]
    words += ["--weights", wanted.weights] if wanted.weights != "best" else []
    words += ["--split", wanted.split] if wanted.split != "test" else []
    words += _threat_words(run, attack, wanted, example)
    if example is not None:
        words += example.identity.options
        words += ["--seed", str(example.score.seed)] if example.score.seed else []
    return shlex.join(words) + (" --from ..." if words[1] == "transfer" else "")


def _threat_words(
    run: RunRecord, attack: str, wanted: EvaluationFilter, example: Evaluation | None
) -> list[str]:
    """The options of a command that choose the threat; of a union those threats that the run lacks."""
    asked: Any = example.score.threat if example is not None else wanted.threat
    own: Any = run.config.method.threat
    if isinstance(asked, ThreatUnion):
        own_kind = wanted.weights, wanted.split, False
        known = [e for e in run.evaluations if (e.weights, e.split, e.stale) == own_kind]
        known = [e for e in known if example is None or e.identity.options == example.identity.options]
        lacking = [one for one in asked.threats if not any(is_of_kind(Kind(attack, one), e) for e in known)]
        if not attack.startswith("transfer-"):
            return ["--threat", *(word for one in lacking or asked.threats for word in spelt(one))]
        asked = (lacking or asked.threats)[0]  # `transfer` takes one at once
    norm = type(asked).__name__ if asked is not None else wanted.norm or type(own).__name__
    other_norm = norm != type(own).__name__
    eps = asked.eps if asked is not None else wanted.eps
    if eps is None:
        eps = parse_number(CUSTOMARY[norm]) if other_norm else own.eps
    words = ["--norm", norm.lower()] if other_norm else []
    return words + (["--eps", repr(eps)] if other_norm or eps != own.eps else [])
