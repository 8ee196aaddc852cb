"""Images in [0, 1] with an index: data sets by name or path, minibatches, recorded augmentation."""

from typing import TYPE_CHECKING

from bivallate.lazy_import import lazy_attributes

if TYPE_CHECKING:
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

_PLACES = {
    "Augment": "bivallate.data.augment",
    "View": "bivallate.data.augment",
    "Batches": "bivallate.data.batches",
    "Dataset": "bivallate.data.dataset",
    "Split": "bivallate.data.dataset",
    "load": "bivallate.data.loading",
    "holdout": "bivallate.data.select",
    "imbalance": "bivallate.data.select",
    "mix": "bivallate.data.select",
    "contact_sheet": "bivallate.data.sheet",
    "lasting_name": "bivallate.data.sources",
    "Stream": "bivallate.data.stream",
    "from_tensors": "bivallate.data.tensors",
}
__getattr__, __dir__ = lazy_attributes(__name__, _PLACES)
