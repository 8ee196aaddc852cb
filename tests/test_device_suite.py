"""The questions for a GPU also run on a processor; one that fails is a row of the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import device_suite
from benchmarks.device_suite import Place, Question, Row

SHORT = ["counts", "room", "epochs", "graphs", "verdicts"]
LONGER = ["methods", "ratios", "autoattack", "compiled", "resume"]


def asked(tmp_path: Path, *more: str) -> int:
    places = ["--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "device.json")]
    return device_suite.main(["--device", "cpu", "--size", "toy", *places, *more])


def test_questions_are_answered_and_the_table_comes_last(tmp_path, capsys) -> None:
    assert asked(tmp_path, "--here", "--only", *SHORT) == 0
    told = capsys.readouterr().out
    assert told.rstrip().splitlines()[-1].startswith("| verdicts | seconds |")
    kept = json.loads((tmp_path / "device.json").read_text(encoding="utf-8"))
    assert list(kept["rows"]) == SHORT
    agreed = kept["rows"]["verdicts"][0]
    assert agreed["met"]
    assert agreed["number"] == 16
    assert kept["machine"]["device"] == "cpu"


@pytest.mark.filterwarnings("ignore")  # torch's own, of what its compiler traces
@pytest.mark.parametrize("name", LONGER)
def test_a_question_that_takes_seconds_is_answered(tmp_path, name: str) -> None:
    assert asked(tmp_path, "--here", "--only", name) == 0
    *rows, seconds = json.loads((tmp_path / "device.json").read_text(encoding="utf-8"))["rows"][name]
    assert seconds["what"] == "seconds"
    assert rows
    if name in ("methods", "resume"):  # how fast the others are depends on the machine
        assert all(row["met"] for row in rows)


def test_every_question_is_tested() -> None:
    assert {*SHORT, *LONGER} == set(device_suite.questions())


def test_what_fails_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch, capsys) -> None:
    def broken(place: Place):
        yield Row("first", "1")
        raise ZeroDivisionError("no such card")

    def fine(place: Place):
        yield Row("second", "2")

    known = {q.name: q for q in (Question("broken", 60, broken), Question("fine", 60, fine))}
    monkeypatch.setattr(device_suite, "questions", lambda: known)
    assert asked(tmp_path, "--here") == 1
    told = capsys.readouterr().out
    for line in (
        "| broken | first | 1 |",
        "failed: ZeroDivisionError: no such card",
        "| fine | second | 2 |",
    ):
        assert line in told
    assert asked(tmp_path, "--here", "--minutes", "0") == 1
    assert "not run: the time was up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "said"),
    [("import time; time.sleep(60)", "stopped: not done in 0 s"), ("raise SystemExit(3)", "status 3")],
)
def test_a_process_that_hangs_or_dies_is_a_row(tmp_path, monkeypatch, program: str, said: str) -> None:
    chosen = device_suite.arguments(["--folder", str(tmp_path), "--device", "cpu"])
    run = device_suite.subprocess.Popen
    made = lambda command, **options: run([sys.executable, "-c", program], **options)  # noqa: E731
    monkeypatch.setattr(device_suite.subprocess, "Popen", made)
    rows = device_suite.asked_apart(
        device_suite.questions()["counts"], chosen, 0.4 if "sleep" in program else 30
    )
    assert said in rows[-1].value
