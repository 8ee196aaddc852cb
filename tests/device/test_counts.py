"""What a step launches on a device, and how often it makes the host wait: counted, and held."""

from __future__ import annotations

import pytest
import torch
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
    from bivallate.run.ema import Average

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
    assert 30 < card(casts) <= 120  # 311 when every pass casts its own
