"""Evaluations within several threats as one: robust is what withstands all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bivallate.errors import UserError, listed
from bivallate.evaluation.named_attacks import Attack
from bivallate.evaluation.point_columns import CLEAN, ROBUST
from bivallate.evaluation.score import Score
from bivallate.evaluation.threat_union import radius, union_of

__all__ = ["within_all"]


def within_all(scores: Sequence[Score]) -> Score:
    """Join evaluations of one model within several threats into that of their union.

    A point is robust if it withstands the attacks within every threat (R_max of Tramer and Boneh, NeurIPS
    2019). The stages follow each other in the order of the scores; prediction and margin of a point are
    those of the threat that misclassifies it most clearly, else of the lowest margin. Cost and time are sums.

    Args:
        scores: one for each threat, of the same model and points; by one attack, or by others.

    Returns:
        A score like any other: it has the worst class and the intervals, can be saved, ranked and compared.
        Its `more` is empty.

    Raises:
        UserError: fewer than two scores, two of one threat, or they differ in model or points.

    Example:
        >>> import bivallate as bv
        >>> from bivallate.evaluation import within_all
        >>> threats = bv.Linf(8 / 255), bv.L2(0.5)
        >>> def under_both(model, data):
        ...     return within_all([bv.evaluate(model, data, each, "autoattack") for each in threats])
    """
    _check(scores)
    first, name = scores[0], " + ".join(dict.fromkeys(score.attack for score in scores))
    broken = torch.stack([score.broken_at for score in scores])  # (threats, n)
    before = [sum(len(s.stage_names) for s in scores[:k]) for k in range(len(scores))]
    places = torch.where(broken > CLEAN, broken + torch.tensor(before)[:, None], broken)
    never = max(before) + len(scores[-1].stage_names) + 1
    earliest = places.masked_fill(places == ROBUST, never).amin(0)
    margins = torch.stack([score.margin for score in scores])
    withstood = (broken == ROBUST) & (broken != ROBUST).any(0)  # of points that another threat breaks
    worst = margins.masked_fill(withstood, torch.inf).argmin(0)[None]
    return replace(
        first,
        attack=name,
        detail=Attack(name, tuple(stage for score in scores for stage in score.detail.stages)),
        threat=union_of([score.threat for score in scores]),
        predicted=torch.stack([score.predicted for score in scores]).gather(0, worst)[0],
        margin=margins.gather(0, worst)[0],
        broken_at=earliest.masked_fill(earliest == never, ROBUST),
        stage_names=tuple(name for score in scores for name in _stages(score)),
        passes={key: sum(score.passes.get(key, 0.0) for score in scores) for key in first.passes},
        seconds=sum(score.seconds for score in scores),
        warnings=tuple(dict.fromkeys(warning for score in scores for warning in _warnings(score, scores))),
        search_precision=next((p for s in scores if (p := s.search_precision) != "float32"), "float32"),
        more={},
    )


def _check(scores: Sequence[Score]) -> None:
    """Raise UserError unless the scores can be joined."""
    if len(scores) < 2:
        raise UserError(f"several threats need two or more evaluations, got {len(scores)}")
    first = scores[0]
    union_of([score.threat for score in scores])  # raises for a threat that is there twice
    for what, of in (("model", "model_fingerprint"), ("data", "data_fingerprint")):
        found = list(dict.fromkeys(getattr(score, of) for score in scores))
        if len(found) > 1:
            raise UserError(f"evaluations within several threats need one {what}, got {listed(found)}")
    if not all(torch.equal(score.index, first.index) for score in scores):
        raise UserError("evaluations within several threats need the same points in the same order")


def _stages(score: Score) -> list[str]:
    return [f"{name}, {radius(score.threat)}" for name in score.stage_names]


def _warnings(score: Score, others: Sequence[Score]) -> list[str]:
    """The warnings of a score; those that the others do not share say its threat."""
    shared = set.intersection(*(set(other.warnings) for other in others))
    return [w if w in shared else f"{radius(score.threat)}: {w}" for w in score.warnings]
