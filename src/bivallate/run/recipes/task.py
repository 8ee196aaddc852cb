"""What a recipe is made for: a method, and data that may be a published set."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from bivallate.data import registry
from bivallate.data.registry import KnownDataset
from bivallate.errors import UserError
from bivallate.method import Method
from bivallate.methods.entries import create
from bivallate.methods.entries import registry as method_registry
from bivallate.run.config import Config, Data, Model, Validation
from bivallate.run.optim import Optimizer, Rate

CROP_FLIP = "crop:4,flip"


@dataclass(frozen=True)
class Task:
    """What a recipe is for.

    Attributes:
        method: as the user made it. data: name of the set. fixed: parameters of the method that the user
            chose, which recipes leave alone.
    """

    method: Method
    data: str
    fixed: Collection[str] = ()

    @property
    def known(self) -> KnownDataset | None:
        """The published set, or None for images that nobody has seen yet."""
        return registry.recognised(self.data)

    @property
    def grey(self) -> bool:
        """Whether the set is known to be grey: then it is small enough for a small network."""
        return self.known is not None and self.known.shape[0] == 1

    @property
    def handwriting(self) -> bool:
        """MNIST, for which some papers have another recipe, and Fashion-MNIST, which is alike."""
        return self.known is not None and self.known.name in ("mnist", "fashion-mnist")

    def tuned(self, parameter: str, path: str, value: Any) -> Task:
        """The task with a part of the method changed, unless the user decided that part.

        The user did so by setting the parameter that decides it, or if it has another value here than the
        catalogue's method of this name.
        """
        if parameter in self.fixed or not self.as_made(path):
            return self
        return dataclasses.replace(self, method=self.method.but(**{path.replace(".", "__"): value}))

    def as_made(self, *paths: str) -> bool:
        """Whether these parts of the method are as the catalogue makes the method of its name."""
        if self.method.name not in method_registry():
            return False
        try:
            made = create(self.method.name, self.method.threat)
        except (UserError, TypeError):  # it has parameters that must be given
            return False
        absent = object()
        pairs = ((_part(self.method, path, absent), _part(made, path, absent)) for path in paths)
        return all(own is not absent and own == other for own, other in pairs)

    def config(
        self,
        optimizer: Optimizer,
        rate: Rate,
        *,
        epochs: int,
        colour: str,
        grey: str = "tiny-cnn",
        normalise: bool = False,
        validation: float = 0.1,
        watched: int = 20,
        augment: str = "",
        batch: int = 128,
    ) -> Config:
        """The configuration, with the augmentation written out where the set is known."""
        own = self.known.augment if self.known is not None else "default"
        return Config(
            method=self.method,
            data=Data(self.data, validation=validation, augment=augment or own),
            model=Model(name=grey if self.grey else colour, normalise=normalise),
            optimizer=optimizer,
            rate=rate,
            epochs=epochs,
            batch_size=batch,
            validation=Validation(watched, 1000),
        )

    @property
    def cropped(self) -> str:
        """The set's augmentation without the rotation that only Fast-BAT gives CIFAR-100."""
        return CROP_FLIP if self.known is not None and self.known.name == "cifar100" else ""


def _part(method: Method, path: str, absent: object) -> Any:
    found: Any = method
    for name in path.split("."):
        found = getattr(found, name, absent)
    return found
