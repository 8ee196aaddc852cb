"""Every method computes on the stand-in device, with the same result as on the processor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.device.trial import stepped, tiny

from bivallate.methods.entries import registry
from bivallate.record import NonFinite
from bivallate.types import StepRecord


@pytest.mark.parametrize("name", sorted(registry()))
def test_two_steps_of_every_method_are_the_processor_s(card, name: str) -> None:
    there, said, waits = card(stepped, name, "cuda")
    here, record, *_ = stepped(name, "cpu")
    for a, b in zip(there, here, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert said.loss == pytest.approx(record.loss, abs=1e-10)
    assert (said.passes, said.correct, said.rows) == (record.passes, record.correct, record.rows)
    read_again = name == "e-at"  # which threat is drawn follows from the last step's errors
    assert sum(waits.values()) <= 1 + read_again, waits


def replayed(name: str, device: str) -> list[tuple]:
    """What the record of each replay of a minibatch says."""
    records = [replace(record) for record in list(tiny(name, device).replays())]
    return [(r.loss, r.correct, r.examples, r.rows, r.margin, r.logged, r.passes, r.sums) for r in records]


@pytest.mark.parametrize("name", ["yopo", "free-at"])
def test_records_that_are_read_together_are_those_of_each_replay(card, name: str) -> None:
    there, here = card(replayed, name, "cuda"), replayed(name, "cpu")
    assert len(here) == 2
    for a, b in zip(there, here, strict=True):
        assert a[1:4] + a[5:] == b[1:4] + b[5:]
        np.testing.assert_allclose([a[0], *a[4]], [b[0], *b[4]], rtol=0, atol=1e-10)


def spoilt(name: str, device: str) -> tuple[str, bool]:
    """The error of a minibatch whose first replay has no finite gradient; whether the network is good."""
    trial = tiny(name, device)
    first = next(trial.model.parameters())
    handle = first.register_hook(lambda grad: grad * float("nan") if not seen else grad)
    seen: list[StepRecord] = []
    try:
        for record in trial.replays():
            seen.append(record)
    except NonFinite as error:
        return str(error), bool(torch.stack([p.isfinite().all() for p in trial.parameters()]).all())
    finally:
        handle.remove()
    return "none", True


@pytest.mark.parametrize("name", ["yopo", "free-at"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_minibatch_with_a_gradient_that_is_not_finite_ends(card, name: str, device: str) -> None:
    told, good = card(spoilt, name, device) if device == "cuda" else spoilt(name, device)
    seen_late = (name, device) == ("free-at", "cuda")
    assert "a gradient is not finite" in told
    assert good != seen_late
    assert ("were updated with it before it could be seen" if seen_late else "were not updated") in told
