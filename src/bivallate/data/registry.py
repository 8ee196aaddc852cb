"""The data sets known by name: their places, published statistics and the papers' augmentation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivallate.errors import UserError, unknown
from bivallate.lazy_import import former_names

__all__ = ["KNOWN", "KnownDataset", "describe", "find", "get", "known_folder", "names"]

CROP_FLIP = "crop:4,flip"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainingDefaults:
    """The defaults of `train` for a data set; docs/defaults.md shows that they learn.

    Attributes:
        eps: customary Linf radius, as text. model: architecture. lr: peak learning rate of SGD.
        warm_up: share of the minibatches over which the radius grows from almost 0 to eps.
        l1: customary L1 radius, or None.
    """

    eps: str = "8/255"
    model: str = "tiny-cnn"
    lr: float = 0.05
    warm_up: float = 0.5
    l1: str | None = None

    def radius(self, norm: str) -> str | None:
        """The customary radius in Linf or L1; None if there is none."""
        return {"Linf": self.eps, "L1": self.l1}.get(norm)

    def __str__(self) -> str:
        return f"eps {self.eps}, {self.model}, rate {self.lr:g}, warm-up {self.warm_up:g}"


@dataclass(frozen=True)
class KnownDataset:
    """A published data set.

    Attributes:
        name, title: the name, and a description. shape: (C, H, W).
        folders: names of its folder in the data folder; subsets: names of folders with a part of it.
        hub: its repository; under: a folder of that repository.
        classes, train, test: numbers of classes and rows in the published set.
        mean, std: published statistics, or None to compute them. size: (H, W) to which images are fitted.
        grey: whether it has grey images to be read as colour. test_split: name of the split for testing.
        stream: whether it is too large to be decoded into the cache. label_column: for files with several.
        built_in: name of the function of `tensors` that makes it without any file; empty for all others.
        augment: augmentation, as `Augment.parse` reads it.
        usual: defaults for training.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    augment: str = "none"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    hub: str | None = None
    under: str = ""
    folders: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    grey: bool = False
    test_split: str = "test"
    stream: bool = False
    label_column: str | None = None
    built_in: str = ""
    usual: TrainingDefaults = TrainingDefaults()


