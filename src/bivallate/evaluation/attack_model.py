"""`evaluate` and `attack`: robust accuracy with a verdict for each point, and adversarial images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError, check_seed, python_arguments, unknown
from bivallate.evaluation import shared_points
from bivallate.evaluation.attacks import Attack, Stage, parse
from bivallate.evaluation.batch_size import estimate_batch, example_work
from bivallate.evaluation.evaluation_progress import EvaluationProgress
from bivallate.evaluation.inference import Function, for_inference
from bivallate.evaluation.points import (
    Points,
    check_images,
    check_threat,
    class_names,
    data_fingerprint,
    model_fingerprint,
    points,
    select,
)
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.runner import Runner
from bivallate.evaluation.score import Score
from bivallate.evaluation.search import at_least_one
from bivallate.evaluation.search_model import PRECISIONS, LowerPrecision, search_model
from bivallate.evaluation.search_pool import SearchPool
from bivallate.evaluation.state import State
from bivallate.lower.threat import ThreatModel
from bivallate.parts import encode

__all__ = ["attack", "evaluate"]

WORTH = 50_000  # passes above which it pays to make a faster copy of the model
CLASSES = 10  # assumed for that estimate, which is made before the first forward pass


@python_arguments
@torch.inference_mode(False)  # the caller may be in inference mode, and attacks need gradients
def evaluate(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    threat: ThreatModel,
    attack: str | Attack | Stage = "pgd-20",
    *,
    n: int | None = None,
    first: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    precision: str = "float32",
    progress: bool | Callable[[EvaluationProgress], object] | None = None,
    resume: str | os.PathLike[str] | None = None,
    shared: bool = False,
) -> Score:
    """Attack a model, and count the points that it classifies correctly under every attack.

    A point is robust only if it is correct on the clean image and after every turn of every stage. Every
    success of an attack is confirmed by a fresh forward pass of the model itself, on a point inside the
    threat. The model's mode, `requires_grad` and gradients are restored, also when the attack raises. Noise
    belongs to a point's row, so that the result does not depend on the batch size except for rounding. On a
    CPU a long search may run in several threads, each with a copy of the model that shares its parameters;
    user-written stages must then keep no state between calls.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K). threat: the set of perturbations.
        data: a split, or a pair (x, y) of tensors with x (N, C, H, W) in [0, 1]. If both the split and the
            model name their classes, labels are matched by name.
        attack: a name (see `attacks()`), an `Attack` or a single stage.
        n, first: a seeded random subset of n points, or the leading ones; default: all points.
        batch_size: points at once; default: that of the file `resume`, or estimated from the free memory.
        device: of the computation; default: the model's. The model is not moved. seed: of noise and subset.
        precision: of the search, "float32", "tf32" (CUDA) or "bf16": faster on hardware that supports it.
            Verdicts are always in float32, and so are searches that rounding would mislead: FAB, Square, and
            attacks that end at the first success. A coarser search may find less; the score states it.
        progress: a function that is called after every piece of work; True shows the progress.
        resume: file that keeps every verdict. If it exists, the evaluation continues from it and ends with
            the same verdicts. Delete it once the score is saved. A random model cannot be resumed.
        shared: under torchrun, every process calls this function and attacks a share of the points. All
            return the verdicts that one process would find, and each has its own file beside `resume`. If a
            process dies, at most its own part is lost, and another number of processes can continue.

    Raises:
        UserError: images outside [0, 1], labels outside the classes, a class that the model does not have,
            empty data, NaN logits, an unknown attack, a progress file of another evaluation.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> x, y = torch.rand(20, 1, 2, 2), torch.randint(0, 3, (20,))
        >>> from bivallate.lower.threat import Linf
        >>> score = evaluate(model, (x, y), Linf(0.1), "fgsm")
        >>> score.robust_accuracy <= score.clean_accuracy
        True
    """
    check_seed(seed)
    check_threat(threat)
    chosen, source = parse(attack, threat), points(data, model)
    index = select(len(source), n, first, seed)
    several = shared and len(index) >= collective.world_size() > 1
    with progress_callback(progress) as show, for_inference(model, device) as (module, where, dtype):
        own = shared_points.own_points(index) if several else index
        runner = _runner(module, source, own, threat, chosen, seed, batch_size, where, dtype, len(index))
        runner.progress = show
        if precision != "float32":
            _lower(runner, precision)
        prints = data_fingerprint(source, index), model_fingerprint(module)
        if resume is not None and (several or not shared or collective.rank() == 0):
            runner.key = _key(prints, chosen, threat, seed, precision)
            runner.file = _file_of(runner, resume, index, several)
            runner = replace(runner, state=_resumed(runner, runner.file, batch_size))
        if several:
            runner.progress = shared_points.SharedProgress(show, "/".join((*prints, chosen.name)), len(own))
        runner.run()
        if isinstance(runner.progress, shared_points.SharedProgress):
            runner.state, runner.index = runner.progress.finish(runner.state, len(index)), index
    return _score(runner, prints)


def _file_of(runner: Runner, resume: str | os.PathLike[str], index: Tensor, several: bool) -> Path:
    """This process's progress file; files of another number of processes are divided anew."""

    def known(state: State, rows: Tensor, file: Path) -> State:
        return _of_this_model(state, replace(runner, index=index[rows]).sample(), file)

    return shared_points.own_progress_file(resume, len(index), runner.key, known, several=several)


