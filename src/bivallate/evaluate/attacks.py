"""The attacks by name: each is a sequence of parts, run on the points that the parts before have left."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from torch import Tensor

from bivallate.errors import UserError, check_whole, unknown
from bivallate.lower.objective import CrossEntropy, Margin, Objective
from bivallate.lower.pgd import PGD, Direction, Steepest
from bivallate.lower.problem import LowerProblem
from bivallate.lower.start import Start, Uniform, Zero
from bivallate.lower.stop import Iterate, Never, Rule, Stop
from bivallate.parts import part

__all__ = ["Ascent", "Attack", "Fooled", "Part", "RandomNoise", "attacks", "parse"]


class Part(Protocol):
    """One search for adversarial points, made of turns (restarts or targets).

    `search` gets the problem of some points, one row a (point, turn), with turn (B,) int64, and returns its
    candidates delta (B, C, H, W); a verdict is only passed after a fresh forward.
    """

    @property
    def name(self) -> str: ...

    def turns(self, classes: int) -> int:
        """How many restarts or targets there are for a model of so many classes."""
        ...

    def cost(self) -> float:
        """Forward and backward passes an example and turn, about."""
        ...

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor: ...


@part
class Fooled:
    """Stops an example as soon as it is misclassified, so that any iterate may be the answer."""

    def __call__(self, problem: LowerProblem) -> Rule:
        def rule(iterate: Iterate) -> Tensor:
            return iterate.logits.argmax(1) != problem.y

        return rule


@part
class Ascent:
    """PGD-steps-restarts; FGSM and C&W are settings of it.

    Attributes:
        step_size: in units of eps.
        stop: `Never()` judges the last point of every restart, `Fooled()` any point on the way.

    Cost: steps forwards and backwards a restart, and one forward for the verdict.
    """

    name: str
    steps: int = 20
    restarts: int = 1
    step_size: float = 0.25
    start: Start = field(default_factory=Uniform)
    objective: Objective = field(default_factory=CrossEntropy)
    direction: Direction = field(default_factory=Steepest)
    stop: Stop = field(default_factory=Never)

    def __post_init__(self) -> None:
        at_least_one(self.name, steps=self.steps, restarts=self.restarts)
        if not self.step_size > 0:
            raise UserError(
                f"{self.name}: step_size must be positive (in units of eps), got {self.step_size}"
            )

    def turns(self, classes: int) -> int:
        """The restarts."""
        return self.restarts

    def cost(self) -> float:
        """2 steps + 1."""
        return 2 * self.steps + 1

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """Where the gradient ascent ended."""
        step = self.step_size * problem.threat.eps
        solver = PGD(self.steps, step, self.start, self.direction, self.stop)
        return solver.solve(problem.but(self.objective)).delta


@part
class RandomNoise:
    """Uniform draws from the ball: no attack at all, but what every attack must beat."""

    draws: int = 10
    name: str = "noise"

    def __post_init__(self) -> None:
        at_least_one(self.name, draws=self.draws)

    def turns(self, classes: int) -> int:
        """The draws."""
        return self.draws

    def cost(self) -> float:
        """One forward a draw."""
        return 1.0

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """One draw."""
        return problem.project(problem.threat.random(problem.noise, problem.x))


@part
class Attack:
    """A named sequence of parts: a point is robust if it survives them all. No parts: clean accuracy."""

    name: str
    parts: tuple[Part, ...] = ()


def at_least_one(name: str, **counts: int) -> None:
    """Raises UserError unless every count is a whole number of at least 1."""
    for what, value in counts.items():
        check_whole(f"{name}: {what}", value)


Recipe = Callable[..., Attack]  # (steps and restarts as far as the name gave them) -> attack
_FAMILIES: dict[str, tuple[Recipe, str, str]] = {}  # name -> recipe, how it is written, description


def family(name: str, written: str, description: str) -> Callable[[Recipe], Recipe]:
    """Decorator: registers a family of attacks; the recipe's parameters are the numbers of the name."""

    def add(recipe: Recipe) -> Recipe:
        _FAMILIES[name] = (recipe, written, description)
        return recipe

    return add


@family("clean", "clean", "no attack: clean accuracy")
def _clean() -> Attack:
    return Attack("clean")


@family("fgsm", "fgsm", "one signed gradient step of size eps from the clean image")
def _fgsm() -> Attack:
    return Attack("fgsm", (Ascent("fgsm", steps=1, step_size=1.0, start=Zero()),))


@family(
    "pgd", "pgd-N[-R]", "N signed gradient steps of eps/4 on cross-entropy, R random restarts; last point"
)
def _pgd(steps: int = 20, restarts: int = 1) -> Attack:
    name = f"pgd-{steps}" + (f"-{restarts}" if restarts != 1 else "")
    return Attack(name, (Ascent(name, steps, restarts),))


@family("pgd-best", "pgd-best-N[-R]", "the same, where any point on the way counts")
def _pgd_best(steps: int = 20, restarts: int = 1) -> Attack:
    name = f"pgd-best-{steps}" + (f"-{restarts}" if restarts != 1 else "")
    return Attack(name, (Ascent(name, steps, restarts, stop=Fooled()),))


@family("pgd-zero", "pgd-zero-N", "pgd-N from the clean image; often weaker, for comparison with papers")
def _pgd_zero(steps: int = 20) -> Attack:
    name = f"pgd-zero-{steps}"
    return Attack(name, (Ascent(name, steps, start=Zero()),))


@family("cw", "cw[-N[-R]]", "N = 30 signed gradient steps of eps/4 on the margin loss of Carlini and Wagner")
def _cw(steps: int = 30, restarts: int = 1) -> Attack:
    name = "cw" if (steps, restarts) == (30, 1) else f"cw-{steps}-{restarts}"
    return Attack(name, (Ascent(name, steps, restarts, objective=Margin()),))


@family("noise", "noise[-N]", "N = 10 uniform draws from the ball: a baseline, not an attack")
def _noise(draws: int = 10) -> Attack:
    return Attack(f"noise-{draws}", (RandomNoise(draws),))


def attacks() -> dict[str, str]:
    """How each attack is written -> what it is."""
    return {written: description for _, written, description in _FAMILIES.values()}


def parse(attack: str | Attack | Part) -> Attack:
    """The attack of a name such as pgd-50-10; an Attack, or a single part, is taken as it is.

    Raises UserError for an unknown name, with the nearest one, and for counts of zero.
    """
    if isinstance(attack, Attack):
        return attack
    if not isinstance(attack, str):
        if not hasattr(attack, "search"):
            raise UserError(f"attack must be a name or an Attack, got {type(attack).__name__}")
        return Attack(attack.name, (attack,))
    match = re.fullmatch(r"(.*?)((?:-\d+)*)", attack.strip().lower(), re.DOTALL)
    assert match is not None  # the pattern matches every string
    name, numbers = match[1], [int(number) for number in match[2].split("-")[1:]]
    if name not in _FAMILIES:
        raise unknown("attack", attack, [written.split("[")[0] for _, written, _ in _FAMILIES.values()])
    recipe, written, _ = _FAMILIES[name]
    if len(numbers) > recipe.__code__.co_argcount or (written.startswith(f"{name}-N") and not numbers):
        raise UserError(f"attack {attack!r} must be written {written}")
    at_least_one(f"attack {attack!r}", **dict(zip(("steps", "restarts", "third"), numbers, strict=False)))
    return recipe(*numbers)
