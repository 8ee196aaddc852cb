"""The commands that messages suggest work as they are printed, whatever the folders are called."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from tests.data.builders import grow

import bivallate as bv
from bivallate.cli import APP, _register
from bivallate.cli import run as command
from bivallate.demo import _next
from bivallate.errors import UserError
from bivallate.run.checkpoint import newest
from bivallate.run.folder import RunFolder
from bivallate.run.signals import Interrupted

OWN = '''
from torch import nn
import bivallate as bv
from bivallate.parts import part
from bivallate.upper.loss import Adversarial

@part
class NextOwn(Adversarial):
    """A loss of one's own."""

def net(num_classes, shape, activation="relu"):
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, num_classes))

def robust(threat):
    """With a part of one's own."""
    return bv.methods.plain(threat).but(loss=NextOwn())
'''
QUICK = ["--epochs", "1", "--batch-size", "16", "--eps", "0.1", "--set", "validation.steps=1", "--quiet"]
AT_ONCE = ["--max-minutes", "1e-9"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory whose name needs quotes, with data and a module of one's own."""
    where = tmp_path / "my runs; rm -rf $HOME"
    where.mkdir()
    grow(where / "the data", [f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(20)])
    (where / "next_own.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "next_own", raising=False)  # its part is forgotten after every test
    monkeypatch.chdir(where)
    return where


def parsed(line: str) -> list[str]:
    """The words of a printed line, which the real parser takes."""
    words = shlex.split(line)
    assert words[0] == "bivallate", line
    _register()
    APP.parse_args(words[1:], exit_on_error=False, print_error=False)
    return words[1:]


def printed(capsys, mark: str) -> str:
    told = capsys.readouterr().err
    found = re.search(rf"{mark} (.*)", told)
    assert found, told
    return found[1]


CASES = {
    "named parts": ["plain", "--model", "linear"],
    "a network of one's own": ["plain", "--model", "next_own:net"],
    "a method of one's own": ["next_own:robust", "--model", "linear"],
    "both": ["next_own:robust", "--model", "next_own:net"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_lines_of_an_interruption_and_of_an_end_work_as_printed(case, place, capsys):
    out = place / "a run"
    given = [*CASES[case], "--data", "the data", "--out", str(out)]
    assert command(["train", *given, *QUICK, *AT_ONCE]) == 130
    line = printed(capsys, "Go on with:")
    words = parsed(line)
    assert ("--method=next_own:robust" in words) == ("next_own:robust" in given)
    assert ("next_own:net" in words) == ("next_own:net" in given)
    (place / "the data").rename(place / "new place")
    assert command([*words, "--data", "new place", *AT_ONCE]) == 130
    line = printed(capsys, "Go on with:")  # which says where the data lie now
    assert "--data=" in line
    assert command(parsed(line)) == 0
    line = printed(capsys, "next:")
    assert "--data=" in line
    assert command([*parsed(line), "--attack", "fgsm", "--quiet"]) == 0


def test_what_only_code_can_hand_over_again_is_a_call_in_python(tmp_path):
    with pytest.raises(Interrupted) as raised:
        bv.train(
            bv.models.create("linear", num_classes=10, shape=(1, 8, 8)),
            bv.data.load("digits").but(name=""),
            bv.methods.plain(bv.Linf(0.1)),
            out=tmp_path / "net",
            max_minutes=1e-9,
        )
    call = str(raised.value).partition("Go on with: ")[2]
    assert call == f"bivallate.resume({str(tmp_path / 'net')!r}, dataset=...) in Python"


@pytest.mark.parametrize("line", _next(Path("my runs/demo")))
def test_what_the_demo_says_next_is_taken_by_the_parser(line):
    words = parsed(line)
    assert all("my runs/demo" in word for word in words if word.startswith("my"))


def test_other_lines_quote_the_folders_that_they_name(place, capsys):
    folder = place / "a run"
    assert (
        command(["train", "plain", "--data", "the data", "--out", str(folder), "--model", "linear", *QUICK])
        == 0
    )
    with pytest.raises(UserError, match="exists already") as raised:
        RunFolder.create(folder)
    assert parsed(re.findall("`(.*?)`", str(raised.value))[0]) == ["resume", str(folder)]
    for file in (folder / "checkpoints").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="begin anew with") as raised:
        newest(folder / "checkpoints")
    assert str(folder) in parsed(re.findall("`(.*?)`", str(raised.value))[0])
    capsys.readouterr()
    assert command(["datasets", "the data", "--set", "data.size=8"]) == 0
    told = capsys.readouterr().out
    assert command(parsed(re.findall("contact sheet: (.*)", told)[0])) == 0
    assert (place / "sheet.png").exists()


def test_a_network_of_ones_own_keeps_its_activation_in_check_gradient(place, monkeypatch, capsys):
    text = OWN.partition("def robust")[0].replace(', activation="relu"', "").replace("NextOwn", "NetOwn")
    (place / "net_own.py").write_text(text)
    monkeypatch.syspath_prepend(str(place))
    words = ["check-gradient", "at", "--model", "net_own:net", "--n", "4", "--directions", "1"]
    assert command(words) == 0, capsys.readouterr().err
    assert command([*words, "--activation", "silu"]) == 2
    assert "brings its own activation" in capsys.readouterr().err
