"""The method cards in the documentation agree with the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from bivallate.reports import cards

DOCS = Path(__file__).parents[2] / "docs" / "methods"


@pytest.mark.skipif(not DOCS.exists(), reason="installed without the documentation")
def test_cards_are_up_to_date():
    written = {p.name: p.read_text(encoding="utf-8") for p in DOCS.glob("*.md")}
    assert written == cards.pages(), "run: python -m bivallate.reports.cards"


def test_every_card_names_its_cost_its_source_and_a_reference():
    for name, text in cards.pages().items():
        if name not in ("index.md", "plain.md"):
            assert ("Cost" in text and "Reference" in text) or "parameters as" in text, name
