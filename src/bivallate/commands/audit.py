"""`bivallate audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from bivallate.commands.options import (
    Ball,
    Count,
    DataName,
    Flag,
    Machine,
    Positive,
    Share,
    Split,
    WeightsSource,
)
from bivallate.commands.result_files import result_file, saved_result
from bivallate.commands.shared_work import shared_work
from bivallate.terminal import literal_console, say, say_json


@shared_work
def audit(
    run: Path,
    /,
    *,
    n: Count = 500,
    budget: Positive = 10.0,
    against: Annotated[tuple[Path, ...], Parameter(negative=(), show_default=False)] = (),
    claimed: Share | None = None,
    ball: Ball = Ball(),  # noqa: B008  frozen
    split: Split = "test",
    data: DataName | None = None,
    source: WeightsSource = WeightsSource(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    out: Path | None = None,
    quiet: Flag = False,
    json: Flag = False,
) -> None:
    """Test whether the robust accuracy of a run is real, and print the evidence for and against it.

    Stronger attacks must not break fewer points than weaker ones, and accuracy must fall to zero as the
    radius grows. If either fails, gradients are masked and the accuracy would not survive a better attack.
    The result is kept in RUN/audit. Under torchrun the processes share the points.

    Parameters
    ----------
    run
        folder of the run.
    n
        size of the seeded random subset of points; fewer if the data has fewer.
    budget
        minutes that the attacks may take; their strength follows from it.
    against
        folder of another run on the same classes, to transfer attacks from; repeatable.
    claimed
        robust accuracy in [0, 1] to hold against the evidence. [default: the strongest kept in RUN/evaluation
        for these weights and this threat, else that of PGD]
    data
        another data set than the run's, or where its own data are now.
    out
        file for the result, as JSON. [default: a file in RUN/audit]
    quiet
        no progress.
    json
        print the result as JSON instead of tables.
    """
    from bivallate.audits.run_audit import audit_file, audit_of
    from bivallate.evaluation.progress_display import shown_progress
    from bivallate.run.evaluation_target import EvaluationTarget

    device = machine.prepare()
    examined = EvaluationTarget.of(
        run, threat=ball.of, split=split, data=data, device=device, **source.reading
    )
    place = result_file(audit_file(examined, source.seed), out)
    with shown_progress(json or quiet) as progress:
        result = audit_of(
            examined,
            claimed=claimed,
            against=against,
            factory=source.model,
            n=n,
            minutes=budget,
            seed=source.seed,
            announce=None if json or quiet else _announce,
            progress=progress,
            shared=True,
        )
    with saved_result(place, result.save, silent=json):
        if json:
            say_json(result.to_json())
        else:
            show(result)


def _announce(plan: Any, seconds: float) -> None:
    """Print the plan of an audit and the seconds that it is expected to take."""
    from bivallate.evaluation.progress_display import duration

    say(
        f"audit at the {plan.level} level: {plan.n} points, at most {plan.cost():,} passes, "
        f"about {duration(seconds)}",
        to_stderr=True,
    )


def show(result: Any) -> None:
    """Print verdict, checks and advice as text and a table."""
    from bivallate.audits import VERDICTS

    console = literal_console(soft_wrap=True)
    low, high = result.worst_interval_95
    console.print(f"verdict: {result.verdict}: {VERDICTS[result.verdict]}")
    console.print(
        f"{result.n} points at {type(result.threat).__name__} eps {result.threat.eps:.5g}: clean "
        f"{result.clean:.1%}, claimed {result.claimed:.1%} ({result.claim}), after all attacks "
        f"{result.worst:.1%} [{low:.1%}, {high:.1%}]",
    )
    table = Table("", "check", "question", "found")
    for check in result.checks:
        table.add_row(check.outcome, check.name, check.question, check.finding)
    console.print(table)
    if result.failed_checks:
        console.print("what to do:")
    for check in result.failed_checks:
        console.print(f"  {check.name}: {check.advice}")
    console.print(f"{result.passes:,} passes, {result.seconds:.1f} s")
