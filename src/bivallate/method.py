"""`Method`: the choice of threat, solver, objective, coupling, weighting and loss (see `step.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from typing import Any

import torch
from torch import nn

from bivallate import plugins
from bivallate.coupling.implicit import Coupling, detached
from bivallate.errors import UserError, unknown
from bivallate.from_text import override
from bivallate.lower.modes import AttackMode
from bivallate.lower.objective import cross_entropy
from bivallate.lower.problem import LossPromises, Objective
from bivallate.lower.solver import Solver
from bivallate.lower.threat import Threat, ThreatModel
from bivallate.part_kinds import load_own
from bivallate.parts import decode, encode, part, rebased, step_sizes, written
from bivallate.roles import Role, parts_within
from bivallate.transfer_to_cpu import OneTransfer
from bivallate.types import Clock, Facts
from bivallate.upper.loss import Loss, adversarial
from bivallate.weighting.base import Weighting, equal

ROLES: dict[str, type[Role]] = {
    "solver": Solver,
    "objective": Objective,
    "coupling": Coupling,
    "weighting": Weighting,
    "loss": Loss,
}
# The catalogue's functions by name, for `but(threat=...)`, which calls them again. `register` in
# methods/entries.py, which imports this file, fills it and keeps the rest of what is registered. Who reads
# it calls `load_own` first, so that nothing depends on what has been imported.
MAKERS: dict[str, Callable[..., Method]] = {}
MODES = ("eval", "train", "train-tracking")


@part
class Method:
    """An immutable specification of how to train: the parts of the picture in `step.py`.

    min over theta of mean_i [ w_i robust_i(theta, x_i + delta_i*) + anchor_i(theta, x_i + delta_i*) ].

    Attributes:
        threat: the set of perturbations.
        solver, objective: the lower level, and what it maximises.
        coupling: the gradient that passes through the lower level.
        weighting: w_i.
        loss: robust and anchor: what w_i multiplies, and what it does not. Both may depend on delta.
        replays: how often each minibatch is used.
        accumulate: one parameter update after all replays instead of one after each.
        attack_mode: BatchNorm while attacking: "eval", "train" (batch statistics; the running statistics do
            not move) or "train-tracking" (they move, as in the public code of the fast family).
        name: of the method, in logs and tables.
        made: name and parameters of the catalogue's function that made it; no part of the specification, and
            not written into configurations.

    Raises:
        UserError: a value that is no part of its role, or parts that cannot work together.

    Example:
        >>> from bivallate import methods, Linf, KLDRO
        >>> trades_with_dro = methods.trades(Linf(8 / 255)).but(weighting=KLDRO())
    """

    threat: Threat
    solver: Solver
    objective: Objective = field(default=cross_entropy)
    coupling: Coupling = field(default=detached)
    weighting: Weighting = field(default=equal)
    loss: Loss = field(default=adversarial)
    replays: int = 1
    accumulate: bool = False
    attack_mode: AttackMode = "eval"
    name: str = "custom"
    made: tuple[str, dict[str, Any]] | None = field(
        default=None, compare=False, repr=False, metadata={"written": False}
    )

    def __post_init__(self) -> None:
        if self.attack_mode not in MODES:
            raise unknown("attack mode", str(self.attack_mode), MODES)
        if not (isinstance(self.replays, int) and self.replays >= 1):
            raise UserError(f"replays must be a whole number of at least 1, got {self.replays!r}")
        if not hasattr(self.threat, "project") or isinstance(self.threat, type):
            raise UserError(f"{self.threat!r} cannot serve as the threat of a method: write Linf(8 / 255)")
        for name, role in ROLES.items():
            value = getattr(self, name)
            if not isinstance(value, role):
                raise UserError(
                    f"{value!r} cannot serve as the {name} of a method: it is no {role.__name__} (your own "
                    f"derives from bivallate.{role.__name__})"
                )
        for each in parts_within(self):
            each.check(self)

    @property
    def threats(self) -> tuple[ThreatModel, ...]:
        """All threats that it trains against: `threat`, and what its solver attacks beside it."""
        return self.solver.threats(self.threat)

    def but(self, **parts: Any) -> Method:
        """Return a copy with some parts replaced; `but(solver__steps=20)` sets a field within a part.

        Whole parts are replaced first and all at once, so that parts that need each other can be given in any
        order. Fields within parts are set afterwards, in the order given. A new `threat` also replaces every
        value that the catalogue's function derived from the old threat, such as step sizes; values that were
        set by hand stay.

        Raises:
            UserError: an unknown part or field; or a value derived from the old threat that cannot be derived
                anew and must be given too: it has been changed since, or the function of the method's name is
                not known here (a method without a name keeps its values).
        """
        whole = {path: value for path, value in parts.items() if "__" not in path}
        for path in whole:
            if path not in written(Method):
                raise unknown("part of a method", path, written(Method))
        within = {path.replace("__", "."): value for path, value in parts.items() if "__" in path}
        threat = whole.get("threat", self.threat)
        for path in [path for path in within if path.startswith("threat.")]:
            threat = override(threat, path.removeprefix("threat."), within.pop(path))
        if threat != self.threat:
            whole = self._parts_for(threat, {*whole, *within}) | whole | {"threat": threat}
        method = dataclasses.replace(self, **whole)
        for path, value in within.items():
            method = override(method, path, value)
        return method

    def _parts_for(self, threat: Any, by_user: set[str]) -> dict[str, Any]:
        """The parts that another threat changes.

        by_user: dotted paths of the values that the user gives.
        """
        if self.made is None and self.name == "custom":
            return {}
        pair, moved = self._made_anew(threat), {}
        name = self.made[0] if self.made else self.name
        why = f"is not what {name} makes of {self.threat!r}"
        if pair is None:
            why = f"may follow from {self.threat!r}, and the function of {name} is not known here"
        for role in [role for role in written(Method) if role not in ("threat", "name")]:
            own = getattr(self, role)
            if pair is None:
                stuck = step_sizes(own, role)
            else:
                moved[role], stuck = rebased(own, getattr(pair[0], role), getattr(pair[1], role), role)
            for path in stuck:
                if not any(path == g or path.startswith(f"{g}.") for g in by_user):
                    raise UserError(
                        f"{path} of {self.name} {why}, so it cannot follow to {threat!r}: give it too, as "
                        f"{path.replace('.', '__')}=..., or create the method anew"
                    )
        return moved

    def _made_anew(self, threat: Any) -> tuple[Method, Method] | None:
        """What the catalogue's function makes of the old and the new threat; None if it is unknown."""
        load_own()
        name, parameters = self.made or (self.name, {})
        make = MAKERS.get(name) or plugins.loaded().get(name)
        if make is None:
            return None
        try:
            return make(self.threat, **parameters), make(threat, **parameters)
        except TypeError:  # a user's function with parameters that must be given, read from a file
            return None

    def stepped(self, length: float, number: float = 1.0) -> Method:
        """Return the method with longer or shorter, more or fewer attack steps.

        Every step size, in solver and coupling, is multiplied by `length`, every number of steps by `number`,
        that of a weighting which counts them too.
        """
        if length == number == 1:
            return self
        parts = {part: getattr(self, part) for part in ("solver", "coupling", "weighting")}
        return dataclasses.replace(self, **{k: each.stepped(length, number) for k, each in parts.items()})

    def bind(self, facts: Facts) -> BoundMethod:
        """Build the stateful parts for one run; nothing is shared with other runs."""
        return BoundMethod(self, self.solver.bind(facts), self.weighting.bind(facts))

    def to_dict(self) -> dict[str, Any]:
        """The method as plain data for a configuration; `Method.from_dict` is the inverse."""
        return encode(self)

    @staticmethod
    def from_dict(entry: dict[str, Any]) -> Method:
        """A method from its written form. Raises UserError for unknown parts or fields."""
        return decode({"kind": "Method", **entry})


