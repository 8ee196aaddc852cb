"""How images are read: the user's options, and the common shape of a set."""

from __future__ import annotations

from dataclasses import dataclass

from bivallate.errors import UserError, check_whole

__all__ = ["Canvas", "Reading"]


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        size: (H, W) to which every image is fitted (scaled, centre cut); None: all must have one size.
        channels: 1 or 3; None: those of most images.
        on_bad: "refuse" a set with bad rows, "convert" rows where possible (size, colour), or "skip" them.
        grey: convert grey images among colour ones without a note.
        image_column, label_column: names of columns; None: found by the metadata, then by name.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    on_bad: str = "refuse"
    grey: bool = False
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        if self.on_bad not in ("refuse", "convert", "skip"):
            raise UserError(f"on_bad must be 'refuse', 'convert' or 'skip', got {self.on_bad!r}")
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1 or 3, got {self.channels}")
        if self.size is not None:
            sides = self.size if isinstance(self.size, tuple | list) else (self.size,)
            if len(sides) != 2:
                raise UserError(f"size must be a whole number, or two for (H, W), got {self.size!r}")
            for side in sides:
                check_whole("size", side)


@dataclass(frozen=True)
class Canvas:
    """The common form of a set's images.

    Attributes:
        shape: (C, H, W).
        whole, real: white level of images of 16 or 32 bits, for integers and for floating point.
    """

    shape: tuple[int, int, int]
    whole: float = 65535
    real: float = 1
