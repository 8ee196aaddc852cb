"""Adversarial weight perturbation: a wrapper of any loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bivallate import collective
from bivallate.errors import UserError, check_range
from bivallate.lower.modes import in_mode
from bivallate.lower.problem import LowerProblem
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Terms
from bivallate.upper.loss import Loss


@part
class AWP(Loss):
    """The host loss at adversarially perturbed weights theta + v.

    v_l = gamma ||theta_l|| g_l / ||g_l|| with g the gradient of the host loss at theta.

    v is one normalised ascent step, an approximate solution of the maximisation of the host loss over
    ||v_l|| <= gamma ||theta_l||. Only weight tensors with more than one dimension are perturbed (BatchNorm
    and biases are not). v is a constant: the gradient of theta is the host's at theta + v. The first pass
    moves no buffer; the perturbed pass does. Example weights multiply the perturbed loss and do not enter v.

    Attributes:
        loss: the host.
        gamma: relative size of the perturbation; 0 gives the host itself, without the extra pass.
        warm_up: epochs without perturbation at the start.
        decay: weight decay at theta + v. In the public code the optimiser steps at theta + v, so that weight
            decay acts there; set decay to the optimiser's weight decay for that, which adds decay * v to the
            gradient. With 0 weight decay acts on theta, as in the paper's equations.

    Cost: the host's, and its outer forwards and backwards once more.

    Raises:
        UserError: gamma is negative or not finite, or warm_up is no number of epochs.

    Reference: Wu et al., AWP, NeurIPS 2020, eq. 8-12.
    """

    loss: Loss
    gamma: float = 0.01
    warm_up: int = 0
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise UserError(f"AWP gamma must be a finite number of at least 0, got {self.gamma!r}")
        if not (isinstance(self.warm_up, int) and self.warm_up >= 0):
            raise UserError(f"AWP warm_up is a whole number of epochs, got {self.warm_up!r}")
        check_range("AWP decay", self.decay, 0)

    def check(self, method: Composition) -> None:
        """Raise UserError for weightings that use virtual parameters."""
        if method.weighting.needs_meta:
            raise UserError(
                f"AWP perturbs the network's own parameters, and {type(method.weighting).__name__} evaluates "
                "the loss at virtual ones: use a weighting that does not learn, or the loss without AWP"
            )

    def takes_two_labels(self) -> bool:
        """Whether the host does."""
        return self.loss.takes_two_labels()

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        if self.gamma == 0 or problem.clock.epoch < self.warm_up:
            return self.loss(problem, x_adv)
        v = self._perturbation(problem, x_adv.detach())
        parameters = dict(problem.forward.module.named_parameters())
        moved = {n: parameters[n] + v_l for n, v_l in v.items()}
        terms = self.loss(problem.at(moved), x_adv)
        if self.decay == 0:
            return terms
        pull = self.decay * torch.stack([(parameters[n] * v_l).sum() for n, v_l in v.items()]).sum()
        return Terms(terms.robust, terms.anchor + (pull - pull.detach()), terms.logits)

    def _perturbation(self, problem: LowerProblem, x_adv: Tensor) -> dict[str, Tensor]:
        """v for every weight tensor, without graph."""
        module = problem.forward.module
        theta = {
            n: p.detach().requires_grad_()
            for n, p in module.named_parameters()
            if p.ndim > 1 and p.requires_grad
        }
        buffers = {n: b.clone() for n, b in module.named_buffers()}
        with torch.enable_grad(), in_mode(module, training=True, track=False, dropout=True):
            terms = self.loss(problem.at({**theta, **buffers}), x_adv)
            climbed = collective.share_of_mean(terms.robust + terms.anchor, problem.batch)
            grads = torch.autograd.grad(climbed, list(theta.values()), materialize_grads=True)
        steps = dict(zip(theta, collective.totals(grads), strict=True))
        return {
            n: self.gamma * p.detach().norm() * steps[n] / (steps[n].norm() + 1e-20) for n, p in theta.items()
        }
