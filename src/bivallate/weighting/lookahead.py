"""The loss on a second data stream after a virtual outer step, differentiable in the example weights."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bivallate import collective
from bivallate.coupling.last_step import LastStep
from bivallate.errors import UserError
from bivallate.lower.modes import attacking, in_mode
from bivallate.lower.problem import LowerProblem
from bivallate.lower.second_order import tangents, twice_differentiable
from bivallate.noise import Noise
from bivallate.roles import Composition
from bivallate.types import Clock, Facts, Terms

SECOND_STREAM = 1 << 32  # first `Noise.turn` of the second stream; replays and restarts are far below
REPLAYS = 1 << 16  # more replays of one minibatch than anyone makes

NamedTensors = dict[str, Tensor]
LearningRates = float | dict[str, float]  # one for all parameters, or one for each name of a parameter


def learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module) -> LearningRates:
    """The learning rate of each parameter in the step that an optimiser is about to make.

    The virtual step of a lookahead uses it. It is one number if all groups have the same; otherwise one for
    each name, 0 for a parameter in no group.
    """
    one = {float(group["lr"]) for group in optimizer.param_groups}
    if len(one) == 1:
        return one.pop()
    own = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: own.get(id(p), 0.0) for name, p in model.named_parameters()}


def second_stream(clock: Clock, index: Tensor) -> Noise:
    """The noise of the second stream's rows at this moment.

    It is a function of (seed, epoch, step, replay, row). Rows of the second stream may have the same numbers
    as training rows, and occur several times an epoch; the turn keeps all these draws apart.
    """
    turn = SECOND_STREAM + clock.step * REPLAYS + clock.replay
    return Noise(clock.seed, index, clock.epoch, turn)


@dataclass(frozen=True)
class Lookahead:
    """lookahead(w) -> scalar: the loss on batch.meta at theta - lr d/dtheta mean_i(w_i robust_i + anchor_i).

    The virtual step is plain SGD without momentum or weight decay, on the parameters with requires_grad. All
    its passes use batch statistics, move no buffer and use no dropout. The second stream is attacked at the
    virtual parameters theta~, in the method's attack mode, with its own noise; in eval mode it sees the
    running statistics from before the outer pass, as the training rows did. x_adv is a constant: the virtual
    step contains no implicit gradient of the coupling.

    The gradient in w has a closed form, d loss / d w_j = -lr / B <grad robust_j(theta), grad loss(theta~)>.
    By default these inner products are one Jacobian-vector product of the per-example losses along
    v = grad loss(theta~), exact and without a second-order graph; `second_order=True` keeps that graph
    instead, as a check and for layers without forward-mode derivatives.

    Attributes:
        problem: with its solution.
        method: whose loss, solver and attack mode the virtual step and the second stream use.
        x_adv: (B, C, H, W) the attacked points, without graph.
        lr: of the update to come, for the virtual step.
        buffers: the network's, from before the loss's passes; None if they were not copied.

    Cost: with L forwards a loss (1, or 2 for TRADES and MART): a virtual step of L F + L B, the attack on the
    second stream, L F + L B there, and L F + L B for the Jacobian-vector product (its tangents, which cost no
    more than a forward, are counted as the B). Second order: L B instead of the last item.

    Reference: BiLAW, Algorithm 1, eq. 5-6.
    Deviation: eq. 6 has a minus sign where descent on the second stream's loss gives a plus, as the paper's
    own text reads.
    """

    problem: LowerProblem
    method: Composition
    x_adv: Tensor
    lr: LearningRates
    buffers: NamedTensors | None = None

    @staticmethod
    def prepare(problem: LowerProblem, method: Composition, x_adv: Tensor, lr: LearningRates) -> Lookahead:
        """Prepare the lookahead of this step, before the loss's passes move the running statistics.

        The buffers are copied only if the weighting uses the lookahead. The rates of the update are told to
        the problem too, for solvers with a network of their own, which moves after the same rates.
        """
        problem.lr = lr
        kept = None
        if method.weighting.needs_meta:
            kept = {n: b.clone() for n, b in problem.forward.module.named_buffers()}
        return Lookahead(problem, method, x_adv, lr, kept)

    def __call__(self, weights: Tensor, *, second_order: bool = False) -> Tensor:
        """The loss, with its gradient in `weights` (B,) attached.

        Raises:
            UserError: the minibatch has no second stream; a layer has no forward-mode derivative; or, with
                several processes, for `second_order`.
        """
        if second_order and collective.is_distributed():
            raise UserError("the second-order meta-gradient runs on one process: set second_order=false")
        second = self._second_stream()
        theta = self._parameters()
        grads = self._virtual_gradient(theta, weights if second_order else weights.detach(), second_order)
        if not second_order:
            theta = {n: p.detach() for n, p in theta.items()}
        moved = {n: p - self._rate(n) * grads[n] for n, p in theta.items()}
        fixed = {n: p.detach().requires_grad_() for n, p in moved.items()}
        x_adv = second.x + self._attack(second, fixed)

        if second_order:
            return _mean(self._terms(second, moved, x_adv), second)
        loss = _mean(self._terms(second, fixed, x_adv), second)
        v, value = _total_gradient(loss, fixed)
        # rates that differ among the parameters multiply the parts of v, one common rate the product
        common = 1.0 if isinstance(self.lr, dict) else self.lr
        v = {n: self.lr[n] * g for n, g in v.items()} if isinstance(self.lr, dict) else v
        slope = -common / collective.size(self.problem.batch) * self._along(theta, v)
        return value + (slope * (weights - weights.detach())).sum()

    def _rate(self, name: str) -> float:
        return self.lr[name] if isinstance(self.lr, dict) else self.lr

    def _second_stream(self) -> LowerProblem:
        meta = self.problem.batch.meta
        if meta is None:
            raise UserError(
                "this weighting learns from a second data stream, but the batch has none; "
                "set data.meta (rows taken from training) or pass Batch(meta=...)"
            )
        return self.problem.of_second_stream(meta, second_stream(self.problem.clock, meta.index))

    def _parameters(self) -> NamedTensors:
        return {n: p for n, p in self.problem.forward.module.named_parameters() if p.requires_grad}

    def _virtual_gradient(self, theta: NamedTensors, weights: Tensor, second_order: bool) -> NamedTensors:
        """Gradient of mean_i(w_i robust_i + anchor_i) at theta, for every parameter."""
        passes = self.problem.forward.passes
        before = passes.forward
        with twice_differentiable() if second_order else nullcontext():
            terms = self._terms(self.problem, theta, self.x_adv)
        if second_order:
            passes.backward += passes.forward - before
        loss = collective.share_of_mean(weights * terms.robust + terms.anchor, self.problem.batch)
        return _total_gradient(loss, theta, create_graph=second_order)[0]

    def _attack(self, second: LowerProblem, parameters: NamedTensors) -> Tensor:
        """delta (B', C, H, W) for the second stream at the given parameters."""
        constant = {n: p.detach() for n, p in parameters.items()}
        with attacking(self.problem.forward.module, self.method.attack_mode):
            return self.method.solver.solve(self._at(second, constant)).delta.detach()

    def _along(self, theta: NamedTensors, v: NamedTensors) -> Tensor:
        """(B,) <grad robust_j(theta), v> for every example: one forward pass with a tangent."""
        passes = self.problem.forward.passes
        before = passes.forward
        with tangents(self.problem.forward.module, self.x_adv):
            with warnings.catch_warnings():  # PyTorch's first dual tensor imports a script it has deprecated
                warnings.simplefilter("ignore", DeprecationWarning)
                dual = {n: forward_ad.make_dual(p, v[n]) for n, p in theta.items()}
            robust = self._terms(self.problem.unregularised(), dual, self.x_adv).robust
            tangent = forward_ad.unpack_dual(robust).tangent
        passes.backward += passes.forward - before
        return torch.zeros_like(robust) if tangent is None else tangent

    def _terms(self, problem: LowerProblem, parameters: NamedTensors, x_adv: Tensor) -> Terms:
        """The method's loss at other parameters, in the upper level's mode, leaving every buffer alone."""
        with in_mode(self.problem.forward.module, training=True, track=False, dropout=False):
            return self.method.loss(self._at(problem, parameters), x_adv)

    def _at(self, problem: LowerProblem, parameters: NamedTensors) -> LowerProblem:
        """A problem at other parameters, with copies of the network's buffers."""
        own = dict(self.problem.forward.module.named_buffers()) if self.buffers is None else self.buffers
        return problem.at({**parameters, **{n: b.clone() for n, b in own.items()}})


def _mean(terms: Terms, problem: LowerProblem) -> Tensor:
    """This rank's part of the mean loss over the whole minibatch."""
    return collective.share_of_mean(terms.robust + terms.anchor, problem.batch)


def _total_gradient(
    loss: Tensor, parameters: NamedTensors, create_graph: bool = False
) -> tuple[NamedTensors, Tensor]:
    """d loss / d parameter and the loss without graph, summed over ranks."""
    grads = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=create_graph, materialize_grads=True
    )
    *grads, value = collective.totals([*grads, loss.detach()])
    return dict(zip(parameters, grads, strict=True)), value


def check_second_stream(rule: str, method: Composition) -> None:
    """Raise UserError for a method whose attack a second stream cannot have.

    Either its solver keeps state, which the rows of that stream would overwrite, or its coupling makes the
    attack's last step, for the training stream alone.
    """
    if isinstance(method.coupling, LastStep):
        raise UserError(
            f"{rule} attacks a second data stream with the method's own solver, whose last step is made by "
            "the coupling LastStep: choose another coupling, such as none, or another weighting"
        )
    tiny = Facts(rows=1, shape=(1, 1, 1), classes=2)
    if isinstance(method.solver.bind(tiny), nn.Module):
        raise UserError(
            f"{rule} attacks a second data stream with the method's own solver, and "
            f"{type(method.solver).__name__} remembers the training rows: choose a solver without memory, "
            "such as PGD, or another weighting"
        )
