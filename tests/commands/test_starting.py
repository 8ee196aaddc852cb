"""The command line starts quickly, its help is correct, and wrong numbers are refused before any work."""

from __future__ import annotations

import ast
import inspect
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bivallate as bv
from bivallate import cli
from bivallate.cli import APP, run
from bivallate.commands import COMMANDS, stored_lists
from bivallate.methods.entries import registry
from bivallate.parts import decode, from_portable
from bivallate.reports import catalogue_lists
from bivallate.run.recipes.published import recipe_for

HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "pyarrow")
LOOK = (
    "import sys\n"
    "from bivallate.cli import run\n"
    "status = run(sys.argv[1:])\n"
    f"print('LOADED', sorted(sys.modules.keys() & set({HEAVY!r})), status)\n"
)


def loaded(code: str, *arguments: str) -> str:
    """What a fresh process prints last."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        *("--help", "--version", "train --help", "evaluate --help"),
        *("methods", "methods --json", "attacks", "attacks --json", "datasets", "recipes"),
        "recipes --json",
    ],
)
def test_help_and_lists_need_nothing_that_is_slow_to_import(words):
    assert loaded(LOOK, *words.split()) == "LOADED [] 0"


@pytest.mark.parametrize(
    "words",
    ["methdos", "methods --full", "train at --epochs 12e", "train at --epochs 0", "sweep at --seed 1"],
)
def test_what_is_mistyped_is_refused_without_them(words):
    assert loaded(LOOK, *words.split()) == "LOADED [] 2"


def test_the_package_loads_no_plotting():
    code = (
        "import sys\n"
        "import bivallate.evaluation.score, bivallate.audits.result, bivallate as bv\n"
        "bv.train, bv.methods.at\n"
        "print(*(type(f).__name__ for f in (bv.evaluate, bv.audit, bv.data, bv.method)), end=' ')\n"
        "print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    )
    assert loaded(code) == "function function module module False True"


@pytest.mark.parametrize("package", ["bivallate", "bivallate.data"])
def test_what_is_imported_late_is_what_a_type_checker_sees(package):
    module = sys.modules[package]
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    places = module._PLACES
    assert places == {name: place for name, place in seen.items() if place != package}
    assert set(module.__all__) == set(seen)
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))
    root = Path(inspect.getfile(module)).parent
    twice = [name for name in places if (root / name).is_dir() or (root / f"{name}.py").exists()]
    assert not twice, "importing a module of this name would hide the function"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_stored_lists_are_what_the_registries_have():
    assert catalogue_lists.STORED.read_text(encoding="utf-8") == catalogue_lists.text(), (
        "run: python -m bivallate.reports.cards"
    )
    assert catalogue_lists.PLANS.read_text(encoding="utf-8") == catalogue_lists.plans_text(), (
        "run: python -m bivallate.reports.cards"
    )
    fast = stored_lists.recipe_plans()["fast"]
    assert decode(from_portable(fast)) == recipe_for("fast", bv.methods.fast_bat(bv.Linf(8 / 255)), "cifar10")
    rows = stored_lists.methods()
    assert rows == catalogue_lists.method_rows(registry().values())
    assert {row["name"] for row in json.loads(catalogue_lists.text())["methods"]} <= {
        row["name"] for row in rows
    }


def test_a_method_of_the_users_is_in_every_list(capsys):
    @bv.register("of-this-test")
    def mine(threat):
        """Do nothing of one's own."""
        return bv.methods.plain(threat)

    assert run(["methods"]) == 0
    assert "of-this-test" in capsys.readouterr().out
    assert run(["methods", "--json"]) == 0
    assert "of-this-test" in {entry["name"] for entry in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_arguments_and_examples_that_are_read(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    assert run([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert f"Usage: bivallate {name} {command.usage}" in told
    parameters = inspect.signature(command.function()).parameters.values()
    firsts = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
    for parameter in firsts:
        assert f"--{parameter.name}" not in told.split("Parameters")[0], "an argument, not an option"
    assert all(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.KEYWORD_ONLY) for p in parameters)
    for example in command.examples:
        assert f"bivallate {example}\n" in told.replace(" \n", "\n").replace(" " * 2, "") or example in told
        APP.parse_args(shlex.split(example), exit_on_error=False, print_error=False)
    assert max(map(len, told.splitlines())) <= 80


NUMBERS = {
    "train at --epochs 0": "--epochs must be a whole number of at least 1, got 0",
    "train at --batch-size -1": "--batch-size must be a whole number of at least 1",
    "train at --seed -1": "--seed must be a whole number from 0 to 2^63 - 1",
    "train at --seed 9223372036854775808": "--seed must be",
    "train at --max-minutes 0": "--max-minutes must be above 0",
    "train at --max-minutes nan": "--max-minutes must be above 0",
    "train at --patience -1": "--patience must be a whole number of at least 0",
    "train at --threads -1": "--threads must be",
    "train at --average 1.5": "average is a decay",
    "train at --lr nan": "lr must be a finite number",
    "resume RUN --epochs 0": "--epochs must be",
    "resume RUN --max-minutes -1": "--max-minutes must be",
    "evaluate RUN --n 0": "--n must be a whole number of at least 1, got 0",
    "evaluate RUN --first -5": "--first must be",
    "evaluate RUN --seed -1": "--seed must be",
    "evaluate RUN --batch-size 0": "--batch-size must be",
    "evaluate RUN --threads -2": "--threads must be",
    "evaluate RUN --eps many": "--eps must be a number",
    "evaluate RUN --norm l3": "unknown norm",
    "audit RUN --n 0": "--n must be",
    "audit RUN --budget 0": "--budget must be above 0",
    "audit RUN --claimed 56": "--claimed must be at least 0 and at most 1",
    "audit RUN --seed -1": "--seed must be",
    "attack RUN --save x --n 0": "--n must be",
    "attack RUN --save x --first 0": "--first must be",
    "predict RUN x.png --top 0": "--top must be",
    "curve RUN --n 0": "--n must be",
    "curve RUN --batch-size 0": "--batch-size must be",
    "distances RUN --steps 0": "--steps must be",
    "distances RUN --targets -1": "--targets must be",
    "transfer RUN --from RUN --batch-size 0": "--batch-size must be",
    "diagnose RUN --what examples weights": "name of a figure: write --what weights",
    "diagnose RUN --n 1": "--n must be a whole number of at least 2",
    "check-gradient at --n 1": "--n must be a whole number of at least 2",
    "check-gradient at --directions 0": "--directions must be",
    "check-gradient at --seed -1": "--seed must be",
    "reproduce T-F1 --seeds 0": "--seeds must be",
    "reproduce T-F1 --jobs 0": "--jobs must be",
    "demo --epochs 0": "--epochs must be",
    "demo --threads -1": "--threads must be",
}


@pytest.mark.parametrize("words", NUMBERS)
def test_numbers_that_make_no_sense_are_refused_before_any_work(words, capsys):
    """RUN does not exist: whoever looked at it first would say that."""
    assert run(words.split()) == 2
    told = capsys.readouterr().err
    assert NUMBERS[words] in told
    assert len(told.splitlines()) == 1


def test_the_shell_completes_commands_and_options(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert run(["--install-completion", "--shell", "bash"]) == 0
    scripts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("check-gradient" in text and "--batch-size" in text for text in scripts)


def test_a_method_of_ones_own_is_taken_wherever_a_name_is(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_own.py").write_text(
        "import bivallate as bv\n\n\n"
        "def robust(threat, *, steps: int = 2):\n"
        '    """Two steps."""\n'
        "    return bv.methods.at(threat, steps=steps)\n\n\n"
        "def wrong(threat):\n    return 3\n\n\n"
        "def fails(threat):\n    raise KeyError('x')\n"
    )
    monkeypatch.chdir(tmp_path)
    quick = ["--model", "linear", "--epochs", "1", "--batch-size", "400", "--set", "validation.steps=1"]
    assert run(["train", "my_own:robust", *quick, "--set", "steps=1", "--quiet"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert "steps = 1" in (folder / "config.toml").read_text()
    assert run(["resume", str(folder), "--epochs", "2", "--method", "my_own:robust", "--quiet"]) == 0
    assert run(["evaluate", str(folder), "--attack", "fgsm", "--n", "20", "--quiet"]) == 0
    again = ["--config", str(folder / "config.toml"), "--out", str(tmp_path / "again"), "--quiet"]
    assert run(["train", "my_own:robust", *again]) == 0
    texts = [(place / "metrics.jsonl").read_text().count("\n") for place in (folder, tmp_path / "again")]
    assert texts == [2, 2]
    assert run(["methods", "my_own:robust"]) == 0
    assert run(["check-gradient", "my_own:robust", "--model", "linear", "--n", "4", "--directions", "1"]) == 0
    assert run(["recipes", "done", "--method", "my_own:robust"]) == 0
    capsys.readouterr()
    for words, message in {
        "my_own:robust --set step=3": "did you mean 'steps'",
        "my_own:wrong": "a method is needed",
        f"my_own:wrong --config {folder}/config.toml": "is of the method my_own:robust, not of my_own:wrong",
        f"at --config {folder}/config.toml": "leave out 'at'",
        "my_own:fails": "my_own:fails failed with KeyError",
        "my_own:nothing": "has no 'nothing'",
        "no_such:thing": "cannot import 'no_such'",
    }.items():
        assert run(["train", *words.split(), "--out", str(tmp_path / "x"), *quick]) == 2
        assert message in capsys.readouterr().err


def test_no_method_is_imported_because_a_file_names_it(tmp_path, monkeypatch):
    (tmp_path / "a_trap.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('sprung').touch()\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ["--model", "linear", "--epochs", "1", "--batch-size", "400", "--quiet"]
    assert run(["train", "plain", *given, "--out", "x"]) == 0
    text = Path("x/config.toml").read_text()
    assert 'name = "plain"' in text
    Path("x/config.toml").write_text(text.replace('name = "plain"', 'name = "a_trap:robust"'))
    run(["train", "--config", "x/config.toml", "--out", "y", "--quiet"])
    run(["resume", "x"])
    run(["evaluate", "x", "--attack", "clean"])
    assert not Path("sprung").exists()


def test_a_methods_name_from_a_file_leads_nowhere_out_of_runs(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    given = ["--model", "linear", "--epochs", "1", "--batch-size", "400", "--quiet"]
    assert run(["train", "plain", *given, "--out", "x"]) == 0
    text = Path("x/config.toml").read_text()
    Path("c.toml").write_text(text.replace('name = "plain"', 'name = "../../x"'))
    assert run(["train", "--config", "c.toml", "--quiet"]) == 0
    (made,) = Path("runs").iterdir()
    assert 'name = "../../x"' in (made / "config.toml").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["work"]
    assert {p.name for p in Path.cwd().iterdir()} == {"x", "c.toml", "runs"}


def test_python_and_the_front_agree_on_the_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == bv.__version__
    assert cli.APP.version == bv.__version__
