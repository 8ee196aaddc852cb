"""The folders import in one direction: types <- lower <- coupling <- weighting, upper <- method <- methods,
step <- run, evaluate <- reports, cli."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bivallate

ROOT = Path(bivallate.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

LAYERS = [
    {"errors", "lazy_import", "renamed", "transfer_to_cpu", "quoting", "version"},
    {"untrusted_files"},
    {"schema"},
    {"plugins", "processes", "roles"},
    {"part_kinds"},
    {"files", "parts"},
    {"from_text", "late_field"},
    {"style"},
    {"types", "checksummed"},
    {"noise", "schedule", "collective", "kept_constants"},
    {"gradient_sums"},
    {"lower"},
    {"evidence", "learnable"},
    {"coupling"},
    {"weighting", "upper"},
    {"method"},
    {"record"},
    {"methods", "step", "frozen_step"},
    {"gradcheck"},
]
RANK = {name: k for k, names in enumerate(LAYERS) for name in names}


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


MODULES = {
    ".".join(("bivallate", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): p
    for p in FILES
}

# Imports inside functions cost a reader the overview. They save start-up time in the command line's own files
# (`cli.py`, `commands/`), whose every option is known before torch is, and here:
LATER = {
    ("bivallate.data.sheet", "bivallate.style"): "matplotlib, for the sheet of a data set alone",
    ("bivallate.demo", "bivallate.reports.demo_figure"): "matplotlib, after the training",
    ("bivallate.run.logger", "bivallate.style"): "matplotlib, which few logs draw with",
    (
        "bivallate.reports.comparison.comparison_table",
        "bivallate.reports.diagnostics.plane",
    ): "matplotlib, for its picture alone",
    ("bivallate.reproduce.campaign", "bivallate.terminal"): "rich, for a person alone",
    (
        "bivallate.reproduce.paper_figures",
        "bivallate.reports.diagnostics.by_name",
    ): "matplotlib and scikit-learn",
}


def arrows(path: Path, *, inside: bool | None = None) -> set[str]:
    """Modules of the package that a file imports anywhere; inside: in functions alone, or outside them."""
    found: set[str] = set()

    def walk(node: ast.AST, within: bool) -> None:
        for child in ast.iter_child_nodes(node):
            deeper = within or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                whole = [f"{child.module}.{alias.name}" for alias in child.names]
                names = [name if name in MODULES else child.module or "" for name in whole]
            if inside is None or inside == within:
                found.update(name for name in names if name in MODULES)
            walk(child, deeper)

    walk(ast.parse(path.read_text()), False)
    return found


def circles(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that close a circle, each seen from the walk that finds it."""
    closing, done, way = [], set[str](), list[str]()

    def visit(module: str) -> None:
        way.append(module)
        for target in sorted(graph[module]):
            if target in way:
                closing.append((module, target))
            elif target not in done:
                visit(target)
        done.add(way.pop())

    for module in sorted(graph):
        if module not in done:
            visit(module)
    return closing


def test_no_circles_among_files() -> None:
    """Imports in functions and under TYPE_CHECKING count: who must know the other to be read, depends on
    it."""
    graph = {module: arrows(path) - {module} for module, path in MODULES.items()}
    found = [f"{MODULES[a].relative_to(ROOT)} imports {b}, which needs it" for a, b in circles(graph)]
    assert not found, "\n".join(found)


def test_no_circles_among_rooms() -> None:
    """A room is a folder, or a file beside the folders; the front (`bivallate` itself) imports whatever it
    shows."""
    graph: dict[str, set[str]] = {}
    because: dict[tuple[str, str], str] = {}
    for module, path in MODULES.items():
        for target in arrows(path) if module != "bivallate" else ():
            if room(target) not in ("", own(path)):
                graph.setdefault(own(path), set()).add(room(target))
                because[own(path), room(target)] = f"{path.relative_to(ROOT)} imports {target}"
        graph.setdefault(own(path), set())
    assert not [because[arrow] for arrow in circles(graph)]


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("c", "a")]
    assert circles({"a": {"b"}, "b": set(), "c": {"a", "b"}}) == []


