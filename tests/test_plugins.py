"""A user's own project: its methods by name, its parts in a written-down run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bivallate as bv
from bivallate.cli import run as command

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"


def blocks(language: str) -> list[str]:
    """The tutorial's blocks of code in their order."""
    parts = TUTORIAL.read_text(encoding="utf-8").split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


def project(folder: Path, site: Path) -> None:
    """The tutorial's own project as its reader has it; in `site` its entry points, as installing writes them,
    and a broken neighbour's."""
    first, *parts = blocks("python")
    (table,) = blocks("toml")
    folder.mkdir()
    (folder / "first.py").write_text(first)
    (folder / "my_methods.py").write_text("\n\n".join(parts))
    (folder / "pyproject.toml").write_text(table)
    site.mkdir()
    asked = f"import setuptools.build_meta as m; m.prepare_metadata_for_build_editable({str(site)!r})"
    ran([sys.executable, "-c", asked], folder)
    info = site / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bivallate.methods]\nbroken = no_such_module:method\n")


def ran(words: list[str], folder: Path, *places: Path) -> str:
    """What a process prints in a folder, with further places to import from."""
    ours = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([*map(str, places), *([ours] if ours else [])])
    here = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=here, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SHORT = "--epochs 1 --batch-size 400 --model linear --set steps=1 --data digits --out"
COMMANDS = f"""
train my_methods:entropy_at {SHORT} r
resume r --method my_methods:entropy_at
train entropy-at {SHORT} installed
methods entropy-at
check-gradient entropy-at --model tiny-cnn
"""
ASK = """
import sys
from bivallate.cli import run
for line in sys.argv[1].strip().splitlines():
    assert run(line.split()) == 0, line
"""
IN_PYTHON = """
import runpy, sys
import bivallate as bv
import my_methods
assert runpy.run_path("first.py")["run"].history[-1]["clean"] > 0.1
own = bv.methods.at(bv.Linf(0.1), steps=1).but(loss=my_methods.Sharpened())
bv.train("linear", "digits", own, epochs=1, batch_size=400)
from bivallate.cli import run
assert run(["train", "broken"]) == 2
"""


def look_where_it_is_not_installed(run: Path) -> None:
    """Whatever needs no more of its method than the name and the threat works."""
    assert command(["evaluate", str(run), "--attack", "fgsm"]) == 0
    assert command(["report", str(run), "--out", str(run / "report.html"), "--no-images"]) == 0
    written = (run / "report.html").read_text(encoding="utf-8")
    assert "entropy-at" in written
    assert "EntropyWeights" in written  # its parts are as the run wrote them
    assert command(["curve", str(run), "--eps", "0.1", "--attack", "fgsm", "--n", "20"]) == 0
    assert command(["diagnose", str(run), "--what", "classes", "--n", "20"]) == 0
    assert command(["diagnose", str(run), "--what", "weights", "--n", "20"]) == 2  # the method's own


def test_every_block_and_command_of_the_tutorial_works(tmp_path: Path) -> None:
    folder, site = tmp_path / "project", tmp_path / "site"
    project(folder, site)
    told = ran([sys.executable, "-c", ASK + IN_PYTHON, COMMANDS], folder, site)
    assert "AT that leans towards examples" in told
    look_where_it_is_not_installed(folder / "installed")
    text = TUTORIAL.read_text(encoding="utf-8")
    for line in COMMANDS.strip().splitlines():  # each stands in the tutorial so
        words = line.split(" --epochs")[0].replace("resume r ", "resume RUN ")
        assert f"bivallate {words}" in " ".join(text.split()), words


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
