"""Residual networks with a first layer for small images, or the original one for large images."""

from __future__ import annotations

from torch import Tensor, nn

from bivallate.errors import unknown
from bivallate.models.architectures import Activation, Shape, register, scaled

__all__ = ["ResNet"]

STEMS = ("cifar", "imagenet")


class ResidualBlock(nn.Module):
    """conv-BN-activation twice, or three times in a bottleneck; the shortcut is added before the last one."""

    def __init__(
        self, entering: int, width: int, stride: int, activation: Activation, *, bottleneck: bool
    ) -> None:
        super().__init__()
        leaving = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(entering, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
            self.conv3 = nn.Conv2d(width, leaving, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(leaving)
        else:
            self.conv1 = nn.Conv2d(entering, width, 3, stride=stride, padding=1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)
        self.activation = activation()
        self.bottleneck = bottleneck
        self.shortcut = nn.Sequential()
        if stride != 1 or entering != leaving:
            self.shortcut = nn.Sequential(
                nn.Conv2d(entering, leaving, 1, stride=stride, bias=False), nn.BatchNorm2d(leaving)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            out = self.bn3(self.conv3(self.activation(out)))
        return self.activation(out + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, four stages of blocks (1, 2, 4, 8 times `width`), global average, linear.

    The stem is conv3x3-BN-activation (`cifar`) or conv7x7 with stride 2, BN, activation and a 3x3 max-pool
    with stride 2 (`imagenet`). The submodules have the names of the public CIFAR networks, so that public
    state dicts fit.
    """

    stem_name = "conv1"

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int,
        channels: int,
        activation: Activation,
        *,
        bottleneck: bool = False,
        stem: str = "cifar",
        width: int = 64,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.pool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.activation = activation()
        entering, stages = width, []
        for times, depth, stride in zip((1, 2, 4, 8), blocks, (1, 2, 2, 2), strict=True):
            stage, leaving = [], times * width
            for i in range(depth):
                step = stride if i == 0 else 1
                stage.append(ResidualBlock(entering, leaving, step, activation, bottleneck=bottleneck))
                entering = 4 * leaving if bottleneck else leaving
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(entering, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.conv1(x))

    def rest(self, hidden: Tensor) -> Tensor:
        """Compute the logits (B, K) from the first convolution's output."""
        out = self.pool(self.activation(self.bn1(hidden)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean((2, 3)))


def _resnet(
    blocks: tuple[int, int, int, int],
    bottleneck: bool,
    num_classes: int,
    shape: Shape,
    activation: Activation,
    stem: str,
    width: float,
) -> nn.Module:
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
    form = {"bottleneck": bottleneck, "stem": stem, "width": scaled(64, width)}
    return ResNet(blocks, num_classes, shape[0], activation, **form)


@register("resnet18")
def resnet18(
    num_classes: int, shape: Shape, activation: Activation, *, stem: str = "cifar", width: float = 1.0
) -> nn.Module:
    """ResNet-18: blocks 2, 2, 2, 2; stem cifar or imagenet."""
    return _resnet((2, 2, 2, 2), False, num_classes, shape, activation, stem, width)


@register("resnet34")
def resnet34(
    num_classes: int, shape: Shape, activation: Activation, *, stem: str = "cifar", width: float = 1.0
) -> nn.Module:
    """ResNet-34: blocks 3, 4, 6, 3; stem cifar or imagenet."""
    return _resnet((3, 4, 6, 3), False, num_classes, shape, activation, stem, width)


@register("resnet50")
def resnet50(
    num_classes: int, shape: Shape, activation: Activation, *, stem: str = "cifar", width: float = 1.0
) -> nn.Module:
    """ResNet-50: bottleneck blocks 3, 4, 6, 3; stem cifar or imagenet."""
    return _resnet((3, 4, 6, 3), True, num_classes, shape, activation, stem, width)
