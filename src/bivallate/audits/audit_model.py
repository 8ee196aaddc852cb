"""`audit`: test whether a model's robust accuracy is real or only hidden from the attacks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.audits.attack_checks import accuracy, attack_checks, claim_check
from bivallate.audits.battery import Battery
from bivallate.audits.plan import Plan, choose
from bivallate.audits.result import Audit, AuditProgress, CostEstimate
from bivallate.audits.surrogates import GraphConnected
from bivallate.errors import UserError, check_number, check_whole, python_arguments
from bivallate.evaluation.attack_functions import attack_and_score
from bivallate.evaluation.inference import for_inference
from bivallate.evaluation.neighbourhood import gradients
from bivallate.evaluation.points import as_points, check_threat, select, shared_classes
from bivallate.evaluation.preflight import Preflight, preflight
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.statistics import wilson
from bivallate.evaluation.verify import logits_of
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.threat import ThreatModel
from bivallate.types import Passes

__all__ = ["audit", "check_radius", "passes_a_second"]

POINTS = 500
TRIED = 64  # points that the cost is estimated on
FATAL = {"range", "dtype", "logits", "labels"}  # findings of the pre-flight that make attacks impossible


@python_arguments
@torch.inference_mode(False)  # the caller may be in inference mode, and attacks need gradients
def audit(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    threat: ThreatModel,
    *,
    n: int | None = None,
    budget_passes: float | None = None,
    minutes: float | None = None,
    surrogates: Sequence[nn.Module] = (),
    claimed: float | None = None,
    claim: str = "the claim",
    history: list[dict[str, Any]] | None = None,
    seed: int = 0,
    announce: Callable[[Plan, float], object] | None = None,
    progress: bool | Callable[[AuditProgress], object] | None = None,
    shared: bool = False,
) -> Audit:
    """Audit a model: attack it in ways whose results must agree, and say whether they do.

    Every attack runs on the same points, and a check fails only if a paired one-sided exact test rejects
    the model's innocence at level 0.005. The model's mode, gradients and buffers and the global random
    state are the same afterwards; a card's generator is not seeded, and moves on if the model draws from it.

    Args:
        model: images (n, C, H, W) in [0, 1] -> logits (n, K).
        data: a split, or a pair (x, y).
        threat: norm and radius of the perturbations.
        n: size of the seeded random subset of points that is attacked; 500 if not given.
        budget_passes: the cost that is allowed, in forward and backward passes. It decides the level of
            strength and, if need be, lowers the number of points. Without it and `minutes` it is 15,000
            passes a point, which pays for the full level.
        minutes: the same in minutes, converted by a measured pace; of both the smaller holds.
        surrogates: other models of the same classes, to transfer from; a linear imitation is always made.
        claimed: a robust accuracy in [0, 1] to compare with the evidence; by default what plain PGD leaves.
        claim: where `claimed` comes from.
        history: a run's metrics, one dictionary an epoch.
        seed: of the subset, the starts and the noise.
        announce: called with the plan and its estimated seconds before anything is attacked.
        progress: called before every attack; True shows it.
        shared: under torchrun, every process calls this with the same arguments and attacks its share of the
            points.

    Raises:
        UserError: data or models that cannot be attacked at all, models that name different classes, or a
            budget that is too small.

    Example:
        >>> from bivallate.lower.threat import Linf
        >>> class Bright(nn.Module):
        ...     def forward(self, x):
        ...         total = x.flatten(1).sum(1) - 2
        ...         return torch.stack([total, -total], 1)
        >>> x = torch.linspace(0, 1, 60).view(60, 1, 1, 1).expand(60, 1, 2, 2)
        >>> print(audit(Bright(), (x, Bright()(x).argmax(1)), Linf(0.1), budget_passes=1e5).verdict)
        believable
    """
    began = time.perf_counter()
    _check_arguments(n, {"claimed": claimed, "minutes": minutes, "budget_passes": budget_passes}, surrogates)
    check_radius(threat)
    source = as_points(data, model)
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        torch.default_generator.manual_seed(seed)  # not that of a card, where a training may go on afterwards
        checked = _preflight(model, data, threat)
        module, where, dtype = stack.enter_context(for_inference(model, None))
        judge = _connected(module, checked)
        others = [_alike(stack.enter_context(for_inference(other, where))[0], dtype) for other in surrogates]
        wanted = select(len(source), min(POINTS if n is None else n, len(source)), None, seed)
        x, y = source.tensors(wanted)
        x, y = x.to(where, dtype), y.to(where).long()
        _same_task(module, others, x[:2])
        rate = passes_a_second(judge, x, y, shared=shared)
        plan = _plan(len(wanted), budget_passes, minutes, rate, len(surrogates))
        x, y = source.tensors(select(len(source), plan.n, None, seed))
        chosen = x.to(where, dtype), y.to(where).long()
        show = stack.enter_context(progress_callback(progress))
        cost = estimate(judge, chosen, threat, plan, seed, announce, shared) if announce or show else None
        battery = Battery(judge, chosen, threat, plan, seed, show, cost, shared)
        battery.run_all(others, random=checked.named("random") is not None)
        return _report(battery, checked, claimed, claim, history, began)


def _check_arguments(
    n: int | None, numbers: Mapping[str, float | None], surrogates: Sequence[nn.Module]
) -> None:
    """Raise UserError for what is no number, a claim outside [0, 1], and a single surrogate."""
    if n is not None:
        check_whole("n", n)
    for name, value in numbers.items():
        if value is not None:
            check_number(name, value)
    claimed = numbers["claimed"]
    if claimed is not None and not 0 <= claimed <= 1:
        raise UserError(f"claimed is a fraction in [0, 1], got {claimed!r}; write 0.5 for 50 %")
    if isinstance(surrogates, nn.Module):
        raise UserError("surrogates are a list of models: surrogates=[model]")


def check_radius(threat: ThreatModel) -> None:
    """Raise UserError for what is no threat model, and for a radius that is not positive."""
    check_threat(threat)
    if threat.eps <= 0:
        raise UserError("an audit needs a radius above 0: with eps = 0 there is no attack")


def _preflight(model: nn.Module | Callable[[Tensor], Tensor], data: Any, threat: ThreatModel) -> Preflight:
    """Run the pre-flight. Raises UserError for what no attack can start on."""
    checked = preflight(model, data, threat)
    fatal = [f for f in checked.findings if f.name in FATAL and f.severity == "error"]
    if fatal:
        raise UserError("this cannot be audited before it is mended: " + "; ".join(map(str, fatal)))
    return checked


def _same_task(model: nn.Module, surrogates: Sequence[nn.Module], x: Tensor) -> None:
    """Raise UserError for a surrogate that does not read these images or has other classes."""
    shared_classes([model, *surrogates])
    with torch.no_grad():
        wanted = call_unharmed(model, x).shape
    for k, other in enumerate(surrogates, 1):
        try:
            got = logits_of(other, x, Passes()).shape
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"model {k} to transfer from cannot read {tuple(x.shape[1:])} images: {error}"
            ) from error
        except UserError as error:
            raise UserError(f"model {k} to transfer from: {error}") from error
        if got != wanted:
            raise UserError(f"model {k} to transfer from has {got[1]} classes, this one {wanted[1]}")


def _alike(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module, or a copy in this precision."""
    other = any(t.is_floating_point() and t.dtype != dtype for t in module.parameters())
    return copy.deepcopy(module).to(dtype) if other else module


