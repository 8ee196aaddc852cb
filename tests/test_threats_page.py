"""The table of docs/threats.md counts images over seeds and threats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import threats


def test_all_three_counts_the_images_that_are_right_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"clean": "1111", "linf": "1100", "l2": "0110", "l1": "0111"}
    for seed, passes in ((0, 40), (1, 60)):
        found = right | {"l2": "1110"} if seed else right
        record = {"method": "at", "trained": "l2", "seed": seed, "right": found, "passes": passes}
        record |= {
            "radii": threats.RADII,
            "attack": threats.ATTACK,
            "alarms": ["chance"] * seed,
            "commit": "abc1234",
            "machine": "made up",
        }
        (tmp_path / f"at-l2-{seed}.json").write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.setattr(threats, "RECORDS", tmp_path)
    text = threats.table(threats.read())
    linf = "100.0 [100.0, 100.0] | 50.0 [50.0, 50.0]"
    rest = "62.5 [50.0, 75.0] | 75.0 [75.0, 75.0] | 25.0 [25.0, 25.0]"
    assert f"| L2 | [at](methods/at.md) | {linf} | {rest} | 50 |" in text
    assert "Mean over the seeds 0, 1 [lowest, highest], 4 test images" in text
    assert "Alarms of the sentinel: at under L2." in text


def test_the_picture_has_a_row_for_each_network() -> None:
    axes = threats.drawn(threats.read()).axes[0]
    assert len(axes.get_yticks()) == len(threats.CELLS)
    assert len(axes.get_xticks()) == len(threats.COLUMNS)
