"""BatchNorm folded within passes of attacks: same logits and gradients, layers restored, nothing stale."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

import bivallate as bv
from bivallate.lower import forward as passes
from bivallate.lower.folded_norm import fold
from bivallate.lower.forward import Forward
from bivallate.lower.modes import evaluating, frozen
from bivallate.models import Classifier, create, norm_pairs
from bivallate.models.layers import head_path
from bivallate.models.norm_pairs import pairs_of

WITH_NORM = {
    "resnet18": 20, "preact-resnet18": 8, "wrn-16-8": 6, "small-cnn": 6, "resnet50": 53, "preact-resnet50": 33
}  # fmt: skip


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


def test_layers_that_somebody_listens_to_are_left_alone() -> None:
    model, (x, y) = network(), images()
    seen: list[Tensor] = []
    handle = model.network.conv1.register_forward_hook(lambda module, args, out: seen.append(out.detach()))  # pyright: ignore
    with frozen(model):
        assert len(folds(Forward(model), x)) == 19
        gradient(model, x, y)
        assert torch.equal(*seen)
        handle.remove()
        assert len(folds(Forward(model), x)) == 20


LISTEN: dict[str, Callable[[nn.Module, Callable[..., Any]], Any]] = {
    "output": lambda module, hear: module.register_forward_hook(hear),
    "input": lambda module, hear: module.register_forward_pre_hook(hear),
    "gradients": lambda module, hear: module.register_full_backward_hook(hear),
    "gradient of the output": lambda module, hear: module.register_full_backward_pre_hook(hear),
    "every module": lambda module, hear: register_module_forward_hook(
        lambda m, *given: hear(m, *given) if m is module else None
    ),
}


def heard(call: Forward | nn.Module, listening: list[Tensor]) -> list[Tensor]:
    listening.clear()
    gradient(call, *images())
    return list(listening)


@pytest.mark.parametrize("how", LISTEN)
@pytest.mark.parametrize("place", ["0", "0.0"])
@pytest.mark.parametrize("late", [False, True])
def test_hooks_hear_what_the_network_computes(how: str, place: str, late: bool) -> None:
    """On a layer or on what contains it, there before the first pass or not; and never a tracer's proxy."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 3))
    stack = nn.Sequential(inner, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 4))
    model = Classifier(stack, architecture="own", num_classes=4, shape=(3, 16, 16)).double()
    gradient(model.train(), *images())  # moves the running statistics
    model.eval()
    listening: list[Tensor] = []

    def hear(module: nn.Module, *given: Any) -> None:
        last = given[-1]
        listening.append(last[0].clone() if isinstance(last, tuple) else last.clone())

    with frozen(model):
        forward = Forward(model)
        if late:
            assert len(folds(forward, images()[0])) == 1
        handle = LISTEN[how](stack.get_submodule(place), hear)
        ours, own = heard(forward, listening), heard(model, listening)
        handle.remove()
        assert len(own) >= 1
        assert len(ours) >= len(own)
        for each in ours:
            assert type(each) is Tensor
            torch.testing.assert_close(each.detach(), own[0].detach(), rtol=1e-9, atol=1e-12)
        assert len(folds(forward, images()[0])) == 1


def test_the_network_itself_stays_as_it_is() -> None:
    """Within a folded pass another thread uses the network, and an interrupt leaves nothing to restore."""
    model, (x, y) = network(), images()
    with torch.no_grad():
        expected = model(x)
    inside: list[Tensor] = []
    before = [(m, dict(m._parameters), vars(m).get("forward")) for m in model.modules()]

    def use(module: nn.Module, given: Any) -> None:
        handle.remove()
        for module, parameters, call in before:
            assert vars(module).get("forward") is call
            assert all(module._parameters[name] is own for name, own in parameters.items())
        with ThreadPoolExecutor(1) as other, torch.no_grad():
            inside.append(other.submit(torch.no_grad()(model), x).result())

    with frozen(model):
        forward = Forward(model)
        gradient(forward, x, y)
        handle = model.get_submodule(head_path(model)).register_forward_pre_hook(use)
        assert len(folds(forward, x)) == 20
    assert torch.equal(inside[0], expected)


@pytest.mark.parametrize("pool", [1, 3])
def test_several_threads_attack_one_network(pool: int) -> None:
    """As an evaluation does with a surrogate that all its searches share."""
    model, (x, y) = network(), images()
    weights = [p.clone() for p in model.parameters()]
    with frozen(model):
        expected = gradient(model, x, y)[1]
        with ThreadPoolExecutor(pool) as threads:
            found = [threads.submit(lambda: gradient(Forward(model), x, y)[1]) for _ in range(12)]
        for each in found:
            torch.testing.assert_close(each.result(), expected, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_tracing_does_not_disturb_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's tracer replaces the methods of all modules meanwhile, in every thread."""
    model, (x, _) = network(), images()
    with torch.no_grad():
        expected = model(x)
    inside: list[Tensor] = []
    usual = norm_pairs._Tracer.is_leaf_module

    def meanwhile(tracer: norm_pairs._Tracer, m: nn.Module, name: str) -> bool:
        if not inside and threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor(1) as other:
                inside.append(other.submit(torch.no_grad()(model), x).result())
        return usual(tracer, m, name)

    monkeypatch.setattr(norm_pairs._Tracer, "is_leaf_module", meanwhile)
    assert len(model.norm_pairs()) == 20
    assert torch.equal(inside[0], expected)


def test_several_threads_trace_at_once() -> None:
    call = nn.Module.__call__
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(network().norm_pairs) for _ in range(8)]
    assert [len(each.result()) for each in found] == [20] * 8
    assert nn.Module.__call__ is call


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