def test_a_configuration_knows_every_module_that_has_parts() -> None:
    """`part_kinds.load_own` imports the modules of `_PLACES`; parts elsewhere must be imported by these."""
    waiting, found = [*bivallate._PLACES.values()], set[str]()
    while waiting:
        module = waiting.pop()
        if module in MODULES and module not in found:
            found.add(module)
            waiting += [module.rpartition(".")[0], *arrows(MODULES[module], inside=False)]
    holders = {module for module, path in MODULES.items() if "\n@part\n" in path.read_text()}
    assert len(holders) > 40
    assert not holders - found, "import them in a method of methods/, or make a name of them public"


def test_imports_inside_functions_are_few_and_have_a_reason() -> None:
    found = {
        (module, target)
        for module, path in MODULES.items()
        if own(path) not in ("cli", "commands")
        for target in arrows(path, inside=True)
    }
    assert found == set(LATER)
    assert all(LATER.values())


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


BELOW, SURFACE = {"run", "evaluation", "models", "data"}, {"cli", "commands", "reports", "demo"}


@pytest.mark.parametrize("path", [p for p in FILES if own(p) in BELOW], ids=str)
def test_nothing_below_imports_the_surface(path) -> None:
    assert {own(p) for p in FILES} >= BELOW | SURFACE
    for module in imports(path):
        assert room(module) not in SURFACE, f"{path} imports {module}"


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


def test_a_file_stem_stands_once() -> None:
    """But for the commands, which bear the names that are typed."""
    stems: dict[str, list[str]] = {}
    for path in FILES:
        if path.stem != "__init__" and own(path) != "commands":
            stems.setdefault(path.stem, []).append(str(path.relative_to(ROOT)))
    assert {stem: where for stem, where in stems.items() if len(where) > 1} == {}


def test_a_class_name_stands_once() -> None:
    where: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


LONG = {
    "commands/audit.py: audit",
    "commands/curve_and_distances.py: distances",
    "commands/reproduce.py: reproduce",
    "commands/train.py: train",
    "commands/transfer.py: transfer",
    "reports/evidence_tables.py: audits_table",
    "reports/evidence_tables.py: origins_table",
    "run/resuming.py: resume",
    "run/training.py: train",
}
"""What is longer than the rule has it, for the reasons in CONTRIBUTING.md: may only become shorter."""


def test_rooms_are_small() -> None:
    found = set[str]()
    for path in FILES:
        place, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if len(text.splitlines()) > 300:
            found.add(place)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = node.body[0] if ast.get_docstring(node) is not None else None
                told = (doc.end_lineno or 0) - doc.lineno + 1 if doc is not None else 0
                if (node.end_lineno or 0) - node.lineno + 1 - told > 40:
                    found.add(f"{place}: {node.name}")
    assert found == LONG


REPORTS = re.compile(
    r"(Add|Attack|Check|Compare|Fill|Give|Hold|Keep|Let|Look|Make|Measure|Move|Open|Put|Raise|Read|Record|"
    r"Refuse|Remove|Return|Run|Say|Search|Set|Show|Store|Take|Train|Turn|Write)s "
)


def faults(text: str) -> list[str]:
    """Of the docstrings of a module: name, and what is wrong with its first line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        doc = ast.get_docstring(node)
        if doc is None:
            continue
        first, name = doc.partition("\n")[0], getattr(node, "name", "module")
        if not re.search(r"[.!?]$", first):
            found.append(f"{name}: no sentence ends here: {first}")
        if isinstance(node, ast.FunctionDef) and REPORTS.match(first):
            found.append(f"{name}: not in the imperative: {first}")
        paragraphs = doc.split("\n\n")
        found += [f"{name}: said twice: {p}" for p in set(paragraphs) if paragraphs.count(p) > 1]
    return found


def test_first_lines_stand_alone() -> None:
    found = {str(path.relative_to(ROOT)): faults(path.read_text()) for path in ROOT.rglob("*.py")}
    assert len(found) > 200
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_faults_are_found() -> None:
    text = '''
def one():
    """Writes a file."""
def two():
    """A line that goes on
    in the next."""
def three():
    """Write a file."""
def four():
    """Write it.

    Twice.

    Twice.
    """
'''
    assert [fault.partition(":")[0] for fault in faults(text)] == ["one", "two", "four"]
