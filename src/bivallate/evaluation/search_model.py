"""A faster copy of the model for the search; the model itself gives the verdicts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bivallate.lower.input_guard import call_unharmed
from bivallate.models.batchnorm_folding import fold_batchnorm
from bivallate.models.stem import quick_stems
from bivallate.noise import Noise

__all__ = ["PRECISIONS", "LowerPrecision", "search_model"]

NEAR = 0.1  # largest change of a pixel in the perturbed images on which a copy is checked
PRECISIONS = {"float32": 0.0, "tf32": 1e-2, "bf16": 5e-2}  # and the error of logits, relative to the largest


class LowerPrecision(nn.Module):
    """A network for searches in another precision; the model itself gives the verdicts.

    Attributes:
        network: for the search.
        rounding: relative error of its logits, which searches allow for.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network, self.rounding = network, PRECISIONS[precision]
        self.mixed = precision == "bf16"

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            return self.network(x).float()


def search_model(model: nn.Module, x: Tensor) -> nn.Module:
    """A faster copy of the model if it agrees with it, else the model itself."""
    try:
        # Compared on perturbed images and on noise too, because a search leaves the natural images: a copy
        # that is right only on those would mislead it.
        x, on_processor = _around(x), x.device.type == "cpu" and x.ndim == 4
        for quick in (on_processor, False):
            copied = fold_batchnorm(model, x, channels_last=quick)
            copied = quick_stems(copied) if quick else copied
            if _agree(model, copied, x):
                return copied
    except Exception:  # copying and calling run the user's code; if it fails, the model itself is used
        pass
    return model


def _around(x: Tensor) -> Tensor:
    """Images x, perturbed images, and noise: the points on which a copy must agree."""
    noise = Noise(0, torch.arange(len(x), device=x.device)).uniform("searcher", tuple(x.shape[1:]), x.dtype)
    return torch.cat([x, (x + NEAR * (2 * noise - 1)).clamp(0, 1), noise])


def _agree(model: nn.Module, searcher: nn.Module, x: Tensor) -> bool:
    """Whether the copy has the same logits up to 1e-5, and the same gradient up to 1e-3, relative."""
    expected, slope = _logits_and_slope(model, x)
    try:
        logits, grad = _logits_and_slope(searcher, x)
    except Exception:  # the user's code may not support the copy, such as `view` with channels last
        return False
    near = (logits - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    return bool(near) and bool((grad - slope).norm() <= 1e-3 * slope.norm())


def _logits_and_slope(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the input gradient of a weighted sum of them."""
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        logits = call_unharmed(model, point)
        weights = torch.linspace(1, 2, logits.shape[1]).to(logits)
        (grad,) = torch.autograd.grad((logits * weights).sum(), point)
    return logits.detach(), grad
