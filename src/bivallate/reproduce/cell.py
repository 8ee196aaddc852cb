"""A cell of a table: one training and its measurements, as plain data."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from bivallate.lower.threat import threat
from bivallate.methods.entries import create
from bivallate.run.config import Config
from bivallate.run.recipes.published import recipe_for

__all__ = ["TRANSFERRED", "Cell", "Measure", "What", "configure", "weights_of"]

TRANSFERRED = "-from-"  # in the name of an evaluation on another network's examples, before that network

What = Literal["clean", "robust", "tail", "worst", "gap", "fosc", "fosc-ball", "seconds"]


@dataclass(frozen=True)
class Measure:
    """A measurement: one column of a cell.

    Attributes:
        column: heading of the column.
        what: "clean" accuracy, "robust" accuracy, "tail" (robust accuracy of the weakest 30 % of the
            classes), "worst" (that of the worst class), "gap" (clean - robust), "fosc" (mean FOSC in the box
            form), "fosc-ball" (mean FOSC in the form of eq. 4 of Dynamic AT), or "seconds" of an epoch of
            training.
        attack: name of the attack.
        eps: radius; None for the cell's own.
        n: number of test points drawn at random; None takes all.
        source: name of another network on which the adversarial examples are made (transfer), or None.
        weights: "best" or "last"; "" for the cell's own.
    """

    column: str
    what: What = "robust"
    attack: str = "pgd-20"
    eps: str | None = None
    n: int | None = None
    source: str | None = None
    weights: str = ""

    @property
    def key(self) -> str:
        """Name of the evaluation that the column is read from; several columns may share one."""
        where = f"@{self.eps.replace('/', 'of')}" if self.eps else ""
        size = f"-n{self.n}" if self.n else ""
        origin = f"{TRANSFERRED}{slug(self.source)}" if self.source else ""
        of = f"-of-{self.weights}" if self.weights else ""
        kind = f"{self.what}-" if self.what.startswith("fosc") else ""
        return f"{kind}{self.attack}{where}{size}{origin}{of}"


@dataclass(frozen=True)
class Cell:
    """One training, whose seed is left open, and its measurements.

    Attributes:
        row, group: place in the table: row of the method, and group of columns.
        method, parameters: name of the catalogue's method, and its parameters.
        data, model: names of the data set and of the architecture.
        norm, eps: the threat, with eps as the paper writes it.
        recipe: name of the recipe.
        measures: the columns.
        epochs: number of epochs; None for the recipe's.
        settings: paths into the configuration and their values, applied last.
        rows: number of training images; 0 takes all.
        weights: "best" on held-out data, or "last".
        keep: fractions of the epochs after which weights are kept, for figures.
    """

    row: str
    group: str
    method: str
    data: str
    model: str
    eps: str
    recipe: str
    measures: tuple[Measure, ...]
    norm: str = "linf"
    parameters: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    weights: str = "best"
    keep: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Name of the cell in file names, without the seed."""
        return slug(f"{self.row} {self.group}")

    def but(self, **changes: Any) -> Cell:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)


def weights_of(key: str) -> str:
    """Name of the weights that an evaluation is of, by its `Measure.key`; "" for the cell's own.

    Example:
        >>> weights_of("pgd-20-of-best"), weights_of("pgd-20")
        ('best', '')
    """
    return next((name for name in ("best", "last") if key.endswith(f"-of-{name}")), "")


def configure(cell: Cell, seed: int, device: str = "auto", threads: int = 0) -> Config:
    """The complete configuration of a cell's training.

    Raises UserError if the method, a parameter, the recipe or a setting does not exist.
    """
    method = create(cell.method, threat(cell.norm, cell.eps), **cell.parameters)
    config = recipe_for(cell.recipe, method, cell.data).set("model.name", cell.model)
    changes: dict[str, Any] = {"seed": seed, "device": device, "threads": threads}
    changes["epochs"] = cell.epochs if cell.epochs is not None else config.epochs
    config = dataclasses.replace(config, **changes)
    for path, value in cell.settings.items():
        config = config.set(path, value)
    keep = {max(1, round(part * config.epochs)) for part in cell.keep}
    return dataclasses.replace(config, keep=tuple(sorted(keep)))


def slug(text: str) -> str:
    """A text in a form for file names.

    Example:
        >>> slug("Fast-AT Softplus @8/255")
        'fast-at-softplus-8of255'
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("/", "of")).strip("-")
