"""Weights that all examples of a class share (FAAL, WAT, CFOL, DAFA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import check_range
from bivallate.lower.solver import require_gathered
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Evidence, Facts
from bivallate.weighting.base import Weighting

__all__ = ["ClassBandit", "ClassDRO", "ClassNoRegret", "ClassScored", "worst_distribution"]

REACH = 30.0  # the multiplier is searched between e^-30 and e^30 times the spread
CUTS, ROUNDS = 63, 15  # each round divides the interval by 64: 15 rounds reach rounding


def class_sums(values: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums (K,) of values (B,) by class, and numbers of rows (K,), over the whole minibatch."""
    both = torch.stack([values, torch.ones_like(values)], 1)
    sums = collective.total(both.new_zeros(classes, 2).index_add_(0, y, both))
    return sums[:, 0], sums[:, 1]


def worst_distribution(values: Tensor, radius: float) -> Tensor:
    """(K,) argmax over p in the simplex of <p, values>, subject to KL(uniform || p) <= radius.

    By stationarity p_c is proportional to 1 / (max + t - values_c), for the t > 0 at which the divergence
    equals the radius. The divergence falls in t, so t is enclosed by intervals of log t, on the device: the
    host reads no number.

    Example:
        >>> worst_distribution(torch.tensor([0.0, 0.0, 1.0]), 0.0).tolist() == [1 / 3] * 3
        False
        >>> [round(p, 3) for p in worst_distribution(torch.tensor([0.0, 0.0, 1.0]), 0.5).tolist()]
        [0.102, 0.102, 0.796]
    """
    even = torch.full_like(values, 1 / len(values))
    if radius <= 0:
        return even
    gap = (values.max() - values).double()
    spread = gap.max()
    fit = (spread > 0) & spread.isfinite()
    gap = torch.where(fit, gap / spread, 0.0)
    between = torch.arange(1, CUTS + 1, dtype=gap.dtype, device=gap.device) / (CUTS + 1)
    ends = torch.full((2,), REACH, dtype=gap.dtype, device=gap.device)
    ends[0].neg_()
    for _ in range(ROUNDS):
        edges = torch.cat([ends[:1], torch.lerp(ends[0], ends[1], between), ends[1:]])
        over = _divergence(_shares(gap, edges[1:-1])) > radius
        ends = edges.gather(0, torch.stack([over.sum(), over.sum() + 1]))
    return torch.where(fit, _shares(gap, ends[1:])[0].to(values.dtype), even)


def _shares(gap: Tensor, log_t: Tensor) -> Tensor:
    """(N, K) distributions, of N values of t."""
    inverse = 1 / (log_t.exp()[:, None] + gap)
    return inverse / inverse.sum(1, keepdim=True)


def _divergence(p: Tensor) -> Tensor:
    """(N,) KL(uniform || p)."""
    return -math.log(p.shape[1]) - p.log().mean(1)


@part
class ClassDRO(Weighting):
    """w_i = K p_y, p = argmax <p, a> over distributions of the classes with KL(uniform || p) <= radius.

    a_c is the sum of max_{k != y} p_k - p_y at the attacked points over the minibatch's rows of class c, so
    that a class counts in proportion to its rows.

    Attributes:
        radius: tau of the divergence; 0 gives all classes the same weight.

    Scale: mean 1 where the classes are equally frequent.

    Reference: Zhang et al., FAAL, CVPR 2024; public code (FAAL.py, ft_prn.py).
    Deviation: the public code has a conic solver find p; this is its closed form.
    """

    radius: float = 0.5

    def __post_init__(self) -> None:
        check_range("radius", self.radius, 0)

    def weigh(self, evidence: Evidence) -> Tensor:
        """K p_y."""
        classes = evidence.logits.shape[1]
        sums, _ = class_sums(-evidence.margin, evidence.y, classes)
        return classes * worst_distribution(sums, self.radius)[evidence.y]


