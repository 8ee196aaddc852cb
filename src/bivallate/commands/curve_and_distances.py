"""`bivallate curve` and `bivallate distances`: robustness at more than one radius."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bivallate.commands.evaluation_task import GO_ON
from bivallate.commands.options import Count, DataName, Flag, Machine, Subset, WeightsSource
from bivallate.commands.result_files import chosen, result_file, saved_result, unusual
from bivallate.commands.score_table import percent
from bivallate.commands.shared_work import shared_work
from bivallate.files import write_json
from bivallate.quoting import file_name
from bivallate.run.signals import Interrupted
from bivallate.terminal import say_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bivallate.commands.run_group import RunGroup


@shared_work
def curve(
    *runs: Path,
    eps: str | None = None,
    norm: str | None = None,
    attack: str = "pgd-20",
    data: DataName | None = None,
    subset: Subset = Subset(),  # noqa: B008  frozen
    source: WeightsSource = WeightsSource(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    batch_size: Count | None = None,
    out: Path | None = None,
    quiet: Flag = False,
    json: Flag = False,
) -> None:
    """Attack the models of runs at several radii: accuracy against eps, as a table, a figure and JSON.

    A point that is broken at one radius counts as broken at all larger ones, so that no curve rises. The
    same command continues an interrupted curve. Under torchrun the processes share the points.

    Parameters
    ----------
    runs
        folders of the runs, all on the same data.
    eps
        radii, such as 0,2/255,4/255,8/255. [default: 0 to twice the first run's own]
    norm
        linf, l2 or l1. [default: the first run's own]
    attack
        name of an attack; `bivallate attacks` lists them.
    out
        figure and data as OUT.svg, .png, .pdf and .json. [default: FIRST RUN/diagnosis/curve-NORM-ATTACK]
    batch_size
        points at once. [default: estimated from the free memory]
    data
        where the runs' data are now, if they were moved. [default: as in training]
    quiet
        no progress.
    json
        print the data as JSON instead of a table.
    """
    from bivallate.commands.run_group import RunGroup, norm_of, radii_of
    from bivallate.evaluation import Identity, attack_named
    from bivallate.lower.threat import threat as make
    from bivallate.reports.diagnostics.diagnostic import stem_of

    name = attack_named(attack).name
    subjects = RunGroup.of(runs, source, machine, data)
    kind = norm_of(norm, subjects.own())
    if not quiet:
        subjects.tell_of_others(kind)
    radii = radii_of(eps, kind, subjects.own(kind))
    options = asdict(subset) | {"seed": source.seed, "batch_size": batch_size, "shared": True}
    stem = stem_of(out or runs[0] / "diagnosis" / f"curve-{kind}-{file_name(name)}{unusual(source, subset)}")
    place = result_file(stem.with_name(f"{stem.name}.json"), out and stem.with_name(f"{stem.name}.json"))
    points = Identity(weights=source.weights, n=subset.n, first=subset.first)
    named = points.file_name(make(kind, 0.0), name, source.seed)
    kept = [_kept(run, model, named) for run, model in zip(runs, subjects.models.values(), strict=True)]
    curves = _curves(subjects, kept, kind, radii, attack, json or quiet, options)
    figure = _figure_of(name, curves, subjects.trained(kind))
    told = _told(figure, curves) | chosen(source, subset)
    with saved_result(place, partial(_save, figure, told), silent=json):
        if json:
            say_json(told)
        else:
            _show_curve(figure, curves)
    _clear(kept, radii)


def _told(figure: Any, curves: dict[str, Any]) -> dict[str, Any]:
    """The figure's data, with the number of points of the curves."""
    return figure.data() | {"n": next(iter(next(iter(curves.values())).values())).n}


def _save(figure: Any, told: dict[str, Any], place: Path) -> None:
    """Write the figure, and the whole result as JSON in place of its data alone."""
    figure.save(place)
    write_json(place, told)


def _curves(
    subjects: RunGroup,
    kept: Sequence[Path | None],
    kind: str,
    radii: Sequence[float],
    attack: str,
    silent: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Compute label -> radius -> score. Raises Interrupted on Ctrl-C; finished points are kept."""
    from bivallate.evaluation import eps_curve
    from bivallate.evaluation.progress_display import shown_progress

    found, points = {}, subjects.test_split
    try:
        for place, (label, model) in zip(kept, subjects.models.items(), strict=True):
            with shown_progress(silent, label) as progress:
                found[label] = eps_curve(
                    model, points, kind, radii, attack, resume=place, progress=progress, **options
                )
    except KeyboardInterrupt:
        raise Interrupted(GO_ON) from None
    return found


def _figure_of(attack: str, curves: dict[str, Any], trained: dict[str, float]) -> Any:
    """Build the figure of curves that share their radii."""
    from bivallate.reports.diagnostics.ranks import OverEps

    scores = list(next(iter(curves.values())).values())
    return OverEps(
        attack=attack,
        norm=type(scores[0].threat).__name__,
        eps=tuple(score.threat.eps for score in scores),
        accuracy={label: [s.robust_accuracy for s in found.values()] for label, found in curves.items()},
        interval={label: [s.interval_95 for s in found.values()] for label, found in curves.items()},
        trained=trained,
    )


def _clear(kept: Sequence[Path | None], radii: Sequence[float]) -> None:
    """Remove the partial results that an interrupted curve would have continued from."""
    from bivallate.evaluation.shared_points import clear
    from bivallate.evaluation.sweeps import curve_file

    clear(*(curve_file(place, radius) for place in kept if place is not None for radius in radii))


def _show_curve(figure: Any, curves: dict[str, Any]) -> None:
    from bivallate.commands.run_group import table

    points = next(iter(next(iter(curves.values())).values())).n
    rows = [
        [
            f"{radius:.5g}",
            *(percent(found[radius].robust_accuracy, found[radius].interval_95) for found in curves.values()),
        ]
        for radius in figure.eps
    ]
    title = f"accuracy under {figure.attack} in {figure.norm}, {points} test points [95 % interval]"
    table(title, ("eps", *curves), rows)


def _kept(run: Path, model: nn.Module, named: str) -> Path | None:
    """The start of the names of a curve's partial results; None if the run's folder is not writable."""
    from bivallate.evaluation.points import model_fingerprint
    from bivallate.run.folder import RunFolder

    name = f".curve-{model_fingerprint(model)[:8]}-{named}.partial"
    return RunFolder(run).evaluation / name if os.access(run, os.W_OK) else None


@shared_work
def distances(
    *runs: Path,
    norm: str | None = None,
    steps: Count = 100,
    targets: Count = 9,
    data: DataName | None = None,
    subset: Subset = Subset(),  # noqa: B008  frozen
    source: WeightsSource = WeightsSource(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    batch_size: Count = 128,
    out: Path | None = None,
    quiet: Flag = False,
    json: Flag = False,
) -> None:
    """Search the smallest perturbation that misclassifies each test point, for the models of runs.

    The smallest one that FAB-T, FMN and, in L2, DDN find is an upper bound of the distance to the decision
    boundary; it is 0 for a clean image that is misclassified. The same command continues an interrupted
    search. Under torchrun the processes share the points.

    Parameters
    ----------
    runs
        folders of the runs, all on the same data.
    norm
        linf, l2 or l1. [default: the first run's own]
    steps
        of FAB for each target, and of FMN and, in L2, DDN.
    targets
        largest number of target classes.
    out
        figure and data as OUT.svg, .png, .pdf and .json. [default: FIRST RUN/diagnosis/distances-NORM]
    batch_size
        points at once.
    data
        where the runs' data are now, if they were moved. [default: as in training]
    quiet
        no progress.
    json
        print the data as JSON instead of a table.
    """
    from bivallate.commands.run_group import RunGroup, norm_name, norm_of
    from bivallate.evaluation.distance_file import summary
    from bivallate.evaluation.progress_display import shown_progress
    from bivallate.evaluation.shared_points import clear, partial_files
    from bivallate.evaluation.sweeps import minimal_distances
    from bivallate.reports.diagnostics.diagnostic import stem_of

    subjects = RunGroup.of(runs, source, machine, data)
    kind = norm_of(norm, subjects.own())
    if not quiet:
        subjects.tell_of_others(kind)
    stem = stem_of(out or runs[0] / "diagnosis" / f"distances-{kind}{unusual(source, subset)}")
    file = stem.with_name(f"{stem.name}.json")
    place = result_file(file, out and file)
    options = asdict(subset) | {"seed": source.seed, "batch_size": batch_size, "steps": steps}
    options |= {"targets": targets, "shared": True}
    search, found = partial(minimal_distances, **options), {}
    kept = partial_files(place, subjects.models)
    for label, model in subjects.models.items():
        with shown_progress(json or quiet, label) as progress:
            found[label] = search(model, subjects.test_split, kind, progress=progress, resume=kept[label])
    figure = _survivors(found, norm_name(kind), subjects.trained(kind))
    told: dict[str, Any] = {"norm": norm_name(kind), "n": len(next(iter(found.values())))}
    told |= {"steps": steps, "targets": targets, **chosen(source, subset)}
    told |= {
        "runs": {label: summary(values) for label, values in found.items()},
        "curve": figure.data(),
    }
    with saved_result(place, partial(_save, figure, told), silent=json):
        if json:
            say_json(told)
        else:
            _show_distances(told)
    clear(*kept.values())


def _survivors(found: dict[str, Tensor], norm: str, trained: dict[str, float]) -> Any:
    """Build the figure of the share of points that no perturbation up to a radius misclassifies."""
    from bivallate.evaluation.distance_file import radii_to_last
    from bivallate.evaluation.statistics import wilson
    from bivallate.evaluation.sweeps import survivors
    from bivallate.reports.diagnostics.ranks import OverEps

    total, radii = len(next(iter(found.values()))), radii_to_last(list(found.values()))
    left = {label: survivors(values, radii) for label, values in found.items()}
    return OverEps(
        attack="FAB-T, FMN, DDN" if norm == "L2" else "FAB-T, FMN",
        norm=norm,
        eps=radii,
        accuracy={label: [hits / total for hits in some] for label, some in left.items()},
        interval={label: [wilson(hits, total) for hits in some] for label, some in left.items()},
        trained=trained,
    )


def _show_distances(data: dict[str, Any]) -> None:
    from bivallate.commands.run_group import table
    from bivallate.evaluation.distance_file import SHARES

    title = f"smallest {data['norm']} perturbation found, {data['n']} test points; quantiles over all"
    columns = ("run", "clean wrong", "none found", *(f"{share} %" for share in SHARES))
    table(title, columns, [_row(label, s) for label, s in data["runs"].items()])


def _row(label: str, summary: dict[str, Any]) -> list[str]:
    lengths = [_length(length) for length in summary["quantiles"].values()]
    return [label, str(summary["wrong"]), str(summary["none_found"]), *lengths]


def _length(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
