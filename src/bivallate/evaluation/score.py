"""The verdicts of an evaluation for each point, and the numbers that follow from them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import (
    pack,
    small,
)
from bivallate.evaluation.evaluation_identity import Identity
from bivallate.evaluation.point_columns import CLEAN, ROBUST
from bivallate.evaluation.score_fields import SCHEMA, OtherJSON, score_fields
from bivallate.evaluation.statistics import bootstrap_tail, gini, ratios, tail, wilson, wilsons
from bivallate.evaluation.threat_union import radius, threat_json
from bivallate.files import write_json
from bivallate.parts import encode
from bivallate.schema import MEGABYTE, parse, read_text

__all__ = ["Score"]


@dataclass(frozen=True, eq=False, repr=False)
class Score:
    """The verdicts of one attack on one model, with one value for each point, and the cost.

    Attributes:
        attack: name of the attack.
        detail: the attack itself.
        threat: the set of perturbations; a `ThreatUnion` of several if it joins others, see `within_all`.
        classes: number of classes of the model.
        y: (n,) labels.
        predicted: (n,) predictions at the worst point found; the label itself if the point is robust.
        margin: (n,) z_y - max_{k != y} z_k at that point: negative if broken, else the lowest margin found.
        broken_at: (n,) -1 robust, 0 misclassified on the clean image, k broken by stage number k (from 1).
        index: (n,) rows of the data.
        stage_names: names of the attack's stages.
        passes: forward and backward passes per example.
        seconds: wall time.
        seed: of the noise.
        data_fingerprint: hash of the points.
        model_fingerprint: hash of the model.
        warnings: for the reader.
        identity: run, weights and points. For a model and data given in Python: which of the points; None in
            files from before.
        search_precision: number format of the search; verdicts are always in float32.
        more: name -> (n,) the further columns that were stored, see `point_columns.MORE_COLUMNS`.
    """

    attack: str
    detail: Any
    threat: Any
    classes: int
    y: Tensor
    predicted: Tensor
    margin: Tensor
    broken_at: Tensor
    index: Tensor
    stage_names: tuple[str, ...]
    passes: dict[str, float]
    seconds: float
    seed: int
    data_fingerprint: str
    model_fingerprint: str
    warnings: tuple[str, ...] = ()
    identity: Identity | None = None
    search_precision: str = "float32"
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        low, high = self.interval_95
        return (
            f"<Score of {self.attack} at {radius(self.threat)} on {self.n} points: robust "
            f"{self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}], clean {self.clean_accuracy:.1%}>"
        )

    @property
    def n(self) -> int:
        """Number of points."""
        return len(self.y)

    @property
    def stage(self) -> Tensor:
        """The former name of `broken_at`."""
        warnings.warn("Score.stage is now called broken_at", DeprecationWarning, stacklevel=2)
        return self.broken_at

    def mean_of(self, name: str) -> float:
        """Mean of a column of `more` over all points; infinite if it was not stored."""
        return float(self.more[name].mean()) if name in self.more else math.inf

    @cached_property
    def robust(self) -> Tensor:
        """(n,) bool: correct on the clean image and after every stage."""
        return self.broken_at == ROBUST

    @cached_property
    def clean(self) -> Tensor:
        """(n,) bool: correct on the clean image."""
        return self.broken_at != CLEAN

    @property
    def robust_accuracy(self) -> float:
        """Fraction of all points that are robust."""
        return int(self.robust.sum()) / self.n

    @property
    def clean_accuracy(self) -> float:
        """Fraction of all points that are classified correctly before any attack."""
        return int(self.clean.sum()) / self.n

    @property
    def interval_95(self) -> tuple[float, float]:
        """Wilson interval of the robust accuracy."""
        return wilson(int(self.robust.sum()), self.n)

    @property
    def clean_interval_95(self) -> tuple[float, float]:
        """Wilson interval of the clean accuracy."""
        return wilson(int(self.clean.sum()), self.n)

    @property
    def broken_by(self) -> list[str | None]:
        """For each point the name of the stage that broke it, "clean", or None."""
        names = (None, "clean", *self.stage_names)
        return [names[int(s) + 1] for s in self.broken_at]

    @property
    def stages(self) -> dict[str, float]:
        """Robust accuracy left after each stage, in order, beginning with the clean one."""
        left = {"clean": self.clean_accuracy}
        for i, name in enumerate(self.stage_names):
            kept = (self.broken_at == ROBUST) | (self.broken_at > i + 1)
            left[name] = int(kept.sum()) / self.n
        return left

    @cached_property
    def counts(self) -> np.ndarray:
        """(K,) points of each class."""
        return np.bincount(self.y.numpy(), minlength=self.classes)

    @cached_property
    def hits(self) -> np.ndarray:
        """(K,) robust points of each class."""
        return np.bincount(self.y[self.robust].numpy(), minlength=self.classes)

    @cached_property
    def clean_hits(self) -> np.ndarray:
        """(K,) points of each class that are correct on the clean image."""
        return np.bincount(self.y[self.clean].numpy(), minlength=self.classes)

    @property
    def per_class(self) -> list[float | None]:
        """Robust accuracy of each class; None for a class without a point."""
        return ratios(self.hits, self.counts)

    @property
    def per_class_clean(self) -> list[float | None]:
        """Clean accuracy of each class."""
        return ratios(self.clean_hits, self.counts)

    @property
    def per_class_interval_95(self) -> list[tuple[float, float] | None]:
        """Wilson interval of each class's robust accuracy."""
        return wilsons(self.hits, self.counts)

    @property
    def per_class_clean_interval_95(self) -> list[tuple[float, float] | None]:
        """Wilson interval of each class's clean accuracy."""
        return wilsons(self.clean_hits, self.counts)

    @property
    def worst_class(self) -> tuple[int, float]:
        """(class, robust accuracy) of the class with the lowest robust accuracy."""
        present = [(value, k) for k, value in enumerate(self.per_class) if value is not None]
        value, k = min(present)
        return k, value

    @property
    def worst_class_interval_95(self) -> tuple[float, float]:
        """Interval of the lowest class accuracy: the tail's interval for one class.

        It allows for the same points choosing and measuring that class; its Wilson interval does not.
        """
        return self.tail_interval(100 / int((self.counts > 0).sum()))

    @property
    def class_gini(self) -> float | None:
        """The Gini coefficient of the classes' robust accuracies; see `statistics.gini`."""
        return gini(self.hits, self.counts)

    def tail(self, k: float = 30, *, pooled: bool = False) -> float:
        """RA-Tail-k: mean robust accuracy of the lowest ceil(k %) classes, or that of their points pooled."""
        _check_share(k)
        return tail(self.hits, self.counts, k)[int(pooled)]

    def tail_interval(self, k: float = 30, *, pooled: bool = False) -> tuple[float, float]:
        """95 % interval of `tail` by a bootstrap over the points; see `bootstrap_tail`."""
        _check_share(k)
        return bootstrap_tail(self.hits, self.counts, k, pooled=pooled, seed=self.seed)

    @property
    def confusion(self) -> Tensor:
        """(K, K) int64 counts: rows true classes, columns predictions at the worst point found."""
        cells = torch.bincount(self.y * self.classes + self.predicted, minlength=self.classes**2)
        return cells.view(self.classes, self.classes)

    @property
    def confusion_interval_95(self) -> Tensor:
        """(K, K, 2) float64, Wilson intervals of each row's shares; (0, 1) in rows without a point."""
        rows = zip(self.confusion.tolist(), self.counts.tolist(), strict=True)
        return torch.tensor([[wilson(cell, n) for cell in row] for row, n in rows], dtype=torch.float64)

    def to_json(self) -> dict[str, Any]:
        """The score as plain data; accuracies are fractions in [0, 1]."""
        return {
            "schema": SCHEMA,
            "attack": self.attack,
            "attack_detail": encode(self.detail),
            "threat": threat_json(self.threat),
            "n": self.n,
            "classes": self.classes,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval_95": list(self.clean_interval_95),
            "robust_accuracy": self.robust_accuracy,
            "interval_95": list(self.interval_95),
            "per_class": self.per_class,
            "per_class_interval_95": self.per_class_interval_95,
            "per_class_clean": self.per_class_clean,
            "per_class_clean_interval_95": self.per_class_clean_interval_95,
            "worst_class": list(self.worst_class),
            "worst_class_interval_95": list(self.worst_class_interval_95),
            "class_gini": self.class_gini,
            "tail_30": self.tail(30),
            "tail_30_interval_95": list(self.tail_interval(30)),
            "tail_30_pooled": self.tail(30, pooled=True),
            "tail_30_pooled_interval_95": list(self.tail_interval(30, pooled=True)),
            "confusion": self.confusion.tolist(),
            "stages": self.stages,
            "stage_names": list(self.stage_names),
            "passes": self.passes,
            "seconds": self.seconds,
            "seed": self.seed,
            "search_precision": self.search_precision,
            "data_fingerprint": self.data_fingerprint,
            "model_fingerprint": self.model_fingerprint,
            "identity": None if self.identity is None else self.identity.to_json(),
            "warnings": list(self.warnings),
            "points": {name: pack(column) for name, column in self._columns.items()},
        }

    @property
    def _columns(self) -> dict[str, Tensor]:
        """The columns to store for each point, in small types."""
        whole = {"y": small(self.y), "predicted": small(self.predicted), "stage": small(self.broken_at)}
        return whole | {"index": self.index, "margin": self.margin.float(), **self.more}

    @classmethod
    def from_json(cls, content: dict[str, Any] | str) -> Score:
        """The inverse of `to_json`, from text or a dictionary. Raises UserError that names the key."""
        if isinstance(content, str):
            return cls(**score_fields(parse(content, "the text", "evaluation", dict[str, Any])))
        return cls(**score_fields(content))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON atomically."""
        write_json(Path(path), self.to_json(), indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Score:
        """Read what `save` wrote, in this or an earlier version.

        Raises:
            OtherJSON: the file is JSON and no evaluation.
            UserError: it cannot be read, or is damaged. Both messages name the file.
        """
        text = read_text(path, "evaluation", 1024 * MEGABYTE)
        content = parse(text, path, "evaluation", Any)
        try:
            return cls(**score_fields(content, Path(path).name))
        except UserError as error:
            kind = OtherJSON if isinstance(error, OtherJSON) else UserError
            raise kind(f"{path} is not a readable evaluation: {error}") from error


def _check_share(k: float) -> None:
    if not 0 < k <= 100:
        raise UserError(f"the tail's share must be above 0 and at most 100 per cent, got {k!r}")
