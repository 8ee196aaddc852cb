"""The settings of an evaluation besides its model, points, threat and attack."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EvaluationOptions"]


@dataclass(frozen=True)
class EvaluationOptions:
    """Settings of an evaluation, as keywords of `attack_and_score`.

    Attributes:
        n: size of a seeded random subset of the points.
        first: number of leading points; all points are attacked if neither is given.
        seed: of the subset and of the attack's noise.
        batch_size: points at once; None to estimate it from the free memory.
        search_precision: float32, tf32 or bf16, the number format in which attacks search.
        shared: whether the processes of torchrun share the points.
    """

    n: int | None = None
    first: int | None = None
    seed: int = 0
    batch_size: int | None = None
    search_precision: str = "float32"
    shared: bool = False
