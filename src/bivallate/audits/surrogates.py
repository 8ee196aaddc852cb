"""Attacks that search on a substitute of the model: rescaled, made differentiable, or imitated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bivallate.evaluation.named_attacks import Stage
from bivallate.lower.forward import Forward
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.problem import LowerProblem

__all__ = ["GraphConnected", "Rescaled", "StraightThrough", "SurrogateSearch", "linear_imitation"]


@dataclass(frozen=True)
class SurrogateSearch:
    """A stage that searches on `source`; whether a point is broken is decided by the model under attack.

    Attributes:
        name: of the stage.
        source: the substitute, in eval mode.
        inner: the stage that searches on it.
    """

    name: str
    source: nn.Module
    inner: Stage

    def count(self, classes: int) -> int:
        """The inner stage's."""
        return self.inner.count(classes)

    def cost(self) -> float:
        """The inner stage's."""
        return self.inner.cost()

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """Perturbations (n, C, H, W) that the inner stage finds on the source."""
        forward = Forward(self.source, problem.forward.passes)
        moved = LowerProblem(
            forward, problem.batch, problem.objective, problem.threat, problem.clock, problem.noise
        )
        return self.inner.search(moved, turn)


class Rescaled(nn.Module):
    """The model with its logits divided by a positive number, which changes no prediction."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / self.scale


class GraphConnected(nn.Module):
    """The model with zero gradients where its logits have no graph, so that attacks can differentiate it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if x.requires_grad and not logits.requires_grad:
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits


_STEPS: set[Callable[..., Any]] = {
    *(torch.round, torch.floor, torch.ceil, torch.trunc, torch.sign),
    *(Tensor.round, Tensor.floor, Tensor.ceil, Tensor.trunc, Tensor.sign),
}
_COMPARISONS: set[Callable[..., Any]] = {
    *(torch.gt, torch.ge, torch.lt, torch.le, Tensor.gt, Tensor.ge, Tensor.lt, Tensor.le),
    *(Tensor.__gt__, Tensor.__ge__, Tensor.__lt__, Tensor.__le__),
}
_RISING = {torch.gt, torch.ge, Tensor.gt, Tensor.ge, Tensor.__gt__, Tensor.__ge__}
_DETACH: set[Callable[..., Any]] = {torch.detach, Tensor.detach}


class _StraightThroughMode(TorchFunctionMode):
    """Torch functions whose gradients are replaced: rounding by the identity, and `detach` does nothing.

    Attributes:
        comparisons: give x > t the gradient of a sigmoid too; its result is then no longer boolean.
    """

    def __init__(self, comparisons: bool) -> None:
        super().__init__()
        self.comparisons = comparisons

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if not (isinstance(first, Tensor) and first.requires_grad):
            return func(*args, **(kwargs or {}))
        if func in _DETACH:
            return first
        if func in _STEPS:
            hard = func(first.detach(), *args[1:], **(kwargs or {}))
            return hard + (first - first.detach())
        if self.comparisons and func in _COMPARISONS:
            hard = func(first.detach(), *args[1:]).to(first.dtype)
            slope = 1.0 if func in _RISING else -1.0
            soft = torch.sigmoid(10 * slope * (first - args[1]))
            return hard + (soft - soft.detach())
        return func(*args, **(kwargs or {}))


class StraightThrough(nn.Module):
    """The model with gradients through rounding, signs, `detach` and, if the model allows, comparisons.

    Reference: backward pass differentiable approximation (Athalye et al. 2018, section 4.1).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        for comparisons in (True, False):
            try:
                with _StraightThroughMode(comparisons):
                    return call_unharmed(self.model, x)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # a comparison was used as an index or a branch, or the model's own check fails
                continue
        return call_unharmed(self.model, x)


def linear_imitation(model: nn.Module, x: Tensor, spread: float, seed: int = 0) -> nn.Module:
    """Fit a linear model to the classes that another predicts for x and for noisy copies of it.

    The fit is a ridge regression. Its gradients transfer to models that hide their own. Cost: two forwards a
    point of x.

    Args:
        model: images (n, C, H, W) -> logits (n, K).
        x: (n, C, H, W) in [0, 1].
        spread: half width of the uniform noise that is added to the copies.
        seed: of that noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = (2 * torch.rand(x.shape, generator=generator) - 1).to(x) * spread
    points = torch.cat([x, (x + noise).clamp(0, 1)])
    with torch.no_grad():
        logits = torch.cat([call_unharmed(model, some) for some in points.split(256)]).double()
    target = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).double()
    flat = points.flatten(1).double()
    mean, middle = flat.mean(0), target.mean(0)
    centred = flat - mean
    gram = centred @ centred.T
    ridge = 0.01 * gram.diagonal().mean().clamp(min=1e-12) + 1e-9
    dual = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), target - middle)
    layer = nn.Linear(flat.shape[1], target.shape[1]).to(x)
    weight = (centred.T @ dual).T
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(middle - weight @ mean)
    return nn.Sequential(nn.Flatten(), layer).eval()
