"""Attack a model: `attack_and_score` gives a verdict for each point, `attack` the adversarial images."""

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
from bivallate.data.dataset import Split
from bivallate.errors import check_path, check_seed, python_arguments
from bivallate.evaluation import shared_points
from bivallate.evaluation.evaluation_identity import Identity
from bivallate.evaluation.evaluation_progress import EvaluationProgress
from bivallate.evaluation.inference import for_inference
from bivallate.evaluation.logit_difference import another_model, of_one_model
from bivallate.evaluation.named_attacks import Attack, Stage, attack_named
from bivallate.evaluation.new_runner import new_runner, use_precision
from bivallate.evaluation.point_columns import MORE_COLUMNS
from bivallate.evaluation.points import (
    Points,
    as_points,
    check_images,
    check_threat,
    class_names,
    data_fingerprint,
    model_fingerprint,
    select,
)
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.runner import Runner
from bivallate.evaluation.score import Score
from bivallate.evaluation.state import State
from bivallate.lower.threat import ThreatModel
from bivallate.parts import encode
from bivallate.renamed import renamed_arguments

__all__ = ["attack", "attack_and_score", "attack_rows"]


@renamed_arguments(precision="search_precision")
@python_arguments
@torch.inference_mode(False)  # the caller may be in inference mode, and attacks need gradients
def attack_and_score(
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
    search_precision: str = "float32",
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
        model: images (B, C, H, W) in [0, 1] -> logits (B, K).
        data: a split, or a pair (x, y) of tensors with x (N, C, H, W) in [0, 1]. If both the split and the
            model name their classes, labels are matched by name.
        threat: the set of perturbations.
        attack: a name (see `attacks()`), an `Attack` or a single stage.
        n: size of a seeded random subset of the points.
        first: number of leading points; all points are attacked if neither is given.
        batch_size: points at once; default: that of the file `resume`, or estimated from the free memory.
        device: of the computation; default: the model's. The model is not moved.
        seed: of the noise and of the subset.
        search_precision: "float32", "tf32" (CUDA) or "bf16", which are faster on hardware that supports them.
            Verdicts are always in float32, and so are searches that rounding would mislead: only attacks
            that go on after a success (fgsm, pgd, cw, multitargeted, apgd) use the other format. A coarser
            search may find less; the score states it.
        progress: a function that is called after every piece of work; True shows the progress.
        resume: file that keeps every verdict. If it exists, the evaluation continues from it and ends with
            the same verdicts. Delete it once the score is saved. A random model cannot be resumed.
        shared: under torchrun, every process calls this function and attacks a share of the points. All
            return the verdicts that one process would find, and each has its own file beside `resume`. If a
            process dies, at most its own share is lost, and another number of processes can continue.

    Raises:
        UserError: images outside [0, 1], labels outside the classes, a class that the model does not have,
            empty data, NaN logits, an unknown attack, a progress file of another evaluation.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> x, y = torch.rand(20, 1, 2, 2), torch.randint(0, 3, (20,))
        >>> from bivallate.lower.threat import Linf
        >>> score = attack_and_score(model, (x, y), Linf(0.1), "fgsm")
        >>> score.robust_accuracy <= score.clean_accuracy
        True
    """
    check_seed(seed)
    check_threat(threat)
    resume = None if resume is None else check_path("resume", resume)
    parsed, source = attack_named(attack, threat), as_points(data, model)
    index = select(len(source), n, first, seed)
    several = shared and len(index) >= collective.world_size() > 1
    with progress_callback(progress) as show, for_inference(model, device) as (module, where, dtype):
        own = shared_points.own_points(index) if several else index
        runner = new_runner(module, source, own, threat, parsed, seed, batch_size, where, dtype, len(index))
        runner.progress = show
        if search_precision != "float32":
            use_precision(runner, search_precision)
        fingerprints = data_fingerprint(source, index), model_fingerprint(module)
        # where processes are too many to share the points, all make all verdicts and the first one keeps them
        if resume is not None and (several or not shared or collective.rank() == 0):
            runner.key = _key(fingerprints, parsed, threat, seed, search_precision)
            runner.file = _file_of(runner, resume, index, several)
            runner.state = _resumed(runner, runner.file, batch_size)
        if several:
            _run_in_group(runner, "/".join((*fingerprints, parsed.name)), index)
        else:
            runner.run()
    return replace(_score(runner, fingerprints), identity=_identity(data, n, first))


def _identity(data: Any, n: int | None, first: int | None) -> Identity:
    """What is known here of a score's identity: neither the name of the weights nor that of the split."""
    of_split = data.fingerprint if isinstance(data, Split) else ""
    return Identity(weights="", split="", n=n, first=first, split_fingerprint=of_split)


def _run_in_group(runner: Runner, topic: str, index: Tensor) -> None:
    """Make the verdicts on this process's points, and take over those of the other processes."""
    progress = shared_points.SharedProgress(runner.progress, topic, len(runner.index))
    runner.progress = progress
    runner.run()
    runner.state, runner.index = progress.finish(runner.state, len(index)), index


def _file_of(runner: Runner, resume: str | os.PathLike[str], index: Tensor, several: bool) -> Path:
    """This process's progress file. Files that another number of processes left are divided anew."""

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
    progress: bool | Callable[[EvaluationProgress], object] | None = None,
) -> Tensor:
    """Adversarial examples (B, C, H, W) in [0, 1] within the threat of x, without graph.

    They have x's type, but float32 for half precision, which would round them out of the threat. Every point
    is attacked, also one that is misclassified on the clean image. With several stages or restarts the first
    point that fools the model is returned, else the one with the lowest margin. Arguments and errors as in
    `attack_and_score`; `name` is its `attack`, a word that is this function's own name.
    """
    check_seed(seed)
    check_threat(threat)
    source = as_points((x, y))
    with progress_callback(progress) as show:
        return attack_rows(
            model, source, torch.arange(len(x)), threat, attack_named(name, threat), seed, batch_size, show
        )


