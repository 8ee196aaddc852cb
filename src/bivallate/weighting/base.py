"""`Weighting`: the base class of the example weights, with equal weights and a burn-in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.kept_constants import filled_like
from bivallate.parts import OF_EPOCHS, part
from bivallate.roles import Role
from bivallate.types import Clock, Evidence, Facts


class NotFitted(UserError):
    """Raised by a rule that must be fitted to a minibatch before it can weigh it."""


class LookaheadLoss(Protocol):
    """A step's `Lookahead`, as a weighting knows it: lookahead(w) with weights w (B,).

    Returns the loss on a second data stream after one virtual step with these weights. It carries its exact
    gradient in w, computed by a Jacobian-vector product or by the second-order graph.
    """

    def __call__(self, weights: Tensor, *, second_order: bool = False) -> Tensor: ...


class Weighting(Role, ABC):
    """Evidence -> (B,) weights of the robust losses.

    The upper level minimises mean_i(w_i robust_i + anchor_i), so weights of mean 1 keep the scale of the
    loss; each rule states its scale. Calling a weighting detaches the weights unless `differentiable` is
    true. `needs_meta` says whether the rule learns from a second data stream.
    """

    differentiable: bool | ClassVar[bool] = False
    needs_meta: ClassVar[bool] = False

    def bind(self, facts: Facts) -> Weighting:
        """Build the stateful part for one run; a rule without state returns itself."""
        return self

    @abstractmethod
    def weigh(self, evidence: Evidence) -> Tensor:
        """(B,) weights; changes no state."""

    def __call__(self, evidence: Evidence) -> Tensor:
        """(B,) weights, detached unless the rule declares otherwise."""
        if self.differentiable:
            return self.weigh(evidence)
        with torch.no_grad():
            return self.weigh(evidence)

    def update(self, evidence: Evidence) -> None:
        """Move the running state, once a step, before the weights are computed."""
        return

    def fit(self, evidence: Evidence, lookahead: LookaheadLoss) -> None:
        """Learn the rule itself (a third level) from `lookahead`; do nothing by default."""
        return

    def log(self) -> dict[str, float | Tensor]:
        """What the rule reports for the run's record, as `LowerProblem.log`."""
        return {}


@part
class Equal(Weighting):
    """w_i = 1."""

    def takes_two_labels(self) -> bool:
        """True: it reads no label."""
        return True

    def weigh(self, evidence: Evidence) -> Tensor:
        return filled_like(evidence.robust, 1)


equal = Equal()


@part
class After(Weighting):
    """Burn-in: w_i = 1 in the first epochs, another rule afterwards.

    During the burn-in the rule does not move its state and does not learn.

    Attributes:
        rule: the weighting that takes over.
        burn_in: fraction of all epochs in [0, 1]; the first weighted epoch is round(burn_in * epochs),
            counted from 0.
    """

    rule: Weighting
    burn_in: float = field(default=0.5, metadata=OF_EPOCHS)

    def __post_init__(self) -> None:
        if not 0 <= self.burn_in <= 1:
            raise UserError(f"the burn-in is a fraction of all epochs in [0, 1], got {self.burn_in!r}")

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the rule's weights are."""
        return bool(self.rule.differentiable)

    @property
    def needs_meta(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the rule learns from a second data stream."""
        return self.rule.needs_meta

    def takes_two_labels(self) -> bool:
        """Whether the rule does."""
        return self.rule.takes_two_labels()

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Return it for the rule's attack in more or fewer steps."""
        return replace(self, rule=self.rule.stepped(length, number))

    def bind(self, facts: Facts) -> Weighting:
        """Build the stateful part of the rule for one run."""
        return BoundAfter(self, self.rule.bind(facts))

    def over(self, clock: Clock) -> bool:
        """Whether the burn-in is over."""
        return clock.epoch >= round(self.burn_in * clock.epochs)

    def weigh(self, evidence: Evidence) -> Tensor:
        """Return the rule's weights, or 1 during the burn-in."""
        return self.rule.weigh(evidence) if self.over(evidence.clock) else torch.ones_like(evidence.robust)


class BoundAfter(Weighting, nn.Module):
    """`After` with the state of its rule."""

    def __init__(self, spec: After, rule: Weighting) -> None:
        nn.Module.__init__(self)
        self.spec, self.rule = spec, rule
        self.differentiable = bool(rule.differentiable)

    @property
    def needs_meta(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the rule learns from a second data stream."""
        return self.rule.needs_meta

    def weigh(self, evidence: Evidence) -> Tensor:
        """Return the rule's weights, or 1 during the burn-in."""
        over = self.spec.over(evidence.clock)
        return self.rule.weigh(evidence) if over else torch.ones_like(evidence.robust)

    def update(self, evidence: Evidence) -> None:
        """Move the rule's state once the burn-in is over."""
        if self.spec.over(evidence.clock):
            self.rule.update(evidence)

    def fit(self, evidence: Evidence, lookahead: LookaheadLoss) -> None:
        """Let the rule learn once the burn-in is over."""
        if self.spec.over(evidence.clock):
            self.rule.fit(evidence, lookahead)

    def log(self) -> dict[str, float | Tensor]:
        """Return the rule's numbers."""
        return self.rule.log()
