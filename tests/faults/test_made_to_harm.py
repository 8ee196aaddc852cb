"""The short version for malicious files: every ninth of them."""

from collections import Counter
from pathlib import Path

from tests.faults.hostile import Payload, attempt, attempts, cases


def test_files_that_were_made_to_harm_are_refused_or_harmless(tmp_path: Path) -> None:
    ended = Counter(attempts(tmp_path, every=9))
    assert {outcome for _, outcome in ended} <= {"read", "refused"}, ended
    assert len({kind for kind, _ in ended}) >= 8
    assert sum(1 for _ in cases(tmp_path)) >= 200


def test_the_witness_sees_a_pickle_that_is_opened_and_a_program_that_starts(tmp_path: Path) -> None:
    import os
    import pickle

    assert attempt(tmp_path, lambda at: pickle.loads(pickle.dumps(Payload()))) == "executed"
    assert attempt(tmp_path, lambda at: os.system("true")) == "executed"
