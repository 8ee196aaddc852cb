"""Passes with folded BatchNorm while others use the network too: hooks that listen, and other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bivallate.lower.forward import Forward
from bivallate.lower.modes import frozen
from bivallate.models import Classifier, norm_pairs
from bivallate.models.layers import head_path

from .folding import folds, gradient, images, network


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
