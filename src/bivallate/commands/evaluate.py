"""`bivallate evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from bivallate import zoo
from bivallate.commands.options import Ball, Count, DataName, Flag, Machine, Split, Subset, WeightsSource
from bivallate.commands.result_files import result_file, saved_result
from bivallate.commands.shared_work import shared_work
from bivallate.errors import UserError
from bivallate.quoting import line
from bivallate.terminal import NAME, literal_console, say, say_json

Attacks = Annotated[
    tuple[str, ...], Parameter(negative=(), consume_multiple=True, show_default=lambda names: " ".join(names))
]
GO_ON = "interrupted; what was decided is kept: the same command goes on from there"


@shared_work
def evaluate(
    *runs: Path,
    attack: Attacks = ("pgd-20",),
    ball: Ball = Ball(),  # noqa: B008  frozen
    split: Split = "test",
    data: DataName | None = None,
    by_position: Flag = False,
    subset: Subset = Subset(),  # noqa: B008
    source: WeightsSource = WeightsSource(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    arch: str | None = None,
    normalise: Flag = False,
    batch_size: Count | None = None,
    search_precision: Literal["float32", "tf32", "bf16"] = "float32",
    preflight: bool = True,
    out: Path | None = None,
    quiet: Flag = False,
    json: Flag = False,
) -> None:
    """Attack the model of a run and report how much of its accuracy is left.

    The result is kept in RUN/evaluation, one file for each weights, threat, attack and seed. The same
    command continues an interrupted evaluation. Several runs or attacks are reported in a line each. Under
    torchrun the processes share the points.

    Parameters
    ----------
    runs
        folders of one or several runs; or zoo:NAME, a network of `bivallate zoo`, or, with --arch, --data and
        --eps, a checkpoint of another project (.safetensors, .pt, or a folder with one): results of these are
        kept only with --out.
    attack
        one or several of clean, fgsm, pgd-STEPS, pgd-STEPS-RESTARTS, cw, autoattack, ...; `bivallate attacks`
        lists them.
    data
        another data set than the run's; all of it if it has no test split. Its classes are matched by name.
    by_position
        match the classes of that data set by their numbers instead of their names.
    arch
        architecture of a checkpoint that is no run; `bivallate models` lists them.
    normalise
        standardise images by the data's mean and standard deviation, for a checkpoint that was trained on
        such images and holds no normalisation of its own.
    batch_size
        points at once. [default: estimated from the free memory]
    search_precision
        number format in which attacks search: float32, tf32 (CUDA) or bf16, faster where the hardware has it.
        Each success is confirmed in float32, which judges alone; a coarser search may find less. FAB, Square
        and attacks that end at the first success search in float32 all the same.
    preflight
        first check model and data for faults that would make the result meaningless.
    out
        file for the result, as JSON; for several results a folder. [default: a file in RUN/evaluation]
    quiet
        no progress and no remarks before the result.
    json
        print the result as JSON instead of a table; several results as a list.
    """
    from bivallate.evaluation import parse
    from bivallate.run.evaluation_target import EvaluationTarget

    chosen, attacks = _sorted_out(runs, attack)
    for name in attacks:
        parse(name)  # a misspelt attack is said before anything else
    device = machine.prepare()
    where = {"data": data, "by_position": by_position, "split": split, "device": device, **source.reading}
    own = {"batch_size": batch_size, "seed": source.seed, "shared": True, "precision": search_precision}
    several = len(chosen) * len(attacks) > 1
    task = EvaluationTask(asdict(subset) | own, out, several, quiet, json)
    for run in chosen:
        foreign = arch is not None or str(run).startswith(zoo.PREFIX)
        if foreign:
            examined = _foreign(run, arch, data, ball, split, source, device, normalise)
        else:
            examined = EvaluationTarget.of(run, threat=ball.of, **where)
        looked = _look(examined, preflight, quiet)
        for name in attacks:
            task.attack(examined, name, looked, run, foreign=foreign)
    task.end()


@dataclass
class EvaluationTask:
    """The evaluations that one call of the command makes; each is saved and printed.

    Attributes:
        options: of every evaluation. out: file, or folder for several, in place of the run's folder.
        several: print each result in one line. quiet: show no progress. json: print JSON.
        found: the results as plain data.
        faults: errors of results that could not be saved.
    """

    options: dict[str, Any]
    out: Path | None
    several: bool
    quiet: bool
    json: bool
    found: list[dict[str, Any]] = field(default_factory=list)
    faults: list[UserError] = field(default_factory=list)

    def attack(self, examined: Any, name: str, looked: Any, run: Path, *, foreign: bool) -> None:
        """Run one attack, save the score and print it.

        Args:
            examined: the model and its points. name: of the attack. looked: findings of the pre-flight.
            run: folder, checkpoint or network of the zoo, as it was given. foreign: it is no run, so that its
                result is kept only where `out` says.

        Raises:
            Interrupted: on Ctrl-C; the same command continues from the partial results.
        """
        from bivallate.evaluation.progress_display import shown_progress
        from bivallate.run.evaluation_target import save_score
        from bivallate.run.signals import Interrupted

        place = None if foreign and not self.out else self._place(examined, name, run)
        label, json = f"{run} {name}", self.json
        try:
            with shown_progress(json or self.quiet, label if self.several else "") as progress:
                score = examined.evaluate(name, file=place, looked=looked, progress=progress, **self.options)
        except KeyboardInterrupt:
            raise Interrupted(GO_ON) from None
        self.found.append({"run": str(run), **score.to_json()})
        faults = [] if foreign else self.faults
        with saved_result(place, partial(save_score, score), silent=json, faults=faults):
            if json and not self.several:
                say_json(score.to_json())
            elif not json:
                _line(label, score) if self.several else show(score, examined.data.classes)

    def end(self) -> None:
        """Print several results as JSON if asked to. Raises UserError if one could not be saved."""
        if self.json and self.several:
            say_json(self.found)
        if self.faults:
            raise self.faults[0]

    def _place(self, examined: Any, name: str, run: Path) -> Path | None:
        """The file of a result."""
        default = examined.file(name, self.options)
        asked = self.out / f"{run.name}-{default.name}" if self.out and self.several else self.out
        return result_file(default, asked)


def _sorted_out(runs: Sequence[Path], attacks: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate run folders from attack names: --attack takes all words up to the next option.

    Raises UserError if no run is named.
    """
    from bivallate.run.folder import RunFolder

    behind = [name for name in attacks if RunFolder(Path(name)).config.exists()]
    runs = [*runs, *map(Path, behind)]
    if not runs:
        raise UserError("name the folder of a run, such as `bivallate evaluate runs/x --attack pgd-20`")
    return runs, [name for name in attacks if name not in behind]


