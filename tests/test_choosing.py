"""Which methods docs/choosing.md tells apart from the highest."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import choosing
from benchmarks.records import Row

from bivallate.reproduce.records import RecordedPoints


def rows(method: str, right: list[int], *, points: bool = True, table: str = "T-X", data: str = "same"):
    """A row a seed, with so many of 100 points right, the first ones."""
    place = table, "results", method, "cifar10", 0, "tiny-cnn", "Linf 0.1", "autoattack", "test", 100, 0.9
    made: list[Row] = []
    for seed, k in enumerate(right):
        value = (np.arange(100) < k).astype(int)
        kept = RecordedPoints(value, np.zeros(0), np.arange(100), data) if points else None
        robust = k / 100, k / 100 - 0.1, k / 100 + 0.1
        made.append(Row(*place, *robust, 80.3, seed, "best", "abc", verdicts=kept))
    return made


@pytest.mark.parametrize(
    ("other", "best", "points", "below"),
    [
        ([60], [64], True, False),
        ([60], [66], True, True),  # six points that only one has right: p = 0.03
        ([60], [66], False, False),  # its interval is ten points
        ([60], [71], False, True),
        ([70], [60, 80, 80], True, False),  # higher where both were run
        ([60, 60], [70, 70], True, True),
    ],
)
def test_the_same_points_decide_where_records_have_them(
    other: list[int], best: list[int], points: bool, below: bool
) -> None:
    assert choosing._below(rows("at", other, points=points), rows("trades", best, points=points)) == below


def test_other_points_are_compared_by_the_interval() -> None:
    assert not choosing._below(rows("at", [60]), rows("trades", [66], data="others"))


def test_tables_that_share_a_network_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("at", "trades", "mart", "n-fgsm", "fast-at", "fast-bat", "gairat")
    first = [row for name in names[:5] for row in rows(name, [60])]
    second = [row for name in names[2:] for row in rows(name, [60], table="T-Y")]
    apart = [row for name in names[:5] for row in rows(name, [50], table="T-Z")]
    monkeypatch.setattr(choosing, "every", lambda results: (first + second + apart, 0))
    tables = choosing.shown()
    assert [([s.origin for s in origins], set(methods)) for origins, methods in tables] == [
        (["T-X", "T-Y"], set(names)),
        (["T-Z"], set(names[:5])),
    ]
    text = choosing.tables(tables)
    assert "7 methods, [T-X](results.md), [T-Y](results.md)." in text
    assert "80.3" not in text
    assert "| 100 |" in text
