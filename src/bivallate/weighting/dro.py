"""KL-regularised distributionally robust weights (DONE)."""

from __future__ import annotations

import math
from dataclasses import field

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError
from bivallate.parts import part
from bivallate.schedule import Constant, Milestones, value_at
from bivallate.types import Clock, Evidence, Facts
from bivallate.weighting.base import Weighting

DONE_TEMPERATURE = Milestones(values=(10.0, 1.0, 0.1), at=(2 / 3, 5 / 6))


@part
class KLDRO(Weighting):
    """w_i = exp(robust_i / r) / u, with u a running mean of exp(robust / r), all in log space.

    The closed form of max over w in the simplex of sum_i w_i robust_i - r sum_i w_i log(M w_i), M the size
    of the minibatch. With rate 1 the weights are M times the softmax of robust / r over the minibatch; their
    mean is exactly 1, and the update is the gradient of r log mean exp(robust / r). A smaller rate reduces
    the bias of that minibatch estimate; the mean weight is then at most 1 / rate.

    Attributes:
        temperature: r; infinity tends to plain averaging, 0 to the single hardest example.
        rate: eta in (0, 1], weight of the newest batch in the running mean.
        guard: largest ratio of u to the newest minibatch's mean, so that the mean weight is at least 1 /
            guard. Without it one extreme minibatch at small r stalls training; infinity removes it.
        floor: lower bound of the temperature.
        cap: upper bound of the losses that enter the weights.

    Scale: mean weight between 1 / guard and 1 / rate.

    Reference: DONE (ICLR 2024), eq. 5-10 and Algorithm 1.
    Deviation: the guard is not in the paper, which does not state eta either. The running mean restarts
    whenever the temperature changes, because exp(robust / r) changes by orders of magnitude.
    """

    temperature: Constant | Milestones | float = field(default=DONE_TEMPERATURE)
    rate: float = 0.9
    guard: float = 2.0
    floor: float = 0.0
    cap: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"KL-DRO rate must lie in (0, 1], got {self.rate!r}")
        if not self.guard >= 1:
            raise UserError(f"KL-DRO guard must be at least 1, got {self.guard!r}")
        values = self.temperature.values if isinstance(self.temperature, Milestones) else ()
        constant = getattr(self.temperature, "value", self.temperature)
        for r in values or (constant,):
            if not (isinstance(r, int | float) and r > 0):
                raise UserError(f"KL-DRO temperature must be positive, got {r!r}")

    def temperature_at(self, clock: Clock) -> float:
        """r at this moment."""
        return max(value_at(self.temperature, clock), self.floor)

    def bind(self, facts: Facts) -> BoundKLDRO:
        """Build the running estimate for one run."""
        return BoundKLDRO(self, facts.device)

    def takes_two_labels(self) -> bool:
        """True: it reads losses only."""
        return True

    def weigh(self, evidence: Evidence) -> Tensor:
        """The weights within the minibatch (rate 1), all that an unbound rule knows."""
        q = evidence.robust.clamp(max=self.cap) / self.temperature_at(evidence.clock)
        return (q - collective.log_mean_exp(q)).exp()


class BoundKLDRO(Weighting, nn.Module):
    """KL-DRO weights with their running estimate log u, in float64."""

    log_u: Tensor
    r: Tensor

    def __init__(self, rule: KLDRO, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.rule = rule
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.register_buffer("log_u", torch.zeros((), dtype=dtype, device=device))
        self.register_buffer("r", torch.full((), math.nan, dtype=dtype, device=device))
        self.temperature: float | None = None  # r on the host, so that the log need not read the device

    @torch.no_grad()
    def update(self, evidence: Evidence) -> None:
        """Move the running mean: u <- (1 - rate) u + rate mean exp(robust / r), in log space.

        Restarts when r changes; guarded from above.
        """
        r = self.rule.temperature_at(evidence.clock)
        now = collective.log_mean_exp(self._scaled(evidence))
        rate = self.rule.rate
        moved = now
        if rate < 1:
            # compared in the buffer's own precision, on the device; false for the first minibatch's NaN
            same = self.r == torch.full_like(self.r, r)
            added = torch.logaddexp(self.log_u + math.log1p(-rate), now + math.log(rate))
            moved = torch.where(same, added, now)
        self.log_u.copy_(torch.minimum(moved, now + math.log(self.rule.guard)))
        self.r.fill_(r)
        self.temperature = r

    def weigh(self, evidence: Evidence) -> Tensor:
        """exp(robust / r - log u)."""
        return (self._scaled(evidence) - self.log_u).exp().to(evidence.robust.dtype)

    def _scaled(self, evidence: Evidence) -> Tensor:
        robust = evidence.robust.to(self.log_u.dtype).clamp(max=self.rule.cap)
        return robust / self.rule.temperature_at(evidence.clock)

    def log(self) -> dict[str, float | Tensor]:
        """The temperature, after the first update."""
        return {} if self.temperature is None else {"temperature": self.temperature}
