"""`bivallate sweep`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from cyclopts import Parameter

from bivallate.commands.options import Amount, Count, DataFolder, DataName, Flag, Names, Positive, Settings
from bivallate.errors import UserError
from bivallate.terminal import say, say_json


@Parameter(name="*")
@dataclass(frozen=True)
class TrainOptions:
    """Options of all trainings of a sweep.

    Parameters
    ----------
    data
        data set: a name, a folder, an .npz, .zip or .tar, or hub:owner/name.
    model
        architecture, as for train. [default: that of train]
    norm
        linf, l2 or l1.
    recipe
        a training recipe, as for train.
    init
        weights to begin with, as for train.
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    device
        auto, cpu, cuda or mps. [default: auto]
    """

    data: DataName = "digits"
    model: str | None = None
    norm: str = "linf"
    recipe: str | None = None
    init: str | None = None
    data_dir: DataFolder | None = None
    device: str | None = None


def sweep(
    methods: str,
    /,
    *,
    training: TrainOptions = TrainOptions(),
    seeds: str = "3",
    set_: Settings = (),
    fix: Names = (),
    passes: Positive | None = None,
    attack: str = "pgd-20",
    n: Count | None = None,
    jobs: Count = 1,
    threads: Amount = 0,
    out: Path = Path("runs/sweep"),
    dry_run: Flag = False,
    markdown: Flag = False,
    json: Flag = False,
) -> None:
    """Train every combination of METHOD[,METHOD], values and seeds, attack each, and compare them.

    Each combination is a run in a folder of --out and is attacked at every radius of the grid. One table
    for each radius shows the runs, averaged over the seeds. The same command again, or one with more
    methods, values or seeds, skips what is finished and continues what was interrupted.

    Parameters
    ----------
    methods
        one or several, with commas.
    seeds
        how many, 0, 1, 2 and so on; or the seeds themselves, with a comma, such as 3,7.
    set_
        KEY=VALUE,VALUE,... of the grid, repeatable: eps, lr, epochs, batch_size, model, recipe, or
        whatever --set of train takes.
    fix
        KEY=VALUE for all runs; commas belong to the value, as in data.augment=crop:4,flip.
    passes
        forward and backward passes an example, over the whole training: every combination has as many epochs
        as its method affords within them. In place of epochs.
    attack
        name of the attack that the runs are compared by.
    n
        size of a random subset of the test points. [default: all]
    jobs
        number of runs at the same time, each in its own process.
    threads
        of each run; 0 divides the processors among the jobs.
    out
        folder of the runs.
    dry_run
        print what would be run; run nothing.
    markdown
        print the tables as Markdown.
    json
        print the tables as JSON.
    """
    from bivallate.commands.sweep_cells import SweepOptions, cells_of
    from bivallate.commands.sweep_running import compared, run_all, unchanged

    if markdown and json:
        raise UserError("give --markdown or --json, not both")
    words = {name.replace("_", "-"): value for name, value in asdict(training).items()}
    common = SweepOptions(words, fix, attack, n, jobs, threads, passes)
    cells = cells_of(methods, seeds, set_, common, out)
    unchanged(out, cells)
    if dry_run:
        for cell in cells:
            say(cell.line)
            if cell.cost is not None:
                say(f"{cell.name}: {cell.cost}", to_stderr=True)
        return
    failed = run_all(out, cells, common)
    tables = compared(cells, common, [name for name, _ in failed])
    if json:
        say_json([table.to_json() for table in tables])
    for table in () if json else tables:
        say(table.to_markdown()) if markdown else table.show()
    _complain(failed, len(cells))


def _complain(failed: list[tuple[str, str]], runs: int) -> None:
    """Raise UserError if runs failed, with the reason of each."""
    if failed:
        told = "; ".join(f"{name}: {why}" for name, why in failed)
        what = f"{len(failed)} of {runs} runs failed"
        raise UserError(f"{what}, and the same command tries them again: {told}")
