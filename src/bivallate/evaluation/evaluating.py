"""`evaluate` and `attack`: robust accuracy with a verdict a point, and adversarial images."""

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

WORTH = 50_000  # passes above which a copy of the model made for speed pays for making it
CLASSES = 10  # for that estimate, made before the model has said how many there are


@python_arguments
@torch.inference_mode(False)  # a caller may be in it; attacks need gradients
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
    """Attack a model, and count the points that it classifies correctly whatever was tried.

    A point is robust only if it is correct on the clean image and after every turn of every stage; every
    success is confirmed by a fresh forward of the model itself inside the threat. The model's mode,
    `requires_grad` and gradients are left as they were found, also when the attack raises. Randomness belongs
    to a point's row, so that the result does not depend on the batch size beyond rounding. On a processor a
    long search may run in several threads at once, each with a copy of the model that shares its parameters;
    stages of your own then need to keep no state between calls.

    Args:
        data: a split, or a pair (x, y) of tensors with x (N, C, H, W) in [0, 1]. Labels of a split are found
            by the names of the classes where both it and the model name theirs.
        attack: a name (see `attacks()`), an `Attack` or a single stage.
        n, first: evaluate a seeded random subset of so many points, or the leading ones.
        batch_size: points at once; estimated from the free memory if not given. A resume takes that of its
            file unless one is given here.
        device: where to work; where the model is if not given. The model itself stays where it is.
        precision: of the search alone, "float32", "tf32" (CUDA) or "bf16": faster where the hardware has it.
            Verdicts are float32's whatever it is, and so are the searches of FAB, Square and of attacks that
            end at the first success, which rounding leads astray. A coarser search may find less: the score
            says it.
        progress: called when a stage begins and after every piece of work; True shows it.
        resume: file that keeps every verdict; if it exists, the evaluation goes on from there, to the same
            verdicts. It stays when the evaluation is done, so delete it once the score is saved. A model that
            is random cannot be resumed.
        shared: under torchrun, every process calls this and takes every so-manieth point: all return the
            verdicts that one process would find, and each keeps its own beside `resume`. A process that dies
            loses its own part at most, and another number of processes can go on.

    Raises:
        UserError: images outside [0, 1], labels outside the classes, a class that the model has not, empty
            data, NaN logits, an unknown attack, a progress file of another evaluation.

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
        runner = _runner(module, source, own, threat, chosen, seed, batch_size, where, dtype)
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
    """This process's progress file, cut anew where another number of processes had left theirs."""

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
    """Adversarial examples for a model: like x, without graph, in [0, 1] and within the threat of x.

    They are of x's type, but float32 where x is in half precision, which would round them out of the threat.
    Every point is attacked, also one that is wrong on the clean image. Where several stages or restarts are
    run, the first point that fools the model is returned, else the one with the lowest margin. `progress`:
    True shows how far it is; or a function to call with every moment.
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
    """As `attack` of a model, on rows of some data, with the noise that an evaluation draws for them."""
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
) -> Runner:
    if batch_size is not None:
        at_least_one("evaluation", batch_size=batch_size)
    x, _ = source.tensors(index[:2])
    check_images(x)
    x = x.to(where, dtype)
    cost = len(index) * sum(stage.cost() * stage.count(CLASSES) for stage in chosen.stages)
    searcher = search_model(model, x) if cost > WORTH else model
    alone = searcher is model or where.type != "cpu" or _shares_state(searcher)
    shares = 1 if alone else torch.get_num_threads()
    state = State.of(len(index), batch_size or estimate_batch(model, x, shares), shares)
    work = 0 if alone else example_work(model, x[:1])
    return Runner(
        model, _searchers(searcher, shares), source, index, threat, chosen, seed, state, where, dtype, work
    )


def _shares_state(searcher: nn.Module) -> bool:
    """Whether copies of a model may write to one place: functions and hooks are not copied along."""
    return any(
        isinstance(m, Function) or m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
        for m in searcher.modules()
    )


def _searchers(searcher: nn.Module, members: int) -> SearchPool:
    try:
        return SearchPool(searcher, members)
    except Exception:  # copying runs foreign code: a model that can be copied once but not twice
        return SearchPool(searcher, 1)


def _resumed(runner: Runner, file: str | os.PathLike[str], batch_size: int | None) -> State:
    """The state kept in a file if there is one, else the runner's own, which knows its model from now on."""
    sample = runner.sample()
    if not Path(file).exists():
        return replace(runner.state, sample=sample)
    state = _of_this_model(State.load(file, runner.key), sample, file)
    return replace(state, batch_size=batch_size or state.batch_size)


def _of_this_model(state: State, sample: Tensor, file: str | os.PathLike[str]) -> State:
    """The state, which knows its model from now on. Raises UserError if it was begun with another."""
    if state.sample.numel() and not state.is_of(sample):
        raise UserError(
            f"{file} was begun with another model: its logits on the same points differ. A model that is "
            "random cannot be told from another, nor be resumed. Delete the file or name another one"
        )
    return replace(state, sample=sample)


def _lower(runner: Runner, precision: str) -> None:
    """Let the search compute in another number format."""
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
