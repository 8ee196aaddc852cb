"""One training step: from a minibatch to an update of theta. Read this file first.

upper level   min_theta  mean_i [ w_i * robust_i(theta, x_i + delta_i*(theta)) + anchor_i(theta) ]
weights       w = W(evidence)
coupling      d delta* / d theta
lower level   delta_i*(theta) in argmax over C(x_i) of  objective(theta, delta; x_i, y_i)
"""

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.coupling.lookahead import Lookahead, Rates, rates
from bivallate.evidence import gather
from bivallate.lower.modes import attacking
from bivallate.lower.problem import LowerProblem
from bivallate.lower.second_order import explain_missing_derivatives
from bivallate.method import BoundMethod
from bivallate.record import DeviceRecord, Tell, reduce_and_check, summarise, tell_nothing
from bivallate.types import Batch, Clock, StepRecord


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, method: BoundMethod, batch: Batch, clock: Clock,
    tell: Tell = tell_nothing,
) -> StepRecord:  # fmt: skip
    """Solve the lower level, weigh the examples, descend the upper level. The model is in train mode."""
    loss, unread = differentiate(model, method, batch, clock, rates(optimizer, model))
    if clock.replay < method.replays - 1 and method.accumulate:
        return unread.read()[0]
    record = reduce_and_check(model, loss, unread, clock, tell)
    optimizer.step()
    optimizer.zero_grad()
    return record


@explain_missing_derivatives
def differentiate(
    model: nn.Module, method: BoundMethod, batch: Batch, clock: Clock, lr: Rates
) -> tuple[Tensor, DeviceRecord]:
    """Do all of a step but the update: add the gradient of the upper level to `.grad`."""
    with attacking(model, method.attack_mode):  # lower level: delta*(theta)
        problem = LowerProblem(model, batch, method.objective, method.threat, clock, sharing=method.sharing)
        solution = method.solver.solve(problem)
        solution = method.coupling(problem, solution)

    problem, x_adv = problem.solved(solution), batch.x + solution.delta  # upper level: one loss an example
    lookahead = Lookahead.here(problem, method, x_adv.detach(), lr)  # for learned weights
    terms = method.loss(problem, x_adv)
    problem.check_pass_is_used()
    evidence = gather(problem, terms, solution, lookahead.buffers)

    method.weighting.update(evidence)  # a running state moves first
    method.weighting.fit(evidence, lookahead)  # third level: the weights themselves learn
    weights = method.weighting(evidence)
    loss = collective.share_of_mean(weights * terms.robust + terms.anchor, batch)
    loss.backward()  # carries d delta*/d theta when coupled
    method.solver.feedback(problem, solution.delta, evidence)
    return loss.detach(), summarise(loss, weights, terms, problem, method)
