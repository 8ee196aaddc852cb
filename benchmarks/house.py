"""Draw the package's modules for docs/design.md: folders, what each holds, and what imports what.

    python -m benchmarks.house [--check]

Everything comes from the source. A box, or room, is a folder in `bivallate` or a file beside the folders,
with the first line of its docstring. An arrow means imports, also those inside functions and under
TYPE_CHECKING; arrows that follow from others are left out. --check compares the drawing with the source and
writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

import bivallate

ROOT = Path(bivallate.__file__).parent
PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "house.svg"
FORMULA = {"lower", "coupling", "weighting", "upper"}
"""The folders that are the formula: drawn in its colour."""
TOOLS = "nouns and tools"
"""One box for the files beside the folders that import no folder."""

WIDTH, MARGIN, GAP, ROW, LINE = 1180, 20, 18, 46, 13
INK, PALE, WARM, RULE = "#1b1f24", "#f3f4f6", "#fdecd2", "#8a929c"


@dataclass(frozen=True)
class Room:
    """A box of the drawing: its name, its purpose, and the stems of its files."""

    name: str
    line: str
    files: tuple[str, ...]

    @property
    def width(self) -> int:
        """The width in pixels, by the amount of text."""
        if self.name == TOOLS:
            return WIDTH - 2 * MARGIN
        return 190 if not self.files else 270 if len(self.files) < 20 else 360

    @property
    def text(self) -> list[tuple[str, str]]:
        """The lines of the box as (style, text)."""
        wide = self.width // 6
        lines = [("name", self.name + ("/" if self.files and self.name != TOOLS else ""))]
        lines += [("line", part) for part in textwrap.wrap(self.line, wide)]
        return lines + [("file", part) for part in textwrap.wrap(", ".join(self.files), wide + 4)]

    @property
    def height(self) -> int:
        """The height in pixels."""
        return LINE * len(self.text) + 14


def modules() -> dict[str, Path]:
    """Find every module of the package: dotted name -> file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("bivallate", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports() -> dict[str, set[str]]:
    """Find the imports of every module, wherever they are in its text: module -> modules."""
    known = modules()
    arrows: dict[str, set[str]] = {}
    for name, path in known.items():
        there = arrows[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                there.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                longer = [f"{node.module}.{alias.name}" for alias in node.names]
                there.update(full if full in known else node.module for full in longer)
        arrows[name] = {module for module in there if module in known and module != name}
    return arrows


def own(module: str) -> str:
    """The folder, or file beside the folders, that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def rooms() -> tuple[dict[str, Room], dict[str, set[str]]]:
    """The boxes, and for each the boxes it imports."""
    known, raw = modules(), imports()
    folders = {own(name) for name, path in known.items() if path.name == "__init__.py"} - {""}
    tools = {own(name) for name in known} - folders - {""}
    busy = {own(name) for name in raw if any(own(t) in folders for t in raw[name])}
    while more := {own(n) for n in raw if any(own(t) in busy - folders for t in raw[n])} - busy:
        busy |= more  # a file that imports such a file is no tool either
    tools -= busy

    def box(module: str) -> str:
        return TOOLS if own(module) in tools else own(module)

    arrows: dict[str, set[str]] = {}
    for name, targets in raw.items():
        there = {box(target) for target in targets} - {box(name), ""}
        if box(name):
            arrows.setdefault(box(name), set()).update(there)
    drawn = {}
    for name in arrows:
        if name == TOOLS:
            drawn[name] = Room(name, "Imported from everywhere, importing no room.", tuple(sorted(tools)))
        else:
            stems = sorted({n.split(".")[2] for n in known if own(n) == name and n.count(".") > 1})
            drawn[name] = Room(name, _first_line(known[f"bivallate.{name}"]), tuple(stems))
    return drawn, arrows


def _first_line(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.split("\n\n")[0].split()).split(". ")[0]


def levels(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Box -> the row it stands in: above everything that it imports.

    Raises:
        SystemExit: boxes import each other in a cycle, so that they have no order.
    """
    open_: list[str] = []

    @cache
    def level(name: str) -> int:
        if name in open_:
            sys.exit("a circle of rooms: " + " -> ".join([*open_[open_.index(name) :], name]))
        open_.append(name)
        height = 1 + max((level(target) for target in sorted(arrows[name])), default=-1)
        open_.remove(name)
        return height

    return {name: level(name) for name in sorted(arrows)}


def reduced(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Arrows that do not follow from others."""

    @cache
    def reach(name: str) -> frozenset[str]:
        return frozenset(arrows[name]).union(*(reach(target) for target in arrows[name]))

    return sorted(
        (name, target)
        for name, targets in arrows.items()
        for target in targets
        if not any(target in reach(other) for other in targets if other != target)
    )


def draw() -> str:
    """The picture as SVG."""
    boxes, arrows = rooms()
    height = levels(arrows)
    lines = reduced(arrows)
    floors = [[n for n in boxes if height[n] == k] for k in range(max(height.values()), -1, -1)]
    place: dict[str, tuple[float, float]] = {}
    y = float(MARGIN)
    for floor in floors:
        above = {n: [place[a][0] for a, b in lines if b == n and a in place] for n in floor}
        order = sorted(floor, key=lambda n: (sum(above[n]) / len(above[n]) if above[n] else WIDTH / 2, n))
        total = sum(boxes[n].width for n in order)
        gap = max(GAP, (WIDTH - 2 * MARGIN - total) / (len(order) + 1)) if len(order) > 1 else GAP
        x = (WIDTH - total - gap * (len(order) - 1)) / 2
        for name in order:
            place[name] = (x, y)
            x += boxes[name].width + gap
        y += max(boxes[n].height for n in order) + ROW
    return _svg(boxes, place, lines, y - ROW + MARGIN)


def _svg(
    boxes: dict[str, Room],
    place: dict[str, tuple[float, float]],
    lines: Iterable[tuple[str, str]],
    high: float,
) -> str:
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high:.0f}" role="img" '
        'font-family="sans-serif">',
        "<title>The rooms of bivallate: a room imports only rooms below it</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{RULE}"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for name, target in lines:
        (x1, y1), (x2, y2) = place[name], place[target]
        x1, x2 = x1 + boxes[name].width / 2, x2 + boxes[target].width / 2
        if target == TOOLS:
            x2 = x1
        y1 += boxes[name].height
        out.append(
            f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + 34:.0f} {x2:.0f} {y2 - 34:.0f} {x2:.0f} {y2:.0f}" '
            f'fill="none" stroke="{RULE}" marker-end="url(#tip)"><title>{escape(name)} imports '
            f"{escape(target)}</title></path>"
        )
    style = {
        "name": f'font-size="14" font-weight="bold" fill="{INK}"',
        "line": f'font-size="11" fill="{INK}"',
        "file": 'font-size="10" fill="#57606a"',
    }
    for name, room in boxes.items():
        x, y = place[name]
        out.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{room.width}" height="{room.height}" rx="5" '
            f'fill="{WARM if name in FORMULA else PALE}" stroke="{INK}" stroke-width="0.8"/>'
        )
        for k, (kind, text) in enumerate(room.text):
            out.append(
                f'<text x="{x + 8:.0f}" y="{y + 17 + LINE * k:.0f}" {style[kind]}>{escape(text)}</text>'
            )
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    """Write the drawing, or with --check report whether it is out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say whether the drawing is current")
    text = draw()
    if not parser.parse_args().check:
        PICTURE.write_text(text, encoding="utf-8")
    elif PICTURE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PICTURE} is not what the imports say; draw it anew: python -m benchmarks.house")


if __name__ == "__main__":
    main()
