"""FewChannels: the same function as the convolution, with the same gradient by the image."""

import pytest
import torch
from torch import nn

from bivallate import models
from bivallate.models.stem import FewChannels, quick_stems


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, (3, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("side", [(8, 8), (9, 7)])
def test_the_gradient_is_that_of_the_convolution(channels, kernel, stride, padding, side):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 5, kernel, stride, padding).double().requires_grad_(False)
    quick = FewChannels(conv)
    x = torch.randn(3, channels, *side, dtype=torch.float64, requires_grad=True)
    expected = conv(x)
    weights = torch.randn_like(expected)
    (grad,) = torch.autograd.grad((expected * weights).sum(), x)
    got = quick(x)
    (quick_grad,) = torch.autograd.grad((got * weights).sum(), x)
    assert torch.equal(got, expected)
    assert torch.allclose(quick_grad, grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 4, 3),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(1, 4, 3, dilation=2),
        nn.Conv2d(1, 4, 3, padding="same"),
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 4, 3, stride=(1, 2)),
        nn.Conv2d(1, 4, 3, padding=(0, 1)),
    ],
)
def test_other_convolutions_are_left_alone(conv):
    assert not FewChannels.suits(conv)
    assert type(quick_stems(nn.Sequential(conv))[0]) is nn.Conv2d  # pyright: ignore


def test_the_first_layer_of_a_network_is_replaced():
    model = quick_stems(models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8)))
    assert sum(isinstance(module, FewChannels) for module in model.modules()) == 1
