"""The page of the catalogue shows what its records hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import catalogue

from bivallate.evaluation.statistics import tail

ROOT = Path(__file__).parents[1]
SHARES = [[1.0, 0.5, None, 0.25], [0.5, 0.5, None, 0.0]]  # robust accuracy of each class; one has no image
POINTS = [10, 8, 0, 4]


def record(method: str, seed: int) -> dict[str, Any]:
    return {
        "method": method, "seed": seed, "clean": 0.9, "robust": 0.5, "tail_30": 0.25, "last_robust": 0.5,
        "per_class": SHARES[seed], "class_points": POINTS, "forward": 2.0, "backward": 2.0, "effective": 1.0,
        "commit": "abc1234", "machine": "made up",
    }  # fmt: skip


def written(folder: Path, records: list[dict[str, Any]]) -> None:
    for each in records:
        (folder / f"{each['method']}-{each['seed']}.json").write_text(json.dumps(each), encoding="utf-8")


def row(text: str, method: str) -> dict[str, str]:
    """The cells of a method by the names of their columns."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line[:1] == "|"]
    (found,) = (line for line in lines if f"[{method}](" in line[2])
    return dict(zip(lines[0], found, strict=True))


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalogue, "RECORDS", tmp_path)
    monkeypatch.setattr(catalogue, "REASONS_FILE", tmp_path / "none.json")
    return tmp_path


def test_worst_class_and_gini_are_of_the_classes_that_have_images(made_up: Path) -> None:
    written(made_up, [record("at", seed) for seed in (0, 1)])
    cells = row(catalogue.table(), "at")
    assert cells["worst class"] == "12.5 [0.0, 25.0]"
    # accuracies 1/4, 1/2, 1: all ordered pairs differ by 3, of 2 * 9 times the mean 7/12; then 0, 1/2, 1/2
    assert cells["Gini"] == f"{(2 / 7 + 1 / 3) / 2:.3f} [{2 / 7:.3f}, {1 / 3:.3f}]"
    assert (cells["RA last"], cells["seeds"]) == ("50.0 [50.0, 50.0]", "2")


def test_a_head_tells_how_few_images_a_class_has(made_up: Path) -> None:
    written(made_up, [record("at", 0)])
    # Wilson, 2 of 4, z = 1.96: 1/2 -+ z sqrt(1/16 + z^2 / 64) / (1 + z^2 / 4), the class of four images
    assert "only 4 to\n10 test images" in catalogue.table()
    assert "from 15 to 85 %" in catalogue.table()


def test_a_training_that_ended_with_an_error_is_counted_and_not_averaged(made_up: Path) -> None:
    failed = {"method": "at", "seed": 1, "failed": "a gradient is not finite"}
    written(made_up, [record("at", 0), failed, failed | {"method": "trades"}])
    text = catalogue.table()
    assert row(text, "at")["seeds"] == "1 of 2"
    assert row(text, "at")["worst class"] == "25.0 [25.0, 25.0]"
    assert row(text, "trades")["SA"] == "ended with an error"
    assert row(text, "plain")["SA"] == "not run"


def test_a_network_without_a_robust_point_is_as_unequal_as_can_be(made_up: Path) -> None:
    none = record("at", 0) | {"per_class": [0.0, 0.0, None, 0.0], "robust": 0.0}
    written(made_up, [none])
    assert row(catalogue.table(), "at")["Gini"] == "inf [inf, inf]"


def test_the_page_is_of_the_records_and_every_method_below_the_bar_has_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    text = catalogue.table()
    assert catalogue.PAGE.read_text(encoding="utf-8") == text
    below = {line.split("**")[1] for line in text.splitlines() if line.startswith("- **")}
    assert below == set(json.loads(catalogue.REASONS_FILE.read_text(encoding="utf-8")))


def test_the_classes_of_every_record_make_its_accuracies() -> None:
    for path in sorted((ROOT / "results/catalogue").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "failed" not in found:
            hits, counts = catalogue.class_hits(found)
            assert hits.sum() / counts.sum() == pytest.approx(found["robust"])
            assert tail(hits, counts, 30)[0] == pytest.approx(found["tail_30"])
