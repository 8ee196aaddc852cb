"""Method cards: pages on the methods, made from the registry and the docstrings.

`bivallate methods NAME` prints a card; `docs/methods/` holds all of them. Run as a module, it renews the
cards and `catalogue_lists.json`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from bivallate.files import write_text
from bivallate.lower.threat import Linf
from bivallate.methods.entries import Entry, registry
from bivallate.reports import catalogue_lists

PARTS = ("solver", "objective", "coupling", "weighting", "loss")


def one_line(part: Any) -> str:
    """An encoded part in the form of a call in Python."""
    if isinstance(part, dict):
        fields = ", ".join(f"{k}={one_line(v)}" for k, v in part.items() if k != "kind")
        return f"{part['kind']}({fields})"
    if isinstance(part, list):
        return "(" + ", ".join(one_line(item) for item in part) + ")"
    return f"{part:.6g}" if isinstance(part, float) else str(part)


def _typed(value: Any) -> str:
    """The text by which the command line reads a threat, a number or several of these."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    return f"{type(value).__name__.lower()}:{value.eps:.6g}" if hasattr(value, "eps") else str(value)


def card(entry: Entry) -> str:
    """The card of a method as Markdown."""
    threat = Linf(8 / 255)
    method = entry.illustration(threat).to_dict()
    settings = "".join(f" --set {k}={_typed(v)}" for k, v in entry.example(threat).items())
    parameters = ", ".join(f"`{k}={one_line(v)}`" for k, v in entry.parameters.items()) or "none"
    lines = [
        f"# {entry.name}",
        "",
        f"*{entry.family}; {entry.paper}; {entry.cost} per example*",
        "",
        "```text",
        inspect.getdoc(entry.make) or "",
        "```",
        "",
        f"Parameters and defaults: {parameters}.",
        "",
        "Parts at eps = 8/255:",
        "",
        "| row of the picture | part |",
        "| --- | --- |",
        *(f"| {name} | `{one_line(method[name])}` |" for name in PARTS),
        f"| attack mode, replays | `{method['attack_mode']}`, `{method['replays']}` |",
        "",
        f"`bivallate train {entry.name} --data cifar10 --model preact-resnet18{settings}`",
        "",
    ]
    return "\n".join(lines)


def index(entries: dict[str, Entry]) -> str:
    """The page with a table of all methods, by family."""
    rows = [
        "# Methods",
        "",
        "F, B: forward and backward passes per example, a backward for every forward that gradients flow",
        "back through; K: attack steps; m: replays; a double backward is two.",
        "",
        "| family | method | cost | what it is | paper |",
        "| --- | --- | --- | --- | --- |",
    ]
    for e in sorted(entries.values(), key=lambda e: (e.family, e.name)):
        rows.append(f"| {e.family} | [{e.name}]({e.name}.md) | {e.cost} | {e.summary} | {e.paper} |")
    return "\n".join([*rows, ""])


def pages() -> dict[str, str]:
    """File name -> text of every page of `docs/methods/`."""
    entries = {n: e for n, e in registry().items() if e.make.__module__.startswith("bivallate.")}
    return {"index.md": index(entries), **{f"{e.name}.md": card(e) for e in entries.values()}}


def write(folder: Path) -> None:
    """Write all pages, and remove those of methods that no longer exist."""
    texts = pages()
    for name, text in texts.items():
        write_text(folder / name, text)
    for old in folder.glob("*.md"):
        if old.name not in texts:
            old.unlink()


if __name__ == "__main__":
    write(Path("docs/methods"))
    catalogue_lists.write()
