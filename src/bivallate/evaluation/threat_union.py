"""Threats as evaluations name them: one, or the union of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation.points import check_threat
from bivallate.lower.threat import Threat, ThreatModel
from bivallate.parts import part

__all__ = [
    "SAME_RADIUS",
    "ThreatUnion",
    "check_different",
    "listed_radii",
    "members",
    "radius",
    "same_threat",
    "spelt",
    "threat_json",
    "threats_in",
    "union_of",
]

SAME_RADIUS = 1e-5  # relative; radii that the names of files do not tell apart differ by less


@part
class ThreatUnion:
    """The union of several threats: the attacker may choose the one to stay within.

    It is the threat of a `Score` that joins others, see `within_all`. It is not convex and has no projection,
    so no attack runs within it and no method trains under it.

    Attributes:
        threats: two or more.

    Raises:
        UserError: there are fewer, one is there twice, or is a union itself.
    """

    threats: tuple[Threat, ...]

    def __post_init__(self) -> None:
        if len(self.threats) < 2:
            raise UserError(f"a union needs two or more threats, got {len(self.threats)}")
        if any(isinstance(one, ThreatUnion) for one in self.threats):
            raise UserError("a union holds threats, not unions of them; name them side by side")
        check_different(self.threats, "a union")


def check_different(threats: Sequence[Any], what: str) -> None:
    """Raise UserError if a threat is there twice, up to rounding; `what` holds them."""
    if any(_equal(a, b) for a, b in combinations(threats, 2)):
        raise UserError(f"{what} names a threat twice: {listed_radii(threats)}")


def listed_radii(threats: Sequence[Any]) -> str:
    """Norms and radii, with commas between."""
    return ", ".join(map(radius, threats))


def union_of(threats: Sequence[Any]) -> Any:
    """The only threat, or the union of several."""
    return threats[0] if len(threats) == 1 else ThreatUnion(tuple(threats))


def threats_in(given: Any) -> tuple[Any, ...]:
    """The threats that a function was given: None, one, several in a list, or the union that a score has.

    Raises UserError for one that is there twice.
    """
    if given is None:
        return ()
    found = tuple(given) if isinstance(given, list | tuple) else members(given)
    for one in found:
        check_threat(one)
    check_different(found, "threat")
    return found


def members(threat: Any) -> tuple[Any, ...]:
    """The threats of a union; any other threat alone."""
    return threat.threats if isinstance(threat, ThreatUnion) else (threat,)


def same_threat(first: Any, second: Any) -> bool:
    """Whether two threats are equal up to rounding of the radius: 8/255 equals 0.031372549.

    Unions are equal in any order.
    """
    ones, others = members(first), members(second)
    return len(ones) == len(others) and all(any(_equal(a, b) for b in others) for a in ones)


def _equal(first: ThreatModel, second: ThreatModel) -> bool:
    return type(first) is type(second) and math.isclose(first.eps, second.eps, rel_tol=SAME_RADIUS)


def radius(threat: Any) -> str:
    """The norm and eps; eps in 255ths if that is a whole number and two digits do not give it exactly.

    Example:
        >>> from bivallate.lower.threat import L2, Linf
        >>> radius(ThreatUnion((Linf(8 / 255), L2(0.5))))
        'all of Linf 8/255, L2 0.5'
    """
    if isinstance(threat, ThreatUnion):
        return f"all of {listed_radii(threat.threats)}"
    eps, levels = threat.eps, 255 * threat.eps
    short = float(f"{eps:.2g}") == eps or abs(levels - round(levels)) > 1e-6
    return f"{type(threat).__name__} {f'{eps:.4g}' if short else f'{round(levels)}/255'}"


def spelt(threat: Any) -> list[str]:
    """The words of --threat that name a threat, or those of a union.

    Example:
        >>> from bivallate.lower.threat import L2, Linf
        >>> spelt(ThreatUnion((Linf(0.1), L2(0.5))))
        ['linf:0.1', 'l2:0.5']
    """
    return [f"{type(one).__name__.lower()}:{one.eps!r}" for one in members(threat)]


def threat_json(threat: Any) -> dict[str, Any]:
    """A threat as plain data."""
    if isinstance(threat, ThreatUnion):
        return {"kind": "ThreatUnion", "threats": [threat_json(one) for one in threat.threats]}
    return {"kind": type(threat).__name__, "eps": threat.eps}
