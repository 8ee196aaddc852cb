"""Commands on a run whose data have moved accept the data's new place, and refuse other data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.data.builders import grow

from bivallate.cli import run as command

IMAGES = [f"{name}/{k}.png" for name in ("cat", "dog", "eel") for k in range(10)]
QUICK = ["--epochs", "1", "--model", "linear", "--batch-size", "16", "--eps", "0.1"]
FEW = ["--n", "6"]
COMMANDS = {
    "resume": [],
    "evaluate": ["--attack", "fgsm"],
    "audit": ["--budget", "0.3", *FEW],
    "attack": ["--attack", "fgsm", "--save", "made"],
    "curve": ["--attack", "fgsm", "--eps", "0,0.1"],
    "distances": ["--steps", "1", "--targets", "1"],
    "transfer": ["--attack", "fgsm", "--from", "twin"],
    "diagnose": ["--what", "confusion", "--attack", "fgsm", *FEW],
    "report": [],
}
OTHER_DATA = ("evaluate", "audit", "attack")  # what they are for; the others mean the run's own


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in run/ on the images in own/."""
    root = tmp_path_factory.mktemp("moved")
    grow(root / "own", IMAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert command(["train", "plain", "--data", "own", "--out", "run", "--quiet", *QUICK]) == 0
        assert command(["evaluate", "run", "--attack", "fgsm", "--quiet"]) == 0
    return root


@pytest.mark.parametrize("name", COMMANDS)
def test_it_goes_on_where_the_data_lie_now(name, trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "run", tmp_path / "twin")
    shutil.copytree(trained / "own", tmp_path / "new")
    grow(tmp_path / "others", [f"{kind}/{k}.png" for kind in ("cat", "dog", "eel") for k in range(20, 26)])
    monkeypatch.chdir(tmp_path)
    (trained / "own").rename(trained / "away")
    try:
        capsys.readouterr()
        lost = command([name, "run", *COMMANDS[name]])
        told = capsys.readouterr()
        page = (tmp_path / "run/report.html").read_text() if name == "report" else told.err
        assert "--data PLACE" in page
        assert lost == (0 if name == "report" else 2)
        assert command([name, "run", *COMMANDS[name], "--data", "new"]) == 0
        if name == "report":
            assert "no images are shown" not in (tmp_path / "run/report.html").read_text()
        capsys.readouterr()
        with_others = command([name, "run", *COMMANDS[name], "--data", "others", *_anew(name)])
        told = capsys.readouterr()
        page = (tmp_path / "run/report.html").read_text() if name == "report" else told.err
        if name in OTHER_DATA:
            assert with_others == 0, told.err
        elif name == "resume":
            assert with_others == 2
        else:
            assert "does not hold the data" in page
            assert len([line for line in told.err.splitlines() if line.startswith("bivallate:")]) <= 1
    finally:
        (trained / "away").rename(trained / "own")


def _anew(name: str) -> list[str]:
    return ["--overwrite"] if name == "attack" else []
