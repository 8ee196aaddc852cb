"""`bivallate evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from bivallate import zoo
from bivallate.commands.evaluation_task import EvaluationTask
from bivallate.commands.options import (
    Ball,
    Count,
    DataName,
    Flag,
    Machine,
    Names,
    Split,
    Subset,
    WeightsSource,
    threats_of,
    without_folders,
)
from bivallate.commands.shared_work import shared_work
from bivallate.errors import UserError
from bivallate.terminal import say

if TYPE_CHECKING:
    import torch

    from bivallate.evaluation.preflight import Preflight
    from bivallate.lower.threat import ThreatModel
    from bivallate.run.evaluation_target import EvaluationTarget

Attacks = Annotated[
    tuple[str, ...], Parameter(negative=(), consume_multiple=True, show_default=lambda names: " ".join(names))
]


@shared_work
def evaluate_runs(
    *runs: Path,
    attack: Attacks = ("pgd-20",),
    ball: Ball = Ball(),  # noqa: B008  frozen
    threat: Names = (),
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
    command continues an interrupted evaluation, and makes a finished one anew. Several runs, attacks or
    threats are reported in a line each, and then the points that withstand every threat. Under torchrun the
    processes share the points.

    Parameters
    ----------
    runs
        folders of one or several runs; or zoo:NAME, a network of `bivallate zoo`, or, with --arch, --data and
        --eps, a checkpoint of another project (.safetensors, .pt, or a folder with one): results of these are
        kept only with --out.
    attack
        one or several of clean, fgsm, pgd-STEPS, pgd-STEPS-RESTARTS, cw, autoattack, ...; `bivallate attacks`
        lists them.
    threat
        one or several threats in place of --norm and --eps, each a norm and a radius: linf:8/255 l2:0.5.
        [default: all that the run was trained under]
    data
        another data set than the run's; all of it if it has no test split. Its classes are matched by name.
    by_position
        match the classes of that data set by their numbers instead of their names.
    arch
        architecture of a checkpoint that is no run; `bivallate models` lists them.
    normalise
        standardise images by the data's mean and standard deviation, for a checkpoint that was trained on
        such images and holds no normalisation of its own; if it does, its own stays, with a warning.
    batch_size
        points at once. [default: estimated from the free memory]
    search_precision
        number format in which attacks search: float32, tf32 (CUDA) or bf16, faster where the hardware has it.
        Each success is confirmed in float32, which judges alone; a coarser search may find less. Only attacks
        that go on after a success (fgsm, pgd, cw, multitargeted, apgd) use it; FAB, Square, pgd-best and all
        others search in float32.
    preflight
        first check model and data for faults that would make the result meaningless.
    out
        file for the result, as JSON; for several results a folder. [default: a file in RUN/evaluation]
    quiet
        no progress and no remarks before the result.
    json
        print the result as JSON instead of a table; several results as a list.
    """
    from bivallate.evaluation import EvaluationOptions
    from bivallate.run.evaluation_target import EvaluationTarget

    folders, attacks, texts = _split_runs(runs, attack, threat)
    device = machine.prepare()
    chosen = subset.n, subset.first, source.seed
    options = EvaluationOptions(*chosen, batch_size, search_precision, shared=True)
    threats = threats_of(texts, beside=ball.given)
    with EvaluationTask(options, out, folders, len(folders) * len(attacks) > 1, quiet, json) as task:
        for run, foreign in _told_apart(folders, arch, normalise).items():
            if foreign:
                target = _foreign(run, arch, data, ball, threats, split, source, device, normalise)
            else:
                reading = {"data": data, "by_position": by_position, "split": split, **source.reading}
                target = EvaluationTarget.of(run, threat=ball.of, device=device, **reading)
            findings = _preflight_of(target, preflight, quiet)
            task.evaluate_all(attacks, threats or target.threats, target, findings, run, foreign=foreign)


def _split_runs(
    runs: Sequence[Path], attacks: Sequence[str], threats: Sequence[str]
) -> tuple[list[Path], list[str], list[str]]:
    """Move run folders that --attack and --threat have taken to the runs, and spell the attacks as usual.

    The spelling is checked before a run is loaded; the stages of an attack depend on its threat.

    Raises:
        UserError: no run is named, or an attack is unknown.
    """
    from bivallate.evaluation import attack_named

    names, taken = without_folders(attacks)
    texts, more = without_folders(threats)
    folders = list(dict.fromkeys([*runs, *taken, *more]))
    if not folders:
        raise UserError("name the folder of a run, such as `bivallate evaluate runs/x --attack pgd-20`")
    return folders, list(dict.fromkeys(attack_named(name).name for name in names)), texts


def _told_apart(folders: Sequence[Path], arch: str | None, normalise: bool) -> dict[Path, bool]:
    """Whether each is a file of another project or a network of the zoo instead of a run.

    Raises UserError for a folder that is no run, before hours are spent on the others, and for a run whose
    images are to be normalised otherwise than in its training.
    """
    from bivallate.run.folder import RunFolder

    found = {run: arch is not None or str(run).startswith(zoo.PREFIX) for run in folders}
    for run in (run for run, foreign in found.items() if not foreign):
        RunFolder.open(run)
        if normalise:
            raise UserError(f"{run} is a run, and normalises as in its training: leave out --normalise")
    return found


def _foreign(
    path: Path,
    arch: str | None,
    data: str | None,
    ball: Ball,
    threats: Sequence[ThreatModel],
    split: str,
    source: WeightsSource,
    device: torch.device,
    normalise: bool,
) -> EvaluationTarget:
    """Load a checkpoint of another project, or a network of the zoo, whose data and radius are known.

    Raises UserError unless --data and --eps are given for a checkpoint.
    """
    from bivallate.lower.threat import threat
    from bivallate.run.other_checkpoints import checkpoint_target

    if arch is None:
        known = zoo.entry(str(path))
        data, within = data or known["data"], ball.of(threat(known["norm"], known["eps"]))
    elif data is None or (ball.eps is None and not threats):
        raise UserError(
            "a checkpoint knows neither its data nor its radius: say --data and --eps with --arch"
        )
    else:
        within = threats[0] if threats else threat(ball.norm or "linf", ball.eps or 0.0)
    return checkpoint_target(
        path,
        arch,
        data,
        within,
        split=split,
        device=device,
        weights=source.weights,
        data_dir=source.data_dir,
        normalise=normalise,
    )


def _preflight_of(target: EvaluationTarget, preflight: bool, quiet: bool) -> Preflight | None:
    """Run the pre-flight, if asked to, and print its findings and the notes on the data."""
    findings = target.preflight() if preflight else None
    if not quiet:
        for note in (*target.data.notes, *target.warnings):
            say(f"{target.data.name}: {note}", to_stderr=True)
        if findings is not None:
            say(findings, to_stderr=True)
    return findings
