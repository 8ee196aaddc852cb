"""`bivallate audit`."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from bivallate.cli import APP
from bivallate.commands.evaluating import WEIGHTS
from bivallate.errors import UserError, unknown
from bivallate.parts import parse_number

Flag = Annotated[bool, Parameter(negative=())]


@APP.command
def audit(
    run: Path,
    *,
    weights: str = "best",
    n: int = 500,
    budget: float = 10.0,
    against: tuple[Path, ...] = (),
    claimed: float | None = None,
    eps: str | None = None,
    norm: str | None = None,
    split: str = "test",
    data_dir: str | None = None,
    model: str | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int = 0,
    json: Flag = False,
) -> None:
    """Ask whether the robustness of a run is real, and say what speaks for and against it.

    Attacks that know more or do more must not do worse, and accuracy must go where it has to go; where that
    fails, gradients are masked and a published number would not last. The result is kept in RUN/audit.

    Parameters
    ----------
    run
        folder of the run.
    weights
        best (on held-out data), last or ema.
    n
        seeded random subset of so many points; fewer if the data has fewer.
    budget
        minutes that the attacks may take; their strength follows from it.
    against
        folder of another run on the same classes, to transfer attacks from; repeatable.
    claimed
        robust accuracy in [0, 1] to hold against the evidence. [default: the lowest kept in RUN/evaluation
        for these weights and this threat, else that of PGD]
    eps
        radius in pixel units of [0, 1], such as 8/255. [default: the run's own]
    norm
        linf or l2. [default: the run's own]
    split
        test, validation or train.
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    model
        package.module:factory, if the run trained a network of your own.
    seed
        of the subset and of random starts.
    device
        auto, cpu, cuda or mps.
    threads
        of the processor; 0 is torch's choice.
    json
        print the result as JSON instead of tables.
    """
    from bivallate.audit import audit as examine
    from bivallate.evaluate import evaluation_name
    from bivallate.lower.threat import threat as make
    from bivallate.run.api import load
    from bivallate.run.config import Config
    from bivallate.run.folder import RunFolder
    from bivallate.run.session import load_data, pick_device
    from bivallate.run.trainer import limit_threads

    folder = RunFolder.open(run)
    if weights not in WEIGHTS:
        raise unknown("weights", weights, WEIGHTS)
    if n < 1:
        raise UserError(f"--n must be a whole number of at least 1, got {n}")
    limit_threads(threads)
    config = Config.read(folder.config)
    config = config.set("data.data_dir", data_dir) if data_dir is not None else config
    own = config.method.threat
    threat = make(norm or type(own).__name__, parse_number(eps) if eps is not None else own.eps)
    dataset = load_data(config.data, config.seed)
    points = {"test": dataset.test, "validation": dataset.validation, "train": dataset.train}
    if points.get(split) is None:
        raise unknown("split", split, [k for k, v in points.items() if v is not None])
    where = pick_device(device)
    others = [load(RunFolder.open(other).path, "last").to(where) for other in against]
    source = "--claimed"
    if claimed is None and split == "test":
        claimed, source = kept_claim(folder.evaluation, weights, threat)
    with _Shown(silent=json) as shown:
        result = examine(
            load(run, weights, model=model).to(where),
            points[split],
            threat,
            n=n,
            minutes=budget,
            surrogates=others,
            claimed=claimed,
            claim=source,
            history=folder.read_metrics(),
            seed=seed,
            announce=shown.announce,
            progress=shown.update,
        )
    label = weights if split == "test" else f"{weights}-{split}"
    target = folder.path / "audit" / evaluation_name(label, threat, "audit", seed)
    result.save(target)
    if json:
        print(json_module.dumps(result.to_json(), allow_nan=False))
        return
    show(result)
    print(f"kept in {target}")


def kept_claim(folder: Path, weights: str, threat: Any) -> tuple[float | None, str]:
    """(robust accuracy, attack) of the strongest evaluation that the run keeps; (None, "") without one.

    A file that cannot be read is no claim.
    """
    from bivallate.evaluate import Score

    found = []
    for path in sorted(folder.glob(f"{weights}-{type(threat).__name__.lower()}-*.json")):
        try:
            score = Score.load(path)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        if score.threat == threat and score.attack not in ("clean",):
            found.append((score.robust_accuracy, f"evaluation {score.attack}, {score.n} points"))
    return min(found, default=(None, ""))


class _Shown:
    """States the budget, then shows progress on the terminal."""

    def __init__(self, *, silent: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._silent = silent
        columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[numbers]}"))
        self._bar = Progress(*columns, console=self._console, transient=True)
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
        self._bar.update(self._task, description=moment.attack, completed=moment.fraction, numbers=numbers)


def show(result: Any) -> None:
    """Verdict, evidence and advice for people."""
    from bivallate.audit import VERDICTS

    console = Console(highlight=False, soft_wrap=True)
    low, high = result.worst_interval_95
    console.print(f"verdict: {result.verdict}: {VERDICTS[result.verdict]}", markup=False)
    console.print(
        f"{result.n} points at {type(result.threat).__name__} eps {result.threat.eps:.5g}: clean "
        f"{result.clean:.1%}, claimed {result.claimed:.1%} ({result.claim}), after all attacks "
        f"{result.worst:.1%} [{low:.1%}, {high:.1%}]",
        markup=False,
    )
    table = Table("", "check", "question", "found")
    for check in result.checks:
        table.add_row(check.outcome, check.name, check.question, check.finding)
    console.print(table)
    if result.evidence:
        console.print("what to do:")
    for check in result.evidence:
        console.print(f"  {check.name}: {check.advice}", markup=False)
    console.print(f"{result.passes:,} passes, {result.seconds:.1f} s", markup=False)
