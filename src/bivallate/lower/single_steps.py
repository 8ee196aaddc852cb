"""One-step attacks with state: each image's past gradients, or a perturbation for each class."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, check_range, check_whole
from bivallate.lower.ball_checks import tiny
from bivallate.lower.modes import attacking
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver
from bivallate.noise import Noise
from bivallate.parts import part
from bivallate.types import AttackStart, Batch, Evidence, Facts, Solution, per_example

__all__ = ["LabelInformation", "OneStep", "PriorGuided", "one_step"]


def one_step(problem: LowerProblem, delta: Tensor, start: AttackStart) -> Solution:
    """The solution of a one-step attack from `start`."""
    kappa = (start.logits.argmax(1) == problem.y).long()
    return Solution(delta, start.delta, kappa, torch.ones_like(problem.y), start=start)


class OneStep(Remembering):
    """A solver of one step, which keeps its start in the problem."""

    step_size: float

    def keeps_start(self) -> bool:
        """True: the pass at the start is the attack's only one."""
        return True

    def fixed_steps(self) -> int:
        """Return 1."""
        return 1

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale its one step by `length`."""
        return replace(self, step_size=length * self.step_size)  # pyright: ignore[reportArgumentType, reportCallIssue]


@part
class PriorGuided(OneStep):
    """One step from a start that a momentum of this image's gradients of all epochs gives (FGSM-MEP).

    delta = Pi(eta + step sgn g), g the gradient at the stored eta; the momentum m <- g / ||g||_1 + decay m
    gives the next epoch's eta <- Pi(eta + step sgn m). In the first epoch, and at every reset, eta is a
    random corner of the ball and m is zero. Both are stored in the coordinates of the padded image and follow
    its crops and flips. The attack's pass is kept for a loss that differentiates through it (`Consistent`).

    Attributes:
        step_size: in units of eps.
        decay: mu.
        reset: epochs between resets; None: never.

    Cost: one forward, one backward; memory of two padded images for each row of the training set.

    Reference: Jia et al., ECCV 2022 (FGSM-MEP); public code.
    Deviation: gradients are divided by each example's own norm; the public code divides by that of the whole
    minibatch, so that the sign of m depends on the other examples, and its stored values do not follow crops
    and flips.
    """

    step_size: float = 1.0
    decay: float = 0.3
    reset: int | None = 40

    def __post_init__(self) -> None:
        check_range("step_size", self.step_size, 0)
        check_range("decay", self.decay, 0)
        if self.reset is not None:
            check_whole("reset", self.reset)

    def bind(self, facts: Facts) -> BoundPriorGuided:
        """Build the stored tensors. Raises UserError for views without inverse and changing sizes."""
        if facts.rotates or facts.resizes:
            raise UserError(
                "stored perturbations follow crops and flips of images of one size alone: choose an "
                "augmentation without rotations and changes of colour or shape, such as --set "
                "data.augment=crop:4,flip, and train without phases (--set phases=none)"
            )
        return BoundPriorGuided(self, facts)


class BoundPriorGuided(Solver, nn.Module):
    """The solver with stored eta and m (rows, C, H + 2 padding, W + 2 padding) and each row's last reset."""

    bank: Tensor
    momentum: Tensor
    born: Tensor

    def __init__(self, rule: PriorGuided, facts: Facts) -> None:
        super().__init__()
        c, h, w = facts.shape
        shape = (facts.rows, c, h + 2 * facts.padding, w + 2 * facts.padding)
        for name in ("bank", "momentum"):
            self.register_buffer(name, torch.zeros(shape, dtype=facts.dtype, device=facts.device))
        self.register_buffer("born", torch.full((facts.rows,), -1, device=facts.device))
        self.rule = rule
        self._next: tuple[Tensor, Tensor] | None = None

    def solve(self, problem: LowerProblem) -> Solution:
        """Make one step from the stored perturbation."""
        eta, m = self._recall(problem)
        view, threat = problem.batch.view, problem.threat
        windows = (eta, m) if view is None else (view.apply(eta), view.apply(m))
        if windows[0].shape != problem.x.shape:
            raise UserError(
                f"stored perturbations give {tuple(windows[0].shape)}, the minibatch is "
                f"{tuple(problem.x.shape)}: bind the method with the augmentation's padding (Facts.padding)"
            )
        start = problem.project(windows[0])
        first, grad = problem.first_gradient(start)
        step = self.rule.step_size * threat.eps
        size = grad.flatten(1).abs().sum(1).clamp(min=tiny(grad))
        moved = grad / per_example(size, grad) + self.rule.decay * windows[1]
        following = problem.project(start + step * threat.steepest(moved))
        if view is not None:
            following, moved = (view.write(c.contiguous(), w) for c, w in ((eta, following), (m, moved)))
        self._next = following, moved
        delta = problem.project(start + step * threat.steepest(grad))
        return one_step(problem, delta, first)

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Store the start of the image's next attack."""
        assert self._next is not None
        index = problem.batch.index
        self.bank[index], self.momentum[index] = (t.to(self.bank.dtype) for t in self._next)
        self.born[index], self._next = self._last_reset(problem.clock.epoch), None

    def _last_reset(self, epoch: int) -> int:
        return 0 if self.rule.reset is None else epoch // self.rule.reset * self.rule.reset

    def _recall(self, problem: LowerProblem) -> tuple[Tensor, Tensor]:
        """Copies of the rows' stored perturbations and momenta, reset where due."""
        index, clock, threat = problem.batch.index, problem.clock, problem.threat
        since = self._last_reset(clock.epoch)
        eta, m = (bank[index].to(problem.x.dtype) for bank in (self.bank, self.momentum))
        stale = per_example(self.born[index] < since, eta)
        signs = Noise(clock.seed, index, since).sign("start", tuple(eta.shape[1:]), eta.dtype)
        corner = threat.eps * signs / threat.size(torch.ones_like(problem.x[:1]))
        return torch.where(stale, corner, eta), torch.where(stale, 0.0, m)


