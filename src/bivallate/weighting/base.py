"""What a weighting is, and the two simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from bivallate.parts import part
from bivallate.types import Evidence, Facts


class Weighting(ABC):
    """Evidence -> (B,) weights of the robust losses.

    The loss that is descended is mean_i(w_i robust_i + anchor_i), so weights of mean 1 leave its scale alone;
    each rule says whether it keeps that. Calling a weighting detaches its weights unless `differentiable` is
    true.
    """

    differentiable: bool | ClassVar[bool] = False
    needs_meta: ClassVar[bool] = False

    def bind(self, facts: Facts) -> Weighting:
        """The running part for one run; rules without memory are their own."""
        return self

    @abstractmethod
    def weigh(self, evidence: Evidence) -> Tensor:
        """(B,) weights; pure."""

    def __call__(self, evidence: Evidence) -> Tensor:
        """(B,) weights, detached unless the rule declares otherwise."""
        if self.differentiable:
            return self.weigh(evidence)
        with torch.no_grad():
            return self.weigh(evidence)

    def update(self, evidence: Evidence) -> None:
        """Moves a running state, once a step, before the weights are asked for."""
        return

    def fit(self, evidence: Evidence, lookahead: Callable[[Tensor], Tensor]) -> None:
        """Learns the rule itself (a third level); `lookahead(w)` is the loss after one virtual step with
        weights w."""
        return

    def log(self) -> dict[str, float]:
        """Numbers for the run's record."""
        return {}


@part
class Equal(Weighting):
    """w_i = 1."""

    def weigh(self, evidence: Evidence) -> Tensor:
        return torch.ones_like(evidence.loss)


equal = Equal()
