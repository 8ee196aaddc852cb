"""Weights that are learned from the loss on a second data stream (BiLAW)."""

from __future__ import annotations

import itertools
import math
from dataclasses import field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError, unknown
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Evidence, Facts, probability_margin
from bivallate.weighting.base import LookaheadLoss, NotFitted, Weighting
from bivallate.weighting.descent import Descent, DescentRule
from bivallate.weighting.lookahead import check_second_stream

INPUTS = ("multiclass-margin", "scalar-margin", "adversarial-loss", "loss-difference")


@part
class MarginNet(Weighting):
    """Weights by a small network that learns from a second data stream (BiLAW).

    w_i = omega(input_i) / mean omega, omega a small ReLU network with a sigmoid output that learns from the
    unweighted loss on a second data stream after one virtual step.

    Attributes:
        hidden: widths of the hidden layers; the paper's ablation has (64,), (128,), (256,) and (64, 64).
        inputs: what the network sees of each example: "multiclass-margin" p_y - p_k (K numbers),
            "scalar-margin" p_y - max_{k != y} p_k, "adversarial-loss" -log p_y(x'), or "loss-difference"
            -log p_y(x') + log p_y(x).
        margins_from: where the two margins are taken: "clean" (eval mode, one forward more) or "adversarial"
            (the outer pass' own logits).
        optimizer: of the network's parameters: `Descent` or `AdamDescent`.
        second_order: meta-gradient by the full second-order graph instead of one Jacobian-vector product.

    Scale: mean 1; a common factor of omega therefore has no effect and no gradient.

    Cost: see `Lookahead`, and one forward for clean logits unless the input needs none.

    Reference: BiLAW, section 3, Algorithm 1, Tables 6 and 8.
    Deviation: the paper does not print the learning rate of the network; see `Descent`. Where the
    classifier's learning rate is 0 there is no virtual step, and the network learns nothing.
    """

    hidden: tuple[int, ...] = (128,)
    inputs: Literal["multiclass-margin", "scalar-margin", "adversarial-loss", "loss-difference"] = (
        "multiclass-margin"
    )
    margins_from: Literal["clean", "adversarial"] = "clean"
    optimizer: DescentRule = field(default=Descent())
    second_order: bool = False
    needs_meta: ClassVar[bool] = True

    @staticmethod
    def read_older(fields: dict[str, Any]) -> dict[str, Any]:
        """Convert the fields of version 0.1.0, which held the learning rate and weight decay of Adam."""
        if "lr" not in fields:
            return fields
        rest = {name: value for name, value in fields.items() if name not in ("lr", "weight_decay")}
        old = {"kind": "AdamDescent", "lr": fields["lr"], "weight_decay": fields.get("weight_decay", 1e-4)}
        return {**rest, "optimizer": old}

    def __post_init__(self) -> None:
        if self.inputs not in INPUTS:
            raise unknown("input of the weighting network", str(self.inputs), INPUTS)
        if self.margins_from not in ("clean", "adversarial"):
            raise unknown("place of the margin", str(self.margins_from), ("clean", "adversarial"))
        if not all(isinstance(width, int) and width >= 1 for width in self.hidden):
            raise UserError(f"hidden must be whole numbers of at least 1, such as 64,64, got {self.hidden!r}")
        if not hasattr(self.optimizer, "moments"):
            raise UserError(f"{self.optimizer!r} cannot move a weighting network: use Descent or AdamDescent")

    def check(self, method: Composition) -> None:
        """Raise UserError for a solver with per-example state."""
        check_second_stream("MarginNet", method)

    def bind(self, facts: Facts) -> BoundMarginNet:
        """Build the network for one run, with its optimiser's state."""
        return BoundMarginNet(self, facts)

    def weigh(self, evidence: Evidence) -> Tensor:
        """Raise UserError: before `bind` there is no network."""
        raise UserError("MarginNet learns during a run: use method.bind(facts), or bivallate.train")

    def features(self, evidence: Evidence) -> Tensor:
        """(B, k) inputs of the network, without graph."""
        if self.inputs == "multiclass-margin":
            logits = evidence.clean_logits if self.margins_from == "clean" else evidence.logits
            p = logits.softmax(1)
            return p.gather(1, evidence.y[:, None]) - p
        if self.inputs == "scalar-margin":
            logits = evidence.clean_logits if self.margins_from == "clean" else evidence.logits
            return probability_margin(logits, evidence.y)[:, None]
        seen = F.cross_entropy(evidence.logits, evidence.y, reduction="none")
        if self.inputs == "loss-difference":
            seen = seen - F.cross_entropy(evidence.clean_logits, evidence.y, reduction="none")
        return seen[:, None]


