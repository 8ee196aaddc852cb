"""The histogram of an epoch's weights agrees with numpy's quantiles of the weights."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from bivallate.run.weight_spread import QUANTILES, Spread


@pytest.mark.parametrize("sigma", [0.0, 0.3, 2.0])
def test_quantiles_agree_with_those_of_the_weights_to_a_bin(sigma):
    rng = np.random.default_rng(0)
    spread, every = Spread(), []
    for _ in range(40):
        w = np.exp(sigma * rng.normal(size=128))
        spread.add((w / w.mean()).tolist())
        every.append(w / w.mean())
    exact = np.quantile(np.concatenate(every), QUANTILES)
    np.testing.assert_allclose(spread.quantiles(), exact, rtol=0.05)
    if sigma == 0:
        assert spread.quantiles() == [1.0] * 5


def test_zeros_and_one_that_takes_all():
    spread = Spread()
    spread.add([0.0] * 99 + [100.0])
    assert spread.quantiles() == [0.0] * 5
    spread.add([0.0] * 2 + [100 / 98] * 98)
    assert spread.quantiles()[:2] == [0.0, 0.0]
    assert spread.quantiles()[3:] == pytest.approx([100 / 98] * 2, rel=0.05)


def test_nothing_seen_has_no_quantiles_and_a_checkpoint_keeps_the_rest():
    assert Spread().quantiles() == []
    spread = Spread()
    spread.add([0.5, 1.5])
    kept = json.loads(json.dumps(asdict(spread), allow_nan=False))
    assert Spread(**kept) == spread
