"""One stand-in for all tests of a process."""

from collections.abc import Iterator

import pytest
from tests.device.asked import Card


@pytest.fixture(scope="session")
def card() -> Iterator[Card]:
    """Where `torch.cuda` is the stand-in."""
    backend = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backend, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch knows no device that is written in Python")
    made = Card()
    yield made
    made.close()
