"""ATTA: the attack on each training image starts from the result of the image's last attack."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError
from bivallate.lower.pgd import PGD, AroundPGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver
from bivallate.lower.start import Given
from bivallate.noise import Noise
from bivallate.parts import part
from bivallate.types import Evidence, Facts, Solution


@part
class PerExample(AroundPGD, Remembering):
    """Starts each example from its stored perturbation, and stores the one that the training step used.

    Perturbations are stored in the coordinates of the padded image. Each batch's recorded crop and flip is
    applied to them, and only the cropped window is overwritten. At the start, and after every `reset` epochs,
    they are scale * N(0, I), drawn when an image is next visited.

    Attributes:
        inner: the solver; its own start is not used.
        reset: epochs between resets, counted from 1 as in the public code: with 10, the perturbations are
            reset at the epochs 10, 20, .... None: never.
        scale: standard deviation of the first perturbation, in pixel units.
        half: store the perturbations in half precision (steps of 1.5e-5 at 8/255).

    Cost: the inner solver's; memory of one padded image for each row of the training set.

    Reference: Zheng et al., ATTA, CVPR 2020, section 4.
    """

    inner: PGD
    reset: int | None = 10
    scale: float = 0.001
    half: bool = False

    def __post_init__(self) -> None:
        if self.reset is not None and self.reset < 1:
            raise UserError(f"reset must be at least 1 epoch, or none for never, got {self.reset!r}")

    def bind(self, facts: Facts) -> BoundPerExample:
        """Build the stored perturbations. Raises UserError for views without inverse and changing sizes."""
        if facts.rotates:
            raise UserError(
                "stored perturbations cannot be carried through a rotation or a change of colour or shape, "
                "which have no inverse: choose an augmentation without them, such as --set "
                "data.augment=crop:4,flip"
            )
        if facts.resizes:
            raise UserError(
                "stored perturbations are of images of one size: train without phases (--set phases=none)"
            )
        return BoundPerExample(self, facts)


class BoundPerExample(Solver, nn.Module):
    """The solver with its stored perturbations, `bank` (rows, C, H + 2 padding, W + 2 padding).

    `born` is the epoch of each row's last reset. With several processes each one holds the whole bank,
    because a row belongs to another process in the next epoch; a step makes two all-reduces, of the
    minibatch's perturbations and row numbers.
    """

    bank: Tensor
    born: Tensor

    def __init__(self, rule: PerExample, facts: Facts) -> None:
        super().__init__()
        c, h, w = facts.shape
        shape = (facts.rows, c, h + 2 * facts.padding, w + 2 * facts.padding)
        dtype = torch.float16 if rule.half else facts.dtype
        self.rule = rule
        self.register_buffer("bank", torch.zeros(shape, dtype=dtype, device=facts.device))
        self.register_buffer("born", torch.full((facts.rows,), -1, device=facts.device))
        self._canvas: Tensor | None = None

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve from the stored perturbations."""
        canvas = self._recall(problem)
        view = problem.batch.view
        if canvas.shape[2:] != (problem.x.shape[2:] if view is None else view.canvas):
            raise UserError(
                f"stored perturbations are {tuple(canvas.shape[2:])}, the padded images of the batch "
                f"{tuple(problem.x.shape[2:]) if view is None else view.canvas}: bind the method with the "
                "padding of the augmentation (Facts.padding)"
            )
        start = canvas if view is None else view.apply(canvas)
        self._canvas = canvas
        return replace(self.rule.inner, start=Given(start)).solve(problem)

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Store the perturbation that the step trained on."""
        assert self._canvas is not None
        view, delta = problem.batch.view, delta.detach()
        canvas = delta if view is None else view.write(self._canvas.contiguous(), delta)
        whole, self._canvas = collective.size(problem.batch), None
        index = collective.gather_rows(problem.batch.index, whole)
        self.bank[index] = collective.gather_rows(canvas, whole).to(self.bank.dtype)
        self.born[index] = self._last_reset(problem.clock.epoch)

    def _last_reset(self, epoch: int) -> int:
        """The epoch, from 0, at which the present bank began."""
        reset = self.rule.reset
        return max(0, (epoch + 1) // reset * reset - 1) if reset is not None else 0

    def _recall(self, problem: LowerProblem) -> Tensor:
        """(B, C, H + 2 padding, W + 2 padding) perturbations of these rows, reset where that is due."""
        index, clock = problem.batch.index, problem.clock
        since = self._last_reset(clock.epoch)
        stored, stale = self.bank[index].to(problem.x.dtype), self.born[index] < since
        if stale.device.type == "cpu" and not bool(stale.any()):  # on a device the host would have to wait
            return stored
        noise = Noise(clock.seed, index, since).normal("start", tuple(stored.shape[1:]), stored.dtype)
        return torch.where(stale.view(-1, 1, 1, 1), self.rule.scale * noise, stored)
