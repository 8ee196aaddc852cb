"""A network with BatchNorm, and what a pass of an attack folds of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bivallate.lower.forward import Forward
from bivallate.models import Classifier, create


def network(name: str = "resnet18", **options: object) -> Classifier:
    """In float64, with running statistics and affine parameters of its own in every BatchNorm."""
    model = create(name, num_classes=4, shape=(3, 16, 16), seed=0, **{"width": 0.125, **options}).double()  # pyright: ignore
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.running_mean, module.weight, module.bias):
                assert tensor is not None
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=draw, dtype=tensor.dtype))
    return model.eval()


def images(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return x, torch.tensor([0, 1, 3])


def gradient(forward: Forward | nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    point = x.clone().requires_grad_()
    logits = forward(point)
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), point)[0]


def folds(forward: Forward, x: Tensor) -> list[nn.BatchNorm2d]:
    """The BatchNorms that a pass leaves out."""
    forward(x.clone().requires_grad_())
    return [pair.norm for pair in forward._folded]
