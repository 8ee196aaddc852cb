"""The folders import in one direction: types <- lower <- coupling <- weighting, upper <- method <- methods,
step <- run, evaluate <- reports, cli."""

from __future__ import annotations

import ast
import importlib
import random
import re
import sys
from pathlib import Path

import pytest
from tests.import_graph import (
    MODULES,
    ROOT,
    Arrow,
    Graph,
    arrows,
    circle,
    imports,
    inside_functions,
    loads,
    room,
    wrong_arrows,
)

import bivallate
from bivallate.commands import COMMANDS

FILES = sorted(ROOT.rglob("*.py"))

LAYERS = [
    {
        "errors",
        "lazy_import",
        "renamed",
        "transfer_to_cpu",
        "quoting",
        "version",
        "safe_streams",
        "startup_interrupt",
        "toml",
    },
    {"untrusted_files", "terminal", "hub_access"},
    {"schema"},
    {"plugins", "processes", "roles", "zoo"},
    {"part_kinds"},
    {"files", "parts"},
    {"from_text", "late_field"},
    {"style"},
    {"types", "checksummed"},
    {"noise", "schedule", "collective", "kept_constants"},
    {"gradient_sums", "data"},
    {"lower"},
    {"evidence", "learnable"},
    {"coupling", "models"},
    {"weighting", "upper", "evaluation"},
    {"method"},
    {"record"},
    {"methods", "step", "frozen_step"},
    {"gradcheck", "run"},
    {"reports"},
    {"audits", "demo", "reproduce"},
    {"installation"},
    {"commands"},
    {"cli"},
    {"__main__"},
    {""},
]
"""All rooms from the lowest to the highest: each imports lower ones alone, wherever in its files. The last is
the front, `bivallate` itself, which nobody imports."""
RANK = {name: k for k, names in enumerate(LAYERS) for name in names}


