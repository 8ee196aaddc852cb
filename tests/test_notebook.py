"""The tutorial notebook runs, and its outputs are what its cells print."""

from __future__ import annotations

import re

import pytest
from benchmarks.notebook import NOTEBOOK, markdown, printed, read, run, source


def numberless(text: str) -> str:
    """What does not hang on how a processor rounds: words, but no figures and no pictures."""
    return re.sub(r"[\d.%]+|[ .:*#]{16,}", "", text)


@pytest.mark.slow
def test_every_cell_runs_and_prints_what_is_shown() -> None:
    """`python -m benchmarks.notebook` runs it and keeps what it prints."""
    stored = read()
    before = [numberless(printed(cell)) for cell in stored["cells"] if cell["cell_type"] == "code"]
    after = [numberless(printed(cell)) for cell in run(read())["cells"] if cell["cell_type"] == "code"]
    assert after == before


def test_a_failing_cell_fails() -> None:
    with pytest.raises(AssertionError):
        run({"cells": [{"cell_type": "code", "source": ["x = 1\n", "assert x == 2"]}]})


def test_it_is_a_notebook_whose_cells_were_run_in_order() -> None:
    stored = read()
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 4)
    cells = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(
        set(cell) == {"cell_type", "execution_count", "metadata", "outputs", "source"} for cell in cells
    )


def test_the_site_shows_cells_and_outputs() -> None:
    text = markdown(read())
    assert not text.startswith("#")
    for cell in read()["cells"]:
        if cell["cell_type"] == "code":
            assert source(cell) in text
            assert printed(cell).rstrip() in text


def test_links_of_the_notebook_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", markdown(read()))
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links), links
