"""Which methods docs/choosing.md tells apart from the highest."""

from __future__ import annotations

from dataclasses import replace

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
    ("other", "best", "points", "equal"),
    [
        ([60], [64], True, True),
        ([60], [66], True, False),  # six points that only one has right: p = 0.03
        ([60], [73], False, True),  # 13 points, and each interval is 10 to either side: p = 0.07
        ([60], [75], False, False),
        ([70], [60, 80, 80], True, True),  # higher where both were run
        ([60, 60], [70, 70], True, False),
    ],
)
def test_the_same_points_decide_where_records_have_them(
    other: list[int], best: list[int], points: bool, equal: bool
) -> None:
    methods = {"at": rows("at", other, points=points), "trades": rows("trades", best, points=points)}
    assert choosing.equals(methods) == (["trades", "at"] if equal else ["trades"])


def test_other_points_are_compared_by_the_intervals() -> None:
    methods = {"at": rows("at", [60]), "trades": rows("trades", [66], data="others")}
    assert choosing.equals(methods) == ["trades", "at"]


def test_the_number_of_methods_is_corrected_for() -> None:
    methods = {"at": rows("at", [60]), "trades": rows("trades", [66])}
    assert choosing.equals(methods) == ["trades"]
    methods |= {"mart": rows("mart", [58])}  # of three pairs p = 0.008, 0.031 and 0.5: times 3, 2 and 1
    assert choosing.equals(methods) == ["trades", "at"]
    methods["at"] = rows("at", [59])  # 0.016 times 2
    assert choosing.equals(methods) == ["trades"]


def test_training_under_another_norm_does_not_stand_for_the_method() -> None:
    names = ("at", "trades", "mart", "n-fgsm", "fast-at", "fast-bat")
    found = [row for name in names for row in rows(name, [60])]
    found[0] = replace(found[0], trained="L1")
    assert found[0].label == "at (trained under L1)"
    (methods,) = choosing.settings(found).values()
    assert set(methods) == set(names[1:])


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
