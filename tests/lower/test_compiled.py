"""Steps compiled by torch.compile equal those that are not compiled."""

from __future__ import annotations

import os

import pytest
import torch
from tests.device.trial import Trial, tiny

from bivallate.errors import UserError
from bivallate.lower.compiled import Compiled, compiling, network_for, without_compiling
from bivallate.methods.entries import registry

torch_dynamo = pytest.importorskip("torch._dynamo")

SOME = ("at", "bilaw-trades", "done-adam", "fast-bat", "yopo")
ALL = pytest.mark.skipif(
    "BIVALLATE_TEST_ALL" not in os.environ, reason="minutes: BIVALLATE_TEST_ALL=1 asks for it"
)
NONE = ("yopo",)  # hooks hear every pass


@pytest.fixture(autouse=True)
def afresh():
    torch_dynamo.reset()
    yield
    torch_dynamo.reset()


def twins(name: str, backend: str, **parameters) -> tuple[Trial, Trial, Compiled]:
    """The same steps twice, the second ones compiled."""
    plain, quick = tiny(name, "cpu", **parameters), tiny(name, "cpu", **parameters)
    return plain, quick, Compiled(quick.model, {tuple(quick.batch.x.shape)}, backend)


def apart(name: str, backend: str, **parameters) -> tuple[float, Compiled]:
    """The largest difference in parameters and buffers after two steps."""
    plain, quick, compiled = twins(name, backend, **parameters)
    for _ in range(2):
        plain.step()
        with compiling(compiled):
            quick.step()
    pairs = zip(plain.model.state_dict().values(), quick.model.state_dict().values(), strict=True)
    assert list(plain.model.state_dict()) == list(quick.model.state_dict())
    return max(float((a - b).abs().max()) for a, b in pairs), compiled


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it traces
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SOME else ALL) for n in sorted(registry())]
)
def test_every_method_steps_as_it_does_without(name: str) -> None:
    difference, compiled = apart(name, "aot_eager")
    assert difference <= 1e-10
    assert (compiled.passes > 0) == (name not in NONE)
    assert not torch_dynamo.utils.counters["graph_break"]


@pytest.mark.filterwarnings("ignore")
def test_mixed_precision_rounds_where_it_did() -> None:
    plain, quick, compiled = twins("at", "aot_eager", dtype=torch.float32)
    for trial in (plain, quick):
        trial.model.autocast_dtype = torch.bfloat16
    before = [p.clone() for p in plain.parameters()]
    plain.step()
    with compiling(compiled):
        quick.step()
    pairs = list(zip(plain.parameters(), quick.parameters(), before, strict=True))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b, _ in pairs)
    assert any((a - old).abs().max() > 1e-4 for a, _, old in pairs)


@ALL
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["at", "done-adam", "fast-bat", "trades"])
def test_the_compiler_itself_agrees_to_rounding(name: str) -> None:
    difference, compiled = apart(name, "inductor")
    assert compiled.passes
    assert difference <= 1e-8


def test_what_cannot_be_compiled_goes_through_the_network() -> None:
    model, x = torch.nn.Flatten(), torch.zeros(2, 1, 2, 2)
    quick = Compiled(model, {(2, 1, 2, 2)})
    assert network_for(model, x) is model, "not in a step"
    with compiling(quick):
        assert network_for(model, x) is quick
        assert network_for(model, x[:1]) is not quick, "a shorter minibatch"
        assert network_for(torch.nn.Flatten(), x) is not quick, "another network"
        with without_compiling():
            assert network_for(model, x) is model
        handle = model.register_forward_pre_hook(lambda *_: None)
        assert network_for(model, x) is model
        handle.remove()
        with compiling(None):
            assert network_for(model, x) is quick
    assert network_for(model, x) is model


def broken(graph, inputs):
    raise RuntimeError("no compiler here")


def test_a_machine_that_cannot_compile_says_so() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"compile=true.*g\+\+.*compile=false"):
        Compiled(model, set(), broken)(torch.zeros(1, 2))  # pyright: ignore[reportArgumentType]
