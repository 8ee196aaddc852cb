"""Probe a model near a few points: check whether its gradients describe it there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bivallate.evaluation.verify import in_float
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.objective import logit_margin
from bivallate.noise import Noise

__all__ = ["Gradients", "Probe", "gradients", "probe"]

STEP = 1e-3  # of differences, in pixel units: above float32's rounding, below the step of a byte
RESOLUTION = 2e-6  # relative rounding of a logit through a deep network
UNDERFLOW = 1e-30  # gradients below this count as zero


@dataclass(frozen=True)
class Gradients:
    """Input gradients of one batch.

    Attributes:
        differentiable: whether there is a graph from the image to the logits.
        logits: (B, K).
        loss, margin: (B, ...) gradients of cross-entropy and of z_y - max_{k != y} z_k.
    """

    differentiable: bool
    logits: Tensor
    loss: Tensor
    margin: Tensor


@dataclass(frozen=True)
class Probe:
    """Shares of points, in [0, 1], that show a fault; all zero for an ordinary network.

    Attributes:
        differentiable: as in `Gradients`.
        nonfinite: the gradient holds NaN or infinities.
        dead: the margin's gradient is zero.
        saturated: the margin's gradient is not zero, but that of the cross-entropy is.
        flat: a random step of 0.001 changes no bit of the logits.
        false: the margin's gradient differs by more than half from a central difference along it, or is zero
            where the difference is not.
    """

    differentiable: bool
    nonfinite: float
    dead: float
    saturated: float
    flat: float
    false: float

    @property
    def worst(self) -> float:
        """The largest share."""
        return max(self.nonfinite, self.dead, self.saturated, self.flat, self.false)


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Gradients:
    """Input gradients at x. Cost: one forward, two backwards."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        logits = in_float(call_unharmed(model, point))
        if not logits.requires_grad:
            nothing = torch.zeros_like(x)
            return Gradients(False, logits.detach(), nothing, nothing)
        loss = F.cross_entropy(logits, y, reduction="sum")
        (of_loss,) = torch.autograd.grad(loss, point, retain_graph=True, materialize_grads=True)
        (of_margin,) = torch.autograd.grad(logit_margin(logits, y).sum(), point, materialize_grads=True)
    return Gradients(True, logits.detach(), of_loss, of_margin)


def probe(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Probe:
    """Compare the model's gradients with its outputs near the points x (B, ...) in [0, 1].

    The model must be in eval mode.

    Cost: four forwards, two backwards a point.
    """
    found = gradients(model, x, y)
    largest = found.margin.flatten(1).abs().amax(1)
    finite = found.loss.flatten(1).isfinite().all(1) & largest.isfinite()
    dead = finite & (largest < UNDERFLOW)
    gone = found.loss.flatten(1).abs().amax(1) < UNDERFLOW
    noise = Noise(seed, torch.arange(len(x), device=x.device))
    shape = tuple(x.shape[1:])
    random = 2 * noise.uniform("probe", shape, x.dtype) - 1  # not signs: these may cancel in a linear model
    with torch.no_grad():
        flat = (in_float(call_unharmed(model, x + STEP * random)) == found.logits).all(1)
    false = _false(model, x, y, found, random, dead)
    right = found.logits.argmax(1) == y
    saturated = finite & ~dead & gone & right
    share = [float(some.float().mean()) for some in (~finite, dead, saturated, flat, false & finite)]
    return Probe(found.differentiable, *share)


def _false(model: nn.Module, x: Tensor, y: Tensor, found: Gradients, random: Tensor, dead: Tensor) -> Tensor:
    """(B,) bool: a central difference contradicts the gradient by far more than rounding can.

    The runner-up class is held fixed on both sides, so that the maximum over classes adds no kink.
    """
    rival = found.logits.scatter(1, y[:, None], -torch.inf).argmax(1)

    def lead(point: Tensor) -> Tensor:
        logits = in_float(call_unharmed(model, point))
        return (logits.gather(1, y[:, None]) - logits.gather(1, rival[:, None]))[:, 0]

    direction = torch.where(dead.view(-1, *[1] * (x.ndim - 1)), random, found.margin.sign())
    with torch.no_grad():
        change = (lead(x + STEP * direction) - lead(x - STEP * direction)) / 2
    claimed = STEP * (found.margin * direction).flatten(1).sum(1)
    compared = torch.stack([y, rival], 1)
    rounding = RESOLUTION * found.logits.gather(1, compared).abs().amax(1)
    larger = torch.maximum(change.abs(), claimed.abs())
    return (larger > 20 * rounding) & ((change - claimed).abs() > 0.5 * larger)
