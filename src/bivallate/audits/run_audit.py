"""`audit` of a run: with its own data and threat, held against the evaluations that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bivallate.audits.auditing import audit as examine
from bivallate.audits.leak import leak
from bivallate.audits.result import Audit, AuditProgress
from bivallate.errors import UserError, check_options
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.significance import same_threat
from bivallate.evaluation.statistics import FEWEST_POINTS
from bivallate.lower.threat import ThreatModel
from bivallate.reports.stored_evaluations import STALE, Fit, read_evaluation
from bivallate.reports.strength import strongest_first
from bivallate.run.evaluation_target import EvaluationTarget, folder_or_model
from bivallate.run.folder import RunFolder
from bivallate.run.load_model import load_run
from bivallate.terminal import say

__all__ = ["audit", "audit_file", "audit_of", "kept_claim"]

MINUTES = 10.0  # that an audit of a run may take


def audit_file(examined: EvaluationTarget, seed: int) -> Path:
    """Where a run keeps an audit."""
    return examined.path / "audit" / examined.identity().file_name(examined.threat, "audit", seed)


def audit_of(
    examined: EvaluationTarget,
    *,
    claimed: float | None = None,
    against: Sequence[str | Path] = (),
    factory: str | None = None,
    **options: Any,
) -> Audit:
    """The audit of a run, with its history.

    Args:
        claimed: a robust accuracy in [0, 1] to hold against the evidence; the strongest evaluation that the
            run keeps if not given. against: folders of runs on the same classes to transfer attacks from.
        factory: package.module:factory of their networks. options: as in `bivallate.audits.audit`.
    """
    folder, claim = RunFolder(examined.path), "--claimed"
    if claimed is None and examined.split == "test" and not examined.elsewhere:
        claimed, claim = kept_claim(
            folder.evaluation, examined.weights, examined.threat, len(examined.points)
        )
    device = next(iter(examined.model.parameters())).device
    others = [load_run(other, "last", factory).to(device) for other in against]
    options |= {"surrogates": others, "claimed": claimed, "claim": claim, "history": folder.read_metrics()}
    result = examine(examined.model, examined.points, examined.threat, **options)
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
        model: a network or function, or a run (its folder, or what `train` returned): then data and threat
            are the run's own, its history and its kept evaluations are held against the evidence, ten minutes
            may be spent where no budget is given, and the result is kept in RUN/audit as `bivallate audit`
            keeps it.
        data, threat: a split or a pair (x, y), and what is attacked within; of a run they may be left out.
        weights, split, against, factory, data_dir: of a run: which weights and points, other runs to
            transfer attacks from, package.module:factory of networks of one's own, where named sets are
            looked for.
        store: keep the result of a run. progress: True shows how far it is; or a function of every moment.
        options: n, budget_passes, minutes, claimed and surrogates of `bivallate.audits.auditing.audit`, which
            says more.

    Raises:
        UserError: for anything the user can mend.
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
        if "minutes" not in options and "budget_passes" not in options:
            options["minutes"] = MINUTES
        result = audit_of(examined, against=against, factory=factory, **options)
        if store:
            result.save(audit_file(examined, seed))
    return result


def kept_claim(folder: Path, weights: str, threat: Any, points: int) -> tuple[float | None, str]:
    """(robust accuracy, attack) of the strongest evaluation that the run keeps; (None, "") without one.

    Only what could be a headline counts: the run's own test data, attacked on the model itself, on no fewer
    points than an audit wants. A file that cannot be read, or is of weights that have changed since, is no
    claim.
    """
    found, fit = [], Fit.of(folder.parent)
    for path in sorted(folder.glob("*.json")):
        try:
            kept = read_evaluation(path, fit)
        except UserError as error:
            say(f"warning: {error}", beside=True)
            continue
        if kept is None or (kept.weights, kept.split, kept.data) != (weights, "test", ""):
            continue
        score = kept.score
        direct = score.attack != "clean" and not score.attack.startswith("transfer")
        if not (direct and same_threat(score.threat, threat) and score.n >= min(FEWEST_POINTS, points)):
            continue
        if kept.stale or kept.foreign:
            say(f"warning: {path} is no claim: {kept.foreign or STALE}", beside=True)
            continue
        found.append(kept)
    if not found:
        return None, ""
    score = found[strongest_first([[e] for e in found])[0]].score
    return score.robust_accuracy, f"evaluation {score.attack}, {score.n} points"
