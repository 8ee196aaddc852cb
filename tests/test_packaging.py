"""Ranges, pins and the lock file agree; what is built holds what it needs and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(file: str) -> dict[str, set[str]]:
    """Package -> versions that a file of pins names for it."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / file).read_text().splitlines():
        if line and not line.startswith("#"):
            need = Requirement(line)
            (exact,) = need.specifier
            assert exact.operator == "==", line
            found.setdefault(canonicalize_name(need.name), set()).add(exact.version)
    return found


UNLOCKED = {"trackio"}
"""Extras that want older versions than the pins: trackio 0.43 has Pillow below 13."""


def wanted() -> list[Requirement]:
    lines = [
        *PROJECT["dependencies"],
        *(
            line
            for name, extra in PROJECT["optional-dependencies"].items()
            if name not in UNLOCKED
            for line in extra
        ),
    ]
    return [need for line in lines if canonicalize_name((need := Requirement(line)).name) != "bivallate"]


@pytest.mark.parametrize("need", wanted(), ids=lambda need: need.name)
def test_a_requirement_states_a_lowest_version_and_is_locked_within_its_range(need) -> None:
    assert any(part.operator == ">=" for part in need.specifier), f"{need} has no lowest version"
    versions = pinned("requirements.lock")[canonicalize_name(need.name)]
    assert all(need.specifier.contains(version) for version in versions), (need, versions)


def test_the_lock_holds_the_pins() -> None:
    """`make lock` makes it anew."""
    locked = pinned("requirements.lock")
    assert {name: locked.get(name) for name in pinned("constraints.txt")} == pinned("constraints.txt")


def test_classifiers_are_the_versions_that_are_tried() -> None:
    told = {
        line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)
    }
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert told == {word.strip('" ') for word in matrix.split(",")}
    assert min(told) in PROJECT["requires-python"]


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
