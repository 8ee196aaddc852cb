"""A cell of a table: one training and what is measured of it, as plain data."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from bivallate.lower.threat import threat
from bivallate.methods.entries import create
from bivallate.run.config import Config
from bivallate.run.recipes.published import recipe_for

__all__ = ["Cell", "Measure", "What", "configure"]

What = Literal["clean", "robust", "tail", "worst", "gap", "fosc", "fosc-ball", "seconds"]


@dataclass(frozen=True)
class Measure:
    """One column of a cell.

    Attributes:
        column: its heading. what: "clean", "robust" or "tail" accuracy (30 % of the classes), that of the
            "worst" class, the "gap" (clean - robust), mean "fosc" in the box form or "fosc-ball" in that of
            eq. 4 of Dynamic AT, or "seconds" of training an epoch.
        attack: by name. eps: radius, or None for the cell's own. n: points drawn at random; None takes all.
        source: name of another network, on which the adversarial examples are made (transfer).
        weights: "best" or "last", or "" for the cell's own.
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
        """Name of the evaluation this column is read from; columns share evaluations."""
        where = f"@{self.eps.replace('/', 'of')}" if self.eps else ""
        size = f"-n{self.n}" if self.n else ""
        origin = f"-from-{slug(self.source)}" if self.source else ""
        of = f"-of-{self.weights}" if self.weights else ""
        kind = f"{self.what}-" if self.what.startswith("fosc") else ""
        return f"{kind}{self.attack}{where}{size}{origin}{of}"


@dataclass(frozen=True)
class Cell:
    """One training with one seed left open, and the columns that are measured of it.

    Attributes:
        row, group: where it stands: its method, and the setting whose columns it fills.
        method, parameters: of the catalogue. norm, eps: the threat, eps as the paper writes it.
        recipe: of `bivallate.run.recipes`. epochs: or None for the recipe's. settings: paths into the
            configuration and their values, applied last.
        rows: training images used; 0 takes all. weights: "best" on held-out data, or "last".
        keep: fractions of the epochs at whose end the weights are kept, for figures.
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
        """File name without the seed."""
        return slug(f"{self.row} {self.group}")

    def but(self, **changes: Any) -> Cell:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)


def configure(cell: Cell, seed: int, device: str = "auto", threads: int = 0) -> Config:
    """The complete configuration of a cell's training.

    Raises UserError for a method, parameter, recipe or setting that does not exist.
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
    """Text as part of a file name.

    Example:
        >>> slug("Fast-AT Softplus @8/255")
        'fast-at-softplus-8of255'
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("/", "of")).strip("-")
