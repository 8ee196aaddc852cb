"""Fixtures of the tests of runs."""

from __future__ import annotations

import pytest

import bivallate as bv


@pytest.fixture(scope="session")
def few() -> bv.data.Dataset:
    """320 training images of digits, 40 test images, and all that is held out."""
    data = bv.data.load("digits")
    return data.but(train=data.train.subset(slice(0, 320)), test=data.test.subset(slice(0, 40)))
