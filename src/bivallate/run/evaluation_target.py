"""Evaluate the model of a run folder or a checkpoint, and save the score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bivallate import collective
from bivallate.data import Dataset, Split
from bivallate.errors import UserError, unknown
from bivallate.evaluation import Attack, Identity, Score, Stage, attack_and_score
from bivallate.evaluation.evaluation_options import EvaluationOptions
from bivallate.evaluation.evaluation_progress import EvaluationProgress
from bivallate.evaluation.preflight import Preflight, preflight
from bivallate.evaluation.shared_points import clear
from bivallate.lower.threat import ThreatModel
from bivallate.models import Classifier
from bivallate.models.description import read_manifest
from bivallate.run.evaluation_data import evaluation_data
from bivallate.run.folder import RunFolder
from bivallate.run.foreign_method import read_config
from bivallate.run.from_config import pick_device
from bivallate.run.load_model import load_run

__all__ = ["EvaluationTarget", "ProgressCallback", "partial_of", "split_of"]

Threat = ThreatModel | Callable[[ThreatModel], ThreatModel] | None
ProgressCallback = Callable[[EvaluationProgress], object]


@dataclass(frozen=True, eq=False)
class EvaluationTarget:
    """A model, the data and the threat of its evaluations; `evaluate` attacks it and saves the score.

    Attributes:
        path: the run's folder.
        model: on the device to compute on.
        data: the data set.
        chosen_split: the images that are attacked: the split of the data set that `split` names.
        threat: the set of perturbations of the attack.
        others: further threats of the run's training; none if another threat was asked for.
        weights: their name: best, last, ema or epoch-N.
        split: its name: test, validation or train.
        elsewhere: a short name of the data if they are not the run's own; otherwise empty.
        warnings: reasons why an accuracy on these data means less.
        run: id of the run (see `run.identity`); empty if unknown.
        data_set: fingerprint of the data set, the run's own if the split is the run's own; empty if unknown.
    """

    path: Path
    model: Classifier
    data: Dataset
    chosen_split: Split
    threat: ThreatModel
    weights: str
    split: str
    elsewhere: str = ""
    others: tuple[ThreatModel, ...] = ()
    warnings: tuple[str, ...] = ()
    run: str = ""
    data_set: str = ""

    @classmethod
    def of(
        cls,
        path: str | Path,
        *,
        threat: Threat = None,
        weights: str = "best",
        split: str = "test",
        data: str | None = None,
        by_position: bool = False,
        data_dir: str | None = None,
        model: str | None = None,
        device: torch.device | str = "auto",
    ) -> EvaluationTarget:
        """Load the model and the data of a run folder.

        Args:
            path: the run's folder.
            threat: a threat other than the run's own, or a function from the run's threat to another one.
            weights: best, last, ema or epoch-N.
            split: test, validation or train.
            data: name of another data set.
            by_position: match its labels to the run's classes by number instead of by name.
            data_dir: where named data sets are now.
            model: `package.module:factory` of the user's own network.
            device: where to compute.

        Raises:
            UserError: there is no run, or the data, the split or the weights do not exist.
        """
        folder = RunFolder.open(Path(path))
        config = read_config(folder.config).config
        config = config.set("data.data_dir", data_dir) if data_dir is not None else config
        of_run = config.method.threat
        read = evaluation_data(folder.path, config, data, by_position=by_position)
        manifest = read_manifest(folder.path / "model.json")
        own = _of_training(manifest, read.data, split)
        doubts = read.warnings
        if not own and not read.place:
            doubts = _check_other(folder.path, manifest, split)
        chosen = of_run if threat is None else threat(of_run) if callable(threat) else threat
        return cls(
            path=folder.path,
            model=load_run(path, weights, model).to(pick_device(str(device))),
            data=read.data,
            chosen_split=split_of(read.data, split),
            threat=chosen,
            weights=weights,
            split=split,
            elsewhere=read.place,
            others=config.method.threats[1:] if chosen is of_run else (),
            warnings=doubts,
            run=str(manifest.get("run") or ""),
            data_set=str(manifest.get("data_fingerprint") or "") if own else read.data.fingerprint,
        )

    @property
    def threats(self) -> tuple[ThreatModel, ...]:
        """The threat, and the others."""
        return self.threat, *self.others

    def identity(self, n: int | None = None, first: int | None = None) -> Identity:
        """Identity of an evaluation on a random subset of n points, on the first points, or on all."""
        return Identity(self.run, self.weights, self.split, self.elsewhere, self.data_set, n, first)

    def file(self, attack: Attack, options: EvaluationOptions) -> Path:
        """The run's file for an evaluation with these options; it need not exist."""
        identity = self.identity(options.n, options.first)
        name = identity.file_name(self.threat, attack.name, options.seed, options.search_precision)
        return RunFolder(self.path).evaluation / name

    def preflight(self) -> Preflight:
        """Look for faults of the model and the data that would make every result meaningless."""
        return preflight(self.model, self.chosen_split, self.threat, own=not self.elsewhere)

    def evaluate(
        self,
        attack: str | Attack | Stage,
        options: EvaluationOptions,
        *,
        file: Path | None = None,
        findings: Preflight | None = None,
        progress: ProgressCallback | None = None,
        faults: list[UserError] | None = None,
    ) -> Score:
        """Attack the run's model, score it and save the score.

        The score carries the warnings about the data and the errors that the preflight found. `bv.evaluate`
        and `bivallate evaluate` both end here.

        Args:
            attack: a name, an `Attack` or a stage.
            options: subset, seed, batch size and number format of the search.
            file: where the score is saved, by the first process of several; None to save nothing. An earlier
                score there is replaced. Until then verdicts are kept beside it, in the file `partial_of`,
                from which an interrupted evaluation continues.
            findings: result of `preflight`.
            progress: called after every piece of work.
            faults: receives the error if the score cannot be saved, so that it is not lost; None to raise it.
        """
        score = attack_and_score(
            self.model,
            self.chosen_split,
            self.threat,
            attack,
            resume=None if file is None else partial_of(file),
            progress=progress,
            **asdict(options),
        )
        errors = [str(f) for f in findings.findings if f.severity == "error"] if findings is not None else []
        identity = self.identity(options.n, options.first)
        score = replace(score, warnings=(*score.warnings, *errors, *self.warnings), identity=identity)
        try:
            if file is not None and collective.rank() == 0:
                _save(score, file)
        except UserError as error:
            if faults is None:
                raise
            faults.append(error)
        return score


