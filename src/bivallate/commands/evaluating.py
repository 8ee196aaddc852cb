"""`bivallate evaluate` and `check-gradient`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.progress import Progress, TimeRemainingColumn
from rich.table import Table

from bivallate.cli import APP
from bivallate.commands.options import Machine, Source, Subset, split_of, threat_of
from bivallate.errors import UserError
from bivallate.quoting import line
from bivallate.terminal import NAME, columns, literal_console, say, say_json

Flag = Annotated[bool, Parameter(negative=())]
GO_ON = "interrupted; what was decided is kept: the same command goes on from there"


@APP.command
def evaluate(
    run: Path,
    *,
    attack: str = "pgd-20",
    eps: str | None = None,
    norm: str | None = None,
    split: str = "test",
    data: str | None = None,
    by_position: Flag = False,
    subset: Subset = Subset(),  # noqa: B008  frozen
    source: Source = Source(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    batch_size: int | None = None,
    preflight: bool = True,
    json: Flag = False,
) -> None:
    """Attack the model of a run and report how much of its accuracy is left.

    The result is kept in RUN/evaluation, one file for each weights, threat, attack and seed. An evaluation
    that was interrupted goes on where it stopped.

    Parameters
    ----------
    run
        folder of the run.
    attack
        clean, fgsm, pgd-STEPS, pgd-STEPS-RESTARTS, cw, autoattack, ...; `bivallate attacks` lists them.
    eps
        radius in pixel units of [0, 1], such as 8/255. [default: the run's own]
    norm
        linf or l2. [default: the run's own]
    split
        test, validation or train.
    data
        another data set than the run's; without a test split all of it. Its classes are found by their names.
    by_position
        read the labels of that data set by their numbers, whatever its classes are called.
    batch_size
        points at once. [default: estimated from the free memory]
    preflight
        look model and data over first, for what would make the result mean nothing.
    json
        print the result as JSON instead of a table.
    """
    from bivallate.evaluate import evaluate as score_of
    from bivallate.evaluate import evaluation_name, parse
    from bivallate.evaluate.preflight import preflight as look_over
    from bivallate.run.api import load_run
    from bivallate.run.config import Config
    from bivallate.run.evaluation_data import evaluation_data
    from bivallate.run.folder import RunFolder
    from bivallate.run.interrupt import Interrupted

    folder = RunFolder.open(run)
    device = machine.prepare()
    config = Config.read(folder.config)
    config = config.set("data.data_dir", source.data_dir) if source.data_dir is not None else config
    threat = threat_of(config.method.threat, norm, eps)
    parse(attack)  # a misspelt attack is said before anything else
    evaluated = evaluation_data(run, config, data, by_position=by_position)
    dataset = evaluated.data
    for note in (*dataset.notes, *evaluated.warnings):
        say(f"{dataset.name}: {note}", beside=True)
    points = split_of(dataset, split)
    network = load_run(run, source.weights, source.model).to(device)
    looked = look_over(network, points, threat, own=not evaluated.place) if preflight else None
    if looked is not None:
        say(looked, beside=True)
    label = source.weights if split == "test" else f"{source.weights}-{split}"
    name = evaluation_name(label, threat, attack, source.seed, subset.name(), evaluated.place)
    partial = folder.evaluation / f".{name}.partial"
    try:
        with shown(json) as progress:
            score = score_of(
                network,
                points,
                threat,
                attack,
                n=subset.n,
                first=subset.first,
                batch_size=batch_size,
                seed=source.seed,
                progress=progress,
                resume=partial,
            )
    except KeyboardInterrupt:
        raise Interrupted(GO_ON) from None
    # what would make the number mean nothing goes with it into every table
    grave = tuple(str(f) for f in looked.findings if f.severity == "error") if looked is not None else ()
    score = replace(score, warnings=(*score.warnings, *grave, *evaluated.warnings))
    score.save(folder.evaluation / name)
    partial.unlink(missing_ok=True)
    if json:
        say_json(score.to_json())
        return
    show(score, dataset.classes)
    say(f"kept in {folder.evaluation / name}")


class shown:  # noqa: N801  a context manager, used like a function
    """Shows an evaluation's progress on the terminal."""

    def __init__(self, silent: bool) -> None:
        console = literal_console(beside=True)
        self._bar = Progress(*columns(), TimeRemainingColumn(), console=console, transient=True)
        self._visible = console.is_terminal and not silent

    def __enter__(self) -> Any:
        if self._visible:
            self._bar.start()
        self._task = self._bar.add_task("", total=1.0, numbers="")
        return self._update

    def _update(self, moment: Any) -> None:
        left = "" if moment.seconds_left is None else f", {moment.seconds_left:.0f} s left"
        self._bar.update(
            self._task,
            description=line(f"{moment.attack} / {moment.part}", NAME),
            completed=moment.fraction,
            numbers=f"{moment.living} of {moment.points} still robust{left}",
        )

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


def percent(value: float | None, interval: Any = None) -> str:
    """A fraction as a percentage, with its interval."""
    if value is None:
        return "none"
    text = f"{100 * value:.2f} %"
    return text if interval is None else f"{text}  [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def show(score: Any, classes: list[str]) -> None:
    """The score as tables for people."""
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
    if len(score.parts) > 2:
        console.print(
            "left after each part: " + ", ".join(f"{k} {percent(v)}" for k, v in score.parts.items())
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
    """A percentage with its interval, short enough for two of them in a line."""
    if value is None or bounds is None:  # a class without points
        return "none"
    return f"{100 * value:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


@APP.command(name="check-gradient")
def check_gradient(
    method: str,
    *,
    model: str = "tiny-cnn",
    data: str = "digits",
    eps: str | None = None,
    n: int = 16,
    seed: int = 0,
    activation: str = "softplus",
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = (),
) -> None:
    """Compare a method's gradient with finite differences, on your own model.

    Parameters
    ----------
    method
        name of a method.
    model
        architecture, or package.module:factory.
    data
        data set whose first training examples are used.
    eps
        radius. [default: the data set's customary one]
    n
        examples.
    seed
        of the weights and of the noise.
    activation
        relu, softplus or silu; finite differences need a smooth one to be exact.
    set_
        KEY=VALUE, as for train.
    """
    from bivallate.check import check_gradient as check
    from bivallate.commands.training import _plan
    from bivallate.run.session import create_model, load_data

    plan = _plan(method, None, data, eps, "linf", None, set_).set("model.name", model)
    plan = plan.set("model.activation", activation)
    dataset = load_data(plan.data, seed)
    if n < 2:
        raise UserError(f"--n must be at least 2, got {n}")
    network = create_model(plan.model, dataset, seed)
    say(check(network, plan.method, dataset.train.tensors(slice(0, n)), seed=seed))
