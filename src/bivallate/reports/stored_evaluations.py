"""The evaluations in a run's folder: their weights and points, and whether they belong to the run."""

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
from bivallate.evaluation.points import state_fingerprint
from bivallate.evaluation.score_fields import OtherJSON
from bivallate.files import json_files
from bivallate.models import Classifier
from bivallate.models.description import read_manifest
from bivallate.models.io import read_weights
from bivallate.run.folder import check_weights

__all__ = ["STALE", "Evaluation", "RunFingerprints", "read_evaluation", "read_evaluations"]

STALE = "evaluated before the weights changed; evaluate again"
FOREIGN = "left out, it does not belong to this run"
UNKNOWN = "left out, it does not say which weights and split were evaluated: evaluate the run by its folder"


@dataclass(frozen=True)
class Evaluation:
    """A stored evaluation of a run.

    Attributes:
        identity: which weights and points were evaluated.
        score: the verdicts.
        path: the file.
        stale: whether the run's weights have changed since.
        foreign: the reason why it is not of this run; empty if it is, and if its identity is unknown.
    """

    identity: Identity
    score: Score
    path: Path
    stale: bool = False
    foreign: str = ""

    @property
    def left_out(self) -> str:
        """What is said if it is not counted among the run's evaluations, and why; empty if it is."""
        if not self.identity.known:
            return UNKNOWN
        return f"{FOREIGN}: {self.foreign}" if self.foreign else ""

    @property
    def weights(self) -> str:
        """Name of the weights: best, last, ema or epoch-N."""
        return self.identity.weights

    @property
    def split(self) -> str:
        """Name of the split: test, validation or train."""
        return self.identity.split

    @property
    def data(self) -> str:
        """Short name of the data; empty for the run's own data."""
        return self.identity.data


@dataclass(frozen=True)
class RunFingerprints:
    """A run's fingerprints, with which its evaluations and audits are compared.

    Attributes:
        run: identifier of the run; empty if its manifest has none.
        data_set: fingerprint of its data; empty if its manifest has none.
        fingerprint_of: name of weights -> fingerprint of the model with these weights; None if the folder
            has no such weights, or they cannot be read.
    """

    run: str
    data_set: str
    fingerprint_of: Callable[[str], str | None]

    @classmethod
    def of(cls, folder: Path) -> RunFingerprints:
        """Read the fingerprints of a run's folder."""
        place = folder / "model.json"
        manifest: dict[str, Any] = read_manifest(place) if place.exists() else {}
        run, data_set = (str(manifest.get(key) or "") for key in ("run", "data_fingerprint"))
        return cls(run, data_set, fingerprints(folder))

    def stale_or_foreign(self, identity: Identity, model: str) -> tuple[bool, str]:
        """Whether an evaluation is stale, and the reason why it is of another run (empty if it is not).

        Facts that an older file does not state are not compared.
        """
        present = self.fingerprint_of(identity.weights)
        if present != model and identity.run and self.run and identity.run != self.run:
            return False, "its weights are another run's"
        on_own_data = identity.data == ""
        if on_own_data and identity.data_set and self.data_set and identity.data_set != self.data_set:
            return False, "its points are of other data"
        return present not in (None, model), ""


def fingerprints(run: Path) -> Callable[[str], str | None]:
    """The function from names of weights to fingerprints, see `RunFingerprints.fingerprint_of`."""

    @cache
    def found(weights: str) -> str | None:
        name = "model" if weights == "last" else weights
        try:
            check_weights(weights)  # the name comes from a file, and becomes part of a path
            tensors = read_weights(run / f"{name}.safetensors")
        except UserError:  # stored verdicts can be read without the weights
            return None
        if any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors.values()):  # evaluated in float32
            tensors = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
        return state_fingerprint(Classifier, tensors)

    return found


def read_evaluation(file: Path, fingerprints_of_run: RunFingerprints) -> Evaluation | None:
    """Read the evaluation in a file of a run's folder, whatever the file is called.

    None for JSON that is no evaluation. Raises UserError for an evaluation that is damaged or of an unknown
    version, and for a file that cannot be read as JSON at all and so may be one.
    """
    try:
        score = Score.load(file)
    except OtherJSON:
        return None
    identity = score.identity or Identity(weights="", split="")
    if not identity.known:
        return Evaluation(identity, score, file)
    stale, foreign = fingerprints_of_run.stale_or_foreign(identity, score.model_fingerprint)
    return Evaluation(identity, score, file, stale=stale, foreign=foreign)


def read_evaluations(folder: Path, fingerprints_of_run: RunFingerprints) -> list[Evaluation]:
    """Read all evaluations in a folder, in the order of the files' names."""
    found = (read_evaluation(file, fingerprints_of_run) for file in json_files(folder))
    return [one for one in found if one is not None]
