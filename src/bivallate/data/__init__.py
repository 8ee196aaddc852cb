"""Images in [0, 1] with an index: data sets by name or path, minibatches, recorded augmentation."""

from bivallate.data import registry
from bivallate.data.augment import Augment, View
from bivallate.data.batches import Batches
from bivallate.data.dataset import Dataset, Split
from bivallate.data.loading import load
from bivallate.data.select import holdout, imbalance, mix
from bivallate.data.sheet import contact_sheet
from bivallate.data.sources import lasting_name
from bivallate.data.stream import Stream
from bivallate.data.tensors import from_tensors

__all__ = [
    "Augment",
    "Batches",
    "Dataset",
    "Split",
    "Stream",
    "View",
    "contact_sheet",
    "from_tensors",
    "holdout",
    "imbalance",
    "lasting_name",
    "load",
    "mix",
    "registry",
]