@part
class ClassNoRegret(Weighting):
    """w_i = q_y + q_0, q = K softmax(rate sum_t L_t) over the K classes and the mean of all, q_0.

    L_t are the mean losses of the classes, and of all rows, over epoch t; the weights of an epoch use those
    of the epochs before.

    Attributes:
        rate: eta.

    Scale: mean 1 + (K - 1) / K q_0 where the classes are equally frequent, so 2 K / (K + 1) at first.

    Reference: Li and Liu, WAT, AAAI 2023; public code.
    Deviation: the losses are those of the training passes and cost nothing; the public code attacks held-out
    data after every epoch, and its weights in the first epoch are 2.
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        check_range("rate", self.rate, 0)

    def bind(self, facts: Facts) -> BoundClassNoRegret:
        """Build the sums for one run."""
        return BoundClassNoRegret(self, facts)

    def weigh(self, evidence: Evidence) -> Tensor:
        """The weights of the first epoch, all that an unbound rule knows."""
        classes = evidence.logits.shape[1]
        return torch.full_like(evidence.robust, 2 * classes / (classes + 1))


class BoundClassNoRegret(Weighting, nn.Module):
    """The rule with its state: sums (K, 2) of this epoch, and of the mean losses (K + 1,) of earlier ones."""

    sums: Tensor
    history: Tensor
    epoch: Tensor

    def __init__(self, rule: ClassNoRegret, facts: Facts) -> None:
        nn.Module.__init__(self)
        self.rule = rule
        where = {"dtype": facts.dtype, "device": facts.device}
        self.register_buffer("sums", torch.zeros(facts.classes, 2, **where))
        self.register_buffer("history", torch.zeros(facts.classes + 1, **where))
        self.register_buffer("epoch", torch.tensor(-1))  # on the CPU, because the host reads it every step

    @torch.no_grad()
    def update(self, evidence: Evidence) -> None:
        """Add a finished epoch to the history, and this minibatch to the present one."""
        if int(self.epoch) != evidence.clock.epoch:
            total, rows = self.sums[:, 0], self.sums[:, 1]
            means = torch.cat([total / rows.clamp(min=1), (total.sum() / rows.sum().clamp(min=1))[None]])
            self.history += means
            self.sums.zero_()
            self.epoch.fill_(evidence.clock.epoch)
        total, rows = class_sums(evidence.robust.to(self.sums.dtype), evidence.y, len(self.sums))
        self.sums += torch.stack([total, rows], 1)

    def weigh(self, evidence: Evidence) -> Tensor:
        """q_y + q_0."""
        q = len(self.sums) * (self.rule.rate * self.history).softmax(0)
        return (q[evidence.y] + q[-1]).to(evidence.robust.dtype)

    def log(self) -> dict[str, float | Tensor]:
        """The largest weight a class has."""
        q = len(self.sums) * (self.rule.rate * self.history).softmax(0)
        return {"class_weight_max": q[:-1].max() + q[-1]}


@part
class ClassBandit(Weighting):
    """w_i = K p_y, p = explore / K + (1 - explore) softmax(s), and s_c grows with the errors of class c.

    After each minibatch s_c += rate K n_c, n_c the number of its misclassified adversarial points of class c.

    Attributes:
        rate: eta;
        explore: gamma, share of the uniform distribution.

    Scale: mean 1 where the classes are equally frequent; at least `explore`, at most K.

    Reference: Pethick et al., CFOL, TMLR 2023; public code (class_sampler.py with `reweight`).
    Deviation: the paper draws classes with probability p and divides by it. Here, as in the public code's
    alternative, rows are drawn uniformly and their losses multiplied by p, which has the same mean and uses
    every row in every epoch. With classes of unequal size the two differ by the class frequencies.
    """

    rate: float = 5e-6
    explore: float = 0.5

    def __post_init__(self) -> None:
        check_range("rate", self.rate, 0)
        check_range("explore", self.explore, 0, 1)

    def bind(self, facts: Facts) -> BoundClassBandit:
        """Build the scores for one run."""
        return BoundClassBandit(self, facts)

    def weigh(self, evidence: Evidence) -> Tensor:
        """1, all that an unbound rule knows."""
        return torch.ones_like(evidence.robust)


class BoundClassBandit(Weighting, nn.Module):
    """The rule with its scores (K,), and the class distribution (K,) that weighs this minibatch."""

    score: Tensor
    shares: Tensor

    def __init__(self, rule: ClassBandit, facts: Facts) -> None:
        nn.Module.__init__(self)
        self.rule = rule
        where = {"dtype": facts.dtype, "device": facts.device}
        self.register_buffer("score", torch.zeros(facts.classes, **where))
        self.register_buffer("shares", torch.full((facts.classes,), 1 / facts.classes, **where))

    @torch.no_grad()
    def update(self, evidence: Evidence) -> None:
        """Compute this minibatch's distribution, then move the scores by its errors."""
        classes, explore = len(self.score), self.rule.explore
        self.shares.copy_(explore / classes + (1 - explore) * self.score.softmax(0))
        wrong = (evidence.logits.argmax(1) != evidence.y).to(self.score.dtype)
        self.score += self.rule.rate * classes * class_sums(wrong, evidence.y, classes)[0]

    def weigh(self, evidence: Evidence) -> Tensor:
        """K p_y."""
        return (len(self.shares) * self.shares[evidence.y]).to(evidence.robust.dtype)

    def log(self) -> dict[str, float | Tensor]:
        """The largest weight a class has."""
        return {"class_weight_max": len(self.shares) * self.shares.max()}


@part
class ClassScored(Weighting):
    """w_i = the score of the class of i in the solver's solution; 1 before there are scores.

    Scale: that of the scores; those of `ClassDistance` have a mean near 1.
    """

    def check(self, method: Composition) -> None:
        """Raise UserError for a solver that gathers no scores."""
        advice = "use ClassRadius around a PGD, or another weighting"
        require_gathered(method, "the weighting ClassScored", "class scores", "ClassRadius", advice)

    def weigh(self, evidence: Evidence) -> Tensor:
        """The score of y."""
        if evidence.class_score is None:
            return torch.ones_like(evidence.robust)
        return evidence.class_score[evidence.y].to(evidence.robust.dtype)
