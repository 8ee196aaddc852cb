"""One stand-in device for all tests of a process."""

from collections.abc import Iterator

import pytest
from tests.device.asked import Card
from torch.utils import backend_registration

NEEDED = "_setup_privateuseone_for_python_backend"
collect_ignore = [] if hasattr(backend_registration, NEEDED) else ["standin.py"]


@pytest.fixture(scope="session")
def card() -> Iterator[Card]:
    """Where `torch.cuda` is the stand-in."""
    if collect_ignore:
        pytest.skip("this torch knows no device that is written in Python")
    made = Card()
    yield made
    made.close()
