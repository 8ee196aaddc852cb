"""Training from Python: `train`, `resume`, `load`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bivallate import collective, data, models
from bivallate.data import Dataset
from bivallate.data.registry import usual
from bivallate.errors import UserError, plainly, unknown
from bivallate.lower.threat import threat
from bivallate.method import Method, checked, create
from bivallate.models import Classifier
from bivallate.models.classifier import Normalise
from bivallate.models.io import read_manifest
from bivallate.run.checkpoint import Checkpoint
from bivallate.run.config import Config, Model
from bivallate.run.defaults import fitted
from bivallate.run.folder import RunFolder
from bivallate.run.lock import Lock, held
from bivallate.run.progress import Progress, Spoken
from bivallate.run.recipes import recipe_for
from bivallate.run.reopen import reopen, repair
from bivallate.run.session import Session, create_model, load_data, settled
from bivallate.run.trainer import Trainer, limit_threads


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run.

    Attributes:
        model: with the last weights, in eval mode. average: with the averaged weights, or None.
        history: a dictionary an epoch, as in metrics.jsonl. path: of the folder, or None.
    """

    model: Classifier
    average: Classifier | None
    history: list[dict[str, Any]]
    path: Path | None

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        accuracies = [
            f"{what} {last[what]:.1%}" for what in ("clean", "robust") if last.get(what) is not None
        ]
        held = f", held-out {', '.join(accuracies)}" if accuracies else ""
        return f"<Run in {self.path or 'memory'}: {len(self.history)} epochs{held}>"


def execute(
    config: Config,
    dataset: Dataset,
    model: nn.Module,
    out: Path | None,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    max_minutes: float | None = None,
) -> Run:
    """Runs a complete configuration in a new folder, which it holds until the end."""
    if config.keep and out is None:
        raise UserError("keep=... stores weights in the run's folder: name one with out=...")
    if config.keep and max(config.keep) > config.epochs:
        raise UserError(f"keep names epoch {max(config.keep)}, but training ends with epoch {config.epochs}")
    if config.patience and not dataset.validation:
        raise UserError(
            "patience watches the held-out robust accuracy, and nothing is held out: "
            "use --set data.validation=0.1, or patience 0"
        )
    _check_minutes(max_minutes)
    limit_threads(config.threads)
    collective.join()
    session, shown = Session(config, dataset, model), progress or Progress()
    if out is None:
        return _finish(session, None, shown, minutes=max_minutes)

    def begin() -> None:
        folder = RunFolder.create(out, overwrite=overwrite)  # again, now that nobody else can use it
        folder.tidy()
        folder.clear()
        config.write(folder.config)

    with _holding(lambda: RunFolder.create(out, overwrite=overwrite), shown, begin) as lock:
        return _finish(session, RunFolder(out), shown, lock, max_minutes)


@contextmanager
def _holding(
    find: Callable[[], RunFolder], shown: Progress, prepare: Callable[[], None]
) -> Iterator[Lock | None]:
    """The first rank finds the folder, holds it and prepares it; all raise what it meets."""
    lock, failed = None, None
    with ExitStack() as stack:
        if collective.rank() == 0:
            try:
                lock = stack.enter_context(held(find().path, shown.note))
                prepare()
            except UserError as error:
                failed = error
        collective.agree(failed)
        yield lock


def _finish(
    session: Session,
    folder: RunFolder | None,
    progress: Progress,
    lock: Lock | None = None,
    minutes: float | None = None,
) -> Run:
    Trainer(session, folder, progress, lock, minutes).run()
    collective.meet()
    session.model.eval()
    average = session.average.model.eval() if session.average is not None else None
    return Run(session.model, average, session.history, folder.path if folder else None)  # pyright: ignore


