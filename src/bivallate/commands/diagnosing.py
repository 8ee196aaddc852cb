"""`bivallate diagnose`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bivallate.cli import APP
from bivallate.errors import UserError, unknown


@APP.command
def diagnose(
    *runs: Path,
    what: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    out: Path | None = None,
    n: int = 500,
    weights: str = "best",
    attack: str = "pgd-20",
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Draw what a run's model and its training did, each picture with its data beside it.

    Pictures of one model show the first run, comparisons all of them.

    Parameters
    ----------
    runs
        folders of the runs.
    what
        curves, alignment, alignment-over-epochs, fosc, landscape, classes, confusion, eps, ranks, weights,
        weights-over-epochs, examples, likelihoods, weight-scatter (two runs) or transfer (two or more);
        repeatable. [default: all]
    out
        folder for NAME.svg, .png, .pdf and .json or .npz. [default: FIRST RUN/diagnosis]
    n
        test points at most.
    weights
        best (on held-out data), last or ema.
    attack
        for the accuracies by class and the confusions.
    seed
        of the points and of the attacks.
    threads
        of the processor; 0 is torch's choice.
    """
    from bivallate.report.collect import PREFERRED
    from bivallate.report.diagnostics.of_run import DIAGNOSES, choose, subject
    from bivallate.run.trainer import limit_threads

    if weights not in PREFERRED:
        raise unknown("weights", weights, PREFERRED)
    if n < 2:
        raise UserError(f"--n must be at least 2, got {n}")
    limit_threads(threads)
    looked_at = subject(runs, weights=weights, n=n, seed=seed, attack=attack)
    names = choose(what, len(runs))
    place = out or runs[0] / "diagnosis"
    for name in names:
        try:
            result = DIAGNOSES[name](looked_at)
        except UserError as error:
            if what:
                raise
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        print(f"{name}: {result.save(place / name)}")
