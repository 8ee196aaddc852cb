"""Who takes part in benchmarks/contest.py, and why the other methods of the catalogue do not.

A rival is a method of the catalogue with arguments of its own; a composition has parts of several. Everyone
has one parameter with three values: the one that matters most by its paper, or, where that paper names none,
the number or the length of the attack's steps. The catalogue's default is among the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bivallate import Linf, Method
from bivallate.lower.threat import Threat
from bivallate.methods.entries import create, registry
from bivallate.run.budget import Minibatches, costs_of_epochs

__all__ = ["ENTRANTS", "EPOCHS", "PASSES", "Entrant", "absent"]

Make = Callable[[Threat, Any], Method]
PASSES = {"low": 4, "high": 22}  # an epoch of N-FGSM, and of PGD-10 AT
EPOCHS = 20  # of them
SHARE = 5  # an epoch may take this part of the cost, or the method takes no part
SHORT = {"steps": 2, "step_size": 0.75}  # a short attack with long steps, the lengths in multiples of eps


@dataclass(frozen=True)
class Entrant:
    """One that takes part.

    Attributes:
        name: in tables and file names.
        parameter: that is tuned.
        values: of the parameter, one for each trial.
        make: (threat, value) -> Method.
        method: of the catalogue; empty for a composition that is not there.
        composed: whether it is a composition of ours.
        what: of a composition: what it consists of; of a rival: other arguments that are not the catalogue's.
    """

    name: str
    parameter: str
    values: tuple[Any, ...]
    make: Make = field(repr=False)
    method: str = ""
    composed: bool = False
    what: str = ""


def rival(
    method: str, parameter: str, *values: Any, called: str = "", what: str = "", **others: Any
) -> Entrant:
    """A method of the catalogue, with arguments of its own."""

    def make(threat: Threat, value: Any) -> Method:
        return create(method, threat, **{**others, parameter: value})

    return Entrant(called or method, parameter, values, make, method, what=what)


def composed(attack: str, head: str, parameter: str, *values: Any, what: str, **others: Any) -> Entrant:
    """The attack of one method, with the loss and the weights of another, whose parameter is tuned.

    All attack in train mode, as N-FGSM does, so that those with one head differ in the solver alone.
    """

    def make(threat: Threat, value: Any) -> Method:
        given = create(head, threat, **{**others, parameter: value})
        method = create("n-fgsm", threat) if attack == "noise" else create("at", threat, **SHORT)
        parts = {"loss": given.loss, "weighting": given.weighting}
        return method.but(**parts, attack_mode="train", name=f"{head}-{attack}")

    return Entrant(f"{head}-{attack}", parameter, values, make, composed=True, what=what)


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
    rival("aaer", "variation_weight", 0.15, 0.5, 1.5),  # `loss_weight` changes no gradient
    rival("elle", "coefficient", 100.0, None, 5000.0),
    rival("fgsm-at", "step_size", 0.5, 0.75, 1.0),
    rival("done-fast", "step_size", 2000 / 255, 2500 / 255, 5000 / 255),
    rival("backward-smoothing", "gamma", 0.5, 1.0, 2.0),
    rival("free-at", "replays", 4, 6, 8),
    rival("at", "step_size", 0.5, 0.75, 1.0, called="at-two", what="two steps", steps=2),
)
SHORTENED = (  # class weights within the low cost: with the attack of `at-two`
    rival("cfol", "rate", 5e-6, 1e-4, 4e-4, what="two steps", **SHORT),
    rival("wat", "rate", 0.05, 0.1, 0.2, what="two steps", **SHORT),
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
    rival("cfol", "rate", 5e-6, 1e-4, 4e-4),
    rival("curriculum", "steps", 5, 10, 20),
    rival("dynamic", "steps", 5, 10, 20),
    rival("wmmr", "alpha", 0.25, 0.5, 1.0),
    rival("lbgat", "alpha", 0.0, 3.0, 6.0),
)
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
BASTION = Entrant(
    "bastion",
    "beta",
    (3.0, 6.0, 12.0),
    lambda threat, v: create("bastion", threat, beta=v),
    "bastion",
    True,
    "TRADES' loss, one to three long steps",
)
# For each cost everyone who takes part. Whoever costs more a pass through the data has fewer epochs.
ENTRANTS: Mapping[str, tuple[Entrant, ...]] = {
    "low": (*SINGLE, *SHORTENED, *NOISE, TWO[0], BASTION),
    "high": (*SINGLE, *MANY, *NOISE[:2], *TWO, BASTION),
}
FORMS = {
    "atta-trades": "atta", "fat-trades": "fat", "gair-fat": "gairat", "mail-at": "mail-trades",
    "mail-mart": "mail-trades", "done-adam": "done-pgd", "done-gd": "done-pgd",
}  # fmt: skip
SECOND = "learns its weights on a second stream of images, which nobody else has"
RATE = "the rate is the same for all"
REASONS = {
    **dict.fromkeys(("max-at", "msd", "e-at"), "trains for several threats, and would be judged under one"),
    "plain": "has no attack",
    "yopo": f"its rate must be divided by its replays, and {RATE}",
    "hat": f"its plain and its robust epochs need a rate that rises twice, and {RATE}",
    **dict.fromkeys(("bilaw", "bilaw-trades", "non-parametric"), SECOND),
    **{name: f"another form of {of}, which takes part" for name, of in FORMS.items()},
}


@cache
def absent(cost: str) -> Mapping[str, str]:
    """Method of the catalogue that takes no part -> why.

    Raises:
        ValueError: nothing forbids it to take part.
    """
    present, reasons = {e.method for e in ENTRANTS[cost]}, {}
    for name in sorted(registry().keys() - present):
        if name not in REASONS and not too_long(name, cost):
            raise ValueError(f"{name} fits the {cost} cost: make it an entrant, or give a reason")
        reasons[name] = REASONS.get(name, f"an epoch takes more than 1/{SHARE} of the cost")
    return reasons


def too_long(name: str, cost: str) -> bool:
    """Whether a method's costliest epoch, of few, takes more than its share of the cost."""
    costs = costs_of_epochs(create(name, Linf(0.1)), SHARE, Minibatches(64, 32, 10))
    return max(costs) > EPOCHS * PASSES[cost] / SHARE
