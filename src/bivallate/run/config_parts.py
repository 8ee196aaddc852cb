"""What a configuration says of its data, its network and what is measured on held-out rows."""

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
    """Which images, and how they are cut up.

    Attributes:
        name: of a set, a path, or hub:owner/name; "" when tensors were handed over in Python.
        data_dir: where named sets are looked for; None: BIVALLATE_DATA.
        validation: fraction (below 1) or number of training rows held out.
        imbalance: None, "step:0.2" or "longtail:0.01". extra, extra_ratio: an .npz of synthetic images to
            mix in.
        augment: "default" (the papers' choice for the set), "none", or a specification such as "crop:4,flip".
        meta: rows of the second stream that BiLAW learns from, taken from training; used only by methods that
            ask.
        size: side to which every image is fitted; None leaves them. channels: 1 or 3; None: as most images.
        on_bad: "refuse", "convert" or "skip" rows that cannot be used as they are.
        image_column, label_column: of Parquet files; None: found by the metadata, then by name.
        test_fraction: cut from the training data where a set comes without test data.
        allow_missing_classes: train even if a class has no training row.
        stream: "always" or "never" decode images as they are needed, or "auto": where a known set is too
            large for the cache. workers: processes that decode a stream; None: one a processor, at most 8.
        resident: keep the training images on the device: "always", "never", or "auto": on CUDA, where they
            take at most a quarter of its free memory. The same minibatches either way.
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
        if not 0 < self.test_fraction < 1:
            raise UserError(f"data.test_fraction must be between 0 and 1, got {self.test_fraction!r}")
        if self.stream not in STREAMING:
            raise unknown("way to stream", str(self.stream), STREAMING)
        if self.resident not in RESIDENT:
            raise unknown("way to keep data on the device", str(self.resident), RESIDENT)


@part
class Model:
    """Which network.

    Attributes:
        name: of an architecture, or package.module:factory.
        normalise: whether the data's mean and standard deviation become the first layer.
        width: multiple of the network's channels, for architectures that have this option.
        stem: of architectures that have a choice, such as "cifar" or "imagenet" of the residual networks;
            None: their own.
        options: of the architecture, each KEY=VALUE.
        mean, std: of each channel, for the first layer; empty: the data's.
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
        """The options by name, with values of the types that their texts look like."""
        return {key: literal(text) for key, text in map(pair, self.options)}


@part
class Validation:
    """What is measured on the held-out split after each epoch; the best robust accuracy decides `best`.

    Attributes:
        steps: of the PGD (step eps/4, uniform start). rows: at most so many examples.
    """

    steps: int = 10
    rows: int = 1000

    def __post_init__(self) -> None:
        check_whole("validation.rows", self.rows)
        check_whole("validation.steps", self.steps, 0)