class BoundMethod:
    """A method with the state of one run in its solver and weighting.

    The other parts have no state and are those of the specification. A training may set `threat` anew, while
    its radius grows.

    Attributes:
        spec: the method that was bound.
        sharing: what the loss promises, so that a coupling may make the pass at the solution for it.
    """

    def __init__(self, spec: Method, solver: Solver, weighting: Weighting) -> None:
        self.spec, self.solver, self.weighting = spec, solver, weighting
        self.threat, self.objective, self.coupling, self.loss = (
            spec.threat,
            spec.objective,
            spec.coupling,
            spec.loss,
        )
        # Weights that are differentiable add a term of their own to the gradient at the logits, which is then
        # no multiple of the objective's, whatever the loss declares.
        collinear = spec.loss.follows(spec.objective) and not weighting.differentiable
        self.sharing = LossPromises(spec.loss.reuses_forward, collinear)
        self.replays, self.accumulate = spec.replays, spec.accumulate
        self.attack_mode: AttackMode = spec.attack_mode
        self.unread = OneTransfer()  # records of this minibatch's replays

    def updates_after(self, clock: Clock) -> bool:
        """Whether the step at this moment ends with an update of the parameters.

        With `accumulate` the gradients of a minibatch's replays add up, and only the last replay updates.
        """
        return not self.accumulate or clock.replay == self.replays - 1

    def _memories(self) -> dict[str, nn.Module]:
        parts = {"solver": self.solver, "weighting": self.weighting}
        return {name: p for name, p in parts.items() if isinstance(p, nn.Module)}

    def state_dict(self) -> dict[str, Any]:
        """All state, by part: tensors and, under "_extra_state", plain values."""
        return {f"{part}.{k}": v for part, m in self._memories().items() for k, v in m.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; raises KeyError or RuntimeError if the state is another method's."""
        for name, memory in self._memories().items():
            mine = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            memory.load_state_dict(mine)


def check_two_labels(method: Method) -> None:
    """Raise UserError where a part of the method reads one label an image, for images that have two (CutMix).

    Margins, class weights, stops at the first misclassification and per-example memories read one label.
    """
    stuck = {role: getattr(method, role) for role in ROLES if not getattr(method, role).takes_two_labels()}
    if stuck or method.replays > 1:
        what = ", ".join(f"the {role} {type(value).__name__}" for role, value in stuck.items())
        raise UserError(
            f"cutmix gives an image two labels, and {method.name} reads one of each "
            f"({what or 'it replays minibatches'}): use an augmentation without cutmix, or a method such as "
            "at, trades or n-fgsm"
        )


def check_bound(method: Any) -> None:
    """Raise UserError for a method that has not been bound to a run."""
    if not isinstance(method, BoundMethod):
        raise UserError(
            f"a step needs a method with the state of one run, got {type(method).__name__}: bind it once, "
            "bound = method.bind(facts), and hand that over at every step"
        )


def check_method(method: Any) -> Any:
    """Return the argument if it is a method.

    Raises UserError for a function of the catalogue that was not called, and for anything else.
    """
    if isinstance(method, Method):
        return method
    name = getattr(method, "__name__", "")
    if callable(method):
        raise UserError(
            f"{name or method!r} makes a method and was not called: write bv.methods.{name or 'NAME'}"
            "(bv.Linf(8/255))"
        )
    raise UserError(f"a method is needed, such as bv.methods.at(bv.Linf(8/255)), got {method!r}")


def facts_for(
    model: nn.Module, x: torch.Tensor, classes: int, rows: int | None = None, padding: int = 0
) -> Facts:
    """The facts of a run on images like x (B, C, H, W); device and dtype are the model's."""
    first = next(model.parameters(), x)
    shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
    return Facts(rows or len(x), shape, classes, first.device, first.dtype, padding)
