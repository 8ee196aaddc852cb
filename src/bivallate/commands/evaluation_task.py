"""The evaluations of one call of `bivallate evaluate`: each is saved and printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bivallate.commands.result_files import confirm_kept, result_file
from bivallate.commands.score_table import one_line, percent, show
from bivallate.errors import UserError
from bivallate.quoting import file_name
from bivallate.run.signals import Interrupted
from bivallate.terminal import say, say_json

if TYPE_CHECKING:
    from bivallate.evaluation import Attack, EvaluationOptions, Score
    from bivallate.evaluation.preflight import Preflight
    from bivallate.lower.threat import ThreatModel
    from bivallate.run.evaluation_target import EvaluationTarget

GO_ON = "interrupted; what was decided is kept: the same command goes on from there"


@dataclass
class EvaluationTask:
    """The evaluations that one call of the command makes; each is saved and printed.

    As a context it prints several results as JSON at the end, also those before one that failed.

    Attributes:
        options: of every evaluation.
        out: file, or folder for several results, in place of the run's folder.
        runs: folders of all runs.
        several: whether there is more than one result, so that each is printed in one line.
        quiet: show no progress.
        json: print JSON.
        results: the results as plain data.
        faults: errors of results that should have been saved and could not.
    """

    options: EvaluationOptions
    out: Path | None
    runs: Sequence[Path]
    several: bool
    quiet: bool
    json: bool
    results: list[dict[str, Any]] = field(default_factory=list)
    faults: list[UserError] = field(default_factory=list)

    def evaluate_all(
        self,
        names: Sequence[str],
        threats: Sequence[ThreatModel],
        target: EvaluationTarget,
        findings: Preflight | None,
        run: Path,
        *,
        foreign: bool,
    ) -> None:
        """Run attacks within each threat, and tell for each how many points withstand it within all.

        Args:
            names: of the attacks.
            threats: one or several.
            target: model and data.
            findings: of the pre-flight; None if it was skipped.
            run: folder, checkpoint or network of the zoo, as the user named it.
            foreign: whether it is no run, so that its results are stored only where `out` says.

        Raises:
            UserError: one of the threats does not have an attack; nothing was attacked then.
            Interrupted: on Ctrl-C; the same command continues from the verdicts so far.
        """
        from bivallate.evaluation import attack_named
        from bivallate.evaluation.threat_union import radius

        for name, threat in product(names, threats):
            attack_named(name, threat)
        for name in names:
            within = threats[:1] if name == "clean" else threats  # no attack needs no threat
            self.several |= len(within) > 1
            scores: list[Score] = []
            for threat in within:
                label = f"{run} {name}, {radius(threat)}" if len(within) > 1 else f"{run} {name}"
                subject = replace(target, threat=threat)
                scores.append(self._evaluate(name, subject, findings, run, label, foreign=foreign))
            if len(scores) > 1:
                self._tell_all(run, name, scores)

    def _evaluate(
        self,
        name: str,
        target: EvaluationTarget,
        findings: Preflight | None,
        run: Path,
        label: str,
        *,
        foreign: bool,
    ) -> Score:
        """Run one attack within one threat; save the score, print and return it.

        label: of the result's line, if there are several.
        """
        from bivallate.evaluation import attack_named
        from bivallate.evaluation.progress_display import shown_progress

        attack = attack_named(name, target.threat)
        stored = not foreign or self.out is not None
        file = self._file(target, attack, run) if stored else None
        json, faults = self.json, list[UserError]()
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
        return score

    def _tell_all(self, run: Path, name: str, scores: Sequence[Score]) -> None:
        """Print how many points withstand an attack within each of several threats."""
        from bivallate.evaluation.joined_score import within_all

        joined = within_all(scores)
        entry = joined.to_json()
        self.results.append({"run": str(run), **entry, "threats": entry["threat"]["threats"]})
        if not self.json:
            robust = percent(joined.robust_accuracy, joined.interval_95)
            say(f"{run} {name}, under all {len(scores)}: robust {robust}, {joined.n} points")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Print several results as JSON if asked to. Raises UserError if one could not be saved."""
        if self.json and self.several and (self.results or kind is None):
            say_json(self.results)
        if self.faults and kind is None:
            raise self.faults[0]

    def _file(self, target: EvaluationTarget, attack: Attack, run: Path) -> Path | None:
        """The file of a result; None if it cannot be written."""
        default = target.file(attack, self.options)
        if not (self.out and self.several):
            return result_file(default, self.out)
        from bivallate.reports.collect import labels_of  # names that differ where those of the folders do not

        label = labels_of(list(self.runs))[self.runs.index(run)]
        return result_file(default, self.out / f"{file_name(label)}-{default.name}")
