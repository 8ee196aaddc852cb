"""Choose the stored evaluations by which several runs can be compared."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivallate.errors import UserError, unknown
from bivallate.evaluation import attack_named
from bivallate.evaluation.significance import SAME_RADIUS, same_threat
from bivallate.from_text import parse_number
from bivallate.lower.threat import CUSTOMARY
from bivallate.lower.threat import threat as make
from bivallate.reports.collect import RunRecord
from bivallate.reports.stored_evaluations import Evaluation
from bivallate.reports.strength import strongest_first

Kind = tuple[str, str, float]  # attack, norm, eps


@dataclass(frozen=True)
class EvaluationFilter:
    """The evaluations that the user asks for; a field that is None allows every value.

    Attributes:
        weights, split: names of the weights and of the split.
        attack: name of the attack.
        norm: Linf, L2 or L1.
        eps: radius of the threat.
    """

    weights: str
    split: str
    attack: str | None = None
    norm: str | None = None
    eps: float | None = None

    @classmethod
    def of(
        cls, weights: str, split: str, attack: str | None, norm: str | None, eps: str | None, known: set[str]
    ) -> EvaluationFilter:
        """Make a filter from the command line's texts; `known`: names of the attacks that the runs have.

        Raises UserError for an unknown attack or norm, and for an eps that is not a number.
        """
        if attack is not None and attack.startswith("transfer-") and attack not in known:
            if not known:
                raise UserError(f"no run has {attack}: `bivallate transfer RUN --from OTHER` makes one")
            raise unknown("stored attack", attack, known)
        name = attack if attack is None or attack in known else attack_named(attack).name
        kind = type(make(norm, 0.0)).__name__ if norm is not None else None
        radius = parse_number(eps) if eps is not None else None
        return cls(weights, split, name, kind, radius)

    def fits(self, found: Evaluation) -> bool:
        """Whether an evaluation is one that the user asks for."""
        attack, norm, eps = kind_of(found)
        return (
            (found.weights, found.split, found.data) == (self.weights, self.split, "")  # of the run's own set
            and self.attack in (None, attack)
            and self.norm in (None, norm)
            and (self.eps is None or math.isclose(self.eps, eps, rel_tol=SAME_RADIUS))
        )

    def __str__(self) -> str:
        where = " ".join(filter(None, [self.norm, f"{self.eps:.6g}" if self.eps is not None else None]))
        parts = [f"of the {self.weights} weights on the {self.split} data"]
        parts += [f"by {self.attack}"] if self.attack else []
        return " ".join(parts + ([f"at {where}"] if where else []))


def kind_of(found: Evaluation) -> Kind:
    """Attack, norm and radius of an evaluation."""
    score = found.score
    return score.attack, type(score.threat).__name__, float(score.threat.eps)


def is_of_kind(kind: Kind, found: Evaluation) -> bool:
    """Whether an evaluation is of this kind; radii may differ by rounding."""
    attack, norm, eps = kind_of(found)
    return kind[:2] == (attack, norm) and math.isclose(kind[2], eps, rel_tol=SAME_RADIUS)


def choose(runs: Sequence[RunRecord], paths: Sequence[Path], wanted: EvaluationFilter) -> list[Evaluation]:
    """Choose one evaluation of each run, all by one attack in one threat, on the same points if possible.

    If the filter allows several choices, take the threat that most runs were trained for, and then the
    strongest evaluations (see `strongest_first`).

    Args:
        runs: the runs.
        paths: their folders as the user named them, for the commands in an error.
        wanted: the filter.

    Raises:
        UserError: a run has no such evaluation; the error says which command makes it.
    """
    fitting = [[e for e in run.evaluations if wanted.fits(e)] for run in runs]
    offers = []
    for kind in sorted({kind_of(e) for e in fitting[0]}):
        same = [[e for e in some if is_of_kind(kind, e)] for some in fitting]
        offers += [_pick(same)] if all(same) else []
    if not offers:
        raise _missing(runs, paths, fitting, wanted)
    most = max(_at_home(runs, offer) for offer in offers)
    offers = [offer for offer in offers if _at_home(runs, offer) == most]
    return offers[strongest_first(offers)[0]]


def _pick(candidates: Sequence[Sequence[Evaluation]]) -> list[Evaluation]:
    """Choose one candidate of each run, on the same points if possible.

    The largest set of shared points is taken, and if possible evaluations with the same seed.
    If no points are shared, each run's evaluation on most points is taken.
    """
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


def _at_home(runs: Sequence[RunRecord], offer: Sequence[Evaluation]) -> int:
    """Number of runs that were trained for the threat of these evaluations."""
    return sum(trained_for(run, e) for run, e in zip(runs, offer, strict=True))


def trained_for(run: RunRecord, evaluation: Evaluation) -> bool:
    """Whether the threat of the evaluation is one of those that the run was trained under."""
    return any(same_threat(own, evaluation.score.threat) for own in run.config.method.threats)


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
        asked += (
            f" that the others have: {kind[0]} at {kind[1]} {kind[2]:.6g}" if wanted.attack is None else ""
        )
    verb = "has" if len(lacking) == 1 else "have"
    return UserError(f"{', '.join(lacking)} {verb} no evaluation {asked}; make it with\n" + "\n".join(lines))


def _most_common(fitting: Sequence[Sequence[Evaluation]]) -> Evaluation | None:
    """An evaluation of the kind that most runs have; of equally many, the strongest."""
    every = [e for some in fitting for e in some]
    holders = {
        kind_of(e): sum(any(is_of_kind(kind_of(e), o) for o in some) for some in fitting) for e in every
    }
    top = max(holders.values(), default=0)
    candidates = [e for e in every if holders[kind_of(e)] == top]
    return candidates[strongest_first([[e] for e in candidates])[0]] if candidates else None


def _command(run: RunRecord, path: Path, wanted: EvaluationFilter, example: Evaluation | None) -> str:
    """The command that makes the evaluation that a run lacks."""
    attack = example.score.attack if example is not None else wanted.attack or "pgd-20"
    own: Any = run.config.method.threat
    norm = type(example.score.threat).__name__ if example is not None else wanted.norm or type(own).__name__
    other_norm = norm != type(own).__name__
    eps = example.score.threat.eps if example is not None else wanted.eps
    if eps is None:
        eps = parse_number(CUSTOMARY[norm]) if other_norm else own.eps
    words = ["bivallate", "evaluate", str(path), "--attack", attack]
    if attack.startswith("transfer-"):  # of the command `transfer`; the name lacks the surrogates' folders
        words = [
            "bivallate",
            "transfer",
            str(path),
            "--attack",
            attack.split("-from-")[0][len("transfer-") :],
        ]
    words += ["--weights", wanted.weights] if wanted.weights != "best" else []
    words += ["--split", wanted.split] if wanted.split != "test" else []
    words += ["--norm", norm.lower()] if other_norm else []
    words += ["--eps", repr(eps)] if other_norm or eps != own.eps else []
    if example is not None:
        words += example.identity.options
        words += ["--seed", str(example.score.seed)] if example.score.seed else []
    return shlex.join(words) + (" --from ..." if words[1] == "transfer" else "")
