"""The commit that a result names."""

from __future__ import annotations

import pytest

from bivallate.run import origin

TOLD = [("0123abc", {"id": "0123abc"}), ("", {}), ("../main", {}), ("0123ABC\n", {})]


@pytest.mark.parametrize(("told", "said"), TOLD)
def test_a_copy_outside_any_repository_says_what_it_was_told(told, said, monkeypatch) -> None:
    monkeypatch.setattr(origin, "_git", lambda *given: "")
    monkeypatch.setenv("BIVALLATE_COMMIT", told)
    assert origin.commit.__wrapped__() == said


def test_a_repository_is_believed_before_what_is_told(monkeypatch) -> None:
    answers = {"rev-parse": "f" * 40, "ls-files": "__init__.py", "status": ""}
    monkeypatch.setattr(origin, "_git", lambda root, what, *given: answers[what])
    monkeypatch.setenv("BIVALLATE_COMMIT", "0123abc")
    assert origin.commit.__wrapped__() == {"id": "f" * 40, "modified": False}
