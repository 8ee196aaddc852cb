"""A run's model, the data that it is evaluated on, and the file that the result goes to."""

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
from bivallate.run.load_model import load_run
from bivallate.run.session import pick_device
from bivallate.schema import MEGABYTE, check, read_text
from bivallate.schema import parse as parse_file

__all__ = ["EvaluationTarget", "evaluate", "partial_of", "save_score", "split_of"]

Threat = ThreatModel | Callable[[ThreatModel], ThreatModel] | None


@dataclass(frozen=True, eq=False)
class EvaluationTarget:
    """What an evaluation needs besides the attack: model, data, threat, and where its result goes.

    Attributes:
        path: of the run's folder. model: on its device. data, points: the set, and its split under attack.
        threat: that the points are attacked within. weights, split: whose names they go by.
        elsewhere: a word for other data than the run's own. warnings: what makes an accuracy mean less.
        run: the run's own digits. data_set: fingerprint of the set; both empty where they are not known.
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
        """A run folder's model and data.

        Args:
            threat: another than the run's own, or a function of that. data: another set by name. by_position:
                read its labels by their numbers. model: package.module:factory of a network of one's own.

        Raises:
            UserError: no run, or data, a split or weights that are not there.
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
        """Of an evaluation on a random subset of n points, on the first so many, or on all."""
        return Identity(self.run, self.weights, self.split, self.elsewhere, self.data_set, n, first)

    def file(self, attack: str, options: dict[str, Any]) -> Path:
        """Where the run keeps an evaluation with these options of `evaluate`."""
        identity = self.identity(options["n"], options["first"])
        precision = options.get("precision", "float32")
        name = identity.file_name(self.threat, attack, options["seed"], precision)
        return RunFolder(self.path).evaluation / name

    def preflight(self) -> Preflight:
        """What would make any result mean nothing."""
        return preflight(self.model, self.points, self.threat, own=not self.elsewhere)

    def evaluate(
        self, attack: Any, *, file: Path | None = None, looked: Preflight | None = None, **options: Any
    ) -> Score:
        """Attack the run's model and score it.

        Grave findings of a look before it, and warnings about the data, go with the score.

        Args:
            file: where it is going to be kept. Verdicts are kept beside it until `save_score`, and an
                evaluation that was interrupted goes on from them. options: as in
                `bivallate.evaluation.evaluate`.
        """
        resume = None if file is None else partial_of(file)
        score = score_of(self.model, self.points, self.threat, attack, resume=resume, **options)
        grave = tuple(str(f) for f in looked.findings if f.severity == "error") if looked is not None else ()
        identity = self.identity(options.get("n"), options.get("first"))
        return replace(score, warnings=(*score.warnings, *grave, *self.warnings), identity=identity)


def _marks(folder: RunFolder, data: Dataset) -> tuple[str, str]:
    """What the run calls itself, and the data's fingerprint, as the run wrote it where they are its own."""
    manifest = read_manifest(folder.path / "model.json")
    own = str(manifest.get("data_fingerprint") or "")
    return str(manifest.get("run") or ""), own if data.matches(own) else data.fingerprint


def _configuration(file: Path) -> Config:
    """A run's configuration, or its threat alone.

    A method whose parts are not installed is none that an evaluation needs, so that only its threat is read.
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
    """Write a score, whole; the verdicts beside it have served."""
    score.save(file)
    clear(partial_of(file))


def partial_of(file: Path) -> Path:
    """Where an evaluation under way keeps its verdicts."""
    return file.with_name(f".{file.name}.partial")


def split_of(dataset: Dataset, split: str) -> Split:
    """The points of a split by name. Raises UserError for one that is not there."""
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
    """Attack a run or a model, and count the points that it classifies correctly whatever was tried.

    Args:
        model: a network or function, or a run (its folder, or what `train` returned): then data and threat
            are the run's own where they are not given, and the score is kept in RUN/evaluation as `bivallate
            evaluate` keeps it.
        data: a split, or a pair (x, y) of tensors; of a run also the name of a data set.
        attack: a name (see `bivallate attacks`), an `Attack` or a stage of one.
        weights, split, factory, data_dir: of a run: which weights, which points, package.module:factory of a
            network of one's own, where named sets are looked for.
        store: keep the score of a run.
        n, first: a seeded random subset of so many points, or the leading ones.
        progress: True shows how far it is; or a function to call with every moment.
        options: batch_size, precision, resume and shared of `bivallate.evaluation.evaluate`, which says more.

    Raises:
        UserError: for anything the user can mend.

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
    """The folder of what `train` returned, or its model where it kept none; anything else as it is."""
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
    name = parse(attack).name  # a misspelt attack is said before anything else
    other = str(data) if isinstance(data, str | Path) else None
    examined = EvaluationTarget.of(path, threat=threat, data=other, **where)
    if data is not None and other is None:  # points that have no name: nobody can find them again
        return score_of(examined.model, data, examined.threat, attack, **options)
    file = None
    if store and isinstance(attack, str):  # an attack of one's own may bear another's name
        file = examined.file(name, options)
    score = examined.evaluate(attack, file=file, looked=examined.preflight(), **options)
    if file is not None and collective.rank() == 0:
        save_score(score, file)
    return score
