"""The evaluations that a run's folder keeps: of which weights and points each is, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.evaluation.evaluation_identity import Identity
from bivallate.evaluation.older_files import identity_from_name
from bivallate.evaluation.points import state_fingerprint
from bivallate.models import Classifier
from bivallate.models.description import read_manifest
from bivallate.models.io import read_weights
from bivallate.run.folder import check_weights

__all__ = ["FOREIGN", "STALE", "Evaluation", "Fit", "read_evaluation", "read_evaluations"]

STALE = "evaluated before the weights changed; evaluate again"
FOREIGN = "left out, it does not belong to this run"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Attributes:
        identity: of which weights and points. score: the verdicts. path: its file.
        stale: the run's weights are no longer those that were attacked.
        foreign: why it is not of this run; empty where it is.
    """

    identity: Identity
    score: Score
    path: Path
    stale: bool = False
    foreign: str = ""

    @property
    def weights(self) -> str:
        """best, last, ema or epoch-N."""
        return self.identity.weights

    @property
    def split(self) -> str:
        """test, validation or train."""
        return self.identity.split

    @property
    def data(self) -> str:
        """Another set than the run's own; empty for its own."""
        return self.identity.data


@dataclass(frozen=True)
class Fit:
    """A run's fingerprints, to hold its evaluations and audits against.

    Attributes:
        run: its own digits. data_set: fingerprint of its data; both empty where its manifest says neither.
        print_of: weights -> fingerprint of the classifier that is evaluated with them, None where the folder
            has no such weights that can be read.
    """

    run: str
    data_set: str
    print_of: Callable[[str], str | None]

    @classmethod
    def of(cls, folder: Path) -> Fit:
        """Of a run's folder."""
        place = folder / "model.json"
        manifest: dict[str, Any] = read_manifest(place) if place.exists() else {}
        run, data_set = (str(manifest.get(key) or "") for key in ("run", "data_fingerprint"))
        return cls(run, data_set, fingerprints(folder))

    def mismatch(self, identity: Identity, model: str) -> tuple[bool, str]:
        """(whether it is of weights that the run no longer has, why it is of another run or empty).

        What an older file does not say is not held against it.
        """
        present = self.print_of(identity.weights)
        if present != model and identity.run and self.run and identity.run != self.run:
            return False, "its weights are another run's"
        own = identity.data == ""
        if own and identity.data_set and self.data_set and identity.data_set != self.data_set:
            return False, "its points are of other data"
        return present not in (None, model), ""


def fingerprints(run: Path) -> Callable[[str], str | None]:
    """Weights -> fingerprint; see `Fit`."""

    @cache
    def found(weights: str) -> str | None:
        name = "model" if weights == "last" else weights
        try:
            check_weights(weights)  # a file may say anything, and its words become a path here
            tensors = read_weights(run / f"{name}.safetensors")
        except UserError:  # whoever wants these weights is told; stored verdicts can be read without them
            return None
        if any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors.values()):  # evaluated in float32
            tensors = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
        return state_fingerprint(Classifier, tensors)

    return found


def read_evaluation(file: Path, fit: Fit) -> Evaluation | None:
    """The evaluation that a file of a run's folder holds.

    None for one that is of no run and bears no name of an evaluation.

    Raises UserError for a damaged file.
    """
    named = identity_from_name(file.name)
    try:
        score = Score.load(file)
    except UserError:
        if named is None:  # somebody else's file
            return None
        raise
    identity = score.identity or named
    if identity is None:
        return None
    return Evaluation(identity, score, file, *fit.mismatch(identity, score.model_fingerprint))


def read_evaluations(folder: Path, fit: Fit) -> list[Evaluation]:
    """All that a folder holds, in the order of the files' names."""
    found = (read_evaluation(file, fit) for file in sorted(folder.glob("*.json")))
    return [one for one in found if one is not None]