def weighs_by_margins(weighting: object) -> bool:
    """Whether a method's weighting is a network whose input is a margin."""
    return isinstance(weighting, MarginNet) and "margin" in weighting.inputs


class BoundMarginNet(Weighting, nn.Module):
    """The weighting network of one run and its optimiser's moments, as parameters and buffers.

    The network is initialised when it is first used, from the run's seed, so that its initial values are a
    function of the seed alone.
    """

    needs_meta: ClassVar[bool] = True
    updates: Tensor
    drawn: Tensor

    def __init__(self, rule: MarginNet, facts: Facts) -> None:
        nn.Module.__init__(self)
        self.rule = rule
        inputs = facts.classes if rule.inputs == "multiclass-margin" else 1
        widths = (inputs, *rule.hidden, 1)
        for k, (wide, narrow) in enumerate(itertools.pairwise(widths)):
            for name, shape in ((f"weight{k}", (narrow, wide)), (f"bias{k}", (narrow,))):
                value = torch.zeros(shape, device=facts.device, dtype=facts.dtype)
                self.register_parameter(name, nn.Parameter(value))
                for moment in rule.optimizer.moments:
                    self.register_buffer(f"{name}_{moment}", value.clone())
        self.layers = len(widths) - 1
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=facts.device))
        self.register_buffer("drawn", torch.zeros((), dtype=torch.bool, device=facts.device))
        self.told: dict[str, float | Tensor] = {}
        self._known: int | None = None  # `updates` on the host, read from the device once
        self.register_load_state_dict_post_hook(_forget)

    def _begin(self, seed: int) -> None:
        """Initialise a network that was never used. The device is read once."""
        if self._known is None and not bool(self.drawn):
            self.draw(seed)
        self._count()

    def _count(self) -> int:
        """Updates so far."""
        if self._known is None:
            self._known = int(self.updates)
        return self._known

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Initialise weights and biases, uniform within +-1 / sqrt(inputs of the layer), from the seed.
        The moments are zero."""
        generator = torch.Generator().manual_seed(seed)
        for k in range(self.layers):
            weight, bias = self.get_parameter(f"weight{k}"), self.get_parameter(f"bias{k}")
            bound = 1 / math.sqrt(weight.shape[1])
            for p in (weight, bias):
                p.copy_(bound * (2 * torch.rand(p.shape, generator=generator) - 1))
        self.drawn.fill_(True)

    def omega(self, features: Tensor) -> Tensor:
        """(B,) in (0, 1), with graph in the network's parameters."""
        h = features
        for k in range(self.layers):
            h = F.linear(h, self.get_parameter(f"weight{k}"), self.get_parameter(f"bias{k}"))
            h = h.relu() if k < self.layers - 1 else h.sigmoid()
        return h[:, 0]

    def fit(self, evidence: Evidence, lookahead: LookaheadLoss) -> None:
        """Make one step on the loss of the second stream after a virtual step with the present weights."""
        self._begin(evidence.clock.seed)
        with torch.enable_grad():
            omega = self.omega(self._features(evidence))
            mean = collective.mean(omega).requires_grad_() if collective.is_distributed() else omega.mean()
            weights = omega / mean
            at = weights.detach().requires_grad_()
            loss = lookahead(at, second_order=self.rule.second_order)
            (slope,) = torch.autograd.grad(loss, at)
            grads = self._gradient(omega, mean, weights, slope)
        self._step(grads)
        self.told = {"meta_loss": loss.detach(), "meta_gradient": nn.utils.get_total_norm(grads)}

    def _gradient(self, omega: Tensor, mean: Tensor, weights: Tensor, slope: Tensor) -> list[Tensor]:
        """d sum_i slope_i weights_i / d mu over all ranks, in one collective.
        The mean that divides every rank's weights depends on all ranks' omegas. The chain rule adds to the
        derivative at a fixed mean the derivative by the mean times that of the mean: three sums over ranks.
        """
        parameters = list(self.parameters())
        if not collective.is_distributed():
            return list(torch.autograd.grad(weights, parameters, slope, materialize_grads=True))
        *direct, by_mean = torch.autograd.grad(
            weights, [*parameters, mean], slope, retain_graph=True, materialize_grads=True
        )
        of_mean = torch.autograd.grad(omega.sum(), parameters, materialize_grads=True)
        added = collective.totals([*direct, *of_mean, by_mean, by_mean.new_tensor(len(omega))])
        count, by_mean = added.pop(), added.pop()
        half = len(parameters)
        return [d + by_mean * m / count for d, m in zip(added[:half], added[half:], strict=True)]

    @torch.no_grad()
    def _step(self, grads: list[Tensor]) -> None:
        optimizer, step = self.rule.optimizer, self._count() + 1
        self.updates += 1
        self._known = step
        for (name, p), g in zip(self.named_parameters(), grads, strict=True):
            optimizer(p, g, step, *(self.get_buffer(f"{name}_{moment}") for moment in optimizer.moments))

    def weigh(self, evidence: Evidence) -> Tensor:
        """omega / mean omega with the present network."""
        self._begin(evidence.clock.seed)
        omega = self.omega(self._features(evidence))
        return (omega / collective.mean(omega)).to(evidence.robust.dtype)

    def _features(self, evidence: Evidence) -> Tensor:
        return self.rule.features(evidence).to(self.get_parameter("weight0").dtype)

    def log(self) -> dict[str, float | Tensor]:
        """The loss on the second stream after the virtual step, and the norm of its gradient in mu."""
        return self.told