@plainly
def train(
    model: nn.Module | str,
    dataset: Dataset | str | tuple[Any, Any],
    method: Method | str,
    *,
    eps: float | str | None = None,
    norm: str = "linf",
    epochs: int | None = None,
    lr: float | None = None,
    recipe: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool | Progress = False,
    max_minutes: float | None = None,
    **settings: Any,
) -> Run:
    """Trains a model and returns the finished run.

    Args:
        model: a network, or the name of an architecture.
        dataset: from `bivallate.data.load`, or anything that it takes.
        method: what to train with, which knows its threat; or its name, with eps and norm. Without eps the
            customary Linf radius of the data set.
        epochs: of training; None is 20, or the recipe's. lr: peak learning rate, else the recipe's or the
            usual one of the data set (0.1 for digits, else 0.05).
        recipe: a paper's training recipe by name, such as "done", which all other arguments change. Its data
            settings (rows held out, imbalance) are used where the data is given by name.
        seed: of everything random. out: a folder to keep everything in; None keeps nothing on disk.
        overwrite: replace a run that is there. progress: show a bar, or a `Progress` of one's own.
        max_minutes: save and stop after so long, by an `Interrupted`; `resume` goes on.
        settings: further fields of `Config`: batch_size, optimizer, rate, average, warm_up, validation, ...
            What is said nowhere is as `bivallate.data.registry.usual` has it for the data set.

    Raises:
        UserError: for anything the user can mend. NonFinite: training diverged.

    Example:
        >>> import bivallate as bv
        >>> data = bv.data.load("digits")
        >>> run = bv.train("linear", data, bv.methods.plain(bv.Linf(0.1)), epochs=1)
        >>> run.history[0]["epoch"]
        1
    """
    given = dataset if isinstance(dataset, str | Dataset) else data.load(dataset, seed=seed)
    place = given if isinstance(given, str) else _named(given)
    method = _method(method, eps, norm, place)
    config = recipe_for(recipe, method, place)
    config = dataclasses.replace(config, model=_described(config.model, model), seed=seed, **_known(settings))
    for path, value in (("epochs", epochs), ("optimizer.lr", lr)):
        config = config.set(path, value) if value is not None else config
    if isinstance(given, str):
        config = dataclasses.replace(config, data=settled(config.data))
    loaded = load_data(config.data, seed) if isinstance(given, str) else given
    if recipe is None and "batch_size" not in settings:
        config = fitted(config, len(loaded.train))
    network = create_model(config.model, loaded, seed) if isinstance(model, str) else model
    shown = Spoken(method.name) if progress is True else (progress or Progress())
    return execute(
        config,
        loaded,
        network,
        Path(out) if out else None,
        progress=shown,
        overwrite=overwrite,
        max_minutes=max_minutes,
    )


def _method(method: Method | str, eps: float | str | None, norm: str, data_name: str) -> Method:
    """The method itself, or that of a name with its threat. Raises UserError for what says neither."""
    if not isinstance(method, str):
        if eps is not None or norm != "linf":
            raise UserError(
                "a method knows its threat: give eps and norm with its name, "
                'bv.train(model, data, "at", eps=8/255)'
            )
        return checked(method)
    if eps is None and type(threat(norm, 0.0)) is not type(threat("linf", 0.0)):
        raise UserError(f"norm={norm!r} needs a radius, eps=..., such as 0.5: the customary ones are of Linf")
    return create(method, threat(norm, usual(data_name).eps if eps is None else eps))


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not minutes > 0:
        raise UserError(f"max_minutes must be positive, got {minutes!r}")


def _described(part: Model, model: nn.Module | str) -> Model:
    """What a configuration says of a network that was handed over: enough to build it again, if it can be."""
    if isinstance(model, str):
        return dataclasses.replace(part, name=model)
    inner = getattr(model, "_orig_mod", model)
    named = dataclasses.replace(part, name=getattr(inner, "architecture", type(inner).__name__))
    if not isinstance(inner, Classifier) or inner.spec is None:
        return named
    named = dataclasses.replace(
        named,
        normalise=isinstance(inner.normalise, Normalise),
        activation=inner.spec.get("activation", part.activation),
        width=1.0,
        stem="",
        options=(),
    )
    for key, value in inner.spec.items():
        if key not in ("name", "num_classes", "shape", "mean", "std", "activation"):
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            named = named.with_option(key, text)
    return named