def _of_training(manifest: dict[str, Any], data: Dataset, split: str) -> bool:
    """Whether a split is the one of the run's own data, by its fingerprint or by that of the whole set.

    Held-out images may be drawn with another seed than in training, and the test images are the same. An
    older version may have computed the fingerprints in another way.
    """
    if data.matches(str(manifest.get("data_fingerprint") or "")):
        return True
    chosen = split_of(data, split)
    kept = (manifest.get("split_fingerprints") or {}).get(split)
    return kept in (chosen.fingerprint, chosen.as_former().fingerprint)


def _check_other(run: Path, manifest: dict[str, Any], split: str) -> tuple[str, ...]:
    """A warning that the test images are not those of the run's data set; none if the run names no split.

    Raises UserError for training or held-out images: some of them may have been trained on.
    """
    if split not in (manifest.get("split_fingerprints") or {}):
        return ()
    if split == "test":
        return ("the test images are not those of the data set that the run was trained on",)
    raise UserError(
        f"the {split} images are not those of the training of {run}: the files have changed, or the data "
        "were loaded with another seed than that of training, or in part. Evaluate on the test images, or in "
        f"Python on the same data: bv.evaluate(run, data.{split})"
    )


def _save(score: Score, file: Path) -> None:
    """Write the score, whole or not at all, and remove the verdicts of the unfinished evaluation."""
    score.save(file)
    clear(partial_of(file))


def partial_of(file: Path) -> Path:
    """The file in which an unfinished evaluation keeps its verdicts."""
    return file.with_name(f".{file.name}.partial")


def split_of(dataset: Dataset, split: str) -> Split:
    """A split of a data set by name. Raises UserError if the data set has no such split."""
    splits = {"test": dataset.test, "validation": dataset.validation, "train": dataset.train}
    found = splits.get(split)
    if found is None:
        raise unknown("split", split, [k for k, v in splits.items() if v is not None])
    return found
