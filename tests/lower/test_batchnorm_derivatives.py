"""BatchNorm's fast second derivative: values, first, second and third derivatives, and where it applies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bivallate.lower.batchnorm_derivatives import FastSecondDerivatives
from bivallate.lower.second_order import tangents, twice_differentiable

SHAPES = [(5, 3, 4, 2), (6, 3), (4, 3, 5)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    made = (
        torch.randn(shape, dtype=dtype),
        torch.randn(shape[1], dtype=dtype),
        torch.randn(shape[1], dtype=dtype),
    )
    return tuple(t.requires_grad_() for t in made)  # pyright: ignore[reportReturnType]


def normalised(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    with FastSecondDerivatives():
        return F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-3)


def plain(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-3)


def is_fast(made: Tensor) -> bool:
    return "_Normalise" in type(made.grad_fn).__name__


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_are_those_of_finite_differences(shape: tuple[int, ...]) -> None:
    x, weight, bias = inputs(shape)
    assert gradcheck(normalised, (x, weight, bias))
    assert gradgradcheck(normalised, (x, weight, bias))
    assert gradgradcheck(normalised, (x,))
    assert is_fast(normalised(x, weight, bias))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("sought", ["x", "all"])
def test_second_derivatives_are_torchs(shape: tuple[int, ...], affine: bool, sought: str) -> None:
    """Without a graph of their own the kernel's formulas are used; `gradgradcheck` builds one."""
    found = []
    for norm in (normalised, plain):
        given = inputs(shape) if affine else inputs(shape)[:1]
        first = given if sought == "all" else given[:1]
        grads = torch.autograd.grad(norm(*given).pow(3).sum(), first, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), given))  # pyright: ignore
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.detach().abs().max()))


def test_third_derivatives() -> None:
    x, weight, bias = inputs((5, 3, 4, 2))

    def gradients(*given: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(normalised(*given).pow(3).sum(), given, create_graph=True)

    assert gradgradcheck(gradients, (x, weight, bias))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_values_and_running_statistics_keep_their_bits(momentum: float | None) -> None:
    norms = [nn.BatchNorm2d(3, momentum=momentum) for _ in range(2)]
    for layer in norms:
        nn.init.constant_(layer.weight, 1.3)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    usual = norms[1](x)
    with twice_differentiable():
        fast = norms[0](x)
    assert is_fast(fast)
    assert torch.equal(fast, usual)
    for name, buffer in norms[0].named_buffers():
        assert torch.equal(buffer, norms[1].get_buffer(name)), name
    grads = [torch.autograd.grad(made.pow(3).sum(), x)[0] for made in (fast, usual)]
    assert torch.equal(*grads)


def test_channels_last_stays() -> None:
    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    made = normalised(x)
    (grad,) = torch.autograd.grad(made.pow(3).sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(grad.square().sum(), x)
    for value in (made, grad, again):
        assert value.is_contiguous(memory_format=torch.channels_last)


def test_elsewhere_it_is_torchs() -> None:
    """In eval mode, in half precision, and for one value per channel, which torch refuses."""
    layer = nn.BatchNorm2d(3)
    with twice_differentiable():
        assert not is_fast(layer.eval()(torch.randn(2, 3, 4, 4)))
        half = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
        assert not is_fast(layer.train()(half))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.randn(1, 3, 1, 1))


def test_a_pass_that_is_made_again_outside_is_torchs() -> None:
    """`torch.utils.checkpoint` makes a pass again in the backward one, and compares what it saves."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    found = []
    for again in (True, False):
        x = inputs((2, 3, 8, 8))[0]
        with twice_differentiable():
            made = checkpoint(block, x, use_reentrant=False) if again else block(x)
        assert isinstance(made, Tensor)
        (grad,) = torch.autograd.grad(made.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), list(block.parameters()), allow_unused=True))
    for ours, usual in zip(*found, strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch itself
def test_tangents_go_through_batchnorm() -> None:
    """A function of its own has no tangent: forward mode uses torch's."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    x = torch.randn(3, 1, 5, 5)
    with tangents(model, x):
        made = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(model(made)).tangent is not None


def test_arguments_may_be_handed_over_by_torchs_names() -> None:
    x, weight, bias = inputs((5, 3, 4, 2))
    with FastSecondDerivatives():
        made = F.batch_norm(
            input=x, running_mean=None, running_var=None, weight=weight, bias=bias, training=True, eps=1e-3
        )
    assert is_fast(made)
    assert torch.equal(made, plain(x, weight, bias))
