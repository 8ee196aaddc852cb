"""Pre-activation residual networks for small images."""

from __future__ import annotations

from torch import Tensor, nn

from bivallate.errors import unknown
from bivallate.models.architectures import Activation, Shape, register, scaled

__all__ = ["PreActResNet"]


class PreActBlock(nn.Module):
    """BN-activation-conv twice, or three times in a bottleneck, and a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the block's input (`raw`) or of its first
    activation (`activated`).
    """

    def __init__(
        self,
        entering: int,
        width: int,
        stride: int,
        activation: Activation,
        *,
        bottleneck: bool,
        shortcut: str,
    ) -> None:
        super().__init__()
        leaving = 4 * width if bottleneck else width
        self.bn1 = nn.BatchNorm2d(entering)
        self.bn2 = nn.BatchNorm2d(width)
        if bottleneck:
            self.conv1 = nn.Conv2d(entering, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, leaving, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(entering, width, 3, stride=stride, padding=1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.activation = activation()
        self.bottleneck = bottleneck
        self.activated = shortcut == "activated"
        self.projects = stride != 1 or entering != leaving
        if self.projects:
            self.shortcut = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        first = self.activation(self.bn1(x))
        around = self.shortcut(first if self.activated else x) if self.projects else x
        out = self.conv2(self.activation(self.bn2(self.conv1(first))))
        if self.bottleneck:
            out = self.conv3(self.activation(self.bn3(out)))
        return out + around


class PreActResNet(nn.Module):
    """conv3x3, four stages of blocks (1, 2, 4, 8 times `width`), BN-activation, global average, linear.

    The defaults are the definition in the code of the Fast-AT and Fast-BAT papers: a BN before the average,
    and basic blocks whose shortcut takes the raw input (in bottlenecks it takes the first activation).
    `final_bn=False` leaves out the BN and the activation before the average, as the older definition does.
    The submodules have the names of the public CIFAR networks, so that public state dicts fit.
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
        final_bn: bool = True,
        shortcut: str = "raw",
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        form = {"bottleneck": bottleneck, "shortcut": shortcut}
        entering, stages = width, []
        for times, depth, stride in zip((1, 2, 4, 8), blocks, (1, 2, 2, 2), strict=True):
            stage = []
            for i in range(depth):
                step = stride if i == 0 else 1
                stage.append(PreActBlock(entering, times * width, step, activation, **form))
                entering = times * width * (4 if bottleneck else 1)
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.final_bn = final_bn
        if final_bn:
            self.bn = nn.BatchNorm2d(entering)
            self.activation = activation()
        self.linear = nn.Linear(entering, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.conv1(x))

    def rest(self, hidden: Tensor) -> Tensor:
        """Compute the logits (B, K) from the first convolution's output."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        if self.final_bn:
            out = self.activation(self.bn(out))
        return self.linear(out.mean((2, 3)))


def _preact(
    blocks: tuple[int, int, int, int],
    bottleneck: bool,
    num_classes: int,
    shape: Shape,
    activation: Activation,
    final_bn: bool,
    shortcut: str,
    width: float,
) -> nn.Module:
    if shortcut not in ("raw", "activated"):
        raise unknown("shortcut", shortcut, ("raw", "activated"))
    form = {"bottleneck": bottleneck, "final_bn": final_bn, "shortcut": shortcut, "width": scaled(64, width)}
    return PreActResNet(blocks, num_classes, shape[0], activation, **form)


@register("preact-resnet18")
def preact_resnet18(
    num_classes: int,
    shape: Shape,
    activation: Activation,
    *,
    final_bn: bool = True,
    shortcut: str = "raw",
    width: float = 1.0,
) -> nn.Module:
    """PreActResNet-18: blocks 2, 2, 2, 2 (Fast-AT, Fast-BAT and DONE papers)."""
    return _preact((2, 2, 2, 2), False, num_classes, shape, activation, final_bn, shortcut, width)


@register("preact-resnet18-narrow")
def preact_resnet18_narrow(
    num_classes: int,
    shape: Shape,
    activation: Activation,
    *,
    final_bn: bool = True,
    shortcut: str = "raw",
    width: float = 0.125,
) -> nn.Module:
    """PreActResNet-18 with an eighth of the channels: small enough to train on two processor cores."""
    return _preact((2, 2, 2, 2), False, num_classes, shape, activation, final_bn, shortcut, width)


@register("preact-resnet34")
def preact_resnet34(
    num_classes: int,
    shape: Shape,
    activation: Activation,
    *,
    final_bn: bool = True,
    shortcut: str = "raw",
    width: float = 1.0,
) -> nn.Module:
    """PreActResNet-34: blocks 3, 4, 6, 3."""
    return _preact((3, 4, 6, 3), False, num_classes, shape, activation, final_bn, shortcut, width)


@register("preact-resnet50")
def preact_resnet50(
    num_classes: int,
    shape: Shape,
    activation: Activation,
    *,
    final_bn: bool = True,
    shortcut: str = "activated",
    width: float = 1.0,
) -> nn.Module:
    """PreActResNet-50: bottleneck blocks 3, 4, 6, 3 (Fast-BAT paper)."""
    return _preact((3, 4, 6, 3), True, num_classes, shape, activation, final_bn, shortcut, width)
