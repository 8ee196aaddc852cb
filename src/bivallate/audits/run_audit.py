"""`audit` of a run: on its own data and threat, compared with its stored evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bivallate.audits.audit_model import audit as examine
from bivallate.audits.leak import leak
from bivallate.audits.result import Audit, AuditProgress
from bivallate.errors import UserError, check_options
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.statistics import FEWEST_POINTS
from bivallate.evaluation.threat_union import listed_radii, same_threat
from bivallate.files import json_files
from bivallate.lower.threat import ThreatModel
from bivallate.reports.stored_evaluations import STALE, RunFingerprints, read_evaluation
from bivallate.reports.strength import strongest_first
from bivallate.run.evaluate_run import folder_or_model
from bivallate.run.evaluation_target import EvaluationTarget
from bivallate.run.folder import RunFolder
from bivallate.run.load_model import load_run
from bivallate.terminal import say

__all__ = ["audit", "audit_file", "audit_of", "kept_claim"]

NO_ATTACKS = "transfer", "noise"  # names of evaluations that do not attack the model itself begin so
MINUTES = 10.0  # budget of an audit of a run if none is given


def audit_file(examined: EvaluationTarget, seed: int) -> Path:
    """The file in RUN/audit that this audit is kept in."""
    return examined.path / "audit" / examined.identity().file_name(examined.threat, "audit", seed)


def audit_of(
    examined: EvaluationTarget,
    *,
    claimed: float | None = None,
    against: Sequence[str | Path] = (),
    factory: str | None = None,
    **options: Any,
) -> Audit:
    """Audit a run, with the checks of its training history and of leaked test images.

    Args:
        examined: the run, its weights, points and threat.
        claimed: a robust accuracy in [0, 1] to compare with the results; the strongest stored evaluation of
            the run if not given.
        against: folders of runs on the same classes, to transfer attacks from.
        factory: package.module:factory of their networks.
        options: as in `bivallate.audits.audit_model.audit`.
    """
    folder, claim = RunFolder(examined.path), "--claimed"
    if claimed is None and examined.split == "test" and not examined.elsewhere:
        claimed, claim = kept_claim(
            folder.evaluation, examined.weights, examined.threat, len(examined.chosen_split)
        )
    device = next(iter(examined.model.parameters())).device
    others = [load_run(other, "last", factory).to(device) for other in against]
    options |= {"surrogates": others, "claimed": claimed, "claim": claim, "history": folder.read_metrics()}
    result = examine(examined.model, examined.chosen_split, examined.threat, **options)
    checks = (*result.checks, leak(examined, result.n, result.seed))
    return replace(result, identity=examined.identity(), checks=checks)


def audit(
    model: Any,
    data: Any = None,
    threat: ThreatModel | None = None,
    *,
    weights: str = "best",
    split: str = "test",
    against: Sequence[str | Path] = (),
    factory: str | None = None,
    data_dir: str | None = None,
    store: bool = True,
    seed: int = 0,
    progress: bool | Callable[[AuditProgress], object] = False,
    **options: Any,
) -> Audit:
    """Audit a run or a model: attack it in ways whose results must agree, and say whether they do.

    Args:
        model: a network or function (n, C, H, W) -> (n, K), or a run (its folder, or what `train`
            returned). For a run, data and threat default to its own, its history and stored evaluations
            are checked too, the budget defaults to ten minutes, and the result is kept in RUN/audit.
        data: a split or a pair (x, y); for a run, a data set's name or folder.
        threat: norm and radius; for a run this and `data` may be left out, but of a run that was trained
            under several threats an audit takes one, which must be named.
        weights: of a run: best, last, ema or epoch-N.
        split: of a run: test or validation.
        against: of a run: folders of runs on the same classes, to transfer attacks from.
        factory: of a run: package.module:factory of networks of your own.
        data_dir: of a run: where named data sets are searched for.
        store: keep the result of a run.
        seed: of the choice of points and of the attacks.
        progress: True shows a progress display; a function is called before every attack.
        options: n, budget_passes, minutes, claimed and surrogates, described with
            `bivallate.audits.audit_model.audit`.

    Raises:
        UserError: arguments that do not fit one another, data or model that cannot be attacked, a budget that
            is too small, or a run that cannot be read.
    """
    check_options("audit", options, examine, budget="minutes")
    model = folder_or_model(model)
    with progress_callback(progress) as show:
        options |= {"seed": seed, "progress": show}
        if not isinstance(model, str | Path):
            if data is None or threat is None:
                raise UserError(
                    "say what to audit on: bv.audit(model, data.test, bv.Linf(8/255)); only the folder of a "
                    'run, bv.audit("runs/x"), knows its own data and threat'
                )
            return examine(model, data, threat, **options)
        where = {"weights": weights, "split": split, "data_dir": data_dir, "model": factory}
        if data is not None and not isinstance(data, str | Path):
            raise UserError("a run is audited on its own data or on a set with a name; load its model first")
        examined = EvaluationTarget.of(
            model, threat=threat, data=None if data is None else str(data), **where
        )
        _check_single(examined)
        if "minutes" not in options and "budget_passes" not in options:
            options["minutes"] = MINUTES
        result = audit_of(examined, against=against, factory=factory, **options)
        if store:
            result.save(audit_file(examined, seed))
    return result


def _check_single(examined: EvaluationTarget) -> None:
    """Raise UserError if the run was trained under several threats and none was named."""
    if examined.others:
        raise UserError(
            f"the run was trained under {listed_radii(examined.threats)}: audit it within one at a time, as "
            f"in bv.audit(run, threat=bv.{examined.threat!r})"
        )


def kept_claim(folder: Path, weights: str, threat: Any, points: int) -> tuple[float | None, str]:
    """Find the strongest stored evaluation that can serve as the claim of an audit.

    It must be on the run's own test data, by an attack on the model itself, within the same threat, and on
    at least 50 points, or on all of fewer. Files that cannot be read or that are of weights that have
    changed since are left out with a warning.

    Args:
        folder: of the stored evaluations.
        weights: as in `audit`.
        points: number of test points.

    Returns:
        (robust accuracy in [0, 1], where it comes from); (None, "") if there is none.
    """
    found, fingerprints = [], RunFingerprints.of(folder.parent)
    for path in json_files(folder):
        try:
            kept = read_evaluation(path, fingerprints)
        except UserError as error:
            say(f"warning: {error}", to_stderr=True)
            continue
        asked = (weights, "test", "")
        if kept is None or (kept.identity.known and (kept.weights, kept.split, kept.data) != asked):
            continue
        score = kept.score
        direct = score.attack != "clean" and not score.attack.startswith(NO_ATTACKS)
        if not (direct and same_threat(score.threat, threat) and score.n >= min(FEWEST_POINTS, points)):
            continue
        if kept.stale or kept.left_out:
            say(f"warning: {path} is no claim: {kept.left_out or STALE}", to_stderr=True)
            continue
        found.append(kept)
    if not found:
        return None, ""
    score = found[strongest_first([[e] for e in found])[0]].score
    return score.robust_accuracy, f"evaluation {score.attack}, {score.n} points"
