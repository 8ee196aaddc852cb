"""`bv.evaluate`: the score of a run, which is stored in its folder, or of any model.

The command is `commands/evaluate.py`; for a run both call `EvaluationTarget.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bivallate.errors import UserError, check_options, python_arguments
from bivallate.evaluation import Attack, Score, Stage, attack_and_score, attack_named, within_all
from bivallate.evaluation.evaluation_options import EvaluationOptions
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.threat_union import threats_in
from bivallate.lower.threat import ThreatModel
from bivallate.renamed import renamed_arguments
from bivallate.run.evaluation_target import EvaluationTarget, ProgressCallback
from bivallate.run.execution import Run

__all__ = ["evaluate", "folder_or_model"]


@renamed_arguments(precision="search_precision")
@python_arguments
def evaluate(
    model: Any,
    data: Any = None,
    threat: ThreatModel | Sequence[ThreatModel] | None = None,
    attack: Any = "pgd-20",
    *,
    weights: str = "best",
    split: str = "test",
    factory: str | None = None,
    data_dir: str | None = None,
    store: bool = True,
    n: int | None = None,
    first: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool | ProgressCallback = False,
    **options: Any,
) -> Score:
    """Attack a model, and count the points that it classifies correctly under every attempt.

    Args:
        model: a network, or a function from images (B, C, H, W) in [0, 1] to logits (B, K); or a run (its
            folder, or what `train` returned). For a run, data and threat default to the run's own, and the
            score is saved in RUN/evaluation, as `bivallate evaluate` does.
        data: a split, or a pair (x, y) of tensors (n, C, H, W) and (n,); for a run also the name of a data
            set.
        threat: the set of perturbations, such as bv.Linf(8/255), or several: each is attacked, and robust are
            the points that withstand all. The default of a run is every threat that it was trained under.
        attack: a name (see `bivallate attacks`), an `Attack` or a stage of one.
        weights: for a run: best, last, ema or epoch-N.
        split: for a run: test, validation or train.
        factory: for a run with the user's own network: its `package.module:factory`.
        data_dir: for a run: where named data sets are now.
        store: save the score of a run.
        n: number of points in a seeded random subset.
        first: number of leading points; at most one of `n` and `first`.
        device: where to compute; default that of the model, or for a run the fastest.
        seed: seed of the subset and of the attack.
        progress: True to show a progress bar, or a function that is called with `EvaluationProgress`.
        options: batch_size, search_precision, resume and shared, as in
            `bivallate.evaluation.attack_and_score`.

    Returns:
        The score: accuracies as fractions in [0, 1], and one verdict for each point. Of several threats it is
        the joined one (see `bivallate.evaluation.within_all`), and each threat's own is saved.

    Raises:
        UserError: an argument is wrong, or the run, the data or the weights do not exist.

    Example:
        >>> import bivallate as bv
        >>> digits = bv.data.load("digits")
        >>> model = bv.models.create("linear", num_classes=10, shape=(1, 8, 8))
        >>> 0 <= bv.evaluate(model, digits.test, bv.Linf(0.1), "fgsm", n=20).robust_accuracy <= 1
        True
    """
    check_options("evaluate", options, attack_and_score)
    model, given = folder_or_model(model), threats_in(threat)
    subset: dict[str, Any] = {"n": n, "first": first, "seed": seed}
    reading = {"weights": weights, "split": split, "data_dir": data_dir, "model": factory}
    with progress_callback(progress) as show:
        if isinstance(model, str | Path):
            attack_named(attack)  # first, so that a misspelt attack is reported before the model is loaded
            named = str(data) if isinstance(data, str | Path) else None
            own = given[0] if given else None
            target = EvaluationTarget.of(model, threat=own, data=named, device=device or "auto", **reading)
            given = given or target.threats
            if data is None or named is not None:
                return _score_of_run(target, given, attack, store, show, subset | options)
            # tensors cannot be named in a stored evaluation: not stored
            model, device = target.model, None
        _check_complete(data, given, options)
        settings = {"device": device, "progress": show, **subset, **options}
        return _joined(lambda each: attack_and_score(model, data, each, attack, **settings), given, attack)


def _check_complete(data: Any, threats: Sequence[ThreatModel], options: dict[str, Any]) -> None:
    """Raise UserError without data or threats, and for a progress file of several threats."""
    if data is None or not threats:
        raise UserError(
            "say what to evaluate on: bv.evaluate(model, data.test, bv.Linf(8/255)); only the folder of "
            'a run, bv.evaluate("runs/x"), knows its own data and threat'
        )
    if len(threats) > 1 and options.get("resume") is not None:
        raise UserError("resume keeps verdicts within one threat: evaluate each, and join by within_all")


def folder_or_model(model: Any) -> Any:
    """For a `Run` its folder, or its model if it has no folder; anything else unchanged."""
    return (model.path or model.model) if isinstance(model, Run) else model


def _joined(
    score: Callable[[ThreatModel], Score], threats: Sequence[ThreatModel], attack: str | Attack | Stage
) -> Score:
    """The score within the only threat, or what withstands all; no attack needs no threat."""
    parts = [score(each) for each in (threats if attack_named(attack).stages else threats[:1])]
    return parts[0] if len(parts) == 1 else within_all(parts)


def _score_of_run(
    target: EvaluationTarget,
    threats: Sequence[ThreatModel],
    attack: str | Attack | Stage,
    store: bool,
    progress: ProgressCallback | None,
    options: dict[str, Any],
) -> Score:
    """Score a run on data that have a name, and store the scores in its folder if `store` says so."""
    if options.pop("resume", None) is not None:
        raise UserError("a run keeps its unfinished verdicts in its own folder: leave resume out")
    settings, findings = EvaluationOptions(**options), target.preflight()

    def score(threat: ThreatModel) -> Score:
        within, file = replace(target, threat=threat), None
        parsed = attack_named(attack, threat)
        if store and isinstance(attack, str):  # a user's own attack may have the name of a built-in one
            file = within.file(parsed, settings)
        return within.evaluate(parsed, settings, file=file, findings=findings, progress=progress)

    return _joined(score, threats, attack)
