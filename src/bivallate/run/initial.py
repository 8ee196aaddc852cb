"""What a run begins with where it is not fresh weights."""

from __future__ import annotations

from typing import Literal

from bivallate.errors import UserError, unknown
from bivallate.parts import part

HEADS = ("auto", "new", "keep")


@part
class Init:
    """Weights that training begins with, and what of them stays as it is.

    Attributes:
        weights: a run, a folder, a file, hub:owner/name, timm:NAME or zoo:NAME; "" begins with fresh ones.
        which: of a run's weights: "best", "last", "ema" or "epoch-N"; "auto" are the best, but the last of
            plain training, whose epochs robust accuracy does not tell apart.
        head: the last layer: "auto" replaces it where the classes are others in number or by name, "new"
            always does, "keep" never.
        fingerprint: of the weights, as evaluations name it; filled in by the first training, and whoever
            repeats it is told if they have changed.
        freeze: patterns of parameters that do not learn: names of layers with *, "stem", "head"; "!head" is
            all but the head.
    """

    weights: str = ""
    which: str = "auto"
    head: Literal["auto", "new", "keep"] = "auto"
    fingerprint: str = ""
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise unknown("way with the head", str(self.head), HEADS)
        if not isinstance(self.freeze, tuple) or not all(isinstance(p, str) for p in self.freeze):
            raise UserError(f'init.freeze holds patterns, such as ("stem",), got {self.freeze!r}')
