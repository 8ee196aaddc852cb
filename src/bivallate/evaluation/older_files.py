"""Convert evaluation files of earlier versions to the present form."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from bivallate.evaluation.evaluation_identity import Identity

__all__ = ["SCHEMA_1", "identity_from_name", "upgraded"]

SCHEMA_1 = "bivallate-evaluation-1"

Entry = dict[str, Any]


def upgraded(content: Entry, name: str = "") -> Entry:
    """Rename the entries of an evaluation's file of the first schema to the present names.

    Verdicts and numbers stay the same. A "part" is now a stage, and the earlier kinds of search are one. The
    identity is read from the file's name, if that is given and has one.
    """
    renamed = {k: v for k, v in content.items() if k not in ("parts", "part_names")}
    if "part_names" in content:
        renamed["stage_names"] = content["part_names"]
    detail = content.get("attack_detail")
    if isinstance(detail, dict) and isinstance(detail.get("parts"), list):
        others = {k: v for k, v in detail.items() if k != "parts"}
        renamed["attack_detail"] = {**others, "stages": [_stage(one) for one in detail["parts"]]}
    named = identity_from_name(name)
    return renamed if named is None else {"identity": named.to_json()} | renamed


def _stage(entry: Any) -> Any:
    """Convert a stage's entry; an unknown or damaged one is left to the reader's checks."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind not in _CONVERTERS:
        return entry
    return {"kind": "Search", **_CONVERTERS[kind](entry)}


def _converter(turns: str, **fixed: Entry) -> Callable[[Entry], Entry]:
    """The function that converts a kind of stage which had a solver."""

    def convert(old: Entry) -> Entry:
        kept = {k: v for k, v in old.items() if k in ("name", "solver", "objective")}
        number = old.get(turns.lower())
        return {**kept, **fixed, "turns": {"kind": turns} | ({} if number is None else {"n": number})}

    return convert


def _pgd(old: Entry) -> Entry:
    """Convert a kind of stage that was its own solver."""
    budget = {k: v for k, v in old.items() if k in ("steps", "step_size", "start", "direction", "stop")}
    return _converter("Restarts")(old) | {"solver": {"kind": "ScaledPGD", **budget}}


def _multitargeted(old: Entry) -> Entry:
    """Convert PGD towards several targets."""
    return _converter("Targets", objective=DIFFERENCE)(old) | {"solver": _pgd(old)["solver"]}


def _noise(old: Entry) -> Entry:
    """Convert uniform draws."""
    turns = {"kind": "Restarts", "n": old.get("draws")}
    return {"name": old.get("name"), "solver": {"kind": "RandomDraw"}, "turns": turns}


DIFFERENCE: Entry = {"kind": "AimedDifference"}
_CONVERTERS: dict[str, Callable[[Entry], Entry]] = {
    "Ascent": _pgd,
    "RandomNoise": _noise,
    "AutoPGD": _converter("Restarts"),
    "TargetedAutoPGD": _converter("Targets", objective={"kind": "AimedDLR"}),
    "BoundaryWalk": _converter("Restarts"),
    "TargetedBoundaryWalk": _converter("Targets", objective=DIFFERENCE),
    "SquareSearch": _converter("Restarts"),
    "MultiTargeted": _multitargeted,
}

# Files whose identity stands in their name alone are older than L1.
_NAME = re.compile(
    r"(?P<weights>best|last|ema|epoch-\d+)(?:-(?P<split>train|validation))?-(?:linf|l2)-.+-seed\d+"
    r"(?:-on_(?P<quoted>[^-]+)|-(?P<plain>.+?))??(?:-(?P<choice>n|first)(?P<count>\d+))?\.json"
)


def identity_from_name(name: str) -> Identity | None:
    """Read the identity from the name of a file that holds none; None for another kind of name.

    Earlier versions stored it only there; in names of the oldest files data sets are not quoted.
    """
    match = _NAME.fullmatch(name)
    if not match:
        return None
    data = unquote(match["quoted"]) if match["quoted"] else match["plain"] or ""
    count = {match["choice"]: int(match["count"] or 0)}
    n, first = count.get("n"), count.get("first")
    return Identity(weights=match["weights"], split=match["split"] or "test", data=data, n=n, first=first)
