"""A run's model, the data to evaluate it on, and the file of the result; `evaluate` from Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bivallate import collective
from bivallate.data import Dataset, Split
from bivallate.errors import UserError, check_options, unknown
from bivallate.evaluation import Identity, Score, parse
from bivallate.evaluation import evaluate as score_of
from bivallate.evaluation.evaluation_progress import EvaluationProgress
from bivallate.evaluation.preflight import Preflight, preflight
from bivallate.evaluation.progress_display import progress_callback
from bivallate.evaluation.shared_points import clear
from bivallate.lower.threat import ThreatModel
from bivallate.methods.entries import create
from bivallate.models import Classifier
from bivallate.models.description import read_manifest
from bivallate.parts import decode, encode
from bivallate.run.config import Config
from bivallate.run.evaluation_data import evaluation_data
from bivallate.run.execution import Run
from bivallate.run.folder import RunFolder
from bivallate.run.from_config import pick_device
from bivallate.run.load_model import load_run
from bivallate.schema import MEGABYTE, check, read_text
from bivallate.schema import parse as parse_file

__all__ = ["EvaluationTarget", "evaluate", "partial_of", "save_score", "split_of"]

Threat = ThreatModel | Callable[[ThreatModel], ThreatModel] | None


@dataclass(frozen=True, eq=False)
class EvaluationTarget:
    """What an evaluation needs besides the attack: model, data, threat, and the place of its result.

    Attributes:
        path: the run's folder.
        model: on the device to compute on.
        data, points: the data set, and the split of it that is attacked.
        threat: the set of perturbations of the attack.
        weights, split: names of the weights and of the split.
        elsewhere: a short name of the data if they are not the run's own; otherwise empty.
        warnings: reasons why an accuracy on these data means less.
        run: identifier of the run; empty if unknown.
        data_set: fingerprint of the data set; empty if unknown.
    """

    path: Path
    model: Classifier
    data: Dataset
    points: Split
    threat: ThreatModel
    weights: str
    split: str
    elsewhere: str = ""
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
            weights, split: names of the weights and of the split.
            data: name of another data set.
            by_position: match its labels to the run's classes by number instead of by name.
            data_dir: where named data sets are now.
            model: `package.module:factory` of the user's own network.
            device: where to compute.

        Raises:
            UserError: there is no run, or the data, the split or the weights do not exist.
        """
        folder = RunFolder.open(Path(path))
        config = _configuration(folder.config)
        config = config.set("data.data_dir", data_dir) if data_dir is not None else config
        own = config.method.threat
        chosen = own if threat is None else threat(own) if callable(threat) else threat
        found = evaluation_data(folder.path, config, data, by_position=by_position)
        points = split_of(found.data, split)
        network = load_run(path, weights, model).to(pick_device(str(device)))
        where = (weights, split, found.place, found.warnings, *_marks(folder, found.data))
        return cls(folder.path, network, found.data, points, chosen, *where)

    def identity(self, n: int | None = None, first: int | None = None) -> Identity:
        """Identity of an evaluation on a random subset of n points, on the first points, or on all."""
        return Identity(self.run, self.weights, self.split, self.elsewhere, self.data_set, n, first)

    def file(self, attack: str, options: dict[str, Any]) -> Path:
        """The run's file for an evaluation by this attack with these options of `evaluate`."""
        identity = self.identity(options["n"], options["first"])
        precision = options.get("precision", "float32")
        name = identity.file_name(self.threat, attack, options["seed"], precision)
        return RunFolder(self.path).evaluation / name

    def preflight(self) -> Preflight:
        """Look for faults of the model and the data that would make every result meaningless."""
        return preflight(self.model, self.points, self.threat, own=not self.elsewhere)

    def evaluate(
        self, attack: Any, *, file: Path | None = None, looked: Preflight | None = None, **options: Any
    ) -> Score:
        """Attack the run's model and score it.

        The score carries the warnings about the data and the errors that the preflight found.

        Args:
            attack: a name, an `Attack` or a stage.
            file: where the score is going to be saved. Until `save_score`, verdicts are kept in a file beside
                it, from which an interrupted evaluation continues.
            looked: result of `preflight`.
            options: as in `bivallate.evaluation.evaluate`.
        """
        resume = None if file is None else partial_of(file)
        score = score_of(self.model, self.points, self.threat, attack, resume=resume, **options)
        grave = tuple(str(f) for f in looked.findings if f.severity == "error") if looked is not None else ()
        identity = self.identity(options.get("n"), options.get("first"))
        return replace(score, warnings=(*score.warnings, *grave, *self.warnings), identity=identity)


def _marks(folder: RunFolder, data: Dataset) -> tuple[str, str]:
    """The run's identifier and the data's fingerprint.

    For the run's own data it is the fingerprint that the run wrote, which an older version may have computed
    in another way.
    """
    manifest = read_manifest(folder.path / "model.json")
    own = str(manifest.get("data_fingerprint") or "")
    return str(manifest.get("run") or ""), own if data.matches(own) else data.fingerprint


