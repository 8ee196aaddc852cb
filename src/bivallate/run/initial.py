"""Where a run's initial weights come from, and which of its layers are frozen."""

from __future__ import annotations

from typing import ClassVar, Literal

from bivallate.errors import UserError, unknown
from bivallate.parts import part

HEADS = ("auto", "new", "keep")


@part
class Init:
    """The initial weights of training, and the layers to freeze.

    Attributes:
        weights: a run, a folder, a file, hub:owner/name, timm:NAME or zoo:NAME; None draws weights at random.
        which: which weights of a run: "best", "last", "ema" or "epoch-N". "auto" means the best, and after
            plain training the last, because robust accuracy does not distinguish its epochs.
        head: what to do with the last layer: "auto" replaces it if the classes differ in number or name,
            "new" always replaces it, "keep" never does.
        fingerprint: checksum of the weights, as in evaluations, or None. The first training fills it in;
            repeating the configuration fails if the weights have changed.
        freeze: patterns of parameters to freeze: names of layers with *, "stem" or "head"; "!head" is all
            but the head.

    Raises:
        UserError: head is unknown, or freeze is not a tuple of patterns.
    """

    WRITTEN_NONE: ClassVar = {"weights": "", "fingerprint": ""}

    weights: str | None = None
    which: str = "auto"
    head: Literal["auto", "new", "keep"] = "auto"
    fingerprint: str | None = None
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise unknown("way with the head", str(self.head), HEADS)
        if not isinstance(self.freeze, tuple) or not all(isinstance(p, str) for p in self.freeze):
            raise UserError(f'init.freeze holds patterns, such as ("stem",), got {self.freeze!r}')
