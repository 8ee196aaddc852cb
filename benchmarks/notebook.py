"""Run the cells of the tutorial notebook one after the other and store their outputs in it.

    python -m benchmarks.notebook        # runs docs/tutorial.ipynb and writes its outputs into it

A notebook is a JSON file, and the cells of this one are plain Python, so Jupyter is not needed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from bivallate.files import write_text

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def read(path: Path = NOTEBOOK) -> dict[str, Any]:
    """Read the notebook file."""
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict[str, Any]) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def printed(cell: dict[str, Any]) -> str:
    """What a cell printed when the notebook was last run."""
    return "".join(text for output in cell["outputs"] for text in output["text"])


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Runs all cells of code in one fresh namespace, and puts what each prints, and the value that it ends
    with, into its outputs. Whatever a cell raises is raised."""
    space: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            text = _run(source(cell), f"<cell {count}>", space)
            stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
            cell |= {"execution_count": count, "outputs": [stream] if text else []}
    return notebook


def _run(code: str, name: str, space: dict[str, Any]) -> str:
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, name, "exec"), space)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), space)
            if value is not None:
                print(repr(value))
    return out.getvalue()


def markdown(notebook: dict[str, Any]) -> str:
    """The notebook as Markdown for the site, without its title."""
    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(source(cell))
        else:
            parts.append(f"```python\n{source(cell)}\n```")
            if text := printed(cell):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts).partition("\n")[2].strip() + "\n"


if __name__ == "__main__":
    write_text(NOTEBOOK, json.dumps(run(read()), indent=1, ensure_ascii=False) + "\n")
