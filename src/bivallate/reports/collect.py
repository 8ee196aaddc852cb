"""Read the content of run folders for reports and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.evaluation.threat_union import ThreatUnion, same_threat, union_of
from bivallate.models.description import read_manifest
from bivallate.quoting import line
from bivallate.reports.stored_audits import StoredAudit, read_audits
from bivallate.reports.stored_evaluations import (
    Evaluation,
    RunFingerprints,
    read_evaluations,
    within_union,
)
from bivallate.reports.strength import strongest_first
from bivallate.run.config import Config
from bivallate.run.execution import Run
from bivallate.run.folder import WEIGHTS, RunFolder
from bivallate.run.foreign_method import ReadConfig, read_config

NO_POINT = "no point of class"  # beginning of an evaluation's warning about classes without points
LONG = 20  # letters; if a label is longer, the ending that all labels share is left out


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of a run folder.

    Attributes:
        label: a short name, unique among the runs of one report.
        path: the folder.
        written: the resolved configuration.
        history: one dictionary per epoch, as in metrics.jsonl.
        evaluations: the run's evaluations, by weights and then by cost.
        classes: names of the classes.
        manifest: content of model.json; empty if there is none.
        audits: the run's audits.
        strange: evaluations in the folder that are not of this run, or do not say so; they are not used.
    """

    label: str
    path: Path
    written: ReadConfig
    history: list[dict[str, Any]]
    evaluations: tuple[Evaluation, ...]
    classes: tuple[str, ...]
    manifest: dict[str, Any]
    audits: tuple[StoredAudit, ...]
    strange: tuple[Evaluation, ...] = ()

    @property
    def config(self) -> Config:
        """The configuration, in which another method may stand for one that is not installed."""
        return self.written.config

    @cached_property
    def strongest(self) -> Evaluation | None:
        """The strongest evaluation at the training threat on the test set; None if there is none.

        After a training under several threats it is within all of them. Evaluations of the best weights come
        first, then those of the last and of the averaged weights.
        """
        found = (self.leading(weights, "test", self.home) for weights in WEIGHTS)
        return next((leading[0] for leading in found if leading), None)

    @cached_property
    def home(self) -> Any:
        """The threat of the training; the union of several."""
        return union_of(self.config.method.threats)

    @cached_property
    def at_home(self) -> tuple[Evaluation, ...]:
        """What the evaluations within each of several threats of the training say of all; empty for one."""
        return tuple(self.within(self.home)) if isinstance(self.home, ThreatUnion) else ()

    def within(self, threat: Any) -> list[Evaluation]:
        """The evaluations within a threat; within a union those that join the ones within its threats."""
        if isinstance(threat, ThreatUnion):
            if threat not in self._joined:
                self._joined[threat] = within_union(self.evaluations, threat)
            return self._joined[threat]
        return [e for e in self.evaluations if same_threat(e.score.threat, threat)]

    def leading(self, weights: str, split: str, threat: Any) -> list[Evaluation]:
        """The evaluations in a threat on the run's own data, strongest first (see `strongest_first`)."""
        same = [e for e in self.within(threat) if (e.weights, e.split, e.data) == (weights, split, "")]
        found = [e for e in same if e.score.stage_names]
        return [found[k] for k in strongest_first([[e] for e in found])]

    @cached_property
    def _joined(self) -> dict[ThreatUnion, list[Evaluation]]:
        """The unions that were asked for, and the evaluations within each."""
        return {}

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The epochs that have a value under this key, and the values."""
        known = [(line["epoch"], line[key]) for line in self.history if line.get(key) is not None]
        return [epoch for epoch, _ in known], [value for _, value in known]

    def names(self, classes: int) -> tuple[str, ...]:
        """Names of this many classes; numbers for classes without a name."""
        return tuple(self.classes[k] if k < len(self.classes) else str(k) for k in range(classes))

    def worst_class(self, score: Score) -> tuple[str, float]:
        """(name, robust accuracy) of the class with the lowest robust accuracy."""
        worst, value = score.worst_class
        return self.names(score.classes)[worst], value

    def warnings(self, score: Score) -> list[str]:
        """The evaluation's warnings, with the names of the classes that have no point."""
        notes = [w for w in score.warnings if not w.startswith(NO_POINT)]
        missing = [k for k, count in enumerate(score.counts) if not count]
        if missing:
            known = self.names(score.classes)
            names = [line(known[k], 40) for k in missing]
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            notes.append(f"{NO_POINT} {shown}: without accuracy, and not in tail scores")
        return notes

    @property
    def left_out(self) -> list[str]:
        """Notes on the evaluations in the folder that are not used."""
        return [f"{self.label}: {e.path.name} is {e.left_out}." for e in self.strange]

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """All alarms of the sentinel, in order."""
        return [alarm for line in self.history for alarm in line.get("alarms", [])]

    @property
    def seconds(self) -> float:
        """Wall time of all epochs, in seconds."""
        return sum(line["seconds"] for line in self.history)

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, with the highest held-out robust accuracy."""
        epochs, values = self.series("robust")
        return epochs[values.index(max(values))] if values else None


Runs = str | Path | Run | Sequence[str | Path | Run]  # one, or several in a list


def folders(runs: Sequence[Runs]) -> list[Path]:
    """The folders of runs, which are given as folders or as `Run` objects, also in lists.

    Raises UserError for a run without a folder, and for anything that is not a run.
    """
    found = []
    for run in (one for given in runs for one in (given if isinstance(given, list | tuple) else [given])):
        if isinstance(run, Run) and run.path is None:
            raise UserError("this run keeps nothing on disk: train it with out=... to compare or report it")
        place = run.path if isinstance(run, Run) else run
        if not isinstance(place, str | Path):
            raise UserError(f"runs are folders, or what bv.train returned; got {type(place).__name__}")
        found.append(Path(place))
    return found


def collect(paths: list[Path]) -> list[RunRecord]:
    """Read run folders. Raises UserError if there is none, one is not a run, or one is named twice."""
    if not paths:
        raise UserError("name at least one run folder")
    resolved = [path.resolve() for path in paths]
    for k, path in enumerate(resolved):
        if path in resolved[:k]:
            raise UserError(f"{paths[k]} is named twice; name each run once")
    labels = labels_of(resolved)
    return [_read(path, label) for path, label in zip(paths, labels, strict=True)]


def _read(path: Path, label: str) -> RunRecord:
    folder = RunFolder.open(path)
    written, history, manifest = read_config(folder.config), folder.read_metrics(), path / "model.json"
    described = read_manifest(manifest) if manifest.exists() else {}
    fingerprints = RunFingerprints.of(path)
    found = read_evaluations(folder.evaluation, fingerprints)
    order = {name: k for k, name in enumerate(WEIGHTS)}
    known = sorted(
        (e for e in found if not e.left_out),
        key=lambda e: (order.get(e.weights, len(order)), len(e.weights), e.weights, e.split, _spent(e.score)),
    )
    names = described.get("classes") or range(known[0].score.classes if known else 0)
    classes = tuple(str(name) for name in names)
    strange = tuple(e for e in found if e.left_out)
    audits = read_audits(path, fingerprints)
    return RunRecord(label, path, written, history, tuple(known), classes, described, audits, strange)


def _spent(score: Score) -> float:
    return sum(score.passes.values())


def labels_of(paths: list[Path]) -> list[str]:
    """Labels of runs: the shortest endings of their paths that differ.

    If one is longer than `LONG`, trailing words (separated by -) that all labels share are left out.
    """
    labels = [str(p) for p in paths]
    for depth in range(1, max(len(p.parts) for p in paths) + 1):
        endings = ["/".join(p.parts[-depth:]) for p in paths]
        if len(set(endings)) == len(endings):
            labels = endings
            break
    words = [label.split("-") for label in labels]
    if len(words) > 1 and max(map(len, labels)) > LONG:
        while min(map(len, words)) > 1 and len({w[-1] for w in words}) == 1:
            words = [w[:-1] for w in words]
    return ["-".join(w) for w in words]