def _configuration(file: Path) -> Config:
    """Read a run's configuration.

    An evaluation needs the method's threat alone. If other parts of the method are not installed, plain
    training with this threat takes its place.
    """
    try:
        return Config.read(file)
    except UserError:
        text = read_text(file, "configuration", 4 * MEGABYTE)
        entry = parse_file(text, file, "configuration", dict[str, Any], "TOML")
        method = entry.get("method")
        if not isinstance(method, dict) or "threat" not in method:
            raise
        known = encode(create("plain", decode(method["threat"])))
        return check(Config, decode({**entry, "method": known, "kind": "Config"}), "configuration")


def save_score(score: Score, file: Path) -> None:
    """Write the score, whole or not at all, and remove the verdicts of the unfinished evaluation."""
    score.save(file)
    clear(partial_of(file))


def partial_of(file: Path) -> Path:
    """The file in which an unfinished evaluation keeps its verdicts."""
    return file.with_name(f".{file.name}.partial")


def split_of(dataset: Dataset, split: str) -> Split:
    """The points of a split by name. Raises UserError if the data set has no such split."""
    points = {"test": dataset.test, "validation": dataset.validation, "train": dataset.train}
    found = points.get(split)
    if found is None:
        raise unknown("split", split, [k for k, v in points.items() if v is not None])
    return found


def evaluate(
    model: Any,
    data: Any = None,
    threat: ThreatModel | None = None,
    attack: Any = "pgd-20",
    *,
    weights: str = "best",
    split: str = "test",
    factory: str | None = None,
    data_dir: str | None = None,
    store: bool = True,
    n: int | None = None,
    first: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool | Callable[[EvaluationProgress], object] = False,
    **options: Any,
) -> Score:
    """Attack a model, and count the points that it classifies correctly under every attempt.

    Args:
        model: a network, or a function from images (B, C, H, W) in [0, 1] to logits (B, K); or a run (its
            folder, or what `train` returned). For a run, data and threat default to the run's own, and the
            score is saved in RUN/evaluation, as `bivallate evaluate` does.
        data: a split, or a pair (x, y) of tensors (n, C, H, W) and (n,); for a run also the name of a data
            set.
        threat: the set of perturbations, such as bv.Linf(8/255).
        attack: a name (see `bivallate attacks`), an `Attack` or a stage of one.
        weights, split: for a run: names of the weights and of the split.
        factory: for a run with the user's own network: its `package.module:factory`.
        data_dir: for a run: where named data sets are now.
        store: save the score of a run.
        n: number of points in a seeded random subset.
        first: number of leading points; at most one of `n` and `first`.
        device: where to compute; default that of the model, or for a run the fastest.
        seed: seed of the subset and of the attack.
        progress: True to show a progress bar, or a function that is called with `EvaluationProgress`.
        options: batch_size, precision, resume and shared, as in `bivallate.evaluation.evaluate`.

    Returns:
        The score: accuracies as fractions in [0, 1], and one verdict for each point.

    Raises:
        UserError: an argument is wrong, or the run, the data or the weights do not exist.

    Example:
        >>> import bivallate as bv
        >>> digits = bv.data.load("digits")
        >>> model = bv.models.create("linear", num_classes=10, shape=(1, 8, 8))
        >>> 0 <= bv.evaluate(model, digits.test, bv.Linf(0.1), "fgsm", n=20).robust_accuracy <= 1
        True
    """
    check_options("evaluate", options, score_of)
    model = folder_or_model(model)
    options |= {"n": n, "first": first, "seed": seed}
    with progress_callback(progress) as show:
        options["progress"] = show
        if isinstance(model, str | Path):
            where = {"weights": weights, "split": split, "data_dir": data_dir, "model": factory}
            return _of_run(model, data, threat, attack, store, where | {"device": device or "auto"}, options)
        if data is None or threat is None:
            raise UserError(
                "say what to evaluate on: bv.evaluate(model, data.test, bv.Linf(8/255)); only the folder of "
                'a run, bv.evaluate("runs/x"), knows its own data and threat'
            )
        return score_of(model, data, threat, attack, device=device, **options)


def folder_or_model(model: Any) -> Any:
    """For a `Run` its folder, or its model if it has no folder; anything else unchanged."""
    return (model.path or model.model) if isinstance(model, Run) else model


def _of_run(
    path: str | Path,
    data: Any,
    threat: ThreatModel | None,
    attack: Any,
    store: bool,
    where: dict[str, Any],
    options: dict[str, Any],
) -> Score:
    name = parse(attack).name  # first, so that a misspelt attack is reported before the model is loaded
    other = str(data) if isinstance(data, str | Path) else None
    examined = EvaluationTarget.of(path, threat=threat, data=other, **where)
    if data is not None and other is None:  # tensors cannot be named in a stored evaluation: not stored
        return score_of(examined.model, data, examined.threat, attack, **options)
    file = None
    if store and isinstance(attack, str):  # a user's own attack may have the name of a built-in one
        file = examined.file(name, options)
    score = examined.evaluate(attack, file=file, looked=examined.preflight(), **options)
    if file is not None and collective.rank() == 0:
        save_score(score, file)
    return score
