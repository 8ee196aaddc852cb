"""Every villain is caught, no honest model is accused: one seed here, five in `benchmarks/villains.py`."""

from __future__ import annotations

import pytest
from tests.audits.villains import HONEST, VILLAINS, digits

from bivallate.audits import VERDICTS, audit


def examine(case):
    return audit(case.make(0), digits()[1], case.threat, n=100, budget_passes=1e5, claimed=case.claimed)


@pytest.mark.parametrize("case", VILLAINS, ids=lambda case: case.name)
def test_villains_are_caught(case):
    found = examine(case)
    assert found.is_suspicious, str(found)
    assert found.failed_checks
    assert all(check.advice for check in found.failed_checks)


@pytest.mark.parametrize("case", HONEST, ids=lambda case: case.name)
def test_honest_models_are_not_accused(case):
    found = examine(case)
    assert not found.is_suspicious, str(found)
    assert found.failed_checks == ()
    weak = "plain" in case.name
    assert found.verdict == ("weak but honest" if weak else "believable")
    assert found.verdict in VERDICTS