def own(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


WITHOUT = {
    "torch": "takes seconds, which help, lists and refusals would wait for",
    "numpy": "as torch",
    "scipy": "few commands test anything",
    "sklearn": "one data set is scikit-learn's",
    "matplotlib": "few commands draw",
    "PIL": "few commands read pictures",
    "pyarrow": "few commands read Parquet",
    "huggingface_hub": "few commands ask the hub",
    "safetensors": "few commands read weights",
    "timm": "need not be installed",
    "torch._dynamo": "takes seconds, and few runs compile",
    "torch._functorch": "as torch._dynamo",
    "fcntl": "not on Windows",
    "resource": "not on Windows",
}
"""Why an import stands in a function: loading the file then goes without one of these."""

LATER = {
    ("bivallate.data.sheet", "bivallate.style"): "matplotlib, for the sheet of a data set alone",
    ("bivallate.demo", "bivallate.reports.demo_figure"): "matplotlib, after the training",
    ("bivallate.run.logger", "bivallate.style"): "matplotlib, which few logs draw with",
    (
        "bivallate.reports.comparison.comparison_table",
        "bivallate.reports.diagnostics.plane",
    ): "matplotlib, for its picture alone",
    (
        "bivallate.reproduce.paper_figures",
        "bivallate.reports.diagnostics.by_name",
    ): "matplotlib and scikit-learn",
}
"""Imports of the package in functions cost a reader the overview: outside of the command line's own files,
`cli.py` and `commands/`, whose every option is known before torch is, these alone."""


def spared(module: str, target: str) -> set[str]:
    """What loading a module goes without because it imports the target in a function."""

    def slow(names: frozenset[str]) -> set[str]:
        ways = {".".join(name.split(".")[:k]) for name in names for k in (1, 2)}
        return ways & WITHOUT.keys()

    return slow(loads(target)) - slow(loads(module))


def graph_of_files() -> dict[str, set[str]]:
    return {module: arrows(path) - {module} for module, path in MODULES.items()}


def told(graph: Graph, ring: list[Arrow]) -> str:
    """A circle, and which import is to go."""
    way = " -> ".join([ring[0][0], *(target for _, target in ring)])
    wrong = wrong_arrows(graph, ring, RANK)
    which = "against the layers" if len(wrong) == 1 else "one of these has to go, each breaks the circle"
    return f"{way}\n{which}: " + "; ".join(f"{a} imports {b}" for a, b in wrong)


def test_no_circles_among_files() -> None:
    """Imports in functions and under TYPE_CHECKING count: who must know the other to be read, depends on it.

    Names in strings do not: `part_kinds.load_own` imports the modules of `bivallate._PLACES`, nearly all, and
    many of them import `parts`, which asks it. It does so when a configuration is read, never when a module
    is loaded, and knows none of them: that list of names is the one way back (docs/design.md).
    """
    graph = graph_of_files()
    ring = circle(graph)
    assert not ring, told(graph, ring)


def test_a_circle_is_told_with_the_arrow_that_closes_it() -> None:
    """One arrow too many at random places of today's graph."""
    graph, dice = graph_of_files(), random.Random(0)
    below = {module: reached(graph, module) for module in graph}
    pairs = sorted((a, b) for b in graph for a in below[b] if a != b)
    crossing = [pair for pair in pairs if room(pair[0]) != room(pair[1])]
    within = [pair for pair in pairs if room(pair[0]) == room(pair[1])]
    assert len(crossing) > 10_000
    assert len(within) > 500
    for a, b in dice.sample(crossing, 40) + dice.sample(within, 20):
        more = {**graph, a: graph[a] | {b}}
        ring = circle(more)
        named = wrong_arrows(more, ring, RANK)
        assert (a, b) in named
        assert len(named) == 1 or room(a) == room(b)
        assert all(f"{way} ->" in told(more, ring) for way, _ in ring)
        assert f"{a} imports {b}" in told(more, ring).splitlines()[1]


def reached(graph: Graph, start: str) -> set[str]:
    found, waiting = set[str](), [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert circle({"a": {"b"}, "b": set(), "c": {"a", "b"}}) == []


def test_a_configuration_knows_every_module_that_has_parts() -> None:
    """`part_kinds.load_own` imports the modules of `_PLACES`; parts elsewhere must be imported by these."""
    waiting, found = [*bivallate._PLACES.values()], set[str]()
    while waiting:
        module = waiting.pop()
        if module in MODULES and module not in found:
            found.add(module)
            waiting += [module.rpartition(".")[0], *imports(MODULES[module])]
    holders = {module for module, path in MODULES.items() if "\n@part\n" in path.read_text()}
    assert len(holders) > 40
    assert not holders - found, "import them in a method of methods/, or make a name of them public"


def test_imports_inside_functions_are_few_and_have_a_reason() -> None:
    later = {(module, target) for module, path in MODULES.items() for target in inside_functions(path)}
    assert len(later) > 100
    idle = [
        f"{module}: {target} can stand at the top" for module, target in later if not spared(module, target)
    ]
    assert not idle, "\n".join(sorted(idle))
    assert {name for arrow in later for name in spared(*arrow)} == WITHOUT.keys()
    elsewhere = {(a, b) for a, b in later if b in MODULES and room(a) not in ("cli", "commands")}
    assert elsewhere == LATER.keys()
    assert all({**LATER, **WITHOUT}.values())


@pytest.mark.parametrize("module", MODULES)
def test_direction(module) -> None:
    for other in arrows(MODULES[module]) - {module}:
        if room(other) != room(module):
            assert RANK[room(other)] < RANK[room(module)], f"it imports {other} against the direction"


def test_the_rule_covers_all_rooms() -> None:
    assert RANK.keys() == {room(module) for module in MODULES}
    assert len(RANK) == sum(map(len, LAYERS))
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
    """But for the files that hold the command of their name, which is typed."""
    stems: dict[str, list[str]] = {}
    of_commands = {Path(c.place.partition(":")[0]).stem: c.place.partition(":")[2] for c in COMMANDS.values()}
    for path in FILES:
        typed = own(path) == "commands" and of_commands.get(path.stem) == path.stem
        if path.stem != "__init__" and not typed:
            stems.setdefault(path.stem, []).append(str(path.relative_to(ROOT)))
    assert {stem: where for stem, where in stems.items() if len(where) > 1} == {}


def test_no_name_of_a_package_hides_a_module_of_it() -> None:
    """`import bivallate.evaluation.attacks as m` would give what the package has under that name."""
    hidden = []
    for module in MODULES:
        above, _, name = module.rpartition(".")
        if above and name != "__main__":
            loaded = importlib.import_module(module)
            hidden += [module] if getattr(sys.modules[above], name) is not loaded else []
    assert not hidden


def test_a_class_name_stands_once() -> None:
    where: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


LONG = {
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


def test_contributing_names_what_is_longer() -> None:
    text = (ROOT.parents[1] / "CONTRIBUTING.md").read_text()
    rule = text[text.index("11. Small rooms") : text.index("**New records**")]
    told, folder, functions = set[str](), "", list[str]()
    for word in re.findall(r"`([^`]+)`", rule.partition("too:")[2]):
        if word.endswith("/"):
            folder = word
        elif word.endswith(".py"):
            told |= {f"{folder}{word}: {function}" for function in functions}
            functions = []
        else:
            functions.append(word)
    assert (told, functions) == (LONG, [])


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