KNOWN: dict[str, KnownDataset] = {
    known.name: known
    for known in (
        KnownDataset(
            "digits", "handwritten digits of scikit-learn, built in", (1, 8, 8), 10, 1438, 359,
            built_in="digits", usual=TrainingDefaults("0.15", lr=0.1, warm_up=0.0),
        ),
        KnownDataset(
            "mnist", "handwritten digits", (1, 28, 28), 10, 60000, 10000,
            mean=(0.1307,), std=(0.3081,), hub="ylecun/mnist", folders=("mnist",),
            usual=TrainingDefaults("0.3"),
        ),
        KnownDataset(
            "fashion-mnist", "articles of clothing", (1, 28, 28), 10, 60000, 10000,
            mean=(0.2860,), std=(0.3530,), hub="zalando-datasets/fashion_mnist",
            folders=("fashion_mnist", "fashion-mnist"), usual=TrainingDefaults("0.1"),
        ),
        KnownDataset(
            "cifar10", "objects and animals", (3, 32, 32), 10, 50000, 10000, CROP_FLIP,
            (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "uoft-cs/cifar10",
            folders=("cifar10", "cifar-10"), subsets=("cifar10_jpeg",),
            usual=TrainingDefaults(l1="12"),  # Croce and Hein, Mind the box, 2021
        ),
        KnownDataset(
            "cifar100", "objects and animals", (3, 32, 32), 100, 50000, 10000,
            "crop:4,flip,rotate:15",
            (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "uoft-cs/cifar100",
            folders=("cifar100", "cifar-100"), label_column="fine_label",
        ),
        KnownDataset(
            "svhn", "house numbers", (3, 32, 32), 10, 73257, 26032, "none",
            (0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052), "ufldl-stanford/svhn", "cropped_digits",
            folders=("svhn",),
        ),
        KnownDataset(
            "stl10", "objects and animals", (3, 96, 96), 10, 5000, 8000, CROP_FLIP,
            (0.4467, 0.4398, 0.4066), (0.2242, 0.2215, 0.2239), "tanganke/stl10", folders=("stl10", "stl-10"),
        ),
        KnownDataset(
            "gtsrb", "German traffic signs", (3, 32, 32), 43, 39209, 12630, "crop:4",
            (0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669), "tanganke/gtsrb",
            folders=("gtsrb",), subsets=("gtsrb_small",), size=(32, 32),
        ),
        KnownDataset(
            "tiny-imagenet", "200 classes of ImageNet", (3, 64, 64), 200, 100000, 10000, CROP_FLIP,
            IMAGENET_MEAN, IMAGENET_STD, "zh-plus/tiny-imagenet", folders=("tiny-imagenet", "tiny_imagenet"),
            subsets=("tiny_imagenet_10",), grey=True, test_split="validation",
        ),
        KnownDataset(
            "imagenet", "ILSVRC 2012", (3, 224, 224), 1000, 1281167, 50000, "crop:16,flip",
            IMAGENET_MEAN, IMAGENET_STD, "ILSVRC/imagenet-1k", folders=("imagenet", "imagenet-1k"),
            size=(224, 224), grey=True, test_split="validation", stream=True,
        ),
    )
}  # fmt: skip


def names() -> list[str]:
    """The known data sets, in the order of the table."""
    return list(KNOWN)


def get(name: str) -> KnownDataset | None:
    """The data set of that name, ignoring case, hyphens and spaces; None if there is none."""
    plain = _plain(name)
    return next((k for k in KNOWN.values() if plain in map(_plain, (k.name, *k.folders))), None)


def _plain(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ "))


def find(name: str) -> KnownDataset:
    """The data set of that name, as `get`.

    Raises:
        UserError: there is none; the message names the nearest one.
    """
    known = get(name)
    if known is None:
        raise unknown("data set", name, [*KNOWN, "a folder", "hub:OWNER/NAME"])
    return known


def known_folder(folder: str) -> KnownDataset | None:
    """The published set that a folder of this name holds, whole or in part."""
    return next((k for k in KNOWN.values() if folder in (*k.folders, *k.subsets)), None)


def recognised(data: str) -> KnownDataset | None:
    """The published set that a name, or the folder at the end of a path, stands for; None for any other."""
    found = known_folder(Path(data).name)
    try:
        return found or find(data)
    except UserError:
        return None


def training_defaults(data: str) -> TrainingDefaults:
    """The defaults of `train` for a data set."""
    known = recognised(data)
    return known.usual if known is not None else TrainingDefaults()


def data_folder(data_dir: str | Path | None) -> Path | None:
    """The folder in which data sets are looked for: as given, else `BIVALLATE_DATA`, else None.

    Raises:
        UserError: it is not a folder.
    """
    chosen = data_dir if data_dir is not None else os.environ.get("BIVALLATE_DATA") or None
    if chosen is None:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist (from --data-dir or BIVALLATE_DATA)")
    return folder


def local(known: KnownDataset, data_dir: str | Path | None) -> Path | None:
    """The folder of a known data set in the data folder, a complete one rather than a subset; or None."""
    folder = data_folder(data_dir)
    if folder is None:
        return None
    return next(
        (folder / name for name in (*known.folders, *known.subsets) if (folder / name).is_dir()), None
    )


def describe(name: str, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Plain values about a data set for listings, without reading it."""
    known = find(name)
    place = local(known, data_dir)
    return {
        "name": known.name,
        "title": known.title,
        "shape": list(known.shape),
        "classes": known.classes,
        "train": known.train,
        "test": known.test,
        "mean": list(known.mean) if known.mean else None,
        "std": list(known.std) if known.std else None,
        "augment": known.augment,
        "usual": str(known.usual),
        "hub": known.hub,
        "found": "built in" if known.built_in else (str(place) if place else None),
    }


__getattr__ = former_names(
    __name__, {"Known": "KnownDataset", "Usual": "TrainingDefaults", "usual": "training_defaults"}
)
