"""Who takes part in benchmarks/contest.py: rivals of the catalogue, and compositions of the package's parts.

Everyone has one parameter with three values: the one that matters most by its paper, or, where that paper
names none, the number or the length of the attack's steps. The catalogue's default is among the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bivallate import Method
from bivallate.lower.threat import Threat
from bivallate.methods.entries import create

__all__ = ["ENTRANTS", "Entrant"]

Make = Callable[[Threat, Any], Method]
SHORT = {"steps": 2, "step_size": 0.75}  # a short attack with long steps, the lengths in multiples of eps


@dataclass(frozen=True)
class Entrant:
    """One that takes part.

    Attributes:
        name: in tables and file names.
        parameter: that is tuned.
        values: of the parameter, one for each trial.
        make: (threat, value) -> Method.
        composed: whether it is a composition of ours.
        what: of a composition: what it consists of.
    """

    name: str
    parameter: str
    values: tuple[Any, ...]
    make: Make = field(repr=False)
    composed: bool = False
    what: str = ""


def rival(name: str, parameter: str, *values: Any, **others: Any) -> Entrant:
    """A method of the catalogue, as it stands there."""
    return Entrant(
        name, parameter, values, lambda threat, v: create(name, threat, **{parameter: v}, **others)
    )


def composed(attack: str, head: str, parameter: str, *values: Any, what: str, **others: Any) -> Entrant:
    """The attack of one method, with the loss and the weights of another, whose parameter is tuned."""

    def make(threat: Threat, value: Any) -> Method:
        given = create(head, threat, **{**others, parameter: value})
        method = create("n-fgsm", threat) if attack == "noise" else create("at", threat, **SHORT)
        return method.but(loss=given.loss, weighting=given.weighting, name=f"{head}-{attack}")

    return Entrant(f"{head}-{attack}", parameter, values, make, True, what)


SINGLE = (
    rival("n-fgsm", "k", 1.0, 2.0, 3.0),
    rival("fast-at", "step_size", 1.0, 1.25, 1.5),
    rival("fast-at-ga", "coefficient", 0.2, 1.0, 5.0),
    rival("fast-bat", "step_size", 2000 / 255, 2500 / 255, 5000 / 255),
    rival("atta", "step_size", 0.35, 0.48, 0.7, reset=None),
    rival("fgsm-pgi", "weight", 5.0, 10.0, 20.0),
    rival("liet", "weight", 50.0, 100.0, 200.0),
    rival("nuat", "weight", 2.0, 4.5, 9.0),
    rival("gat", "weight", 5.0, 10.0, 20.0),
    rival("sora", "step_size", 1.5, 2.0, 2.5),
    rival("aaer", "loss_weight", 0.75, 1.5, 3.0),
    rival("backward-smoothing", "gamma", 0.5, 1.0, 2.0),
    rival("free-at", "replays", 4, 6, 8),
)
MANY = (
    rival("at", "steps", 5, 10, 20),
    rival("trades", "beta", 3.0, 6.0, 9.0),
    rival("mart", "beta", 3.0, 5.0, 8.0),
    rival("ikl", "beta", 10.0, 20.0, 40.0),
    rival("at-awp", "gamma", 0.005, 0.01, 0.02),
    rival("trades-awp", "gamma", 0.0025, 0.005, 0.01),
    rival("mail-trades", "slope", 1.0, 2.0, 5.0),
    rival("gairat", "shift", -2.0, -1.0, 0.0),
    rival("fat", "step_size", 0.15, 0.226, 0.35),
    rival("done-pgd", "temperature", 1.0, None, 10.0),
    rival("faal", "radius", 0.25, 0.5, 1.0),
    rival("wat", "rate", 0.05, 0.1, 0.2),
    rival("dafa", "scale", 0.5, 1.0, 2.0),
    rival("cfa", "margin", 0.25, 0.5, 0.75),
    rival("atta-trades", "beta", 3.0, 6.0, 9.0, reset=None),
)
CHEAP = (rival("n-fgsm", "k", 1.0, 2.0, 3.0), rival("atta", "step_size", 0.35, 0.48, 0.7, reset=None))
HEADS = (
    ("trades", "beta", (3.0, 6.0, 12.0), {}, "TRADES' loss"),
    ("mart", "beta", (3.0, 5.0, 8.0), {}, "MART's loss"),
    ("trades-awp", "gamma", (0.0025, 0.005, 0.01), {"warm_up": 0}, "TRADES' loss at perturbed weights"),
    ("wat", "rate", (0.05, 0.1, 0.2), {}, "TRADES' loss with WAT's class weights"),
    ("faal", "radius", (0.25, 0.5, 1.0), {"base": "trades"}, "TRADES' loss with FAAL's class weights"),
)
NOISE, TWO = (
    tuple(
        composed(attack, head, parameter, *values, what=f"{what} on {words}", **others)
        for head, parameter, values, others, what in HEADS
    )
    for attack, words in (("noise", "N-FGSM's point"), ("two", "the point of two long steps"))
)
AT_TWO = Entrant(
    "at-two",
    "step_size",
    (0.5, 0.75, 1.0),
    lambda threat, v: create("at", threat, steps=2, step_size=v),
    True,
    "cross-entropy at the point of two long steps",
)
BASTION = Entrant(
    "bastion",
    "beta",
    (3.0, 6.0, 12.0),
    lambda threat, v: create("bastion", threat, beta=v),
    True,
    "TRADES' loss, one to three long steps",
)
# For each cost everyone who takes part. Whoever costs more a pass through the data has fewer epochs.
ENTRANTS: Mapping[str, tuple[Entrant, ...]] = {
    "low": (*SINGLE, *NOISE, AT_TWO, TWO[0], BASTION),
    "high": (*MANY, *CHEAP, *NOISE[:2], AT_TWO, *TWO, BASTION),
}
