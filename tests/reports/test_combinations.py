"""The page of combinations is up to date, and the combinations that it calls possible can be composed."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from bivallate.errors import UserError
from bivallate.method import Method
from bivallate.reports.combinations import ROWS, apart, kinds, page

PAGE = Path(__file__).parents[2] / "docs" / "combinations.md"


def test_the_page_is_current() -> None:
    """`python -m bivallate.reports.combinations` makes it anew."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_known_refusals_are_told_with_their_reason() -> None:
    of = {(kind.role, kind.name): kind for row in kinds().values() for kind in row}
    for other in ("L2", "L1"):
        said = apart(of["threat", other], of["coupling", "Barrier"])
        assert said is not None
        assert "Linf" in said
    assert apart(of["threat", "Linf"], of["coupling", "Barrier"]) is None
    assert apart(of["solver", "Free"], of["coupling", "Leaf"]) is None
    assert apart(of["solver", "Free"], of["coupling", "Detached"]) is not None


def _composes(combination) -> bool:
    for values in itertools.product(*(kind.values for kind in combination)):
        try:
            Method(**dict(zip(ROWS, values, strict=True)))
        except UserError:
            continue
        return True
    return False


def test_what_no_pair_forbids_can_be_composed() -> None:
    """The count on the page is of pairs; three parts might still quarrel."""
    every = list(itertools.product(*kinds().values()))
    forbidden: dict[tuple[str, str], str | None] = {}
    for combination in random.Random(0).sample(every, 250):
        pairs = list(itertools.combinations(combination, 2))
        for a, b in pairs:
            if (a.name, b.name) not in forbidden:
                forbidden[a.name, b.name] = apart(a, b)
        allowed = all(forbidden[a.name, b.name] is None for a, b in pairs)
        assert allowed == _composes(combination), [kind.name for kind in combination]
