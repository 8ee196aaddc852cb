"""Printed text: names from outside stay text, narrow terminals work, errors are one line and a status."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.reports.hostile import STRINGS

import bivallate as bv
from bivallate import cli, quoting
from bivallate.cli import run as command
from bivallate.errors import UserError
from bivallate.terminal import NAME_WIDTH, literal_console, say, say_json

ROOT = Path(bv.__file__).parent
PRINTERS = {"print", "Console"}


@pytest.fixture(scope="module")
def score() -> bv.Score:
    """An evaluation of ten classes."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10))
    data = torch.rand(40, 1, 2, 2), torch.arange(40) % 10
    return bv.evaluate(model, data, bv.Linf(0.1), "fgsm")


def test_nothing_prints_but_the_one_module():
    """Every other `print` or `Console` would let the text of files through."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path.name != "terminal.py":
                assert node.func.id not in PRINTERS, f"{path}:{node.lineno}: use bivallate.terminal"


@pytest.mark.parametrize("kind", STRINGS)
def test_commands_print_hostile_text_as_text(kind, score, capsys):
    from bivallate.audits import VERDICTS
    from bivallate.commands.audit import show as show_audit
    from bivallate.commands.run_group import table
    from bivallate.commands.score_table import show
    from bivallate.reports.comparison.comparison_table import Comparison

    text = STRINGS[kind]
    show(score, [f"{text}{k}" for k in range(10)])
    table(text, (text, "n"), [(text, "1")])
    threat = {"kind": text, "eps": 0.1}
    about = {"attack": text, "threat": threat, "weights": text, "split": text, "n": 3, "sort": text}
    Comparison(about, (text, "n"), ((text, "1"),), (), (text,), 1).show()
    check = SimpleNamespace(outcome=text, name=text, question=text, finding=text, advice=text)
    numbers = {"n": 1, "clean": 1.0, "claimed": 1.0, "worst": 1.0, "passes": 1, "seconds": 1.0}
    facts = {
        "worst_interval_95": (0, 1),
        "verdict": next(iter(VERDICTS)),
        "claim": text,
        "checks": [check],
        "failed_checks": [check],
    }
    show_audit(SimpleNamespace(**numbers, **facts, threat=bv.Linf(0.1)))
    say(text)
    say(text, to_stderr=True)
    cli._complain(text)
    for out in capsys.readouterr():
        assert out == quoting.visible(out)
        assert quoting.visible(text).split("\n")[0][:20].strip() in out


def test_long_names_are_cut_in_tables_of_classes(score, capsys):
    from bivallate.commands.score_table import show

    show(score, [f"{k}{'x' * 50_000}" for k in range(10)])
    assert len(capsys.readouterr().out) < 200 * 12 * NAME_WIDTH


def test_rich_reads_no_markup_in_tables_titles_and_lines(capsys):
    literal_console().print("[/background] :smiley: [link=x]y[/link]", "[red]")
    assert "[/background] :smiley: [link=x]y[/link] [red]" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["1", "2", "3", "80"])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["methods"]])
def test_narrow_terminals_end(columns, words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert command(words) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) >= 40


@pytest.mark.parametrize("value", [float("nan"), {"x": torch.ones(1)}, {1, 2}, b"x"])
def test_a_result_that_is_no_plain_data_is_one_line(value):
    with pytest.raises(UserError, match="cannot be written as JSON"):
        say_json({"value": value})


def test_json_for_programs_is_ascii(capsys):
    say_json({"x": STRINGS["terminal"] + STRINGS["not utf-8"]})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["x"] == STRINGS["terminal"] + STRINGS["not utf-8"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("wrong \x1b[2J"), 2),
        (FileNotFoundError(2, "No such file", "x\x1b"), 2),
        (RecursionError("maximum recursion depth exceeded"), 1),
        (ValueError(""), 1),
        (KeyError("name"), 1),
    ],
)
def test_every_error_is_one_line_and_a_traceback_with_debug(error, status, monkeypatch, capsys):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(cli, "APP", fails)
    monkeypatch.setattr(cli, "_register", lambda: None)
    assert command(["train"]) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert command(["train", "--debug"]) == status
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_unforeseen_error_keeps_its_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "APP", lambda *_, **__: {}["nothing"])
    monkeypatch.setattr(cli, "_register", lambda: None)
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    assert command([]) == 1
    (kept,) = tmp_path.iterdir()
    assert str(kept) in capsys.readouterr().err
    assert "KeyError: 'nothing'" in kept.read_text()
