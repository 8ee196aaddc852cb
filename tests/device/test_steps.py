"""Every method computes on the stand-in device, with the same result as on the processor."""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.trial import stepped

from bivallate.methods.entries import registry


@pytest.mark.parametrize("name", sorted(registry()))
def test_two_steps_of_every_method_are_the_processor_s(card, name: str) -> None:
    there, said, waits, replays = card(stepped, name, "cuda")
    here, record, *_ = stepped(name, "cpu")
    for a, b in zip(there, here, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert said.loss == pytest.approx(record.loss, abs=1e-10)
    assert (said.passes, said.correct, said.rows) == (record.passes, record.correct, record.rows)
    assert sum(waits.values()) <= replays, waits
