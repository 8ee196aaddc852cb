"""The sentinel: watches a run for robustness that is about to be lost."""

from __future__ import annotations

from bivallate.parts import part


@part
class Sentinel:
    """What is watched during training.

    Attributes:
        on: whether anything is watched.
    """

    on: bool = True
