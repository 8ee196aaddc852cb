"""The attacks of an audit, all on the same points, and which points each of them leaves robust."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from bivallate.audits.plan import Plan
from bivallate.audits.result import AuditProgress, CostEstimate
from bivallate.audits.surrogates import Rescaled, StraightThrough, SurrogateSearch, linear_imitation
from bivallate.evaluation.attack_functions import attack_and_score
from bivallate.evaluation.named_attacks import (
    Attack,
    Stage,
    auto_pgd,
    auto_pgd_dlr,
    noise,
    square,
    targeted_auto_pgd,
)
from bivallate.evaluation.point_columns import ROBUST
from bivallate.evaluation.score import Score
from bivallate.evaluation.search import Fooled, Restarts, ScaledPGD, Search
from bivallate.lower.apgd import APGD
from bivallate.lower.objective import Margin
from bivallate.lower.square import Square
from bivallate.lower.start import Zero
from bivallate.lower.threat import ThreatModel

__all__ = ["WHITE", "Battery"]

IMITATED = 2000  # points at most for a linear copy, whose matrix has 32 bytes for each pair of them
SUBTLE = 1 / 512  # half a grey level, a change that photographs of eight bits cannot store
# names of attacks: by the model's own gradients, and without them
WHITE = ("fgsm", "pgd-few", "pgd", "pgd-more", "pgd-restarts", "cw", "apgd-ce", "apgd", "rescaled")
BLACK = ("square", "imitation", "transfer")


@dataclass
class Battery:
    """The attacks of one audit and their results.

    Attributes:
        model: the network that decides which points are broken, in eval mode.
        points: (x, y), images (n, C, H, W) and labels (n,).
        threat: of the audit.
        plan: the strength of the attacks.
        seed: of the noise.
        progress: called before every attack.
        estimated: the cost, estimated before the first attack.
        shared: whether the processes of torchrun share the points.
        left: attack -> (n,) bool, robust after that attack alone.
        scores: attack -> its score.
        passes: spent so far.
        began: the clock's reading at the start, in seconds.
    """

    model: nn.Module
    points: tuple[Tensor, Tensor]
    threat: ThreatModel
    plan: Plan
    seed: int
    progress: Callable[[AuditProgress], object] | None = None
    estimated: CostEstimate | None = None
    shared: bool = False
    left: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    passes: int = 0
    began: float = field(default_factory=time.perf_counter)

    def run(self, name: str, *stages: Stage, threat: ThreatModel | None = None) -> Score:
        """Attack all points and keep the score under the attack's name.

        Args:
            name: of the attack.
            stages: tried one after another.
            threat: in place of the audit's own.
        """
        self._tell(name)
        attack = Attack(name, stages)
        score = attack_and_score(
            self.model, self.points, threat or self.threat, attack, seed=self.seed, shared=self.shared
        )
        self.scores[name], self.left[name] = score, score.robust
        self.passes += round(sum(score.passes.values()) * score.n)
        return score

    def _tell(self, name: str) -> None:
        if self.progress is not None:
            passes, likely = self.estimated or (self.plan.cost(), None)
            fraction = 1.0 if name == "done" else min(0.99, self.passes / max(1, passes))
            spent = time.perf_counter() - self.began
            self.progress(AuditProgress(name, fraction, self.passes, spent, likely))

    def run_all(self, surrogates: Sequence[nn.Module], *, random: bool) -> None:
        """Run every attack of the plan.

        Args:
            surrogates: models to transfer from.
            random: whether the model's outputs are random, so that Auto-PGD averages its gradients.
        """
        self.plain()
        self.strong(random=random)
        self.radii()
        self.from_surrogates(surrogates)
        self._tell("done")

    def plain(self) -> None:
        """Run noise, one-step attacks at several step sizes, and PGD of growing strength."""
        plan, eps = self.plan, self.threat.eps
        tiny = replace(self.threat, eps=min(eps / 4, SUBTLE * self._largest_radius()))  # pyright: ignore
        self.run("subtle", noise(2, "subtle"), threat=tiny)
        self.run("noise", noise(10))
        self.run("fgsm", _one_step(1.0))
        self.run("fgsm-short", *(_one_step(share) for share in (0.25, 0.5, 0.75)))
        self.run("pgd-few", _pgd("pgd-few", 10))
        self.run("pgd", _pgd("pgd", plan.steps))
        self.run("pgd-more", _pgd("pgd-more", plan.longer, step_size=5 / plan.longer))
        self.run("pgd-restarts", Search("pgd-restarts", ScaledPGD(plan.steps), turns=Restarts(plan.restarts)))

    def strong(self, *, random: bool) -> None:
        """Run Auto-PGD on three losses, C&W and Square; Auto-PGD averages gradients of random outputs."""
        plan = self.plan
        solver = APGD(plan.auto, samples=plan.samples if random else 1)
        targeted = targeted_auto_pgd(APGD(plan.auto), plan.targets)
        score = self.run("apgd", auto_pgd(solver), auto_pgd_dlr(solver), targeted)
        self.left["apgd-ce"] = (score.broken_at == ROBUST) | (score.broken_at > 1)
        self.run("cw", Search("cw", ScaledPGD(plan.steps), Margin()))
        self.run("square", square(Square(plan.queries)))

    def radii(self) -> None:
        """Run PGD at half and at twice the radius, and at one so large that any image is allowed."""
        eps, largest = self.threat.eps, self._largest_radius()
        for name, factor in (("half-eps", 0.5), ("double-eps", 2.0)):
            threat = replace(self.threat, eps=min(factor * eps, largest))  # pyright: ignore
            self.run(name, _pgd(name, self.plan.steps), threat=threat)
        drawing = ScaledPGD(self.plan.steps, 0.1, stop=Fooled())
        stages = (
            noise(5, "any-noise"),
            Search("any-image", replace(drawing, start=Zero())),
            Search("any-margin", drawing, Margin()),
        )
        self.run("any-image", *stages, threat=replace(self.threat, eps=largest))  # pyright: ignore

    def from_surrogates(self, surrogates: Sequence[nn.Module]) -> None:
        """Search on a rescaled, a straight-through and a linear copy of the model, and on `surrogates`."""
        inner = _pgd("pgd", self.plan.steps)
        scale = self._clean_margin() or 1.0
        self.run("rescaled", SurrogateSearch("rescaled", Rescaled(self.model, scale), inner))
        self.run("straight", SurrogateSearch("straight", StraightThrough(self.model), inner))
        x = self.points[0][:: -(-len(self.points[0]) // IMITATED)]
        copy = linear_imitation(self.model, x, self.threat.eps / self._largest_radius(), self.seed)
        self.passes += 2 * len(x)
        self.run("imitation", SurrogateSearch("imitation", copy, inner))
        stages = [SurrogateSearch(f"transfer-{i}", model, inner) for i, model in enumerate(surrogates)]
        if stages:
            self.run("transfer", *stages)

    def _clean_margin(self) -> float:
        score = attack_and_score(self.model, self.points, self.threat, "clean")
        self.passes += score.n
        return float(score.margin.abs().median())

    def left_by_all(self, *names: str) -> Tensor:
        """(n,) bool: robust after all of these attacks; names of attacks that did not run are ignored."""
        sets = [self.left[name] for name in names if name in self.left]
        return torch.stack(sets).all(0)

    @property
    def white(self) -> Tensor:
        """(n,) bool: robust after all attacks by the model's own gradients."""
        return self.left_by_all(*WHITE)

    @property
    def worst(self) -> Tensor:
        """(n,) bool: robust after everything within the threat."""
        return self.left_by_all(*WHITE, *BLACK, "straight", "noise", "subtle", "fgsm-short")

    def _largest_radius(self) -> float:
        """The radius at which every image can become every other: the norm of an image of ones."""
        return float(self.threat.size(torch.ones_like(self.points[0][:1])))


def _pgd(name: str, steps: int, step_size: float = 0.25) -> Search:
    return Search(name, ScaledPGD(steps, step_size))


def _one_step(share: float) -> Search:
    return Search(f"fgsm-{share:g}", ScaledPGD(1, share, Zero()))