@torch.inference_mode(False)
def attack_rows(
    model: nn.Module | Callable[[Tensor], Tensor],
    source: Points,
    rows: Tensor,
    threat: ThreatModel,
    attack: Attack,
    seed: int,
    batch_size: int | None = None,
    progress: Callable[[EvaluationProgress], object] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Attack rows of a data set as `attack` does, with the noise that an evaluation draws for these rows.

    dtype: of the attacked images at least.
    """
    x, _ = source.tensors(rows)
    check_images(x)
    x_adv = torch.empty_like(x, dtype=torch.promote_types(x.dtype, dtype))
    if len(rows):
        with for_inference(model, None) as (module, where, own):
            runner = new_runner(module, source, rows, threat, attack, seed, batch_size, where, own)
            runner.worst_points, runner.progress = x_adv, progress
            runner.run(every=True)
        if x.dtype == torch.float64 != own:  # the search kept to the ball up to float32's rounding
            x_adv = x + threat.project(x_adv - x, x)
    return x_adv.clamp_(0, 1)


def _resumed(runner: Runner, file: str | os.PathLike[str], batch_size: int | None) -> State:
    """The state of the file if there is one, else the runner's own. Its `sample` is computed anew."""
    sample = runner.sample()
    if not Path(file).exists():
        return replace(runner.state, sample=sample)
    state = _of_this_model(State.load(file, runner.key), sample, file)
    return replace(state, batch_size=batch_size or state.batch_size)


def _of_this_model(state: State, sample: Tensor, file: str | os.PathLike[str]) -> State:
    """The state with logits that identify the model. Raises UserError if it was begun with another model."""
    if state.sample.numel() and not of_one_model(state.sample, sample):
        raise another_model(file)
    return replace(state, sample=sample)


def _key(
    fingerprints: tuple[str, str], attack: Attack, threat: ThreatModel, seed: int, precision: str = "float32"
) -> str:
    """The key of an evaluation in its progress file."""
    other = [] if precision == "float32" else [precision]
    more = [sorted(MORE_COLUMNS)] if MORE_COLUMNS else []
    text = json.dumps([fingerprints, encode(attack), encode(threat), seed, *other, *more])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _score(runner: Runner, fingerprints: tuple[str, str]) -> Score:
    state, n = runner.state, len(runner.index)
    missing = sorted(set(range(state.classes)) - set(state.y.tolist()))
    notes: tuple[str, ...] = ()
    if missing:
        called = class_names(runner.model, state.classes)
        names = ", ".join(called[k] for k in missing[:10]) + (", ..." if len(missing) > 10 else "")
        notes = (
            f"no point of class {names}: these classes have no accuracy and take no part in tail scores",
        )
    if runner.search_precision != "float32":
        notes += (f"the search was in {runner.search_precision}, the verdicts are float32's",)
    return Score(
        attack=runner.attack.name,
        detail=runner.attack,
        threat=runner.threat,
        classes=state.classes,
        y=state.y,
        predicted=state.predicted,
        margin=state.margin,
        broken_at=state.broken_at,
        index=runner.index,
        stage_names=tuple(stage.name for stage in runner.attack.stages),
        passes={"forward": state.passes.forward / n, "backward": state.passes.backward / n},
        seconds=state.seconds,
        seed=runner.seed,
        data_fingerprint=fingerprints[0],
        model_fingerprint=fingerprints[1],
        warnings=notes,
        search_precision=runner.search_precision,
        more=state.more,
    )
