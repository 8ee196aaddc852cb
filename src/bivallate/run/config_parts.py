"""The parts of a configuration for the data, the network and the held-out measurements."""

from __future__ import annotations

import dataclasses
from math import inf
from typing import Any, ClassVar

from bivallate.data.resident import RESIDENT
from bivallate.errors import UserError, check_range, check_whole, unknown
from bivallate.from_text import literal, pair
from bivallate.parts import part

__all__ = ["STREAMING", "Data", "Model", "Validation"]

STREAMING: dict[str, bool | None] = {"auto": None, "always": True, "never": False}


@part
class Data:
    """Which images to train on, how they are split, and how they are read.

    Attributes:
        name: a data set's name, a path, or hub:owner/name; "" if the data were given as tensors in Python.
        data_dir: folder of named data sets; None uses BIVALLATE_DATA.
        validation: fraction (below 1) or number of the training rows to hold out.
        imbalance: None, "step:0.2" or "longtail:0.01".
        extra, extra_ratio: an .npz of synthetic images to mix in, and their fraction of the training data.
        augment: "default" (the papers' choice for the set), "none", or a specification such as "crop:4,flip".
        meta: number of training rows in the second stream, from which BiLAW learns; used only by methods that
            need one.
        size: side in pixels to which every image is fitted; None keeps the images' own.
        channels: 1 or 3; None takes that of most images.
        on_bad: what to do with rows that cannot be used as they are: "refuse", "convert" or "skip".
        image_column, label_column: columns of Parquet files; None finds them by the metadata, then by name.
        test_fraction: fraction of the training data to use as test data, if a set has none.
        allow_missing_classes: train even if a class has no training row.
        stream: decode images when they are needed: "always", "never", or "auto" (only if a known set is too
            large for the cache).
        workers: processes that decode a stream; None is one per processor, at most 8.
        resident: keep the training images on the device: "always", "never", or "auto" (on CUDA, if they take
            at most a quarter of its free memory). The minibatches are the same.
    """

    WRITTEN_NONE: ClassVar = {  # how files and the command line write None
        "data_dir": "", "imbalance": "none", "extra": "none", "size": 0, "channels": 0, "workers": -1,
        "image_column": "", "label_column": "",
    }  # fmt: skip

    name: str = "digits"
    data_dir: str | None = None
    validation: float = 0.1
    imbalance: str | None = None
    extra: str | None = None
    extra_ratio: float = 0.5
    augment: str = "default"
    meta: int = 1000
    size: int | None = None
    channels: int | None = None
    on_bad: str = "refuse"
    image_column: str | None = None
    label_column: str | None = None
    test_fraction: float = 0.2
    allow_missing_classes: bool = False
    stream: str = "auto"
    workers: int | None = None
    resident: str = "auto"

    def __post_init__(self) -> None:
        ranges = {"validation": (0, inf), "meta": (0, inf), "size": (1, inf), "channels": (1, 4)}
        ranges |= {"extra_ratio": (0, 1), "workers": (0, inf)}
        for name, bounds in ranges.items():
            check_range(f"data.{name}", getattr(self, name), *bounds)
        if self.validation > 1 and self.validation % 1:
            raise UserError(
                "data.validation must be a fraction below 1 or a whole number of rows, "
                f"got {self.validation!r}"
            )
        if not 0 < self.test_fraction < 1:
            raise UserError(f"data.test_fraction must be between 0 and 1, got {self.test_fraction!r}")
        if self.stream not in STREAMING:
            raise unknown("way to stream", str(self.stream), STREAMING)
        if self.resident not in RESIDENT:
            raise unknown("way to keep data on the device", str(self.resident), RESIDENT)


@part
class Model:
    """Which network to train.

    Attributes:
        name: name of an architecture, or package.module:factory.
        activation: relu, softplus or silu.
        normalise: whether the first layer normalises by the mean and standard deviation of the data.
        width: factor of the network's channels, for architectures with this option.
        stem: first layer, for architectures with a choice, such as "cifar" or "imagenet" of residual
            networks; None is the architecture's default.
        options: options of the architecture, each KEY=VALUE.
        mean, std: one value per channel for the first layer, in [0, 1] pixel units; empty uses the data's.
    """

    WRITTEN_NONE: ClassVar = {"stem": ""}

    name: str = "tiny-cnn"
    activation: str = "relu"
    normalise: bool = True
    width: float = 1.0
    stem: str | None = None
    options: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for item in self.options:
            pair(item, "img_size=32", "model.options")

    def with_option(self, key: str, text: str) -> Model:
        """A copy with one option set."""
        kept = tuple(item for item in self.options if pair(item)[0] != key)
        return dataclasses.replace(self, options=(*kept, f"{key}={text}"))

    def chosen(self) -> dict[str, Any]:
        """The options by name; each text becomes a number, a boolean, a list or a word, as it looks."""
        return {key: literal(text) for key, text in map(pair, self.options)}


@part
class Validation:
    """How to measure robust accuracy on the held-out split after each epoch; the highest one gives `best`.

    Attributes:
        steps: number of PGD steps of eps/4 from a uniform start.
        rows: largest number of examples.
    """

    steps: int = 10
    rows: int = 1000

    def __post_init__(self) -> None:
        check_whole("validation.rows", self.rows)
        check_whole("validation.steps", self.steps, 0)