@part
class LabelInformation(OneStep):
    """One step from a mixture of noise and a perturbation for the label's class (LIET).

    Every few minibatches a perturbation is computed for each class: eps times the sign of the gradient at a
    grey image, in eval mode. An example starts from that of its label. A share of its pixels, drawn between
    `least` and `most`, is replaced by uniform noise, and its sign is random.

    Attributes:
        step_size: in units of eps.
        every: minibatches between two updates of the classes' perturbations.
        least, most: smallest and largest share of noise.
        grey: value of the grey image.

    Cost: one forward, one backward, and every `every` minibatches one of each for every class.

    Reference: LIET's public code (fzjcdt/LIET, main.py).
    Deviation: share and sign are drawn for each example, not for each minibatch. Beyond 8/255 the public code
    uses noise of 2 eps and leaves the ball; here the start is always projected on the ball.
    """

    step_size: float = 1.0
    every: int = 10
    least: float = 0.1
    most: float = 0.5
    grey: float = 0.5

    def __post_init__(self) -> None:
        check_range("step_size", self.step_size, 0)
        check_whole("every", self.every)
        for name in ("least", "most", "grey"):
            check_range(name, getattr(self, name), 0, 1)

    def bind(self, facts: Facts) -> BoundLabelInformation:
        """Build the classes' perturbations for one run. Raises UserError for changing image sizes."""
        if facts.resizes:
            raise UserError(
                "the classes' perturbations are of one size: train without phases (--set phases=none)"
            )
        return BoundLabelInformation(self, facts)


class BoundLabelInformation(Solver, nn.Module):
    """The solver with the classes' directions (K, C, H, W)."""

    told: Tensor
    known: Tensor

    def __init__(self, rule: LabelInformation, facts: Facts) -> None:
        super().__init__()
        where = {"dtype": facts.dtype, "device": facts.device}
        self.rule = rule
        self.register_buffer("told", torch.zeros(facts.classes, *facts.shape, **where))
        self.register_buffer("known", torch.tensor(False))  # on the CPU, because the host reads it every step

    def solve(self, problem: LowerProblem) -> Solution:
        """Make one step from the mixture."""
        rule, threat, shape = self.rule, problem.threat, tuple(problem.x.shape[1:])
        if problem.clock.step % rule.every == 0 or not bool(self.known):
            self._look(problem)
        uniform = problem.noise.uniform
        share = rule.least + (rule.most - rule.least) * uniform("share", (), problem.x.dtype)
        noisy = uniform("mask", shape, problem.x.dtype) < per_example(share, problem.x)
        own = threat.eps * self.told[problem.y].to(problem.x.dtype)
        mixed = torch.where(noisy, threat.random(problem.noise, problem.x), own)
        sign = problem.noise.sign("side", (), problem.x.dtype)
        start = problem.project(per_example(sign, mixed) * mixed)
        first, grad = problem.first_gradient(start)
        delta = problem.project(start + rule.step_size * threat.eps * threat.steepest(grad))
        return one_step(problem, delta, first)

    def _look(self, problem: LowerProblem) -> None:
        """Update the classes' directions: the steepest ones at a grey image labelled with each class."""
        classes = torch.arange(len(self.told), device=problem.x.device)
        x = torch.full_like(self.told, self.rule.grey, dtype=problem.x.dtype)
        noise = replace(problem.noise, index=-1 - classes, population=0)  # negative rows belong to no image
        grey = problem.of_second_stream(Batch(x, classes, noise.index), noise)
        with attacking(problem.forward.module, "eval"):
            _, grad = grey.logits_and_gradient(torch.zeros_like(x))
        self.told.copy_(problem.threat.steepest(grad))
        self.known.fill_(True)
