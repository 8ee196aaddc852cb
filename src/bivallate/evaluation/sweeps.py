"""Beyond one radius and one model: curves over eps, minimal distances, and points made for other models."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, check_seed, python_arguments
from bivallate.evaluation.attacks import Attack, Stage, parse
from bivallate.evaluation.distance_file import DistanceFile
from bivallate.evaluation.evaluating import crafted, evaluate
from bivallate.evaluation.evaluation_progress import EvaluationProgress, Searched
from bivallate.evaluation.inference import for_inference
from bivallate.evaluation.points import (
    check_images,
    check_labels,
    data_fingerprint,
    model_fingerprint,
    points,
    select,
)
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.score import Score
from bivallate.evaluation.search import at_least_one
from bivallate.evaluation.verify import logits_of
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB
from bivallate.lower.minimal_norm import DDN, FMN
from bivallate.lower.objective import CrossEntropy, LogitMargin, TowardsTarget, runner_up
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import L2, ThreatModel
from bivallate.lower.threat import threat as make_threat
from bivallate.parts import part
from bivallate.types import Batch, Passes

__all__ = ["clean_scores", "eps_curve", "minimal_distances", "survivors", "transfer"]


SEARCHES = "fab-t, fmn, ddn"  # of `minimal_distances`: what fewer have begun, more must not end


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
    """A score for each radius, in ascending order; a point broken at one radius is broken at all larger ones.

    That is exact, because the smaller ball lies in the larger; without it the curve could rise by the luck of
    a search.

    Args:
        model, data, norm, eps, attack: as in `evaluate`; eps are several radii.
        resume: beginning of the names of files that keep every verdict, one a radius (`FILE.0.1`); a curve
            that was interrupted goes on from them. They are left in place.
        progress, options: as in `evaluate`.
    """
    radii = sorted({make_threat(norm, value).eps for value in eps})
    if not radii:
        raise UserError("an eps curve needs at least one radius")
    curve: dict[float, Score] = {}
    before: Score | None = None
    with progress_callback(progress) as show:
        for radius in radii:
            kept = None if resume is None else curve_file(resume, radius)
            score = evaluate(
                model, data, make_threat(norm, radius), attack, resume=kept, progress=show, **options
            )
            if before is not None:
                fallen = score.robust & ~before.robust
                score = replace(
                    score,
                    stage=torch.where(fallen, before.stage, score.stage),
                    predicted=torch.where(fallen, before.predicted, score.predicted),
                    margin=torch.where(fallen, before.margin, score.margin),
                )
            curve[radius], before = score, score
    return curve


def curve_file(resume: str | os.PathLike[str], radius: float) -> Path:
    """Where a curve that can be resumed keeps the verdicts at one radius."""
    return Path(f"{os.fspath(resume)}.{radius!r}")


@python_arguments
@torch.inference_mode(False)  # a caller may be in it
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
    """(n,) the smallest norm at which each point is found misclassified: an upper bound of its distance.

    The smallest that FAB-T, FMN and, in L2, DDN find.
    Zero where the clean image is wrong, infinite where nothing was found. Confirmed by a fresh forward.
    `progress` is called after every batch; True shows it. `resume`: a file that keeps every distance, from
    which a search that was interrupted goes on; it stays. `shared`: under torchrun, every process calls this
    and takes every so-manieth point.

    Raises:
        UserError: images, labels, logits or counts that `evaluate` would not take either.
    """
    check_seed(seed)
    at_least_one("minimal_distances", steps=steps, targets=targets, batch_size=batch_size)
    source, began = points(data, model), time.perf_counter()
    ball, index = make_threat(norm, 1.0), select(len(source), n, first, seed)
    with progress_callback(progress) as show, for_inference(model, None) as (module, where, dtype):
        key = [norm, SEARCHES, steps, targets, data_fingerprint(source, index), model_fingerprint(module)]
        kept = DistanceFile(resume, key, shared=shared)
        left = kept.left(index)
        for rows in left.split(batch_size) if len(left) else ():
            x, y = source.tensors(rows)
            check_images(x)
            x, y = x.to(where, dtype), y.to(where)
            found = distances_by_search(module, x, y, rows.to(where), ball, steps, targets)
            kept.add(rows, torch.stack(list(found.values())).amin(0))
            if show is not None:
                # of all processes, which are about as far
                done, seconds = len(index) - kept.world * len(kept.left(index)), time.perf_counter() - began
                show(Searched("distances", len(index), max(0, done), seconds))
        return kept.all_of(index, torch.promote_types(dtype, torch.float32))


def distances_by_search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    ball: ThreatModel,
    steps: int,
    targets: int,
) -> dict[str, Tensor]:
    """The smallest norms (n,) as of `minimal_distances`, on one batch, of each search by its name."""
    clean = logits_of(model, x, Passes())
    check_labels(y, clean.shape[1])
    y = y.long()
    problem = LowerProblem(model, Batch(x, y, rows), TowardsTarget(y), ball)
    problem.clean_logits = clean
    wrong, found = clean.argmax(1) != y, dict[str, Tensor]()
    for name, delta in _nearest(problem, steps, min(targets, clean.shape[1] - 1)):
        logits = logits_of(model, x + delta, Passes())
        size = torch.where(logits.argmax(1) != y, ball.size(delta), torch.inf)
        found[name] = torch.minimum(found.get(name, torch.where(wrong, 0, torch.inf)), size)
    return found


def _nearest(problem: LowerProblem, steps: int, targets: int) -> Iterator[tuple[str, Tensor]]:
    """What each search finds that looks for the smallest perturbation."""
    for rank in range(targets):
        rows = torch.full_like(problem.y, rank)
        aim = TowardsTarget(runner_up(problem.clean_logits, problem.y, rows))
        yield "fab-t", FAB(steps, leave=False).solve(problem.but(aim)).delta
    yield "fmn", FMN(steps).solve(problem.but(LogitMargin())).delta
    if isinstance(problem.threat, L2):
        yield "ddn", DDN(steps).solve(problem.but(CrossEntropy())).delta


def survivors(distances: Tensor, radii: Sequence[float]) -> list[int]:
    """The number of points for which no perturbation of each norm, or a smaller one, was found."""
    return [int((distances > radius).sum()) for radius in radii]


@part
class Surrogate:
    """Points made beforehand on another model, as a stage that the target is judged by."""

    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "_points", {})

    def count(self, classes: int) -> int:
        """One."""
        return 1

    def cost(self) -> float:
        """One forward for the verdict."""
        return 1.0

    def remember(self, x: Tensor, x_adv: Tensor, rows: Tensor) -> None:
        """Remember the perturbations of some rows."""
        for row, delta in zip(rows.tolist(), x_adv - x, strict=True):
            self._points[row] = delta  # pyright: ignore[reportAttributeAccessIssue]

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """The remembered perturbations."""
        kept = self._points  # pyright: ignore[reportAttributeAccessIssue]
        return torch.stack([kept[row] for row in problem.batch.index.tolist()]).to(problem.x)


@python_arguments
def transfer(
    model: nn.Module | Callable[[Tensor], Tensor],
    surrogates: Mapping[str, nn.Module] | Sequence[nn.Module] | nn.Module,
    data: Any,
    threat: ThreatModel,
    attack: str | Attack | Stage = "pgd-20",
    *,
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Score:
    """Black box: points are made on each surrogate, and the model is judged on them in turn.

    APGD goes on when it has crossed the surrogate's boundary, to where the margin is lowest: points at that
    boundary fool few other models. FAB, Square and `pgd-best` stop there by their nature and transfer badly.

    The score's stages are the surrogates, and its attack's name names them and ends in a hash of their
    weights, so that points of other surrogates with the same names are another attack. Its passes are the
    model's own. An accuracy below the white-box one says that the model hides its gradients. Options as in
    `evaluate`.
    """
    if isinstance(surrogates, nn.Module):
        surrogates = [surrogates]
    if not isinstance(surrogates, Mapping):
        surrogates = {f"surrogate-{i + 1}": other for i, other in enumerate(surrogates)}
    if "resume" in options:
        raise UserError("a transfer evaluation cannot be resumed: its points live in memory")
    if not surrogates:
        raise UserError("a transfer attack needs at least one surrogate")
    check_seed(seed)
    source, chosen, made = points(data, model), parse(attack, threat), []
    index, lasting = select(len(source), n, first, seed), _lasting(chosen)
    for name, other in surrogates.items():
        kept = Surrogate(name)
        for rows in index.split(1024):
            kept.remember(source.tensors(rows)[0], crafted(other, source, rows, threat, lasting, seed), rows)
        made.append(kept)
    name = f"transfer-{chosen.name}-from-{'+'.join(surrogates)}_{_mark(surrogates.values())}"
    return evaluate(model, data, threat, Attack(name, tuple(made)), n=n, first=first, seed=seed, **options)


def clean_scores(
    source: nn.Module | Callable[[Tensor], Tensor],
    targets: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    attack: str | Attack | Stage = "pgd-20",
    *,
    seed: int = 0,
) -> dict[str, Score]:
    """The clean score of each target on images that were made on another model.

    Unlike in `transfer` a point counts as right even where the target is wrong on the clean image, and the
    attack stops at the source's boundary.
    """
    x_adv = crafted(source, points((x, y)), torch.arange(len(x)), threat, parse(attack, threat), seed)
    return {label: evaluate(target, (x_adv, y), threat, "clean") for label, target in targets.items()}


def _mark(surrogates: Iterable[nn.Module]) -> str:
    """A short hash of the models, in order."""
    prints = " ".join(map(model_fingerprint, surrogates))
    return hashlib.blake2b(prints.encode(), digest_size=4).hexdigest()


def _lasting(attack: Attack) -> Attack:
    """The attack with APGDs that do not leave an example when it is misclassified."""

    def stays(one: Any) -> Any:
        solver = getattr(one, "solver", None)
        return replace(one, solver=replace(solver, leave=False)) if isinstance(solver, APGD) else one

    return replace(attack, stages=tuple(map(stays, attack.stages)))