def _forget(net: Any, keys: object) -> None:
    """Forget the host's copy of `updates` after a state has been loaded."""
    net._known = None


@part
class Correlation(Weighting):
    """Weights by how far an example's gradient reduces the loss of a second data stream (non-parametric).

    w_i proportional to max(0, c_i), c_i = <grad robust_i(theta), grad of the second stream's loss at theta~>,
    theta~ one virtual step with equal weights.

    Examples whose gradient would increase the second stream's loss get weight 0. If that holds for all
    examples, all weights are 1.

    Attributes:
        second_order: as in `MarginNet`.

    Scale: mean 1.

    Reference: BiLAW, section 4, "non-parametric".
    Deviation: the paper does not say how negative correlations are treated; they are clipped at zero, as in
    the learning-to-reweight scheme that it cites.
    """

    second_order: bool = False
    needs_meta: ClassVar[bool] = True

    def check(self, method: Composition) -> None:
        """Raise UserError for a solver with per-example state."""
        check_second_stream("Correlation", method)

    def bind(self, facts: Facts) -> BoundCorrelation:
        """Build the part that keeps the correlations of the present minibatch."""
        return BoundCorrelation(self)

    def weigh(self, evidence: Evidence) -> Tensor:
        """Raise UserError: before `bind` there are no correlations."""
        raise UserError("Correlation is measured during a run: use method.bind(facts), or bivallate.train")


class BoundCorrelation(Weighting):
    """The rule with the correlations of the present minibatch.

    They are computed anew at every step, so no state is saved.
    """

    needs_meta: ClassVar[bool] = True

    def __init__(self, rule: Correlation) -> None:
        self.rule = rule
        self.helpful: Tensor | None = None

    def fit(self, evidence: Evidence, lookahead: LookaheadLoss) -> None:
        """Compute c_i: up to a common positive factor, minus the derivative of the lookahead in w_i."""
        with torch.enable_grad():
            equal = torch.ones_like(evidence.robust).requires_grad_()
            (slope,) = torch.autograd.grad(lookahead(equal, second_order=self.rule.second_order), equal)
        self.helpful = (-slope).clamp(min=0)

    def weigh(self, evidence: Evidence) -> Tensor:
        """The clipped correlations, normalised. Raises NotFitted for any but the fitted minibatch."""
        if self.helpful is None or len(self.helpful) != len(evidence.robust):
            raise NotFitted("Correlation weighs a minibatch that it has been fitted to: call fit first")
        mean = collective.mean(self.helpful)
        return torch.where(mean > 0, self.helpful / torch.where(mean > 0, mean, 1), 1)

    def log(self) -> dict[str, float | Tensor]:
        """The fraction of examples with a positive correlation."""
        return {} if self.helpful is None else {"helpful": (self.helpful > 0).float().mean()}
