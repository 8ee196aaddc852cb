"""The data sets known by name: their places, published statistics and the papers' augmentation."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from bivallate.errors import UserError, unknown
from bivallate.renamed import renamed_names

__all__ = ["KNOWN", "KnownDataset", "by_folder", "by_name", "by_name_or_raise", "describe", "names"]

CROP_FLIP = "crop:4,flip"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainingDefaults:
    """The defaults of `train` for a data set, with which AT learns within a few epochs on a processor.

    Attributes:
        eps: customary Linf radius, as text.
        model: architecture.
        lr: peak learning rate of SGD.
        warm_up: share of the minibatches over which the radius grows from almost 0 to eps.
        l1: customary L1 radius, as text; None if there is none.
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
        name: the name.
        title: a description.
        shape: (C, H, W).
        classes: number of classes.
        train: number of training rows in the published set.
        test: number of test rows in the published set.
        augment: augmentation, as `Augment.parse` reads it.
        mean: published mean of each channel; None to compute it.
        std: published standard deviation of each channel; None to compute it.
        hub: its repository on the hub; None if it has none.
        under: a folder of that repository.
        folders: names of its folder in the data folder.
        subsets: names of folders with a part of it.
        size: (H, W) to which images are fitted; None to keep their size.
        grey: whether it has grey images to be read as colour.
        test_split: name of the split for testing.
        stream: whether it is too large to be decoded into the cache.
        label_column: the column of the labels, for files with several; None for others.
        built_in: name of the function of `tensors` that makes it without any file, and returns a Split and
            the names of its classes; a fifth of it, drawn once, is the test split, so `train` and `test` are
            the numbers of rows after this division. Empty for all others.
        usual: defaults for training.
    """

    name: str
    title: str
    _: KW_ONLY  # the two above stand without their names in a list of sets
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


# The radii and rates of `usual` that are not everyone's are written out in the help of `bivallate train`, too
# (commands/train.py, `eps` and `lr`); recipes that differ for a set ask for its name in run/recipes/task.py.
KNOWN: dict[str, KnownDataset] = {
    known.name: known
    for known in (
        KnownDataset(
            name="digits", title="handwritten digits of scikit-learn, built in",
            shape=(1, 8, 8), classes=10, train=1438, test=359,
            built_in="digits", usual=TrainingDefaults("0.15", lr=0.1, warm_up=0.0),
        ),
        KnownDataset(
            name="mnist", title="handwritten digits",
            shape=(1, 28, 28), classes=10, train=60000, test=10000,
            mean=(0.1307,), std=(0.3081,), hub="ylecun/mnist", folders=("mnist",),
            usual=TrainingDefaults("0.3"),
        ),
        KnownDataset(
            name="fashion-mnist", title="articles of clothing",
            shape=(1, 28, 28), classes=10, train=60000, test=10000,
            mean=(0.2860,), std=(0.3530,), hub="zalando-datasets/fashion_mnist",
            folders=("fashion_mnist", "fashion-mnist"), usual=TrainingDefaults("0.1"),
        ),
        KnownDataset(
            name="cifar10", title="objects and animals",
            shape=(3, 32, 32), classes=10, train=50000, test=10000,
            augment=CROP_FLIP, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
            hub="uoft-cs/cifar10", folders=("cifar10", "cifar-10"), subsets=("cifar10_jpeg",),
            usual=TrainingDefaults(l1="12"),  # Croce and Hein, Mind the box, 2021
        ),
        KnownDataset(
            name="cifar100", title="objects and animals",
            shape=(3, 32, 32), classes=100, train=50000, test=10000,
            augment="crop:4,flip,rotate:15", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
            hub="uoft-cs/cifar100", folders=("cifar100", "cifar-100"), label_column="fine_label",
        ),
        KnownDataset(
            name="svhn", title="house numbers",
            shape=(3, 32, 32), classes=10, train=73257, test=26032,
            augment="none", mean=(0.4377, 0.4438, 0.4728), std=(0.1201, 0.1231, 0.1052),
            hub="ufldl-stanford/svhn", under="cropped_digits", folders=("svhn",),
        ),
        KnownDataset(
            name="stl10", title="objects and animals",
            shape=(3, 96, 96), classes=10, train=5000, test=8000,
            augment=CROP_FLIP, mean=(0.4467, 0.4398, 0.4066), std=(0.2242, 0.2215, 0.2239),
            hub="tanganke/stl10", folders=("stl10", "stl-10"),
        ),
        KnownDataset(
            name="gtsrb", title="German traffic signs",
            shape=(3, 32, 32), classes=43, train=39209, test=12630,
            augment="crop:4", mean=(0.3403, 0.3121, 0.3214), std=(0.2724, 0.2608, 0.2669),
            hub="tanganke/gtsrb", folders=("gtsrb",), subsets=("gtsrb_small",), size=(32, 32),
        ),
        KnownDataset(
            name="tiny-imagenet", title="200 classes of ImageNet",
            shape=(3, 64, 64), classes=200, train=100000, test=10000,
            augment=CROP_FLIP, mean=IMAGENET_MEAN, std=IMAGENET_STD, hub="zh-plus/tiny-imagenet",
            folders=("tiny-imagenet", "tiny_imagenet"), subsets=("tiny_imagenet_10",), grey=True,
            test_split="validation",
        ),
        KnownDataset(
            name="imagenet", title="ILSVRC 2012",
            shape=(3, 224, 224), classes=1000, train=1281167, test=50000,
            augment="crop:16,flip", mean=IMAGENET_MEAN, std=IMAGENET_STD, hub="ILSVRC/imagenet-1k",
            folders=("imagenet", "imagenet-1k"), size=(224, 224), grey=True, test_split="validation",
            stream=True,
        ),
    )
}  # fmt: skip


def names() -> list[str]:
    """The known data sets, in the order of the table."""
    return list(KNOWN)


def by_name(name: str) -> KnownDataset | None:
    """The data set of that name, ignoring case, hyphens and spaces; None if there is none."""
    plain = _plain(name)
    return next((k for k in KNOWN.values() if plain in map(_plain, (k.name, *k.folders))), None)


def _plain(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ "))


def by_name_or_raise(name: str) -> KnownDataset:
    """The data set of that name, as `by_name`.

    Raises:
        UserError: there is none; the message names the nearest one.
    """
    known = by_name(name)
    if known is None:
        raise unknown("data set", name, [*KNOWN, "a folder", "hub:OWNER/NAME"])
    return known


def by_folder(folder: str) -> KnownDataset | None:
    """The published set that a folder of this name holds, whole or in part."""
    return next((k for k in KNOWN.values() if folder in (*k.folders, *k.subsets)), None)


def by_name_or_folder(data: str) -> KnownDataset | None:
    """The published set that a name, or the folder at the end of a path, stands for; None for any other."""
    found = by_folder(Path(data).name)
    try:
        return found or by_name_or_raise(data)
    except UserError:
        return None


def training_defaults(data: str) -> TrainingDefaults:
    """The defaults of `train` for a data set."""
    known = by_name_or_folder(data)
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


def folder_of(known: KnownDataset, data_dir: str | Path | None) -> Path | None:
    """The folder of a known data set in the data folder, a complete one rather than a subset; or None."""
    folder = data_folder(data_dir)
    if folder is None:
        return None
    return next(
        (folder / name for name in (*known.folders, *known.subsets) if (folder / name).is_dir()), None
    )


def describe(name: str, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Plain values about a data set for listings, without reading it."""
    known = by_name_or_raise(name)
    place = folder_of(known, data_dir)
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


__getattr__ = renamed_names(
    __name__,
    {
        "Known": "KnownDataset",
        "Usual": "TrainingDefaults",
        "usual": "training_defaults",
        "find": "by_name_or_raise",
        "get": "by_name",
        "known_folder": "by_folder",
        "local": "folder_of",
        "recognised": "by_name_or_folder",
    },
)
