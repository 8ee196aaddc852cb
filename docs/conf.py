"""The site that `make docs` builds from these pages with Sphinx; every warning is an error there.

Pages are plain Markdown that reads well without the site. What only the site needs is added here: the
navigation, the reference of the commands, the records, and docstrings as reStructuredText.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # benchmarks/, which makes what pages show of the records

project = "bivallate"
copyright = "the authors of bivallate, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
root_doc = "index"
highlight_language = "none"  # of blocks that name no language: commands and formulas

html_theme = "furo"
html_title = "bivallate"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["records.js"]
html_copy_source = False

myst_heading_anchors = 6  # as GitHub names them, so that a link works in both places
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Caption -> what the page is called in the navigation -> page. `tests/test_docs.py` holds every page of docs/
# to be in here once.
NAVIGATION: dict[str, dict[str, str]] = {
    "Begin": {
        "Tutorial": "notebook",
        "A robust model": "walkthrough",
        "The demo": "demo",
        "Which method?": "choosing",
        "Glossary": "glossary",
    },
    "Use": {
        "Data": "data",
        "Models": "models",
        "Trained networks": "zoo",
        "Recipes": "recipes",
        "Fine-tuning": "finetuning",
        "Defaults": "defaults",
        "Runs": "runs",
        "GPU": "device",
        "Sweeps": "sweeps",
        "Clusters": "cluster",
        "Evaluation": "evaluation",
        "Audit": "audit",
        "Sentinel": "sentinel",
        "Gallery": "gallery",
        "Reliability": "reliability",
    },
    "What was measured": {
        "All records": "records",
        "Against the papers": "papers",
        "The papers' tables": "results",
        "Every method on digits": "methods",
        "Three threats": "threats",
        "Bastion": "bastion",
        "The contest": "contest",
        "BiLAW's rate": "bilaw",
        "DONE's inner steps": "barrier",
        "Cost": "cost",
        "Reproducing": "reproduce",
    },
    "Methods and parts": {
        "Methods": "methods/index",
        "Combinations": "combinations",
        "Your own method": "tutorial",
        "Adding to it": "extending",
    },
    "Reference": {
        "Commands": "commands",
        "Train, attack, judge": "api/running",
        "Parts of a method": "api/parts",
        "Catalogue": "api/methods",
        "Data sets": "api/data",
        "Networks": "api/models",
    },
    "The project": {
        "Design": "design",
        "Decisions": "decisions",
        "Dependencies": "dependencies",
    },
}
CARDS = sorted(f"methods/{page.stem}" for page in (DOCS / "methods").glob("*.md") if page.stem != "index")


def _toctree(lines: list[str], caption: str = "") -> str:
    head = [f":caption: {caption}"] if caption else []
    return "\n".join(["", "```{toctree}", ":hidden:", *head, "", *lines, "```", ""])


def commands() -> str:
    """The reference of the command line, from the commands' own help."""
    from bivallate import cli

    cli._register()
    text = cli.APP.generate_docs(output_format="markdown", heading_level=1, recursive=True)
    text = text[text.index("**Commands**") :]  # without the table of contents, which the site has
    return re.sub(r"^\* \[`(.+?)`\]\(#.+?\)", r"* [`\1`](#bivallate-\1)", text, flags=re.MULTILINE)


def notebook() -> str:
    """The notebook with its outputs."""
    from benchmarks.notebook import markdown, read

    return markdown(read())


def records() -> str:
    """All records as plots and a table."""
    from benchmarks.records_page import html

    return f"```{{raw}} html\n{html(DOCS.parent / 'results')}\n```\n"


MADE = {"commands": commands, "notebook": notebook, "records": records}


def _complete(app: Any, name: str, source: list[str]) -> None:
    """Adds to a page what only the site shows."""
    for key, make in MADE.items():
        if name == key:
            source[0] = source[0].replace(f"<!-- site: {key} -->", make())
    if name == root_doc:
        for caption, pages in NAVIGATION.items():
            source[0] += _toctree([f"{label} </{page}>" for label, page in pages.items()], caption)
    if name == "methods/index":
        source[0] += _toctree([f"/{page}" for page in CARDS])


def plain_to_rst(line: str) -> str:
    """A line of a docstring, which is plain text with `code` in it, as reStructuredText."""
    pieces = re.split(r"(``?[^`]+``?)", line)
    for k, piece in enumerate(pieces):
        if k % 2:
            pieces[k] = f"``{piece.strip('`')}``"
        else:
            pieces[k] = re.sub(r"(?<!\\)([*|]|(?<=\w)_(?!\w))", r"\\\1", piece)
    return "".join(pieces)


def attributes_listed(lines: list[str]) -> list[str]:
    """A docstring with its section "Attributes" as a definition list; several names may share a line."""
    made, within = [], False
    for line in lines:
        if line.rstrip() == "Attributes:":
            made += [".. rubric:: Attributes", ""]
            within = True
        elif not within or not line.strip():
            made.append(line)
        elif not line.startswith(" "):
            made.append(line)
            within = False
        elif found := re.match(r"    ([\w*][\w, *]*): (.*)", line):
            made += [f"``{found[1]}``", f"    {found[2]}"]
        else:
            made.append(f"    {line.strip()}")
    return made


def _before_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = attributes_listed(lines)


def _after_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    rst = re.compile(r"\s*(>>>|\.\. )")
    lines[:] = [line if rst.match(line) else plain_to_rst(line) for line in lines]


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("env-get-outdated", lambda *_: [*MADE, root_doc, "methods/index"])  # more than their files
    app.connect("source-read", _complete)
    app.connect("autodoc-process-docstring", _before_napoleon, priority=100)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=900)
    return {"parallel_read_safe": False}
