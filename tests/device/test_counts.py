"""What a step launches on a device, and how often it makes the host wait: counted, and held."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.device.trial import Trial, counted

LEAN = ["at", "fast-bat", "done-adam", "fat", "at-l2", "yopo", "free-at", "bilaw"]


@pytest.mark.parametrize("name", LEAN)
def test_a_step_is_waited_for_once(card, name: str) -> None:
    waits, _, replays = card(counted, name, {"steps": 4} if name in ("at", "fat", "at-l2") else {})
    assert sum(waits.values()) <= replays, waits


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

    trial = Trial("at", "cuda", torch.float32, steps=10, network="preact-resnet18")
    trial.model.autocast_dtype = torch.bfloat16
    trial.step()
    standin.log.casts.clear()
    trial.step()
    return sum(standin.log.casts.values())


def test_weights_are_cast_once_a_minibatch(card) -> None:
    assert 30 < card(casts) <= 95  # 311 when every pass casts its own


MEMORY = {"empty", "empty_strided", "as_strided", "view", "detach", "alias", "t", "expand", "_unsafe_view"}


def kernels(steps: int) -> int:
    """Of a step of AT with so many attack steps."""
    from tests.device import standin

    trial = Trial("at", "cuda", torch.float32, steps=steps)
    trial.step()
    standin.log.ops.clear()
    trial.step()
    return sum(n for name, n in standin.log.ops.items() if name not in MEMORY)


def plain_kernels() -> int:
    """Of one attack step that is written out by hand."""
    from tests.device import standin

    trial = Trial("at", "cuda", torch.float32)
    model, x, y, size = trial.model.eval().requires_grad_(False), trial.batch.x, trial.batch.y, 0.025
    low, high, delta = (-x).clamp(min=-0.1), (1 - x).clamp(max=0.1), torch.zeros_like(x)
    for _ in range(2):
        standin.log.ops.clear()
        point = delta.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x + point), y, reduction="sum"), point)
        delta = torch.minimum(torch.maximum(delta + size * grad.sign(), low), high)
    return sum(n for name, n in standin.log.ops.items() if name not in MEMORY)


def test_an_attack_step_launches_little_more_than_one_by_hand(card) -> None:
    ours, by_hand = (card(kernels, 8) - card(kernels, 4)) / 4, card(plain_kernels)
    assert by_hand <= ours <= 1.1 * by_hand
