"""Weights of the public code of Dynamic AT."""

from __future__ import annotations

import torch
from torch import Tensor

from bivallate.parts import part
from bivallate.types import Evidence
from bivallate.weighting.base import Weighting


@part
class OwnLoss(Weighting):
    """w_i = robust_i, held constant: every example's loss multiplied by itself.

    Attributes:
        since: first epoch, from 0, with these weights; 1 before.

    Scale: the mean weight is the mean robust loss, so the effective learning rate falls with it.

    Reference: the public code of Wang et al., ICML 2019; not in the paper.
    Deviation: that code makes another pass in inference mode for the weights; these are the training pass's.
    """

    since: int = 1

    def weigh(self, evidence: Evidence) -> Tensor:
        return evidence.loss if evidence.clock.epoch >= self.since else torch.ones_like(evidence.loss)
