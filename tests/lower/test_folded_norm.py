"""BatchNorm folded within passes of attacks: same logits and gradients, layers restored, nothing stale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bivallate as bv
from bivallate.lower import forward as passes
from bivallate.lower.folded_norm import fold
from bivallate.lower.forward import Forward
from bivallate.lower.modes import evaluating, frozen
from bivallate.models import Classifier, create
from bivallate.models.norm_pairs import pairs_of

from .folding import folds, gradient, images, network

WITH_NORM = {
    "resnet18": 20, "preact-resnet18": 8, "wrn-16-8": 6, "small-cnn": 6, "resnet50": 53, "preact-resnet50": 33
}  # fmt: skip


@pytest.mark.parametrize(("name", "pairs"), WITH_NORM.items())
def test_logits_and_gradients_are_the_networks(name: str, pairs: int) -> None:
    model, (x, y) = network(name), images()
    before = [(m, dict(m._parameters), vars(m).get("forward")) for m in model.modules()]
    with frozen(model):
        forward = Forward(model)
        assert len(folds(forward, x)) == pairs
        for ours, own in zip(gradient(forward, x, y), gradient(model, x, y), strict=True):
            torch.testing.assert_close(ours, own, rtol=1e-9, atol=1e-12)
    for module, parameters, call in before:
        assert vars(module).get("forward") is call
        assert all(module._parameters[name] is parameter for name, parameter in parameters.items())


def test_every_architecture_can_be_traced() -> None:
    for name in bv.models.names():
        shape = (3, 32, 32)
        model = create(name, num_classes=4, shape=shape, seed=0)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert bool(norms) == bool(model.norm_pairs()), name


def test_it_is_for_attacks_alone() -> None:
    """Not where theta learns, not in train mode, not for measurements, not at other parameters."""
    model, (x, _) = network(), images()
    forward = Forward(model)
    assert not folds(forward, x)
    with frozen(model):
        assert folds(forward, x)
        with torch.no_grad():
            assert not forward._folded_once(None)
        assert not folds(Forward(model.train()), x)
        model.eval()
        assert not folds(forward.at({}), x)
        model.network.bn1.train()  # pyright: ignore
        assert len(folds(forward, x)) == 19


def test_a_class_of_the_users_own_is_called_itself() -> None:
    class Counting(Classifier):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    inner, (x, y) = network(), images()
    model = Counting(inner.network, architecture="own", num_classes=4, shape=(3, 16, 16)).double().eval()
    with frozen(model):
        gradient(Forward(model), x, y)
    assert model.calls == 1


def test_a_compiled_network_is_not_folded() -> None:
    """It would be compiled anew."""
    model = network()
    with frozen(model):
        assert len(Forward(model)._folded_once(None)) == 20
        assert not Forward(torch.compile(model, backend="eager"))._folded_once(None)


def test_what_has_changed_is_folded_anew() -> None:
    model, (x, y) = network(), images()
    forward = Forward(model)
    with frozen(model):
        for change in ("weight", "running_mean", "running_var", "bias"):
            gradient(forward, x, y)
            with torch.no_grad():
                getattr(model.network.bn1, change).mul_(1.5)  # pyright: ignore
            torch.testing.assert_close(gradient(forward, x, y), gradient(model, x, y), rtol=1e-9, atol=1e-12)
        made = forward._folded
        gradient(forward, x, y)
        assert forward._folded is made
        forward.forget_weights()
        gradient(forward, x, y)
        assert forward._folded is not made


def test_an_error_within_a_pass_restores_the_layers() -> None:
    model, (x, _) = network(), images()
    weight = model.network.conv1.weight  # pyright: ignore
    with frozen(model):
        forward = Forward(model)
        with pytest.raises(RuntimeError):
            forward(x.float().requires_grad_())
    assert model.network.conv1.weight is weight  # pyright: ignore
    assert not any("forward" in vars(module) for module in model.modules())


def test_mixed_precision_takes_the_folded_weights() -> None:
    model = network().float()
    (x, y), weight = images(torch.float32), model.network.conv1.weight  # pyright: ignore
    model.autocast_dtype = torch.bfloat16  # pyright: ignore
    with frozen(model):
        forward = Forward(model)
        logits, _ = gradient(forward, x, y)
        assert {pair.weight.dtype for pair in forward._folded} == {torch.bfloat16}
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(x).float()
        exact = model(x)
        forward(x.clone().requires_grad_(), exact=True)
        assert {pair.weight.dtype for pair in forward._folded} == {torch.float32}
    assert (logits - exact).abs().max() < 2 * (expected - exact).abs().max() + 1e-3
    assert model.network.conv1.weight is weight  # pyright: ignore


def test_a_layer_of_the_users_own_is_not_traced() -> None:
    class Counts(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    layers = [nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)]
    assert len(pairs_of(nn.Sequential(*layers))) == 1
    own = nn.Sequential(*layers, Counts())
    assert pairs_of(own) == []
    assert own[2].calls == 0


def test_a_replaced_layer_is_noticed() -> None:
    stack = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    assert pairs_of(stack) == [(stack[0], stack[1])]
    stack[1] = nn.Identity()
    assert pairs_of(stack) == []


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_the_folded_weights(bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=bias).double(), nn.BatchNorm2d(5, affine=affine).double()
    x = torch.rand(4, 3, 6, 6, dtype=torch.float64)
    norm.train()(conv(x))
    norm.eval()
    (pair,) = fold([(conv, norm)], None)
    torch.testing.assert_close(F.conv2d(x, pair.weight, pair.bias), norm(conv(x)))


def test_a_step_in_eval_mode_folds_and_one_in_train_mode_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(passes, "fold", lambda pairs, dtype: made.append(len(pairs)) or fold(pairs, dtype))
    x, y = images(torch.float32)
    for mode, count in (("eval", 20), ("train", 0)):
        model = network().float().train()
        made.clear()
        method = bv.methods.at(bv.Linf(8 / 255), steps=3).but(attack_mode=mode)
        bound = method.bind(bv.types.Facts(3, (3, 16, 16), 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        bv.train_step(model, optimizer, bound, bv.Batch(x, y, torch.arange(3)), bv.Clock(0, 1, 0, 1))
        assert sum(made) == count  # once a step, not once a pass
    with evaluating(model):
        assert not any("forward" in vars(module) for module in model.modules())
