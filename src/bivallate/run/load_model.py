"""Load the trained model of a run folder, or a network of the zoo."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from torch import nn

from bivallate import models, zoo
from bivallate.errors import UserError
from bivallate.evaluation.points import model_fingerprint
from bivallate.models import Classifier
from bivallate.models.description import read_manifest
from bivallate.run.folder import RunFolder


def load(path: str | Path, weights: str = "best", *, model: nn.Module | str | None = None) -> Classifier:
    """Load the trained model of a run folder, in eval mode on the processor.

    Args:
        path: the run's folder; or "zoo:NAME", a network that `bivallate zoo` lists.
        weights: "best" (of the epoch with the highest held-out robust accuracy), "last", "ema" (the average),
            or "epoch-3" if the run keeps it (`keep=(3,)`).
        model: for a network that only the user's code can build: the module, or its `package.module:factory`.

    Raises:
        UserError: there are no such weights, a file is damaged or of another architecture, or the network is
            the user's own and `model` is missing.
    """
    if isinstance(path, str) and path.startswith(zoo.PREFIX):
        return from_zoo(path)
    return models.load(path, weights, model=model).eval()


def from_zoo(name: str) -> Classifier:
    """Load a network that comes with the package, in eval mode.

    Raises:
        UserError: the name is unknown, or the weights are not those that were measured.
    """
    known, name = zoo.entry(name), name.removeprefix(zoo.PREFIX)
    with as_file(files(zoo)) as folder:
        model = models.load(folder / f"{name}.safetensors")
    if model_fingerprint(model) != known["fingerprint"]:
        raise UserError(f"the weights of zoo:{name} are not those measured: install bivallate again")
    return model


def built_in(name: str) -> bool:
    """Whether the package can build the architecture, its own or timm's, from the name alone."""
    return name in models.names() or name.startswith("timm:")


def load_run(path: str | Path, weights: str, model: str | None) -> Classifier:
    """Load the model of a run for the command line.

    `model` names the factory of the user's own network; it is imported because the user named it. Raises
    UserError if such a network has no factory.
    """
    described = read_manifest(RunFolder.open(Path(path)).path / "model.json")
    name = (described["spec"] or {}).get("name", described["architecture"])
    if built_in(name):
        return load(path, weights)
    if model is None:
        raise UserError(
            f"{path} trained a network of your own, {name}, and code is never imported because a file names "
            "it: say --model package.module:factory"
        )
    return load(path, weights, model=model)
