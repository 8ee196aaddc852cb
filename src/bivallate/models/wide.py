"""Wide residual networks."""

from __future__ import annotations

import math

from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.models.architectures import Activation, Shape, register, scaled

__all__ = ["WideResNet"]


class WideBlock(nn.Module):
    """BN-activation-conv3x3-BN-activation-dropout-conv3x3 and a shortcut.

    Where the width changes, the shortcut is a 1x1 convolution of the block's first activation.
    """

    def __init__(
        self, entering: int, leaving: int, stride: int, activation: Activation, dropout: float
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(entering)
        self.relu1 = activation()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.relu2 = activation()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, padding=1, bias=False)
        self.projects = entering != leaving
        if self.projects:
            self.convShortcut = nn.Conv2d(entering, leaving, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.relu1(self.bn1(x))
        out = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(first)))))
        return out + (self.convShortcut(first) if self.projects else x)


class WideStage(nn.Module):
    """Blocks of one width; the first has the stride. The attribute `layer` is named as in the public code."""

    def __init__(
        self, depth: int, entering: int, leaving: int, stride: int, activation: Activation, dropout: float
    ) -> None:
        super().__init__()
        first = WideBlock(entering, leaving, stride, activation, dropout)
        others = [WideBlock(leaving, leaving, 1, activation, dropout) for _ in range(depth - 1)]
        self.layer = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """conv3x3 (16), three stages of `blocks` blocks (16k, 32k, 64k), BN-activation, global average, linear.

    k is `widening`. The weights of convolutions are drawn from N(0, 2 / (kernel area x output channels)), the
    linear layer's bias starts at 0. The submodules have the names of the public networks of the TRADES
    family, so that public state dicts fit.
    """

    stem_name = "conv1"

    def __init__(
        self,
        blocks: int,
        widening: float,
        num_classes: int,
        channels: int,
        activation: Activation,
        *,
        dropout: float = 0.0,
        zero_head: bool = False,
    ) -> None:
        super().__init__()
        widths = [scaled(16, widening), scaled(32, widening), scaled(64, widening)]
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(blocks, 16, widths[0], 1, activation, dropout)
        self.block2 = WideStage(blocks, widths[0], widths[1], 2, activation, dropout)
        self.block3 = WideStage(blocks, widths[1], widths[2], 2, activation, dropout)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = activation()
        self.fc = nn.Linear(widths[2], num_classes)
        self._initialise(zero_head)

    def _initialise(self, zero_head: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)
        if zero_head:
            nn.init.zeros_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.conv1(x))

    def rest(self, hidden: Tensor) -> Tensor:
        """Compute the logits (B, K) from the first convolution's output."""
        out = self.relu(self.bn1(self.block3(self.block2(self.block1(hidden)))))
        return self.fc(out.mean((2, 3)))


def _wide(
    blocks: int,
    widening: int,
    num_classes: int,
    shape: Shape,
    activation: Activation,
    dropout: float,
    zero_head: bool,
    width: float,
) -> nn.Module:
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is a probability in [0, 1), got {dropout}")
    channels = shape[0]
    options = {"dropout": dropout, "zero_head": zero_head}
    return WideResNet(blocks, widening * width, num_classes, channels, activation, **options)


@register("wrn-16-8")
def wrn_16_8(
    num_classes: int,
    shape: Shape,
    activation: Activation,
    *,
    dropout: float = 0.1,
    zero_head: bool = False,
    width: float = 1.0,
) -> nn.Module:
    """WRN-16-8: dropout 0.1 (Fast-BAT paper).

    Deviation: the paper's code builds three blocks in every stage and starts the linear layer at zero. Here a
    stage has the (16 - 4) / 6 = 2 blocks of the published WRN-16-8. Zero as the start of the linear layer is
    the option `zero_head`: with it no gradient reaches the image in the first step.
    """
    return _wide(2, 8, num_classes, shape, activation, dropout, zero_head, width)


@register("wrn-28-10")
def wrn_28_10(
    num_classes: int,
    shape: Shape,
    activation: Activation,
    *,
    dropout: float = 0.0,
    zero_head: bool = False,
    width: float = 1.0,
) -> nn.Module:
    """WRN-28-10: (28 - 4) / 6 = 4 blocks a stage; the usual network of the public leaderboards."""
    return _wide(4, 10, num_classes, shape, activation, dropout, zero_head, width)


@register("wrn-32-10")
def wrn_32_10(
    num_classes: int,
    shape: Shape,
    activation: Activation,
    *,
    dropout: float = 0.0,
    zero_head: bool = False,
    width: float = 1.0,
) -> nn.Module:
    """WRN-32-10: 5 blocks a stage (FAT, GAIRAT, WMMR, BiLAW papers); the same network as WRN-34-10.

    n is the number of blocks in a stage. The public code of these papers follows Madry et al. and calls the
    depth 6 n + 2; Zagoruyko and Komodakis call it 6 n + 4. Both names mean n = 5.
    """
    return _wide(5, 10, num_classes, shape, activation, dropout, zero_head, width)


@register("wrn-34-10")
def wrn_34_10(
    num_classes: int,
    shape: Shape,
    activation: Activation,
    *,
    dropout: float = 0.0,
    zero_head: bool = False,
    width: float = 1.0,
) -> nn.Module:
    """WRN-34-10: (34 - 4) / 6 = 5 blocks a stage (TRADES, MART, ATTA papers)."""
    return _wide(5, 10, num_classes, shape, activation, dropout, zero_head, width)
