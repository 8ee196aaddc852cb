"""Evaluations over several radii: curves over eps, and minimal distances."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, check_seed, python_arguments
from bivallate.evaluation.attack_functions import attack_and_score
from bivallate.evaluation.distance_file import DistanceFile
from bivallate.evaluation.evaluation_progress import EvaluationProgress, Searched
from bivallate.evaluation.inference import for_inference
from bivallate.evaluation.logit_difference import SAMPLE
from bivallate.evaluation.named_attacks import Attack, Stage
from bivallate.evaluation.points import (
    Points,
    as_points,
    check_images,
    check_labels,
    data_fingerprint,
    model_fingerprint,
    select,
)
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.score import Score
from bivallate.evaluation.search import at_least_one
from bivallate.evaluation.verify import logits_of
from bivallate.lower.fab import FAB
from bivallate.lower.minimal_norm import DDN, FMN
from bivallate.lower.objective import CrossEntropy, LogitMargin, TowardsTarget, runner_up
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import L2, ThreatModel
from bivallate.lower.threat import threat as make_threat
from bivallate.types import Batch, Passes

__all__ = ["eps_curve", "minimal_distances", "survivors"]


SEARCHES = "fab-t, fmn, ddn"  # in the key of `minimal_distances`: files of fewer searches are not resumed


@python_arguments
def eps_curve(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    norm: str,
    eps: Sequence[float | str],
    attack: str | Attack | Stage = "pgd-20",
    *,
    resume: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[EvaluationProgress], object] | None = None,
    **options: Any,
) -> dict[float, Score]:
    """Evaluate at several radii; a point that is broken at one radius is broken at all larger ones.

    That is exact, because the larger ball contains the smaller one; without it chance in the search could
    make the curve rise.

    Args:
        model, data, attack: as in `attack_and_score`. norm: "linf", "l2" or "l1". eps: the radii.
        resume: beginning of the names of files that keep every verdict, one for each radius (`FILE.0.1`); an
            interrupted curve continues from them. They are not removed.
        progress, options: as in `attack_and_score`.

    Returns:
        A score for each radius, in ascending order.
    """
    given = [eps] if isinstance(eps, str | int | float) else eps
    radii = sorted({make_threat(norm, value).eps for value in given})
    if not radii:
        raise UserError("an eps curve needs at least one radius")
    curve: dict[float, Score] = {}
    before: Score | None = None
    with progress_callback(progress) as show:
        for radius in radii:
            kept = None if resume is None else curve_file(resume, radius)
            score = attack_and_score(
                model, data, make_threat(norm, radius), attack, resume=kept, progress=show, **options
            )
            if before is not None:
                fallen = score.robust & ~before.robust
                score = replace(
                    score,
                    broken_at=torch.where(fallen, before.broken_at, score.broken_at),
                    predicted=torch.where(fallen, before.predicted, score.predicted),
                    margin=torch.where(fallen, before.margin, score.margin),
                    more={k: torch.where(fallen, before.more[k], v) for k, v in score.more.items()},
                )
            curve[radius], before = score, score
    return curve


def curve_file(resume: str | os.PathLike[str], radius: float) -> Path:
    """The file of the verdicts at one radius of a curve that can be resumed."""
    return Path(f"{os.fspath(resume)}.{radius!r}")


@python_arguments
@torch.inference_mode(False)  # the caller may be in inference mode, and searches need gradients
def minimal_distances(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    norm: str,
    *,
    steps: int = 100,
    targets: int = 9,
    n: int | None = None,
    first: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool | Callable[[Searched], object] | None = None,
    resume: str | os.PathLike[str] | None = None,
    shared: bool = False,
) -> Tensor:
    """(n,) the smallest norm found that fools the model at each point: an upper bound of its distance.

    It is the smallest that FAB-T, FMN and, in L2, DDN find, confirmed by a fresh forward pass. It is 0 if the
    clean image is misclassified, and infinite if nothing was found.

    Args:
        model, data, n, first, seed, shared, progress: as in `attack_and_score`. norm: "linf", "l2" or "l1".
        steps: of each search. targets: of FAB-T. batch_size: points at once.
        resume: a file that keeps every distance, from which an interrupted search continues; not removed.

    Raises:
        UserError: as in `attack_and_score`.
    """
    check_seed(seed)
    at_least_one("minimal_distances", steps=steps, targets=targets, batch_size=batch_size)
    source, began = as_points(data, model), time.perf_counter()
    ball, index = make_threat(norm, 1.0), select(len(source), n, first, seed)
    with progress_callback(progress) as show, for_inference(model, None) as (module, where, dtype):
        key = [norm, SEARCHES, steps, targets, data_fingerprint(source, index), model_fingerprint(module)]
        kept = DistanceFile(resume, key, _sample(module, source, index, where, dtype), shared=shared)
        left = kept.left(index)
        for rows in left.split(batch_size) if len(left) else ():
            x, y = source.tensors(rows)
            check_images(x)
            x, y = x.to(where, dtype), y.to(where)
            found = distances_by_search(module, x, y, rows.to(where), ball, steps, targets)
            kept.add(rows, torch.stack(list(found.values())).amin(0))
            if show is not None:
                # estimated for all processes, which are about equally fast
                done, seconds = len(index) - kept.world * len(kept.left(index)), time.perf_counter() - began
                show(Searched("distances", len(index), max(0, done), seconds))
        return kept.all_of(index, torch.promote_types(dtype, torch.float32))


def _sample(
    module: nn.Module, source: Points, index: Tensor, where: torch.device, dtype: torch.dtype
) -> Tensor:
    """(k, K) logits of the first few points."""
    x = source.tensors(index[:SAMPLE])[0]
    check_images(x)
    return logits_of(module, x.to(where, dtype), Passes())


def distances_by_search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    ball: ThreatModel,
    steps: int,
    targets: int,
) -> dict[str, Tensor]:
    """The smallest norms (n,) of one batch, as in `minimal_distances`, for each search by its name."""
    clean = logits_of(model, x, Passes())
    check_labels(y, clean.shape[1])
    y = y.long()
    problem = LowerProblem(model, Batch(x, y, rows), TowardsTarget(y), ball, clean_logits=clean)
    wrong, found = clean.argmax(1) != y, dict[str, Tensor]()
    for name, delta in _nearest(problem, steps, min(targets, clean.shape[1] - 1)):
        logits = logits_of(model, x + delta, Passes())
        size = torch.where(logits.argmax(1) != y, ball.size(delta), torch.inf)
        found[name] = torch.minimum(found.get(name, torch.where(wrong, 0, torch.inf)), size)
    return found


def _nearest(problem: LowerProblem, steps: int, targets: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the perturbations of each search for the smallest perturbation."""
    for rank in range(targets):
        rows = torch.full_like(problem.y, rank)
        aim = TowardsTarget(runner_up(problem.clean_logits, problem.y, rows))
        yield "fab-t", FAB(steps, leave=False).solve(problem.but(aim)).delta
    yield "fmn", FMN(steps).solve(problem.but(LogitMargin())).delta
    if isinstance(problem.threat, L2):
        yield "ddn", DDN(steps).solve(problem.but(CrossEntropy())).delta


def survivors(distances: Tensor, radii: Sequence[float]) -> list[int]:
    """For each radius the number of points for which no perturbation of at most this norm was found."""
    return [int((distances > radius).sum()) for radius in radii]