def _named(dataset: Dataset) -> str:
    """The name to load it by again; the fingerprint that checkpoints keep tells whether that gives the same
    data."""
    return dataset.name if dataset.name in data.registry.names() else ""


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(Config)} - {"data", "model", "recipe"}
    for name in settings:
        if name not in names:
            raise unknown("setting", name, names)
    return settings


def resume(
    path: str | Path,
    *,
    model: nn.Module | str | None = None,
    method: Method | None = None,
    dataset: Dataset | None = None,
    progress: bool | Progress = False,
    fall_back: bool = True,
    data: str | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    max_minutes: float | None = None,
) -> Run:
    """Goes on with an interrupted run, to the weights that an uninterrupted one would have reached, bit for
    bit.

    Args:
        path: the run's folder.
        model, method, dataset: for parts that only the user's code can build.
        progress: show a bar, or a `Progress` of one's own; without, what was found and mended is warned of.
        fall_back: take the older checkpoint if the newest is damaged, and say so; else that is an error.
        data, data_dir, device, threads: where the data lie now, where named sets are looked for and where to
            compute, if not as before; the run's configuration keeps its own. On another device, or with
            another number of threads, the weights agree with those of an uninterrupted run to rounding only.

    Raises:
        UserError: no run, no readable checkpoint, other data, another model, method or configuration, or
            another process trains in the folder.
    """
    _check_minutes(max_minutes)
    shown = Spoken(Path(path).name) if progress is True else (progress or Progress())
    collective.join()
    folder, begun = RunFolder.open(Path(path)), list[tuple[Config, Checkpoint | None]]()

    def prepare() -> None:
        folder.tidy()
        begun.append(reopen(folder, shown.note, fall_back=fall_back))

    with _holding(lambda: folder, shown, prepare) as lock:
        config, found = begun[0] if begun else reopen(folder, lambda text: None, fall_back=fall_back)
        if method is not None:
            config = dataclasses.replace(config, method=checked(method))
        moved = {"device": device, "threads": threads, "data.data_dir": data_dir, "data.name": data}
        for key, value in moved.items():
            config = config.set(key, value) if value is not None else config
        limit_threads(config.threads)
        loaded = dataset if dataset is not None else load_data(config.data, config.seed)
        session = Session(config, loaded, _network(config, loaded, model))
        if found is not None:
            session.unpack(found)
        if lock is not None:
            repair(folder, session, shown.note)
        return _finish(session, folder, shown, lock, max_minutes)


def _network(config: Config, dataset: Dataset, model: nn.Module | str | None) -> nn.Module:
    name = config.model.name
    if isinstance(model, nn.Module):
        return model
    if model is None and name not in models.names() and not name.startswith("timm:"):
        raise UserError(
            f"this run trained {name}, which only your code can build: hand it over again "
            "(model=... in Python, --model package.module:factory on the command line)"
        )
    chosen = dataclasses.replace(config.model, name=model) if isinstance(model, str) else config.model
    return create_model(chosen, dataset, config.seed)


def load(path: str | Path, weights: str = "best", *, model: nn.Module | str | None = None) -> Classifier:
    """The trained model of a run folder, in eval mode.

    Args:
        path: the run's folder. weights: "best" (on held-out data), "last", "ema", or "epoch-3" of a
            run that keeps it (`keep=(3,)`).
        model: for a network that only the user's code can build.
    """
    return models.load(path, weights, model=model).eval()


def load_run(path: str | Path, weights: str, model: str | None) -> Classifier:
    """The model of a run; `model` builds the network where it is the user's own, and is imported because the
    user named it. Raises UserError without it."""
    described = read_manifest(RunFolder.open(Path(path)).path / "model.json")
    name = (described["spec"] or {}).get("name", described["architecture"])
    if name in models.names() or name.startswith("timm:"):
        return load(path, weights)
    if model is None:
        raise UserError(
            f"{path} trained a network of your own, {name}, and code is never imported because a file names "
            "it: say --model package.module:factory"
        )
    return load(path, weights, model=model)