@python_arguments
@torch.inference_mode(False)
def attack(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    name: str | Attack | Stage = "pgd-20",
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | Callable[[EvaluationProgress], object] = False,
) -> Tensor:
    """Adversarial examples (B, C, H, W) in [0, 1] within the threat of x, without graph.

    They have x's type, but float32 for half precision, which would round them out of the threat. Every point
    is attacked, also one that is misclassified on the clean image. With several stages or restarts the first
    point that fools the model is returned, else the one with the lowest margin. Arguments and errors as in
    `evaluate`, where the attack is called `attack`.
    """
    check_seed(seed)
    check_threat(threat)
    chosen, source = parse(name, threat), points((x, y))
    with progress_callback(progress) as show:
        return crafted(model, source, torch.arange(len(x)), threat, chosen, seed, batch_size, show)


def crafted(
    model: nn.Module | Callable[[Tensor], Tensor],
    source: Points,
    rows: Tensor,
    threat: ThreatModel,
    chosen: Attack,
    seed: int,
    batch_size: int | None = None,
    progress: Callable[[EvaluationProgress], object] | None = None,
) -> Tensor:
    """As `attack`, on rows of some data, with the noise that an evaluation draws for these rows."""
    x, _ = source.tensors(rows)
    check_images(x)
    made = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    if len(rows):
        with for_inference(model, None) as (module, where, dtype):
            runner = _runner(module, source, rows, threat, chosen, seed, batch_size, where, dtype)
            runner.worst_points, runner.progress = made, progress
            runner.run(every=True)
    return made.clamp_(0, 1)


def _runner(
    model: nn.Module,
    source: Points,
    index: Tensor,
    threat: ThreatModel,
    chosen: Attack,
    seed: int,
    batch_size: int | None,
    where: torch.device,
    dtype: torch.dtype,
    whole: int | None = None,
) -> Runner:
    """whole: points of all processes together, so that a search rounds as it does on one."""
    if batch_size is not None:
        at_least_one("evaluation", batch_size=batch_size)
    x, _ = source.tensors(index[:2])
    check_images(x)
    x = x.to(where, dtype)
    cost = (whole or len(index)) * sum(stage.cost() * stage.count(CLASSES) for stage in chosen.stages)
    searcher = search_model(model, x) if cost > WORTH else model
    alone = searcher is model or where.type != "cpu" or _shares_state(searcher)
    shares = 1 if alone else torch.get_num_threads()
    state = State.of(len(index), batch_size or estimate_batch(model, x, shares), shares)
    work = 0 if alone else example_work(model, x[:1])
    return Runner(
        model, _searchers(searcher, shares), source, index, threat, chosen, seed, state, where, dtype, work
    )


def _shares_state(searcher: nn.Module) -> bool:
    """Whether copies of a model may share state: functions and hooks are not copied with it."""
    return any(
        isinstance(m, Function) or m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
        for m in searcher.modules()
    )


def _searchers(searcher: nn.Module, members: int) -> SearchPool:
    try:
        return SearchPool(searcher, members)
    except Exception:  # copying runs the user's code: it may succeed once and fail later
        return SearchPool(searcher, 1)


def _resumed(runner: Runner, file: str | os.PathLike[str], batch_size: int | None) -> State:
    """The state of the file if there is one, else the runner's own; with logits that identify the model."""
    sample = runner.sample()
    if not Path(file).exists():
        return replace(runner.state, sample=sample)
    state = _of_this_model(State.load(file, runner.key), sample, file)
    return replace(state, batch_size=batch_size or state.batch_size)


def _of_this_model(state: State, sample: Tensor, file: str | os.PathLike[str]) -> State:
    """The state with logits that identify the model. Raises UserError if it was begun with another model."""
    if state.sample.numel() and not state.is_of(sample):
        raise UserError(
            f"{file} was begun with another model: its logits on the same points differ. A model that is "
            "random cannot be told from another, nor be resumed. Delete the file or name another one"
        )
    return replace(state, sample=sample)


def _lower(runner: Runner, precision: str) -> None:
    """Let the search compute in another precision."""
    if precision not in PRECISIONS:
        raise unknown("precision of the search", precision, PRECISIONS)
    if precision == "tf32" and runner.device.type != "cuda":
        raise UserError(f"a search in tf32 is of CUDA devices, and this is {runner.device.type}")
    runner.lowered, runner.precision = LowerPrecision(runner.searchers.first_member, precision), precision


def _key(
    prints: tuple[str, str], chosen: Attack, threat: ThreatModel, seed: int, precision: str = "float32"
) -> str:
    own = [] if precision == "float32" else [precision]
    text = json.dumps([prints, encode(chosen), encode(threat), seed, *own])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _score(runner: Runner, prints: tuple[str, str]) -> Score:
    state, n = runner.state, len(runner.index)
    missing = sorted(set(range(state.classes)) - set(state.y.tolist()))
    notes: tuple[str, ...] = ()
    if missing:
        called = class_names(runner.model, state.classes)
        names = ", ".join(called[k] for k in missing[:10]) + (", ..." if len(missing) > 10 else "")
        notes = (
            f"no point of class {names}: these classes have no accuracy and take no part in tail scores",
        )
    if runner.precision != "float32":
        notes += (f"the search was in {runner.precision}, the verdicts are float32's",)
    return Score(
        attack=runner.attack.name,
        detail=runner.attack,
        threat=runner.threat,
        classes=state.classes,
        y=state.y,
        predicted=state.predicted,
        margin=state.margin,
        stage=state.stage,
        index=runner.index,
        stage_names=tuple(stage.name for stage in runner.attack.stages),
        passes={"forward": state.passes.forward / n, "backward": state.passes.backward / n},
        seconds=state.seconds,
        seed=runner.seed,
        data_fingerprint=prints[0],
        model_fingerprint=prints[1],
        warnings=notes,
        search_precision=runner.precision,
    )
