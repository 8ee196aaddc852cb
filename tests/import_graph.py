"""What imports what, read from the text of the package: arrows, circles, and what a module loads."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import bivallate

ROOT = Path(bivallate.__file__).parent
MODULES = {
    ".".join(("bivallate", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): p
    for p in sorted(ROOT.rglob("*.py"))
}

Arrow = tuple[str, str]
Graph = Mapping[str, set[str]]


def room(module: str) -> str:
    """A folder, or a file beside the folders; empty for `bivallate` itself and what is not of it."""
    return module.split(".")[1] if module.startswith("bivallate.") else ""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def late_places(package: str) -> dict[str, str]:
    """The `_PLACES` of a package whose names are imported when they are asked for: name -> module."""
    for node in tree(MODULES[package]).body if package in MODULES else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PLACES":
            return ast.literal_eval(node.value)
    return {}


def asked(node: ast.AST) -> set[str]:
    """The modules that an import statement asks for; none for any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert node.module, "a relative import"
    assert not node.level, "a relative import"
    found = set[str]()
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        found.add(whole if whole in MODULES else late_places(node.module).get(alias.name, node.module))
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a file asks for when it is loaded; under TYPE_CHECKING and in functions not."""

    def walk(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            yield from asked(node)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from walk(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                yield from walk(node.body)

    return frozenset(walk(tree(path).body))


@cache
def inside_functions(path: Path) -> frozenset[str]:
    """The modules that a file asks for within its functions."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]
    return frozenset(name for f in functions for node in ast.walk(f) for name in asked(node))


def arrows(path: Path) -> set[str]:
    """The modules of the package that a file asks for anywhere."""
    return {name for node in ast.walk(tree(path)) for name in asked(node) if name in MODULES}


@cache
def loads(module: str) -> frozenset[str]:
    """All modules that loading one loads, itself among them; of other packages only what is asked for."""
    found, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [name.rpartition(".")[0]] if "." in name else []
            waiting += imports(MODULES[name]) if name in MODULES else ()
    return frozenset(found)


def circle(graph: Graph, without: Arrow | None = None) -> list[Arrow]:
    """The arrows of one circle, in their order; empty if there is none."""
    done, way = set[str](), list[str]()

    def visit(module: str) -> list[str]:
        way.append(module)
        for target in sorted(graph[module]):
            if (module, target) == without or target in done:
                continue
            found = [*way[way.index(target) :], target] if target in way else visit(target)
            if found:
                return found
        done.add(way.pop())
        return []

    for module in sorted(graph):
        found = visit(module) if module not in done else []
        if found:
            return list(pairwise(found))
    return []


def wrong_arrows(graph: Graph, ring: list[Arrow], rank: Mapping[str, int]) -> list[Arrow]:
    """Which arrow of a circle has to go: one that runs from a lower room to a higher one.

    Within a room nothing says which file is the lower one: then every arrow whose removal alone leaves no
    circle.
    """
    alone = [arrow for arrow in ring if not circle(graph, without=arrow)] or ring
    return [(a, b) for a, b in alone if rank[room(a)] < rank[room(b)]] or alone
