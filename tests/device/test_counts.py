"""The number of kernels that a step launches on a device, and of waits of the host, stays at known values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.device.trial import counted, tiny

LEAN = ["at", "fast-bat", "done-adam", "fat", "at-l2", "yopo", "free-at", "bilaw"]


@pytest.mark.parametrize("name", LEAN)
def test_a_step_is_waited_for_once(card, name: str) -> None:
    waits, _, replays = card(counted, name, {"steps": 4} if name in ("at", "fat", "at-l2") else {})
    assert sum(waits.values()) <= 1, waits
    assert replays > 1 or name not in ("yopo", "free-at")


def class_wise(name: str) -> int:
    """Waits of a step within the radii of classes, which are known from the second epoch on."""
    from tests.device import standin

    trial = tiny(name, "cuda", torch.float32, "tiny-cnn", steps=4)
    trial.step()
    solver = trial.method.solver
    solver.score.copy_(torch.tensor([0.3, 0.4, 0.7]))
    solver.known.fill_(True)
    trial.step()
    standin.log.syncs.clear()
    trial.step()
    return sum(standin.log.syncs.values())


@pytest.mark.parametrize("name", ["cfa", "dafa", "cfa-l2", "cfa-l1"])
def test_radii_of_classes_are_not_waited_for(card, name: str) -> None:
    assert card(class_wise, name) <= 1


def averaged() -> int:
    """Launches of one update of the weights' average."""
    from tests.device import standin

    import bivallate as bv
    from bivallate.run.averaging import Average

    model = bv.models.create("small-cnn", num_classes=3, shape=(1, 8, 8), seed=0, width=0.0625).to("cuda")
    average = Average(model, 0.9)
    average.update(model)
    standin.log.ops.clear()
    average.update(model)
    return sum(standin.log.ops.values())


def test_the_average_of_the_weights_is_a_few_launches(card) -> None:
    assert card(averaged) <= 4


def casts() -> int:
    """Casts in a step of AT with ten attack steps on PreActResNet-18 in bfloat16."""
    from tests.device import standin

    trial = tiny("at", "cuda", torch.float32, steps=10, network="preact-resnet18")
    trial.model.autocast_dtype = torch.bfloat16
    trial.step()
    standin.log.casts.clear()
    trial.step()
    return sum(standin.log.casts.values())


def test_weights_are_cast_once_a_minibatch(card) -> None:
    assert 30 < card(casts) <= 105  # 311 when every pass casts its own; 16 are of folded weights and biases


MEMORY = {"empty", "empty_strided", "as_strided", "view", "detach", "alias", "t", "expand", "_unsafe_view"}


def count(work: Callable[[], object]) -> int:
    """Kernels that some work launches the second time."""
    from tests.device import standin

    work()
    standin.log.ops.clear()
    work()
    return sum(n for name, n in standin.log.ops.items() if name not in MEMORY)


def kernels(network: str, steps: int) -> int:
    """Of a step of AT with so many attack steps."""
    return count(tiny("at", "cuda", torch.float32, network, steps=steps).step)


def plain_kernels(network: str, steps: int) -> int:
    """Of the same step, written out by hand."""
    trial = tiny("at", "cuda", torch.float32, network)
    model, x, y, size = trial.model, trial.batch.x, trial.batch.y, 0.025

    def step() -> None:
        model.eval().requires_grad_(False)
        low, high = (-x).clamp(min=-0.1), (1 - x).clamp(max=0.1)
        delta = torch.minimum(torch.maximum(torch.empty_like(x).uniform_(-0.1, 0.1), low), high)
        for _ in range(steps):
            point = delta.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x + point), y, reduction="sum"), point)
            delta = torch.minimum(torch.maximum(delta + size * grad.sign(), low), high)
        model.train().requires_grad_(True)
        F.cross_entropy(model(x + delta), y).backward()
        trial.optimizer.step()
        trial.optimizer.zero_grad()

    return count(step)


# of a step's launches by hand: of one attack step, of the rest, of ten attack steps and the rest
# folding BatchNorm saves launches in each attack step and costs some once
LEANEST = {"preact-resnet18": (0.87, 1.29, 0.91), "tiny-cnn": (0.89, 1.92, 1.01)}


@pytest.mark.parametrize("network", LEANEST)
def test_a_step_launches_little_more_than_one_by_hand(card, network: str) -> None:
    (few, many), (less, more) = ([card(f, network, n) for n in (2, 4)] for f in (kernels, plain_kernels))
    ours, by_hand = (many - few) / 2, (more - less) / 2
    rest, straight = few - 2 * ours, less - 2 * by_hand
    found = ours / by_hand, rest / straight, (10 * ours + rest) / (10 * by_hand + straight)
    assert all(0.8 <= value <= most for value, most in zip(found, LEANEST[network], strict=True)), found
