"""A user's own project: its methods by name, its parts in a written-down run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bivallate as bv

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"


def project(folder: Path) -> dict[str, str]:
    """The tutorial's own file, declared by entry points as if installed; and a broken neighbour."""
    text = TUTORIAL.read_text(encoding="utf-8")
    code = next(block for block in text.split("```python\n")[1:] if "my_methods.py" in block).split("```")[0]
    (folder / "my_methods.py").write_text(code)
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    entries = "[bivallate.methods]\nentropy-at = my_methods:entropy_at\nbroken = no_such_module:method\n"
    (info / "entry_points.txt").write_text(entries)
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def test_the_tutorials_method_trains_resumes_and_is_evaluated(tmp_path):
    environment = project(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bivallate", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    options = ["--epochs", "1", "--batch-size", "400", "--model", "linear", "--out", "r", "--set", "steps=1"]
    for arguments in (
        ["train", "entropy-at", *options],
        ["resume", "r"],
        ["evaluate", "r", "--attack", "fgsm"],
    ):
        result = run(*arguments)
        assert result.returncode == 0, result.stderr
    refused = run("train", "broken")
    assert refused.returncode == 2
    assert "no_such_module" in refused.stderr


def test_a_parts_name_is_taken_once():
    with pytest.raises(bv.UserError, match="taken"):

        @bv.part
        class PGD:
            x: int = 1


def test_an_unknown_part_says_how_to_bring_it():
    with pytest.raises(bv.UserError, match="entry point"):
        bv.Method.from_dict({"threat": {"kind": "Linf", "eps": 0.1}, "solver": {"kind": "MySolver"}})


SENSELESS = [
    lambda t: bv.methods.dynamic(t, c_max=-1),
    lambda t: bv.methods.n_fgsm(t, k=-1),
    lambda t: bv.methods.mart(t, beta=-1),
    lambda t: bv.methods.trades(t, beta=float("nan")),
    lambda t: bv.methods.free_at(t, step_size=-1),
    lambda t: bv.methods.yopo(t, n=-1),
    lambda t: bv.methods.backward_smoothing(t, gamma=float("nan")),
    lambda t: bv.methods.curriculum(t, until=-3),
    lambda t: bv.methods.at(t).but(loss__smoothing=2.0),
    lambda t: bv.methods.gair_fat(t, tau=(0, 3)),
    lambda t: bv.methods.fast_bat(t, cross_at="foo"),
    lambda t: bv.methods.at(0.3),
    lambda t: bv.methods.at(t).but(weighting="KLDRO"),
    lambda t: bv.methods.at(t).but(weighting=bv.KLDRO),
]


@pytest.mark.parametrize("k", range(len(SENSELESS)))
def test_senseless_numbers_and_parts_are_refused_at_construction(k):
    with pytest.raises(bv.UserError):
        SENSELESS[k](bv.Linf(0.1))
