"""Architectures with normalisation inside: images in [0, 1] to logits."""

from bivallate.models import preact, small  # noqa: F401  (they register themselves)
from bivallate.models.classifier import Classifier, Normalise
from bivallate.models.registry import create, describe, names, register

__all__ = ["Classifier", "Normalise", "create", "describe", "names", "register"]
