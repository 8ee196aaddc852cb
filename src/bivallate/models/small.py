"""The small networks of the papers, which train in minutes on a processor."""

from __future__ import annotations

from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.models.architectures import Activation, Shape, register, scaled

__all__ = ["Feedforward"]


class Feedforward(nn.Module):
    """A first layer `stem` and the sequence `body` of all further layers."""

    stem_name = "stem"

    def __init__(self, stem: nn.Module, *body: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.stem(x))

    def rest(self, hidden: Tensor) -> Tensor:
        """Compute the logits (B, K) from the first layer's output."""
        return self.body(hidden)


def _need(name: str, shape: Shape, side: int) -> None:
    if min(shape[1:]) < side:
        raise UserError(
            f"{name} needs images of at least {side} x {side} pixels, got {shape[1]} x {shape[2]}"
        )


@register("linear")
def linear(num_classes: int, shape: Shape, activation: Activation) -> nn.Module:
    """Linear: one affine layer on the pixels; its worst perturbation is known in closed form."""
    channels, height, width = shape
    return Feedforward(nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes)))


@register("fc1")
def fc1(num_classes: int, shape: Shape, activation: Activation, *, hidden: int = 1024) -> nn.Module:
    """FC1: one hidden layer of 1024 units (BiLAW paper, appendix)."""
    channels, height, width = shape
    first = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, hidden))
    return Feedforward(first, activation(), nn.Linear(hidden, num_classes))


@register("tiny-cnn")
def tiny_cnn(num_classes: int, shape: Shape, activation: Activation) -> nn.Module:
    """Tiny-CNN: two strided 4x4 convolutions (16, 32) and two dense layers (BiLAW paper, appendix)."""
    _need("tiny-cnn", shape, 4)
    channels, height, width = shape
    return Feedforward(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        activation(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        activation(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        activation(),
        nn.Linear(100, num_classes),
    )


@register("small-cnn")
def small_cnn(num_classes: int, shape: Shape, activation: Activation, *, width: float = 1.0) -> nn.Module:
    """Small-CNN, 8 layers: three blocks of [conv3x3-BN-relu] x 2 and a pool (64, 128, 196), two dense layers.

    Reference: appendix of the BiLAW paper; the "8-layer CNN" of the Dynamic paper.
    """
    _need("small-cnn", shape, 8)
    channels, rows, columns = shape
    layers: list[nn.Module] = []
    for out in (scaled(each, width) for each in (64, 128, 196)):
        for entering in (channels, out):
            layers += [nn.Conv2d(entering, out, 3, padding=1), nn.BatchNorm2d(out), activation()]
        layers.append(nn.MaxPool2d(2))
        channels = out
    features = channels * (rows // 8) * (columns // 8)
    hidden = scaled(256, width)
    head = [nn.Flatten(), nn.Linear(features, hidden), activation(), nn.Linear(hidden, num_classes)]
    return Feedforward(layers[0], *layers[1:], *head)


@register("mnist-net")
def mnist_net(num_classes: int, shape: Shape, activation: Activation) -> nn.Module:
    """MNIST-net, 4 layers: two [conv3x3-BN-relu-pool] (32, 64) and two dense layers (Dynamic paper)."""
    _need("mnist-net", shape, 4)
    channels, height, width = shape
    return Feedforward(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        activation(),
        nn.Linear(128, num_classes),
    )