def _foreign(
    path: Path,
    arch: str | None,
    data: str | None,
    ball: Ball,
    split: str,
    source: WeightsSource,
    device: Any,
    normalise: bool,
) -> Any:
    """Load a checkpoint of another project, or a network of the zoo, whose data and radius are known.

    Raises UserError unless --data and --eps are given for a checkpoint.
    """
    from bivallate.lower.threat import threat
    from bivallate.run.other_checkpoints import checkpoint_target

    if arch is None:
        known = zoo.entry(str(path))
        data, radius = data or known["data"], ball.of(threat(known["norm"], known["eps"]))
    elif data is None or ball.eps is None:
        raise UserError(
            "a checkpoint knows neither its data nor its radius: say --data and --eps with --arch"
        )
    else:
        radius = threat(ball.norm or "linf", ball.eps)
    where = {"weights": source.weights, "data_dir": source.data_dir, "normalise": normalise}
    return checkpoint_target(path, arch, data, radius, split=split, device=device, **where)


def _look(examined: Any, preflight: bool, quiet: bool) -> Any:
    """Run the pre-flight, if asked to, and print its findings and the notes on the data."""
    looked = examined.preflight() if preflight else None
    if not quiet:
        for note in (*examined.data.notes, *examined.warnings):
            say(f"{examined.data.name}: {note}", beside=True)
        if looked is not None:
            say(looked, beside=True)
    return looked


def _line(label: str, score: Any) -> None:
    """Print one of several scores in one line."""
    robust = percent(score.robust_accuracy, score.interval_95)
    say(f"{label}: clean {percent(score.clean_accuracy)}, robust {robust}, {score.n} points")
    for warning in score.warnings:
        say(f"warning: {label}: {warning}", beside=True)


def percent(value: float | None, interval: Any = None) -> str:
    """Format a fraction in [0, 1] as a percentage, with its interval if given."""
    if value is None:
        return "none"
    text = f"{100 * value:.2f} %"
    return text if interval is None else f"{text}  [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def show(score: Any, classes: list[str]) -> None:
    """Print a score as tables.

    Args:
        classes: names of the data's classes.
    """
    console = literal_console()
    eps = score.threat.eps
    console.print(
        f"{score.attack} at {type(score.threat).__name__} eps {eps:.5g} ({255 * eps:.3g}/255), "
        f"{score.n} points, seed {score.seed}",
    )
    table = Table("accuracy", "value [95 % interval]")
    table.add_row("clean", percent(score.clean_accuracy, score.clean_interval_95))
    table.add_row("robust", percent(score.robust_accuracy, score.interval_95))
    table.add_row("robust, tail 30 % of classes", percent(score.tail(30), score.tail_interval(30)))
    known = classes[: score.classes]  # of the data, which may name other classes than the model has
    names = [line(name, NAME) for name in (*known, *range(len(known), score.classes))]
    worst, value = score.worst_class
    table.add_row(f"worst class: {names[worst]}", percent(value, score.worst_class_interval_95))
    console.print(table)
    if len(score.stages) > 2:
        console.print(
            "left after each stage: " + ", ".join(f"{k} {percent(v)}" for k, v in score.stages.items())
        )
    each = Table("class", "clean %", "robust %", "mostly taken for")
    clean, robust = score.per_class_clean_interval_95, score.per_class_interval_95
    confusion = score.confusion.clone().fill_diagonal_(0)
    for k, label in enumerate(names):
        into = int(confusion[k].argmax())
        often = f"{names[into]} ({int(confusion[k, into])})" if int(confusion[k, into]) else "-"
        each.add_row(
            label, _short(score.per_class_clean[k], clean[k]), _short(score.per_class[k], robust[k]), often
        )
    console.print(each)
    passes = ", ".join(f"{value:.4g} {kind}" for kind, value in score.passes.items())
    console.print(f"{passes} passes per point; {score.seconds:.1f} s")
    for warning in score.warnings:
        say(f"warning: {warning}", beside=True)


def _short(value: float | None, bounds: tuple[float, float] | None) -> str:
    """Format a percentage with its interval, short enough for two of them in a row."""
    if value is None or bounds is None:  # a class without points
        return "none"
    return f"{100 * value:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
