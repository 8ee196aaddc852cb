"""`bivallate audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.progress import Progress
from rich.table import Table

from bivallate.cli import APP
from bivallate.commands.options import Machine, Source, split_of, threat_of
from bivallate.errors import UserError
from bivallate.quoting import line
from bivallate.terminal import NAME, columns, literal_console, say, say_json

Flag = Annotated[bool, Parameter(negative=())]


@APP.command
def audit(
    run: Path,
    *,
    n: int = 500,
    budget: float = 10.0,
    against: tuple[Path, ...] = (),
    claimed: float | None = None,
    eps: str | None = None,
    norm: str | None = None,
    split: str = "test",
    source: Source = Source(),  # noqa: B008  frozen
    machine: Machine = Machine(),  # noqa: B008
    json: Flag = False,
) -> None:
    """Ask whether the robustness of a run is real, and say what speaks for and against it.

    Attacks that know more or do more must not do worse, and accuracy must go where it has to go; where that
    fails, gradients are masked and a published number would not last. The result is kept in RUN/audit.

    Parameters
    ----------
    run
        folder of the run.
    n
        seeded random subset of so many points; fewer if the data has fewer.
    budget
        minutes that the attacks may take; their strength follows from it.
    against
        folder of another run on the same classes, to transfer attacks from; repeatable.
    claimed
        robust accuracy in [0, 1] to hold against the evidence. [default: the strongest kept in RUN/evaluation
        for these weights and this threat, else that of PGD]
    eps
        radius in pixel units of [0, 1], such as 8/255. [default: the run's own]
    norm
        linf or l2. [default: the run's own]
    split
        test, validation or train.
    json
        print the result as JSON instead of tables.
    """
    from bivallate.audit import audit as examine
    from bivallate.evaluate import evaluation_name
    from bivallate.run.api import load_run
    from bivallate.run.config import Config
    from bivallate.run.evaluation_data import evaluation_data
    from bivallate.run.folder import RunFolder

    folder = RunFolder.open(run)
    if n < 1:
        raise UserError(f"--n must be a whole number of at least 1, got {n}")
    device = machine.prepare()
    config = Config.read(folder.config)
    config = config.set("data.data_dir", source.data_dir) if source.data_dir is not None else config
    threat = threat_of(config.method.threat, norm, eps)
    points = split_of(evaluation_data(run, config).data, split)
    others = [load_run(other, "last", source.model).to(device) for other in against]
    claim = "--claimed"
    if claimed is None and split == "test":
        claimed, claim = kept_claim(folder.evaluation, source.weights, threat, len(points))
    with _Shown(silent=json) as shown:
        result = examine(
            load_run(run, source.weights, source.model).to(device),
            points,
            threat,
            n=n,
            minutes=budget,
            surrogates=others,
            claimed=claimed,
            claim=claim,
            history=folder.read_metrics(),
            seed=source.seed,
            announce=shown.announce,
            progress=shown.update,
        )
    label = source.weights if split == "test" else f"{source.weights}-{split}"
    target = folder.path / "audit" / evaluation_name(label, threat, "audit", source.seed)
    result.save(target)
    if json:
        say_json(result.to_json())
        return
    show(result)
    say(f"kept in {target}")


def kept_claim(folder: Path, weights: str, threat: Any, points: int) -> tuple[float | None, str]:
    """(robust accuracy, attack) of the strongest evaluation that the run keeps; (None, "") without one.

    Only what could be a headline counts: the run's own test data, attacked on the model itself, on no fewer
    points than an audit wants. A file that cannot be read, or is of weights that have changed since, is no
    claim.
    """
    from bivallate.audit.plan import FEWEST
    from bivallate.evaluate.compare import same_threat
    from bivallate.reports.collect import STALE, evaluation, fingerprints
    from bivallate.reports.strength import strongest_first

    found, prints = [], fingerprints(folder.parent)
    for path in sorted(folder.glob(f"{weights}-{type(threat).__name__.lower()}-*.json")):
        try:
            kept = evaluation(path, prints)
        except UserError as error:
            say(f"warning: {error}", beside=True)
            continue
        if kept is None or (kept.split, kept.data) != ("test", ""):
            continue
        if kept.stale:
            say(f"warning: {path} is no claim: {STALE}", beside=True)
            continue
        score = kept.score
        direct = score.attack != "clean" and not score.attack.startswith("transfer")
        if direct and same_threat(score.threat, threat) and score.n >= min(FEWEST, points):
            found.append(kept)
    if not found:
        return None, ""
    score = found[strongest_first([[e] for e in found])[0]].score
    return score.robust_accuracy, f"evaluation {score.attack}, {score.n} points"


class _Shown:
    """States the budget, then shows progress on the terminal."""

    def __init__(self, *, silent: bool) -> None:
        self._console = literal_console(beside=True)
        self._silent = silent
        self._bar = Progress(*columns(), console=self._console, transient=True)
        self._visible = self._console.is_terminal and not silent

    def __enter__(self) -> _Shown:
        if self._visible:
            self._bar.start()
        self._task = self._bar.add_task("", total=1.0, numbers="")
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def announce(self, plan: Any, seconds: float) -> None:
        """What is going to be spent."""
        if not self._silent:
            self._console.print(
                f"audit at the {plan.level} level: {plan.n} points, at most {plan.cost():,} passes, "
                f"about {seconds:.0f} s",
                soft_wrap=True,
            )

    def update(self, moment: Any) -> None:
        """What runs now."""
        numbers = f"{moment.passes:,} passes, {moment.seconds:.0f} s"
        self._bar.update(
            self._task, description=line(moment.attack, NAME), completed=moment.fraction, numbers=numbers
        )


def show(result: Any) -> None:
    """Verdict, evidence and advice for people."""
    from bivallate.audit import VERDICTS

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
    if result.evidence:
        console.print("what to do:")
    for check in result.evidence:
        console.print(f"  {check.name}: {check.advice}")
    console.print(f"{result.passes:,} passes, {result.seconds:.1f} s")
