"""`bivallate evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bivallate import zoo
from bivallate.commands.options import Ball, Count, DataName, Flag, Machine, Split, Subset, WeightsSource
from bivallate.commands.result_files import confirm_kept, result_file
from bivallate.commands.score_table import one_line, show
from bivallate.commands.shared_work import shared_work
from bivallate.errors import UserError
from bivallate.run.signals import Interrupted
from bivallate.terminal import say, say_json

if TYPE_CHECKING:
    import torch

    from bivallate.evaluation import Attack, EvaluationOptions
    from bivallate.evaluation.preflight import Preflight
    from bivallate.run.evaluation_target import EvaluationTarget

Attacks = Annotated[
    tuple[str, ...], Parameter(negative=(), consume_multiple=True, show_default=lambda names: " ".join(names))
]
GO_ON = "interrupted; what was decided is kept: the same command goes on from there"


@shared_work
def evaluate_runs(
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
    command continues an interrupted evaluation, and makes a finished one anew. Several runs or attacks are
    reported in a line each. Under torchrun the processes share the points.

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
    from bivallate.evaluation import EvaluationOptions, attack_named
    from bivallate.run.evaluation_target import EvaluationTarget

    folders, attacks = _split_runs_from_attacks(runs, attack)  # `--attack fgsm runs/x` takes both words
    # for the spelling only, before a run is loaded: the stages depend on its threat, see `evaluate_under`
    attacks = list(dict.fromkeys(attack_named(name).name for name in attacks))
    device = machine.prepare()
    seed, precision = source.seed, search_precision
    options = EvaluationOptions(subset.n, subset.first, seed, batch_size, precision, shared=True)
    task = EvaluationTask(options, out, len(folders) * len(attacks) > 1, quiet, json)
    for run in folders:
        foreign = arch is not None or str(run).startswith(zoo.PREFIX)
        if foreign:
            target = _foreign(run, arch, data, ball, split, source, device, normalise)
        else:
            reading = {"data": data, "by_position": by_position, "split": split, **source.reading}
            target = EvaluationTarget.of(run, threat=ball.of, device=device, **reading)
        findings = _preflight_of(target, preflight, quiet)
        for name in attacks:
            task.evaluate_under(name, target, findings, run, foreign=foreign)
    task.end()


@dataclass
class EvaluationTask:
    """The evaluations that one call of the command makes; each is saved and printed.

    Attributes:
        options: of every evaluation.
        out: file, or folder for several results, in place of the run's folder.
        several: whether there is more than one result, so that each is printed in one line.
        quiet: show no progress.
        json: print JSON.
        results: the results as plain data.
        faults: errors of results that should have been saved and could not.
    """

    options: EvaluationOptions
    out: Path | None
    several: bool
    quiet: bool
    json: bool
    results: list[dict[str, Any]] = field(default_factory=list)
    faults: list[UserError] = field(default_factory=list)

    def evaluate_under(
        self, name: str, target: EvaluationTarget, findings: Preflight | None, run: Path, *, foreign: bool
    ) -> None:
        """Run one attack, save the score and print it.

        Args:
            name: of the attack.
            target: model, data and threat.
            findings: of the pre-flight; None if it was skipped.
            run: folder, checkpoint or network of the zoo, as the user named it.
            foreign: whether it is no run, so that its result is stored only where `out` says.

        Raises:
            Interrupted: on Ctrl-C; the same command continues from the verdicts so far.
        """
        from bivallate.evaluation import attack_named
        from bivallate.evaluation.progress_display import shown_progress

        attack = attack_named(name, target.threat)
        stored = not foreign or self.out is not None
        file = self._file(target, attack, run) if stored else None
        label, json, faults = f"{run} {name}", self.json, list[UserError]()
        try:
            with shown_progress(json or self.quiet, label if self.several else "") as progress:
                score = target.evaluate(
                    attack, self.options, file=file, findings=findings, progress=progress, faults=faults
                )
        except KeyboardInterrupt:
            raise Interrupted(GO_ON) from None
        self.results.append({"run": str(run), **score.to_json()})
        if json and not self.several:
            say_json(score.to_json())
        elif not json:
            one_line(label, score) if self.several else show(score, target.data.classes)
        try:
            if stored:
                confirm_kept(file, next(iter(faults), None), silent=json)
        except UserError as fault:
            self.faults.append(fault)

    def end(self) -> None:
        """Print several results as JSON if asked to. Raises UserError if one could not be saved."""
        if self.json and self.several:
            say_json(self.results)
        if self.faults:
            raise self.faults[0]

    def _file(self, target: EvaluationTarget, attack: Attack, run: Path) -> Path | None:
        """The file of a result; None if it cannot be written."""
        default = target.file(attack, self.options)
        asked = self.out / f"{run.name}-{default.name}" if self.out and self.several else self.out
        return result_file(default, asked)


def _split_runs_from_attacks(runs: Sequence[Path], attacks: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Move run folders that --attack has taken to the runs: it takes all words up to the next option.

    Raises UserError if no run is named.
    """
    from bivallate.run.folder import RunFolder

    folders = [name for name in attacks if RunFolder(Path(name)).config.exists()]
    runs = [*runs, *map(Path, folders)]
    if not runs:
        raise UserError("name the folder of a run, such as `bivallate evaluate runs/x --attack pgd-20`")
    return runs, [name for name in attacks if name not in folders]


def _foreign(
    path: Path,
    arch: str | None,
    data: str | None,
    ball: Ball,
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
        data, radius = data or known["data"], ball.of(threat(known["norm"], known["eps"]))
    elif data is None or ball.eps is None:
        raise UserError(
            "a checkpoint knows neither its data nor its radius: say --data and --eps with --arch"
        )
    else:
        radius = threat(ball.norm or "linf", ball.eps)
    return checkpoint_target(
        path,
        arch,
        data,
        radius,
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
