"""What a recipe is made for: a method and a data set."""

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
from bivallate.run.optim import OptimizerSpec
from bivallate.run.rates import Rate

CROP_FLIP = "crop:4,flip"


@dataclass(frozen=True)
class Task:
    """The method and the data set that a recipe is made for.

    Attributes:
        method: the method as the user made it.
        data: name of the data set.
        fixed: parameters of the method that the user has set; recipes leave them alone.
    """

    method: Method
    data: str
    fixed: Collection[str] = ()

    @property
    def known(self) -> KnownDataset | None:
        """The published data set of this name, or None for the user's own data."""
        return registry.by_name_or_folder(self.data)

    @property
    def grey(self) -> bool:
        """Whether it is a published set of grey images, for which a small network suffices."""
        return self.known is not None and self.known.shape[0] == 1

    @property
    def handwriting(self) -> bool:
        """Whether it is MNIST, for which some papers have another recipe, or the similar Fashion-MNIST."""
        return self.known is not None and self.known.name in ("mnist", "fashion-mnist")

    def tuned(self, parameter: str, path: str, value: Any) -> Task:
        """The task with the part at `path` of the method set to `value`, unless the user has set that part.

        The user has set it if `parameter` is in `fixed`, or if the part differs from that of the catalogue's
        method of this name.
        """
        if parameter in self.fixed or not self.as_made(path):
            return self
        return dataclasses.replace(self, method=self.method.but(**{path.replace(".", "__"): value}))

    def as_made(self, *paths: str) -> bool:
        """Whether these parts of the method equal those of the catalogue's method of the same name."""
        if self.method.name not in method_registry():
            return False
        try:
            made = create(self.method.name, self.method.threat)
        except (UserError, TypeError):  # a method of the user's with parameters that have no default
            return False
        absent = object()
        pairs = ((_part(self.method, path, absent), _part(made, path, absent)) for path in paths)
        return all(own is not absent and own == other for own, other in pairs)

    def config(
        self,
        optimizer: OptimizerSpec,
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
        """Make the configuration; the augmentation of a published set is written out.

        Args:
            optimizer, rate, epochs, batch: of training.
            colour, grey: names of the networks for colour images and for published sets of grey images.
            normalise: whether the first layer normalises.
            validation: fraction or number of rows to hold out.
            watched: steps of the held-out PGD.
            augment: augmentation in place of the set's own.
        """
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
