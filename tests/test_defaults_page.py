"""docs/defaults.md agrees with its records, which have the present defaults and are above chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import defaults

ROOT = Path(__file__).parents[1]
RATIO = 1.5  # by which robust accuracy exceeds chance, as does the lower end of its interval by something


def record(data: str, method: str) -> dict[str, Any]:
    path = ROOT / defaults.RECORDS / f"{data}-{method}-{defaults.SEED}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def faults(kept: dict[str, Any]) -> list[str]:
    """What says that a training has learned nothing, or lost it."""
    chance, low = kept["commonest"], kept["interval_95"][0]
    found = [f"robust {kept['robust']:.1%}, chance {chance:.1%}"] if kept["robust"] < RATIO * chance else []
    found += [f"the interval of robust begins at {low:.1%}"] if low <= chance else []
    return found + [f"alarm: {kind}" for kind in sorted(set(kept["alarms"]))]


@pytest.mark.parametrize("method", defaults.METHODS)
@pytest.mark.parametrize("data", defaults.DATA)
def test_every_default_learns_and_was_measured_as_it_is(data: str, method: str) -> None:
    kept = record(data, method)
    assert faults(kept) == []
    assert defaults.current(kept, data, method), "measure anew: python -m benchmarks.defaults"


def test_the_page_shows_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / defaults.PAGE).read_text(encoding="utf-8")
    shown = page.partition(defaults.BEGIN)[2].partition(defaults.END)[0]
    assert shown.strip() == defaults.table().strip()
    assert "not run" not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"robust": 0.11},
        {"interval_95": [0.09, 0.3]},
        {"alarms": ["chance"]},
        {"alarms": ["catastrophic", "robust"]},
    ],
)
def test_a_record_at_chance_is_noticed(change: dict[str, Any]) -> None:
    kept = record("digits", "at")
    assert faults(kept) == []
    assert faults(kept | change)
    other = json.loads(json.dumps(kept))
    other["config"]["optimizer"]["lr"] = 0.3
    assert not defaults.current(other, "digits", "at")
