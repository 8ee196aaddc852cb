"""A short round of mutated files; `make faults` runs longer ones."""

from __future__ import annotations

from tests.faults.mutations import KINDS, run


def test_mutated_files_load_with_a_meaning_or_are_refused_in_one_line(tmp_path):
    found = run(168, tmp_path)
    assert sum(found.values()) == 168
    for kind in KINDS:
        assert found[f"{kind} refused"] >= 5, found
    for kind in set(KINDS) - {"checkpoint", "record"}:
        assert found[f"{kind} read"] >= 1, found
