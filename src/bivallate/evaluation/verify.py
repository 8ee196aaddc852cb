"""Verdicts: a point counts as broken only if a fresh forward pass, inside the threat, misclassifies it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluation.full_precision import full_float32, without_autocast
from bivallate.evaluation.point_columns import more_columns
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.objective import logit_margin
from bivallate.lower.threat import L1, TINY, ThreatModel
from bivallate.types import Passes, per_example

__all__ = ["TOLERANCE", "Verdict", "judge", "logits_of"]

TOLERANCE = 1e-6  # by which a perturbation may exceed eps through rounding


@dataclass(frozen=True)
class Verdict:
    """The model's verdict on candidates.

    Attributes:
        x_adv: (B, C, H, W) in [0, 1], the points judged.
        predicted: (B,) classes.
        margin: (B,) z_y - max_{k != y} z_k of the logits; infinite for a point outside the threat.
        fooled: (B,) bool, misclassified inside the threat.
        more: the values of `point_columns.MORE_COLUMNS`, by name.
    """

    x_adv: Tensor
    predicted: Tensor
    margin: Tensor
    fooled: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)


def logits_of(model: nn.Module, x: Tensor, passes: Passes) -> Tensor:
    """(B, K) finite logits without graph, in float32 or better.

    TensorFloat-32 and the caller's autocast are switched off.

    Cost: one forward.

    Raises:
        UserError: outputs that are no finite logits (B, K) with at least two classes.
    """
    passes.forward += len(x)
    with torch.no_grad(), without_autocast(x.device), full_float32():
        try:
            logits = call_unharmed(model, x)
        except (UserError, torch.cuda.OutOfMemoryError):
            raise
        except RuntimeError as error:  # of the user's own code
            raise failed_on(x, error) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model must return logits of shape ({len(x)}, classes), got {got}")
    if logits.is_complex():
        raise UserError(
            "the model returns complex numbers, which have no order: return logits, such as their abs()"
        )
    if logits.shape[1] < 2:
        raise UserError("the model returns one logit a point; a classifier needs at least two classes")
    if not bool(logits.isfinite().all()):
        bad = int((~logits.isfinite()).any(1).sum())
        raise UserError(
            f"the model returned NaN or infinite logits for {bad} of {len(x)} points; "
            "no accuracy can be stated for it. Check its weights and its normalisation"
        )
    return in_float(logits)


def failed_on(x: Tensor, error: Exception) -> UserError:
    """The error for a model that failed on images."""
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return UserError(f"the model failed on images of shape {tuple(x.shape)} ({said})")


def in_float(logits: Tensor) -> Tensor:
    """Logits in float32 or better, also of a model that returns whole numbers."""
    return logits if logits.dtype == torch.float64 else logits.float()


def judge(
    model: nn.Module, x: Tensor, y: Tensor, delta: Tensor, threat: ThreatModel, passes: Passes
) -> Verdict:
    """Judge x + delta. A candidate outside the threat is projected on it before it is judged.

    An accepted point is within eps + 1e-6 in float64 arithmetic, whatever the precision of the model.

    Cost: one forward.
    """
    x_adv = (x + delta).clamp_(0, 1)
    outside = ~_inside(x, x_adv, threat)
    if bool(outside.any()):
        safe = torch.where(per_example(outside, x), threat.project(delta.nan_to_num(), x), delta)
        x_adv = _shrunk(x, (x + safe).clamp_(0, 1), threat)
    logits = logits_of(model, x_adv, passes)
    margin = logit_margin(logits, y)
    predicted = logits.argmax(1)
    inside = _inside(x, x_adv, threat)
    fooled, margin = (predicted != y) & inside, margin.masked_fill(~inside, float("inf"))
    return Verdict(x_adv, predicted, margin, fooled, more_columns(logits, y))


def _inside(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """(B,) bool: within eps + 1e-6; false for NaN."""
    return (threat.size(_exact(x_adv) - _exact(x)) <= threat.eps + TOLERANCE).to(x.device)


def _shrunk(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """Move points towards x until they are inside the threat, where rounding has left them outside.

    That happens in a large L2 ball, where the rounding of many coordinates adds up.
    """
    exact, delta = _exact(x), _exact(x_adv) - _exact(x)
    moved = (delta != 0).flatten(1).sum(1).to(delta.dtype)  # coordinates that do not move are not rounded
    # a number in [0, 1] is rounded by a quarter of finfo.eps at most
    rounding = torch.finfo(x.dtype).eps / 4 * (moved if isinstance(threat, L1) else moved.sqrt())
    size = threat.size(delta)
    scale = ((threat.eps - rounding).clamp(min=0) / size.clamp(min=TINY)).clamp(max=1)
    nearer = (exact + per_example(scale, delta) * delta).to(x.dtype).to(x.device)
    return torch.where(per_example(_inside(x, x_adv, threat), x), x_adv, nearer)


def _exact(values: Tensor) -> Tensor:
    """The values in float64; on the CPU if the device has no float64."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
