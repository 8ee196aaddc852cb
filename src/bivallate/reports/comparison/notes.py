"""The notes below a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from bivallate.evaluation.threat_union import same_threat, spelt
from bivallate.parts import encode
from bivallate.reports.collect import RunRecord
from bivallate.reports.comparison.comparable import trained_for
from bivallate.reports.stored_evaluations import STALE, Evaluation
from bivallate.reports.tables import flatten, share_cell

MARK, OLD = "*", "!"  # marks a significant p-value; marks a run with a stale evaluation
WHEREABOUTS = ("data_dir", "stream", "workers")  # settings that do not change the data
INTERVALS = (
    "Below each accuracy: its 95 % interval over points (Wilson; bootstrap for the tail, which is the mean "
    "over the weakest 30 % of the classes, and for the worst class, whichever that is)."
)
STRONGEST = (
    "Strongest: what the strongest evaluation of a run in this threat left, with the attack and its points; "
    "beside it the one that all rows have in common, which alone is ranked and tested."
)
SEEDS = "Mean over seeds; below it the standard deviation and Student's 95 % interval of the mean."
TESTS = (
    f"{MARK}: robust accuracy differs from the first row's, p < 0.05 by the exact McNemar test on the "
    "same points, after Holm's correction for all pairs of rows (p as shown). It says that these two "
    "models differ, not that their methods do: for that train several seeds and add --over-seeds."
)
SEED_TESTS = (
    f"{MARK}: mean robust accuracy differs from the first row's, p < 0.05 by Welch's t-test over seeds, "
    "after Holm's correction for all pairs of rows (p as shown)."
)
COSTS = (
    "Cost: forward and backward passes, per training example over the whole training and per evaluated "
    "point; below them wall time, which depends on the machine."
)


def data_name(run: RunRecord) -> str:
    """Name of the data that a run was trained on."""
    return run.config.data.name or "tensors"


def different(records: Sequence[RunRecord], chosen: Sequence[Evaluation]) -> list[str]:
    """Notes on what the runs do not have in common and on faults of their evaluations."""
    pairs = list(zip(records, chosen, strict=True))
    notes = []
    stale = [r.label for r, e in pairs if e.stale]
    if stale:
        notes.append(f"{OLD}: {STALE}: {', '.join(stale)}.")
    notes += [note for record in records for note in record.left_out]
    notes += [f"{r.label}: {warning}" for r, e in pairs for warning in r.warnings(e.score)]
    notes += other_data(records)
    home = [r.label for r, e in pairs if not trained_for(r, e)]
    if home:
        notes.append(f"Trained for another threat than the one compared here: {', '.join(home)}.")
    notes += _within_fewer(pairs)
    unfinished = [r.label for r in records if not r.config.ended(r.history)]
    if unfinished:
        notes.append(f"Not trained to the end: {', '.join(unfinished)}.")
    notes += _failed(records)
    if len({e.score.data_fingerprint for e in chosen}) > 1:
        counts = ", ".join(f"{r.label}: {e.score.n}" for r, e in pairs)
        notes.append(
            f"The runs were not evaluated on the same points ({counts}), so differences between those that "
            "were not are not tested; evaluate them with the same --n or --first and --seed."
        )
    return notes


def _failed(records: Sequence[RunRecord]) -> list[str]:
    """Notes on trainings that the sentinel saw fail, which a mean over seeds would hide."""
    guessing = [r.label for r in records if r.history and r.history[-1].get("at_chance")]
    notes = [f"At chance at the end of their training: {', '.join(guessing)}."] if guessing else []
    found = ((r, a) for r in reversed(records) for a in reversed(r.alarms))
    broken = {
        r.label: a["epoch"] for r, a in found if a["kind"] == "catastrophic" and not a.get("rolled_back")
    }
    if broken:
        told = ", ".join(f"{label} (epoch {epoch})" for label, epoch in sorted(broken.items()))
        notes.append(f"Catastrophic overfitting, by the sentinel's alarm: {told}.")
    return notes


def _within_fewer(pairs: Sequence[tuple[RunRecord, Evaluation]]) -> list[str]:
    """Notes on runs that were trained under more threats than they are compared within."""
    fewer = [r for r, e in pairs if trained_for(r, e) and not same_threat(r.home, e.score.threat)]
    labels: dict[str, list[str]] = {}
    for run in fewer:
        labels.setdefault(" ".join(spelt(run.home)), []).append(run.label)
    return [
        f"Trained under more threats than compared here: {', '.join(names)}; --threat {words} compares "
        "within all of them, or says what is missing."
        for words, names in labels.items()
    ]


def other_data(records: Sequence[RunRecord]) -> list[str]:
    """Notes if the data sets differ, or if one data set was prepared differently."""
    names = {run.label: data_name(run) for run in records}
    classes = {run.classes for run in records if run.classes}
    if len(set(names.values())) > 1 or len(classes) > 1:
        shown = "; ".join(f"{r.label}: {data_name(r)}, {len(r.classes)} classes" for r in records)
        return [f"The data sets differ ({shown}): accuracies on different data say nothing about methods."]
    flat = [flatten(encode(run.config.data)) for run in records]
    keys = [key for key in flat[0] if key not in WHEREABOUTS and len({one.get(key) for one in flat}) > 1]
    settings = [
        f"data.{key}: " + ", ".join(f"{r.label} {one.get(key)}" for r, one in zip(records, flat, strict=True))
        for key in keys
    ]
    return [f"Trained on differently prepared data ({'; '.join(settings)})."] if settings else []


def stronger(records: Sequence[RunRecord], chosen: Sequence[Evaluation]) -> list[str]:
    """Notes on runs with a stronger evaluation than the compared one."""
    trios = zip(records, chosen, leading(records, chosen), strict=True)
    return [
        f"{run.label}: {lead.score.attack} on {lead.score.n} points is stronger and left "
        f"{share_cell(lead.score.robust_accuracy, lead.score.interval_95)} %."
        for run, own, lead in trios
        if lead.files != own.files
    ]


def beside(records: Sequence[RunRecord], chosen: Sequence[Evaluation]) -> list[str]:
    """A note on the next strongest attack that all runs have in the same threat, on any points."""
    lists = [r.leading(e.weights, e.split, e.score.threat) for r, e in zip(records, chosen, strict=True)]
    attack = chosen[0].score.attack
    others = [e.score.attack for e in lists[0] if e.score.attack != attack]
    common = [name for name in others if all(any(e.score.attack == name for e in own) for own in lists)]
    if not common:
        return []
    scores = [next(e.score for e in own if e.score.attack == common[0]) for own in lists]
    shown = "; ".join(
        f"{r.label} {share_cell(s.robust_accuracy, s.interval_95)} of {s.n} points"
        for r, s in zip(records, scores, strict=True)
    )
    return [f"Beside it all have {common[0]}, which left (%): {shown}."]


def leading(records: Sequence[RunRecord], chosen: Sequence[Evaluation]) -> list[Evaluation]:
    """The strongest evaluation of each run, of the same weights in the same threat as the chosen one."""
    found = [r.leading(e.weights, e.split, e.score.threat) for r, e in zip(records, chosen, strict=True)]
    return [strong[0] if strong else e for strong, e in zip(found, chosen, strict=True)]
