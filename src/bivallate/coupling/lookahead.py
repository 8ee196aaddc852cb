"""The loss on a second data stream after one virtual outer step, differentiable in the example weights
(BiLAW)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from bivallate.errors import UserError
from bivallate.lower.problem import Forward, LowerProblem, attacking
from bivallate.types import Batch, Clock

if TYPE_CHECKING:
    from bivallate.method import BoundMethod


@dataclass(frozen=True)
class Lookahead:
    """lookahead(w) -> scalar: the loss on batch.meta at theta - lr * d/dtheta mean_i(w_i robust_i +
    anchor_i).

    The virtual step is plain SGD without momentum or weight decay; BatchNorm buffers are cloned, so nothing
    moves. The second stream is attacked at the virtual parameters.

    Cost: a forward, a backward with graph and a double backward on the batch; the attack, a forward and a
    backward on the second stream.

    Reference: BiLAW, Algorithm 1, eq. 5-6.
    """

    forward: Forward
    method: BoundMethod
    batch: Batch
    x_adv: Tensor
    clock: Clock
    lr: float

    def __call__(self, weights: Tensor) -> Tensor:
        """The loss, with graph in `weights` (B,)."""
        parameters, buffers = self._state()
        terms = self._terms(parameters, buffers, self.batch, self.x_adv)
        loss = (weights * terms.robust + terms.anchor).mean()
        names = list(parameters)
        grads = torch.autograd.grad(loss, [parameters[n] for n in names], create_graph=True)
        moved = {n: parameters[n] - self.lr * g for n, g in zip(names, grads, strict=True)}
        self.forward.passes.backward += 3 * len(self.batch.x)
        return self._meta_loss(moved, buffers)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        module = self.forward.module
        return dict(module.named_parameters()), {n: b.clone() for n, b in module.named_buffers()}

    def _terms(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch, x_adv: Tensor):
        return self.method.loss(self._virtual(parameters, buffers), batch.x, x_adv, batch.y)

    def _virtual(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Forward:
        module = self.forward.module
        return self.forward.of(lambda x: functional_call(module, {**parameters, **buffers}, (x,)))

    def _meta_loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        meta = self.batch.meta
        if meta is None:
            raise UserError(
                "this weighting learns from a second data stream, but the batch has none; "
                "set data.meta (rows taken from training) or pass Batch(meta=...)"
            )
        constant = {n: p.detach() for n, p in parameters.items()}
        with attacking(self.forward.module, self.method.attack_mode):
            virtual = self._virtual(constant, buffers)
            problem = LowerProblem(virtual, meta, self.method.objective, self.method.threat, self.clock)
            delta = self.method.solver.solve(problem).delta
        terms = self._terms(parameters, buffers, meta, meta.x + delta)
        self.forward.passes.backward += len(meta.x)
        return (terms.robust + terms.anchor).mean()
