"""Black-box evaluations: adversarial points that were made on other models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, check_seed, python_arguments
from bivallate.evaluation.attack_functions import attack_and_score, attack_rows
from bivallate.evaluation.named_attacks import Attack, Stage, attack_named
from bivallate.evaluation.points import as_points, model_fingerprint, select, shared_classes
from bivallate.evaluation.score import Score
from bivallate.lower.apgd import APGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import ThreatModel
from bivallate.parts import part

__all__ = ["clean_scores", "transfer"]


@part
class Surrogate:
    """A stage with points that were computed beforehand on another model."""

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
        """Store the perturbations of some rows."""
        for row, delta in zip(rows.tolist(), x_adv - x, strict=True):
            self._points[row] = delta  # pyright: ignore[reportAttributeAccessIssue]

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """Return the stored perturbations."""
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
    """Black-box evaluation: compute points on each surrogate, and evaluate the model on them in turn.

    APGD does not stop when it has crossed the surrogate's boundary but goes on to the lowest margin, because
    points at that boundary fool few other models. FAB, Square and `pgd-best` stop at the boundary by design
    and transfer badly. An accuracy below that of a white-box attack means that the model masks its gradients.

    The score's stages are the surrogates. The attack's name contains their names and a hash of their weights,
    so surrogates of the same names with other weights make another attack. Its passes are the model's own.
    Options and errors as in `attack_and_score`; there is no `resume`. Raises UserError too for a surrogate
    that is no module, and for models that name different classes.
    """
    if isinstance(surrogates, nn.Module):
        surrogates = [surrogates]
    if not isinstance(surrogates, Mapping):
        surrogates = {f"surrogate-{i + 1}": other for i, other in enumerate(surrogates)}
    if "resume" in options:
        raise UserError("a transfer evaluation cannot be resumed: its points live in memory")
    if not surrogates:
        raise UserError("a transfer attack needs at least one surrogate")
    for name, other in surrogates.items():
        if not isinstance(other, nn.Module):
            got = type(other).__name__
            raise UserError(f"{name} must be a torch.nn.Module, whose weights name the attack; got {got}")
    shared_classes([model, *surrogates.values()])
    check_seed(seed)
    source, chosen, made = as_points(data, model), attack_named(attack, threat), []
    index, lasting = select(len(source), n, first, seed), _lasting(chosen)
    for name, other in surrogates.items():
        kept = Surrogate(name)
        for rows in index.split(1024):
            x_adv = attack_rows(other, source, rows, threat, lasting, seed)
            kept.remember(source.tensors(rows)[0], x_adv, rows)
        made.append(kept)
    name = f"transfer-{chosen.name}-from-{'+'.join(surrogates)}_{_mark(surrogates.values())}"
    options |= {"n": n, "first": first, "seed": seed}
    return attack_and_score(model, data, threat, Attack(name, tuple(made)), **options)


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
    """The accuracy of each target on images that were computed on another model, as "clean" scores.

    Unlike in `transfer`, a point may count as right although the target misclassifies the clean image, and
    the attack stops at the source's boundary.
    """
    rows, parsed = torch.arange(len(x)), attack_named(attack, threat)
    x_adv = attack_rows(source, as_points((x, y)), rows, threat, parsed, seed)
    return {label: attack_and_score(target, (x_adv, y), threat, "clean") for label, target in targets.items()}


def _mark(surrogates: Iterable[nn.Module]) -> str:
    """A short hash of the models, in order."""
    prints = " ".join(map(model_fingerprint, surrogates))
    return hashlib.blake2b(prints.encode(), digest_size=4).hexdigest()


def _lasting(attack: Attack) -> Attack:
    """The attack, whose APGD stages continue after an example is misclassified."""

    def stays(one: Any) -> Any:
        solver = getattr(one, "solver", None)
        return replace(one, solver=replace(solver, leave=False)) if isinstance(solver, APGD) else one

    return replace(attack, stages=tuple(map(stays, attack.stages)))
