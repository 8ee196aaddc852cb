"""The folded copy computes the same, costs less, and leaves the model unchanged."""

import copy

import pytest
import torch
from torch import nn

from bivallate import models
from bivallate.models.batchnorm_folding import _folded

SHAPE = (3, 8, 8)


def lived_in(name, **options):
    """A model whose BN layers have scales, shifts and statistics of their own."""
    model = models.create(name, num_classes=4, shape=SHAPE, mean=0.4, std=0.3, seed=0, **options)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model


def norms(model):
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def used(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


# BN layers left over: those that do not directly follow a convolution, or whose convolution others read too.
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("small-cnn", 0),
        ("mnist-net", 0),
        ("resnet18", 0),
        ("preact-resnet18", 9),  # the first BN of each of 8 blocks, and the last
        ("wrn-16-8", 6),  # the first BN of 5 blocks, and the last; the stem feeds the first block's alone
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_pairs_are_folded_and_logits_and_gradients_agree(name, left, channels_last):
    model = lived_in(name)
    folded = models.fold_batchnorm(model, channels_last=channels_last)
    assert norms(folded) == left < norms(model)
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    expected, got = model.eval()(x), folded(x)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1.0, scale))
    (wanted,) = torch.autograd.grad(expected.logsumexp(1).sum(), x)
    (found,) = torch.autograd.grad(got.logsumexp(1).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_the_model_itself_is_left_as_found():
    model = lived_in("small-cnn").train()
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    before = used(model)
    folded = models.fold_batchnorm(model)
    assert model.training
    assert norms(model) == 6
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    shared = {p.data_ptr() for p in model.state_dict().values()} & {
        p.data_ptr() for p in folded.state_dict().values()
    }
    assert not shared
    assert folded.num_classes == 4
    assert folded.shape == SHAPE


class Branching(nn.Module):
    """Control flow on values: it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        out = self.norm(self.convolution(x)).mean((2, 3))
        return out if out.sum() > 0 else -out


class Twice(nn.Module):
    """The convolution's output is read by the BN and by the sum: folding would change the sum."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        hidden = self.convolution(x)
        return (hidden + self.norm(hidden)).mean((2, 3))


class Shared(nn.Module):
    """One convolution before two BN layers."""

    def __init__(self):
        super().__init__()
        self.convolution, self.one, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.one(self.convolution(x)) - 2 * self.two(self.convolution(x))).mean((2, 3))


class Stateless(nn.Module):
    """BN without running statistics."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.convolution(x)).amax((2, 3))


@pytest.mark.parametrize("module", [Branching, Twice, Shared, Stateless])
def test_what_cannot_be_folded_exactly_stays_unfolded(module):
    torch.manual_seed(0)
    network = module()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d) and part.track_running_stats:
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    model = models.wrap(network, num_classes=4, shape=SHAPE)
    folded = models.fold_batchnorm(model)
    assert norms(folded) == norms(model)
    x = torch.rand(3, *SHAPE)
    assert torch.equal(folded(x), model.eval()(x))


class Approximate(nn.Module):
    """Folding would be exact in theory; the huge scale makes the rounding visible."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_var.fill_(1e-12)
        self.norm.eps = 0.0
        nn.init.constant_(self.norm.running_mean, 1e4)

    def forward(self, x):
        return (self.norm(self.convolution(x)) * 1e-6).mean((2, 3)).sin()


def test_a_copy_that_fails_the_check_is_not_used():
    torch.manual_seed(0)
    model = models.wrap(Approximate(), num_classes=4, shape=SHAPE)
    attempt = _folded(copy.deepcopy(model).eval())
    assert attempt is not None
    assert norms(attempt) == 0
    folded = models.fold_batchnorm(model)
    assert norms(folded) == 1
    x = torch.rand(3, *SHAPE)
    assert torch.equal(folded(x), model.eval()(x))


def test_a_bare_module_needs_an_example():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert norms(models.fold_batchnorm(module)) == 1
    assert norms(models.fold_batchnorm(module, torch.rand(2, *SHAPE))) == 0
