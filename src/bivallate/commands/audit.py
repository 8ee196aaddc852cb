"""`bivallate audit`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from bivallate.commands.options import (
    Ball,
    Count,
    DataName,
    Flag,
    Machine,
    Names,
    Positive,
    Share,
    Split,
    WeightsSource,
    threats_of,
)
from bivallate.commands.result_files import result_file, saved_result
from bivallate.commands.shared_work import shared_work
from bivallate.errors import UserError
from bivallate.terminal import literal_console, say, say_json

if TYPE_CHECKING:
    from bivallate.audits import Audit
    from bivallate.run.evaluation_target import EvaluationTarget


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
    threat: Names = (),
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
        minutes that the attacks may take, in all threats together; their strength follows from it.
    against
        folder of another run on the same classes, to transfer attacks from; repeatable.
    claimed
        robust accuracy in [0, 1] to hold against the evidence. [default: the strongest kept in RUN/evaluation
        for these weights and this threat, else that of PGD]
    threat
        one or several threats in place of --norm and --eps, each a norm and a radius: linf:8/255 l2:0.5. Each
        is audited by itself. [default: all that the run was trained under]
    data
        another data set than the run's, or where its own data are now.
    out
        file for the result, as JSON; for several results a folder. [default: a file in RUN/audit]
    quiet
        no progress.
    json
        print the result as JSON instead of tables; several results as a list.
    """
    from bivallate.audits.audit_model import check_radius
    from bivallate.run.evaluation_target import EvaluationTarget

    asked, device = threats_of(threat, beside=ball.given), machine.prepare()
    examined = EvaluationTarget.of(
        run, threat=ball.of, split=split, data=data, device=device, **source.reading
    )
    threats = asked or examined.threats
    if claimed is not None and len(threats) > 1:
        raise UserError(f"--claimed is of one threat, and here are {len(threats)}: name it with --threat")
    options = {"claimed": claimed, "against": against, "factory": source.model, "n": n, "seed": source.seed}
    options |= {"minutes": budget / len(threats), "shared": True}
    for each in threats:
        check_radius(each)  # all of them before the first one is attacked
    task = _AuditTask(options, out, len(threats) > 1, json or quiet, json)
    for each in threats:
        task.audit(replace(examined, threat=each))
    task.end()


@dataclass
class _AuditTask:
    """The audits of one call of the command, one within each threat; each is saved and printed.

    Attributes:
        options: of every audit.
        out: file, or folder for several results, in place of the run's folder.
        several: whether there is more than one.
        quiet: show neither plan nor progress.
        json: print JSON.
        results: what was found.
        faults: errors of results that should have been saved and could not.
    """

    options: dict[str, Any]
    out: Path | None
    several: bool
    quiet: bool
    json: bool
    results: list[Audit] = field(default_factory=list)
    faults: list[UserError] = field(default_factory=list)

    def audit(self, examined: EvaluationTarget) -> None:
        """Audit a run within its threat; save the result and print it."""
        from bivallate.audits.run_audit import audit_file, audit_of
        from bivallate.evaluation.progress_display import shown_progress
        from bivallate.evaluation.threat_union import radius

        default = audit_file(examined, self.options["seed"])
        place = result_file(default, self.out / default.name if self.out and self.several else self.out)
        announce = None if self.quiet else _announce
        with shown_progress(self.quiet, radius(examined.threat) if self.several else "") as progress:
            result = audit_of(examined, announce=announce, progress=progress, **self.options)
        self.results.append(result)
        try:
            with saved_result(place, result.save, silent=self.json):
                if not self.json:
                    show(result)
        except UserError as fault:  # the other threats are still to be audited
            self.faults.append(fault)

    def end(self) -> None:
        """Print all verdicts, or JSON if asked to. Raises UserError if a result could not be saved."""
        from bivallate.evaluation.threat_union import radius

        if self.json:
            entries = [result.to_json() for result in self.results]
            say_json(entries if self.several else entries[0])
        elif self.several:
            verdicts = (f"{result.verdict} at {radius(result.threat)}" for result in self.results)
            say(f"verdicts: {'; '.join(verdicts)}")
        if self.faults:
            raise self.faults[0]


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
