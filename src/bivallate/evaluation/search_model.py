"""A faster copy of the model for the search; the model itself judges."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bivallate.lower.input_guard import call_unharmed
from bivallate.models.batchnorm_folding import fold_batchnorm
from bivallate.models.stem import quick_stems
from bivallate.noise import Noise

__all__ = ["PRECISIONS", "LowerPrecision", "search_model"]

NEAR = 0.1  # of the perturbed images on which a copy is checked
PRECISIONS = {"float32": 0.0, "tf32": 1e-2, "bf16": 5e-2}  # and how far logits may be off, of the largest


class LowerPrecision(nn.Module):
    """A network that searches in another number format: what it finds is judged by the model itself.

    Attributes:
        network: that searches. rounding: of its logits, by which a search must not be misled.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network, self.rounding = network, PRECISIONS[precision]
        self.mixed = precision == "bf16"

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            return self.network(x).float()


def search_model(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of the model made for speed where that is exact, else the model itself."""
    try:
        # compared at perturbed images and at noise too, for a search goes where no photograph is: a copy
        # that is right on photographs alone would lead it astray. What it finds the model itself judges anew
        x, on_processor = _around(x), x.device.type == "cpu" and x.ndim == 4
        for quick in (on_processor, False):
            copied = fold_batchnorm(model, x, channels_last=quick)
            copied = quick_stems(copied) if quick else copied
            if _agree(model, copied, x):
                return copied
    except Exception:  # copying and calling run foreign code: whatever it raises, the model itself is right
        pass
    return model


def _around(x: Tensor) -> Tensor:
    """Images x, each perturbed a little, and noise alone: where a search goes, a copy must hold too."""
    noise = Noise(0, torch.arange(len(x), device=x.device)).uniform("searcher", tuple(x.shape[1:]), x.dtype)
    return torch.cat([x, (x + NEAR * (2 * noise - 1)).clamp(0, 1), noise])


def _agree(model: nn.Module, searcher: nn.Module, x: Tensor) -> bool:
    """Whether the copy gives the same logits to 1e-5 of their size, and the same gradient to 1e-3 of its."""
    expected, slope = _logits_and_slope(model, x)
    try:
        logits, grad = _logits_and_slope(searcher, x)
    except Exception:  # foreign code in a setting it was not written for, such as a `view` and channels last
        return False
    near = (logits - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    return bool(near) and bool((grad - slope).norm() <= 1e-3 * slope.norm())


def _logits_and_slope(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient by the image of a sum that tells them apart."""
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        logits = call_unharmed(model, point)
        weights = torch.linspace(1, 2, logits.shape[1]).to(logits)
        (grad,) = torch.autograd.grad((logits * weights).sum(), point)
    return logits.detach(), grad
