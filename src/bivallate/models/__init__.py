"""Architectures with normalisation inside: images in [0, 1] to logits."""

from bivallate.models import preact, resnet, small, wide  # noqa: F401  (they register themselves)
from bivallate.models.architectures import create, describe, names, register
from bivallate.models.batchnorm_folding import fold_batchnorm
from bivallate.models.classifier import Classifier, Normalise
from bivallate.models.description import manifest
from bivallate.models.foreign import load_factory, wrap
from bivallate.models.hub_models import from_pretrained, model_card, push_to_hub, save_pretrained
from bivallate.models.io import load, save
from bivallate.models.robustbench import export_robustbench, load_robustbench

__all__ = [
    "Classifier",
    "Normalise",
    "create",
    "describe",
    "export_robustbench",
    "fold_batchnorm",
    "from_pretrained",
    "load",
    "load_factory",
    "load_robustbench",
    "manifest",
    "model_card",
    "names",
    "push_to_hub",
    "register",
    "save",
    "save_pretrained",
    "wrap",
]