def _connected(module: nn.Module, checked: Preflight) -> nn.Module:
    """The model, with zero gradients if the pre-flight has found that it has none."""
    return GraphConnected(module).eval() if checked.named("no-gradient") is not None else module


def passes_a_second(model: nn.Module, x: Tensor, y: Tensor, *, shared: bool = False) -> float:
    """Measure how many passes a second the model makes.

    Args:
        model: the network.
        x: images; the first 128 are used.
        y: their labels.
        shared: multiply the first process's pace by the number of processes.
    """
    some, labels = x[:128], y[:128]
    gradients(model, some[:2], labels[:2])
    began = time.perf_counter()
    gradients(model, some, labels)
    if some.is_cuda:
        torch.cuda.synchronize()
    own = 3 * len(some) / max(time.perf_counter() - began, 1e-6)
    return collective.broadcast_object(own) * collective.world_size() if shared else own


def estimate(
    model: nn.Module,
    points: tuple[Tensor, Tensor],
    threat: ThreatModel,
    plan: Plan,
    seed: int,
    announce: Callable[[Plan, float], object] | None = None,
    shared: bool = False,
) -> CostEstimate:
    """Estimate the passes and seconds of a plan and hand them to `announce`.

    A short attack on the first points shows what share of them withstands it, and how long a pass takes,
    the overhead of an attack included.
    """
    some = points[0][:TRIED], points[1][:TRIED]
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):  # a model with random outputs gets the same draws without this
        score = attack_and_score(model, some, threat, "pgd-10", seed=seed)
    spent = time.perf_counter() - began
    pace = spent / max(1.0, sum(score.passes.values()) * score.n) / (collective.world_size() if shared else 1)
    passes = plan.expected(score.clean_accuracy, score.robust_accuracy)
    if announce is not None:
        announce(plan, pace * passes)
    return CostEstimate(passes, pace * passes)


def _plan(
    count: int, budget_passes: float | None, minutes: float | None, rate: float, surrogates: int
) -> Plan:
    for name, value in (("budget_passes", budget_passes), ("minutes", minutes)):
        if value is not None and not value > 0:
            raise UserError(f"{name} must be positive, got {value!r}")
    budgets = [budget_passes] if budget_passes is not None else []
    budgets += [60 * minutes * rate] if minutes is not None else []
    if budgets:
        return choose(count, min(budgets), surrogates)
    return choose(count, 15_000.0 * count, surrogates)


def _report(
    battery: Battery,
    checked: Preflight,
    claimed: float | None,
    claim: str,
    history: list[dict[str, Any]] | None,
    began: float,
) -> Audit:
    """The audit of a battery that has run; some checks ask the model once more."""
    checks = (
        claim_check(battery, claimed, claim if claimed is not None else "PGD"),
        *attack_checks(battery, checked, history, claimed=claimed is not None),
    )
    score = battery.scores["pgd"]
    hits = int(battery.worst.sum())
    return Audit(
        checks=checks,
        accuracy={name: accuracy(left) for name, left in battery.left.items()},
        clean=score.clean_accuracy,
        clean_interval_95=score.clean_interval_95,
        worst=hits / score.n,
        worst_interval_95=wilson(hits, score.n),
        claimed=checks[0].numbers["claimed"],
        claim=claim if claimed is not None else f"pgd-{battery.plan.steps}",
        n=score.n,
        seed=battery.seed,
        threat=battery.threat,
        plan=battery.plan.to_json(),
        passes=battery.passes,
        seconds=time.perf_counter() - began,
        data_fingerprint=score.data_fingerprint,
        model_fingerprint=score.model_fingerprint,
        classes=checked.classes,
    )
