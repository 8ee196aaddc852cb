"""One training step: from a minibatch to an update of theta. Read this file first.

upper level   min_theta  mean_i [ w_i * robust_i(theta, x_i + delta_i*) + anchor_i(theta, x_i + delta_i*) ]
weights       w = W(evidence)
coupling      d delta* / d theta
lower level   delta_i*(theta) in argmax over C(x_i) of  objective(theta, delta; x_i, y_i)
"""

from torch import nn, optim

from bivallate import collective, renamed
from bivallate.evidence import evidence_of
from bivallate.lower.modes import attacking
from bivallate.lower.problem import LowerProblem
from bivallate.lower.second_order import explain_missing_derivatives
from bivallate.method import BoundMethod, check_bound
from bivallate.record import DeviceRecord, Summands, no_summands, step_record, sum_gradients_check_and_read
from bivallate.types import Batch, Clock, StepRecord
from bivallate.weighting.lookahead import LearningRates, Lookahead, learning_rates


def train_step(model: nn.Module, optimizer: optim.Optimizer, method: BoundMethod, batch: Batch, clock: Clock,
               summands: Summands = no_summands) -> StepRecord:  # fmt: skip
    """Solve the lower level, weigh the examples, descend the upper level, add up `summands` over processes.
    Call it for each `clock.replay` below `method.replays`, in train mode; gradients zero before the first."""
    check_bound(method)
    on_device = accumulate_gradient(model, method, batch, clock, learning_rates(optimizer, model))
    if not method.updates_after(clock):  # gradients add up, and are checked after the last replay
        return step_record(on_device, clock, method)
    record = sum_gradients_check_and_read(model, on_device, clock, method, summands)  # or NonFinite
    optimizer.step()
    optimizer.zero_grad()
    return record


@explain_missing_derivatives
def accumulate_gradient(
    model: nn.Module, method: BoundMethod, batch: Batch, clock: Clock, lr: LearningRates
) -> DeviceRecord:
    """Add the gradient of the upper level to `.grad`: all but the update. lr: for learned weights."""
    with attacking(model, method.attack_mode):  # lower level and coupling: delta*(theta)
        problem = LowerProblem(model, batch, method.objective, method.threat, clock, sharing=method.sharing)
        solution = method.solver.solve(problem)
        solution = method.coupling(problem, solution)  # gives delta its gradient; LastStep moves it too
    problem = problem.with_solution(solution)  # the loss's context, from here on in train mode
    x_adv = batch.x + solution.delta
    lookahead = Lookahead.prepare(problem, method, x_adv.detach(), lr)  # idle without a second stream (BiLAW)
    terms = method.loss(problem, x_adv)
    problem.check_pass_is_used()  # a coupling may already have made the loss's pass
    evidence = evidence_of(problem, terms, solution, lookahead.buffers)
    method.weighting.update(evidence)  # a running state moves first
    method.weighting.fit(evidence, lookahead)  # third level: the weights themselves learn
    weights = method.weighting(evidence)
    loss = collective.share_of_mean(weights * terms.robust + terms.anchor, batch)  # on one process: the mean
    loss.backward()  # carries d delta*/d theta when coupled
    method.solver.feedback(problem, solution.delta, evidence)  # may move its state, and gradients (YOPO)
    return DeviceRecord.of(loss, weights, terms, problem, method)


train_step = renamed.renamed_arguments(tell="summands")(train_step)  # the argument's earlier name
