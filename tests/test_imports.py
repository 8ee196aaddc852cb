"""The folders import in one direction: types <- lower <- coupling <- weighting, upper <- method <- methods,
step <- run, evaluate <- reports, cli."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bivallate

ROOT = Path(bivallate.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

LAYERS = [
    {"errors", "quoting"},
    {"opening"},
    {"schema"},
    {"plugins", "processes"},
    {"files", "parts"},
    {"style"},
    {"types", "sealed", "roles"},
    {"noise", "schedule", "collective"},
    {"lower"},
    {"evidence", "learnable"},
    {"coupling"},
    {"weighting", "upper"},
    {"method"},
    {"record"},
    {"methods", "step", "probe"},
    {"check"},
]
RANK = {name: k for k, names in enumerate(LAYERS) for name in names}
APPLICATIONS = {
    "audit",
    "run",
    "evaluate",
    "reports",
    "cli",
    "commands",
    "data",
    "models",
    "demo",
    "doctor",
    "recipes",
    "reproduce",
}


def imports(path: Path) -> list[str]:
    """Names of modules that a file imports when it is loaded; under TYPE_CHECKING and in functions not."""
    found: list[str] = []

    def walk(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                found.extend(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                found.append(node.module or "")
                if node.module == "bivallate":
                    found.extend(f"bivallate.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                walk(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                walk(node.body)

    walk(ast.parse(path.read_text()).body)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if module.startswith("bivallate.") else ""


def own(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


CORE = [p for p in FILES if own(p) in RANK]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_direction(path) -> None:
    for module in imports(path):
        target = room(module)
        if target == "" or target == own(path) or target.startswith("_"):
            continue
        assert target in RANK, f"{path.name}: the core imports {module}"
        assert RANK[target] < RANK[own(path)], f"{path.name} imports {module} against the direction"


def test_the_rule_covers_the_core() -> None:
    rooms = {own(p) for p in FILES}
    assert set(RANK) <= rooms
    assert {"lower", "coupling", "weighting", "upper"} <= {own(p) for p in CORE}
    assert imports(ROOT / "coupling" / "barrier.py"), "the reader of imports must read something"
    assert "bivallate.lower.problem" in imports(ROOT / "step.py")


@pytest.mark.parametrize(
    "path", [p for p in FILES if own(p) in ("run", "evaluate", "models", "data")], ids=str
)
def test_nothing_below_imports_the_surface(path) -> None:
    for module in imports(path):
        assert room(module) not in ("cli", "commands", "reports", "demo"), f"{path} imports {module}"


def test_no_torchvision() -> None:
    """Neither here nor in a function: a fresh machine has none."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "torchvision" for n in names), path


def test_the_tutorial_is_short() -> None:
    assert len((ROOT / "step.py").read_text().splitlines()) <= 60


def test_names_that_say_nothing_are_not_used() -> None:
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "common", "misc"), path
