"""The short version: 120 mutated data files. `python -m tests.faults.mutated_data` is the long one."""

from collections import Counter

import pytest
from tests.faults.mutated_data import attempt, faults, kinds, run


@pytest.mark.parametrize("kind", kinds())
def test_the_files_that_are_mutated_load(kind: str) -> None:
    content, load = kinds()[kind]
    assert attempt(kind, 0, content, load).outcome == "loaded"


def test_mutated_files_load_or_are_refused() -> None:
    results, grown = run(120, 0)
    assert faults(results, grown) == []
    assert {r.outcome for r in results} == {"loaded", "refused"}
    reached = Counter(r.kind for r in results if r.outcome == "refused")
    assert len(reached) >= 15  # the harm arrives nearly everywhere
