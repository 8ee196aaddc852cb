"""The evaluations in a run's folder: their weights and points, and whether they belong to the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.evaluation.evaluation_identity import Identity
from bivallate.evaluation.joined_score import within_all
from bivallate.evaluation.points import state_fingerprint
from bivallate.evaluation.score_fields import OtherJSON
from bivallate.evaluation.threat_union import ThreatUnion, same_threat
from bivallate.files import json_files
from bivallate.models import Classifier
from bivallate.models.description import read_manifest
from bivallate.models.io import read_weights
from bivallate.run.folder import check_weights

__all__ = [
    "STALE",
    "Evaluation",
    "RunFingerprints",
    "read_evaluation",
    "read_evaluations",
    "within_union",
]

STALE = "evaluated before the weights changed; evaluate again"
FOREIGN = "left out, it does not belong to this run"
UNMATCHED = "none of its weights, or no split of its data, has the fingerprint of what was evaluated"
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
        parts: the evaluations within each threat of a union that this one joins, see `within_union`; `path`
            is the first one's. Empty for one that is stored.
    """

    identity: Identity
    score: Score
    path: Path
    stale: bool = False
    foreign: str = ""
    parts: tuple[Evaluation, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or those that it joins."""
        return tuple(part.path for part in self.parts) or (self.path,)

    @property
    def mixed(self) -> bool:
        """Whether it joins several attacks."""
        return len({part.score.attack for part in self.parts}) > 1

    @property
    def left_out(self) -> str:
        """What is said if it is not counted among the run's evaluations, and why; empty if it is."""
        if self.foreign:
            return f"{FOREIGN}: {self.foreign}"
        return "" if self.identity.known else UNKNOWN

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
        splits: name of each split of its data -> its fingerprint; empty if its manifest has none.
        weights: names of the weights in the folder, the usual ones first.
        fingerprint_of: name of weights -> fingerprint of the model with these weights; None if the folder
            has no such weights, or they cannot be read.
    """

    run: str
    data_set: str
    splits: dict[str, str]
    weights: tuple[str, ...]
    fingerprint_of: Callable[[str], str | None]

    @classmethod
    def of(cls, folder: Path) -> RunFingerprints:
        """Read the fingerprints of a run's folder."""
        place = folder / "model.json"
        manifest: dict[str, Any] = read_manifest(place) if place.exists() else {}
        run, data_set = (str(manifest.get(key) or "") for key in ("run", "data_fingerprint"))
        found = sorted(file.stem for file in folder.glob("*.safetensors"))
        names = sorted(("last" if stem == "model" else stem for stem in found), key=_usual_first)
        return cls(
            run, data_set, manifest.get("split_fingerprints") or {}, tuple(names), fingerprints(folder)
        )

    def named(self, identity: Identity, model: str) -> Identity | None:
        """The identity of an evaluation in Python, with the names of the weights and of the split.

        None if no weights of the run have the fingerprint `model`, or no split of its data is the evaluated
        one.
        """
        split = next((n for n, one in self.splits.items() if one == identity.split_fingerprint), None)
        weights = next((name for name in self.weights if self.fingerprint_of(name) == model), None)
        if split is None or weights is None:
            return None
        return replace(identity, run=self.run, weights=weights, split=split, data_set=self.data_set)

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


def _usual_first(weights: str) -> tuple[bool, str]:
    """Order of names of weights: best, last, ema; then the others by name."""
    usual = ("best", "last", "ema")
    return weights not in usual, str(usual.index(weights)) if weights in usual else weights


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
        if not identity.split_fingerprint:
            return Evaluation(identity, score, file)
        named = fingerprints_of_run.named(identity, score.model_fingerprint)
        return Evaluation(named or identity, score, file, foreign="" if named else UNMATCHED)
    stale, foreign = fingerprints_of_run.stale_or_foreign(identity, score.model_fingerprint)
    return Evaluation(identity, score, file, stale=stale, foreign=foreign)


def read_evaluations(folder: Path, fingerprints_of_run: RunFingerprints) -> list[Evaluation]:
    """Read all evaluations in a folder, in the order of the files' names."""
    found = (read_evaluation(file, fingerprints_of_run) for file in json_files(folder))
    return [one for one in found if one is not None]


def within_union(found: Sequence[Evaluation], union: ThreatUnion) -> list[Evaluation]:
    """Join the evaluations of a run within each threat of a union, where there is one for each.

    Joined are those of the same weights and points: by each attack that was run within all, and the strongest
    within each threat, whichever attack that is. Without an attack there is nothing to withstand.
    """
    groups: dict[tuple[Any, ...], list[Evaluation]] = {}
    for each in found:
        score, of = each.score, each.identity
        if score.stage_names and not isinstance(score.threat, ThreatUnion):
            points = score.data_fingerprint, score.model_fingerprint
            groups.setdefault((of.weights, of.split, of.data, of.n, of.first, *points), []).append(each)
    return [joined for group in groups.values() for joined in _joined(group, union)]


def _joined(group: Sequence[Evaluation], union: ThreatUnion) -> list[Evaluation]:
    """What the evaluations of the same weights and points say of a union."""
    attacks = dict.fromkeys(each.score.attack for each in group)
    offers = [[e for e in group if e.score.attack == attack] for attack in attacks]
    made: dict[tuple[Path, ...], Evaluation] = {}
    for offer in (*offers, group):
        within = [[e for e in offer if same_threat(e.score.threat, one)] for one in union.threats]
        if all(within):
            parts = tuple(min(each, key=lambda e: e.score.robust_accuracy) for each in within)
            score, stale = within_all([part.score for part in parts]), any(part.stale for part in parts)
            joined = Evaluation(parts[0].identity, score, parts[0].path, stale=stale, parts=parts)
            made.setdefault(tuple(part.path for part in parts), joined)
    return list(made.values())
