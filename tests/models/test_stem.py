"""FewChannels: the same function as the convolution, with the same input gradient."""

import copy

import pytest
import torch
from torch import nn

from bivallate import models
from bivallate.models.batchnorm_folding import fold_batchnorm
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


def tied(conv: nn.Conv2d) -> FewChannels:
    """The quick one with the same parameters, from a copy: `conv` stays as it is."""
    return FewChannels(copy.deepcopy(conv))


@pytest.fixture
def both():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 5, 4, 2, 1).double().requires_grad_(False)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    return conv, tied(conv), x


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func itself
def test_second_derivatives_and_those_of_functorch(both):
    conv, quick, x = both
    v = torch.randn_like(x)
    for derivative in (
        lambda f: torch.autograd.functional.hvp(f, x, v)[1],
        lambda f: torch.func.grad(f)(x),
        lambda f: torch.func.vmap(torch.func.grad(f))(x),
        lambda f: torch.func.jvp(f, (x,), (v,))[1],
    ):
        expected, got = (derivative(lambda z, c=c: c(z.view(-1, 1, 8, 8)).sin().sum()) for c in (conv, quick))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_where_the_weight_learns_it_is_the_convolution_itself(both):
    conv, quick, x = both
    for module in (conv, quick):
        module.requires_grad_(True)
        module.zero_grad()
        module(x).sin().sum().backward()
    assert torch.equal(quick.weight.grad, conv.weight.grad)
    assert torch.equal(quick.bias.grad, conv.bias.grad)


def test_the_kernel_follows_the_weight(both):
    conv, quick, x = both
    for module in (conv, quick):
        module.weight.data.mul_(-2)
    expected, got = (torch.autograd.grad(m(x).sin().sum(), x)[0] for m in (conv, quick))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_under_autocast_it_is_the_convolution_itself():
    conv = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    grads = []
    for module in (conv, tied(conv)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(x).float().square().sum()
        grads.append(torch.autograd.grad(loss, x)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", ["tiny-cnn", "small-cnn", "preact-resnet18"])
def test_our_networks_begin_with_one_and_are_folded_all_the_same(name):
    model = models.create(name, num_classes=10, shape=(1, 8, 8), seed=0).eval()
    assert sum(isinstance(module, FewChannels) for module in model.modules()) == 1
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (model, fold_batchnorm(model))]
    assert norms[1] < norms[0] or norms[0] == 0


def test_a_networks_attack_is_the_same_to_rounding():
    model = models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8), seed=0).double().requires_grad_(False)
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, FewChannels):
            conv = nn.Conv2d(module.in_channels, module.out_channels, 4, 2, 1).double()
            conv.load_state_dict(module.state_dict())
            plain.set_submodule(name, conv.requires_grad_(False))
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    expected, got = (torch.autograd.grad(m(x).sin().sum(), x)[0] for m in (plain, model))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
