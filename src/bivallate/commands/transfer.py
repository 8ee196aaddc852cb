"""`bivallate transfer`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from bivallate.commands.options import Ball, Count, DataName, Flag, Machine, Subset, WeightsSource
from bivallate.commands.result_files import result_file, saved_result
from bivallate.commands.score_table import percent, show
from bivallate.errors import UserError
from bivallate.terminal import say, say_json


def transfer(
    run: Path,
    /,
    *,
    from_: Annotated[tuple[Path, ...], Parameter(name="--from", negative=(), consume_multiple=True)],
    attack: str = "pgd-20",
    ball: Ball = Ball(),  # noqa: B008  frozen
    data: DataName | None = None,
    subset: Subset = Subset(),  # noqa: B008
    source: WeightsSource = WeightsSource(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    batch_size: Count | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Evaluate the model of a run on adversarial points that were made on the models of other runs.

    An accuracy below that of the same attack on the model itself shows that the model's gradients mislead
    the attack. The result is kept in RUN/evaluation.

    Parameters
    ----------
    run
        folder of the run.
    from_
        folders of the runs that the points are made on, one after another.
    attack
        name of the attack on those; `bivallate attacks` lists them.
    batch_size
        points at once. [default: estimated from the free memory]
    data
        where the runs' data are now, if they were moved. [default: as in training]
    out
        file for the result, as JSON. [default: a file in RUN/evaluation]
    json
        print the result as JSON instead of a table.
    """
    from bivallate.commands.run_group import RunGroup, norm_of
    from bivallate.evaluation import Identity, attack_named
    from bivallate.evaluation import transfer as judged
    from bivallate.reports.stored_evaluations import RunFingerprints, read_evaluations
    from bivallate.run.folder import RunFolder

    attack_named(attack)  # a misspelt attack is said before anything else
    if not from_:
        raise UserError("name at least one other run to make the points on: --from RUN")
    folder = RunFolder.open(run)
    subjects = RunGroup.of([run, *from_], source, machine, data)
    (_, model), *others = subjects.models.items()
    threat = ball.of(subjects.own(ball.norm))
    subjects.tell_of_others(norm_of(None, threat))
    chosen = attack_named(attack, threat)
    options = asdict(subset) | {"seed": source.seed, "batch_size": batch_size}

    fingerprints = RunFingerprints.of(folder.path)
    identity = Identity(fingerprints.run, source.weights, n=subset.n, first=subset.first)

    def place(attack: str) -> Path:
        return folder.evaluation / identity.file_name(threat, attack, source.seed)

    writable = result_file(place(f"transfer-{chosen.name}"), out) is not None
    score = judged(model, dict(others), subjects.test_split, threat, chosen, **options)
    score = replace(score, identity=identity)
    kept = (out or place(score.attack)) if writable else None
    with saved_result(kept, score.save, silent=json):
        if json:
            say_json(score.to_json())
        else:
            known = read_evaluations(folder.evaluation, fingerprints)
            white = [e.score for e in known if e.score.attack == chosen.name and _comparable(e, score)]
            _show(score, subjects, white[0] if white else None)


def _comparable(stored: Any, score: Any) -> bool:
    """Whether a stored evaluation has the same weights, points, threat and seed as a score."""
    from bivallate.evaluation.threat_union import same_threat

    other, present = stored.score, not (stored.stale or stored.left_out)
    same = (other.data_fingerprint, other.model_fingerprint, other.seed)
    own = (score.data_fingerprint, score.model_fingerprint, score.seed)
    return present and same == own and same_threat(other.threat, score.threat)


def _show(score: Any, subjects: Any, own: Any) -> None:
    """Print the score, and beside it the stored one of the same attack on the model itself, if any."""
    from bivallate.evaluation.pairs import LEVEL, p_value

    show(score, list(subjects.classes))
    if own is not None:
        p = p_value(own, score) if score.robust_accuracy < own.robust_accuracy else None
        masked = p is not None and p < LEVEL  # chance alone may break a few points more
        say(
            f"the same attack on the model itself left {percent(own.robust_accuracy)}"
            + (f": {MASKED} (p {p:.2g})" if masked else "")
        )


MASKED = "points from elsewhere break more, so its own gradients mislead the attack; see `bivallate audit`"
