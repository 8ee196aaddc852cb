"""Beyond one radius and one model: curves over eps, minimal distances, and points made for other models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluate.attacks import Attack, Part, at_least_one, parse
from bivallate.evaluate.evaluating import attack as craft
from bivallate.evaluate.evaluating import evaluate
from bivallate.evaluate.points import points, select, whole_labels
from bivallate.evaluate.score import Score
from bivallate.lower.fab import FAB
from bivallate.lower.objective import Towards, runner_up
from bivallate.lower.problem import LowerProblem, evaluating, frozen
from bivallate.lower.threat import ThreatModel
from bivallate.lower.threat import threat as make_threat
from bivallate.parts import part
from bivallate.types import Batch

__all__ = ["eps_curve", "minimal_distances", "surviving", "transfer"]


def eps_curve(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    norm: str,
    eps: Sequence[float | str],
    attack: str | Attack | Part = "pgd-20",
    **options: Any,
) -> dict[float, Score]:
    """A score for each radius, in ascending order; a point broken at one radius is broken at all larger ones.

    That is exact, because the smaller ball lies in the larger; without it the curve could rise by the luck of
    a search. Options as in `evaluate`, but for resume.
    """
    if "resume" in options:
        raise UserError(
            "an eps curve is several evaluations and cannot resume from one file; leave resume out"
        )
    radii = sorted({make_threat(norm, value).eps for value in eps})
    if not radii:
        raise UserError("an eps curve needs at least one radius")
    curve: dict[float, Score] = {}
    before: Score | None = None
    for radius in radii:
        score = evaluate(model, data, make_threat(norm, radius), attack, **options)
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
) -> Tensor:
    """(n,) the smallest norm at which FAB-T misclassifies each point: an upper bound of its distance.

    Zero where the clean image is wrong, infinite where nothing was found. Confirmed by a fresh forward.
    """
    at_least_one("minimal distances", steps=steps, targets=targets, batch_size=batch_size)
    source, found = points(data), []
    ball = make_threat(norm, 1.0)
    module = model if isinstance(model, nn.Module) else None
    for rows in select(len(source), n, first, seed).split(batch_size):
        x, y = source.tensors(rows)
        y = whole_labels(y)
        if module is None:
            found.append(_distances(model, x, y, rows, ball, steps, targets))
            continue
        like = next(iter(module.parameters()), x)
        x, y = x.to(like), y.to(like.device)
        with evaluating(module), frozen(module):
            found.append(_distances(module, x, y, rows.to(x.device), ball, steps, targets).cpu())
    return torch.cat(found)


def _distances(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    ball: ThreatModel,
    steps: int,
    targets: int,
) -> Tensor:
    problem = LowerProblem(model, Batch(x, y, rows), Towards(y), ball)
    clean = problem.clean_logits
    best = torch.full_like(clean[:, 0], torch.inf)
    for rank in range(min(targets, clean.shape[1] - 1)):
        aim = Towards(runner_up(clean, problem.y, torch.full_like(problem.y, rank)))
        delta = FAB(steps, leave=False).solve(problem.but(aim)).delta
        logits = problem.value(delta)[0]
        size = torch.where(logits.argmax(1) != problem.y, ball.size(delta), torch.inf)
        best = torch.minimum(best, size)
    return torch.where(clean.argmax(1) != problem.y, torch.zeros_like(best), best)


def surviving(distances: Tensor, radii: Sequence[float]) -> list[int]:
    """How many points no perturbation of each norm was found for that is that small or smaller."""
    return [int((distances > radius).sum()) for radius in radii]


@part
class Surrogate:
    """Points made beforehand on another model, as a part that the target is judged by."""

    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "_points", {})

    def turns(self, classes: int) -> int:
        """One."""
        return 1

    def cost(self) -> float:
        """One forward for the verdict."""
        return 1.0

    def keep(self, x: Tensor, x_adv: Tensor, rows: Tensor) -> None:
        """Remembers the perturbations of some rows."""
        for row, delta in zip(rows.tolist(), x_adv - x, strict=True):
            self._points[row] = delta  # pyright: ignore[reportAttributeAccessIssue]

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """The remembered perturbations."""
        kept = self._points  # pyright: ignore[reportAttributeAccessIssue]
        return torch.stack([kept[row] for row in problem.batch.index.tolist()]).to(problem.x)


def transfer(
    model: nn.Module | Callable[[Tensor], Tensor],
    surrogates: Mapping[str, nn.Module] | Sequence[nn.Module] | nn.Module,
    data: Any,
    threat: ThreatModel,
    attack: str | Attack | Part = "pgd-20",
    *,
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Score:
    """Black box: points are made on each surrogate, and the model is judged on them in turn.

    The score's parts are the surrogates, and its attack's name names them; its passes are the model's own. An
    accuracy below the white-box one says that the model hides its gradients. Options as in `evaluate`.
    """
    if isinstance(surrogates, nn.Module):
        surrogates = [surrogates]
    if not isinstance(surrogates, Mapping):
        surrogates = {f"surrogate-{i + 1}": other for i, other in enumerate(surrogates)}
    if "resume" in options:
        raise UserError("a transfer evaluation cannot be resumed: its points live in memory")
    if not surrogates:
        raise UserError("a transfer attack needs at least one surrogate")
    source, chosen, made = points(data), parse(attack), []
    index = select(len(source), n, first, seed)
    for name, other in surrogates.items():
        kept = Surrogate(name)
        for rows in index.split(1024):
            x, y = source.tensors(rows)
            kept.keep(x, craft(other, x, y, threat, chosen, seed=seed), rows)
        made.append(kept)
    name = f"transfer-{chosen.name}-from-{'+'.join(surrogates)}"
    return evaluate(model, data, threat, Attack(name, tuple(made)), n=n, first=first, seed=seed, **options)
