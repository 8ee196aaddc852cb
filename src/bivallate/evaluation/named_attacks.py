"""The attacks by name: each is a sequence of stages, run on the points that earlier stages left robust."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from bivallate.errors import UserError, unknown
from bivallate.evaluation.search import (
    AimedDifference,
    AimedDLR,
    Fooled,
    RandomDraw,
    Restarts,
    ScaledPGD,
    Search,
    Targets,
    at_least_one,
)
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB, NearestPlane
from bivallate.lower.minimal_norm import CWL2, DDN, FMN, DeepFool
from bivallate.lower.objective import DLR, CrossEntropy, LogitMargin, Margin
from bivallate.lower.problem import LowerProblem
from bivallate.lower.square import Square
from bivallate.lower.start import Zero
from bivallate.lower.threat import L1, ThreatModel
from bivallate.parts import part

__all__ = ["Attack", "Stage", "attack_named", "attacks"]


class Stage(Protocol):
    """One search for adversarial points, made of turns (restarts or targets); usually a `Search`.

    `search` gets a problem with one row for each pair (point, turn), and turn (B,) int64. It returns
    candidates delta (B, C, H, W). A candidate counts only after a fresh forward pass of the model. The
    problem has no objective yet: a stage sets what it maximises, `problem.but(objective)`.
    """

    @property
    def name(self) -> str: ...

    def count(self, classes: int) -> int:
        """Number of restarts or targets for a model with `classes` classes."""
        ...

    def cost(self) -> float:
        """Approximate number of forward and backward passes for each example and turn."""
        ...

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor: ...


@part
class Attack:
    """A named sequence of stages: a point is robust if it survives them all. No stages: clean accuracy."""

    name: str
    stages: tuple[Stage, ...] = ()


Recipe = Callable[..., Attack]  # (the numbers in the attack's name) -> attack
_FAMILIES: dict[str, tuple[Recipe, str, str]] = {}  # name -> recipe, how it is written, description


def family(name: str, written: str, description: str) -> Callable[[Recipe], Recipe]:
    """Decorator: register a family of attacks; the recipe's parameters are the numbers in the name."""

    def add(recipe: Recipe) -> Recipe:
        _FAMILIES[name] = (recipe, written, description)
        return recipe

    return add


@family("clean", "clean", "no attack: clean accuracy")
def _clean() -> Attack:
    return Attack("clean")


@family("fgsm", "fgsm", "one signed gradient step of size eps from the clean image")
def _fgsm() -> Attack:
    return _one(Search("fgsm", ScaledPGD(1, 1.0, Zero())))


@family(
    "pgd", "pgd-N[-R]", "N signed gradient steps of eps/4 on cross-entropy, R random restarts; last point"
)
def _pgd(steps: int = 20, restarts: int = 1) -> Attack:
    name = f"pgd-{steps}" + (f"-{restarts}" if restarts != 1 else "")
    return _one(Search(name, ScaledPGD(steps), turns=Restarts(restarts)))


@family("pgd-best", "pgd-best-N[-R]", "the same, where any point on the way counts")
def _pgd_best(steps: int = 20, restarts: int = 1) -> Attack:
    name = f"pgd-best-{steps}" + (f"-{restarts}" if restarts != 1 else "")
    return _one(Search(name, ScaledPGD(steps, stop=Fooled()), turns=Restarts(restarts)))


@family("pgd-zero", "pgd-zero-N", "pgd-N from the clean image; often weaker, for comparison with papers")
def _pgd_zero(steps: int = 20) -> Attack:
    return _one(Search(f"pgd-zero-{steps}", ScaledPGD(steps, start=Zero())))


@family("cw", "cw[-N[-R]]", "N = 30 signed gradient steps of eps/4 on the margin loss of Carlini and Wagner")
def _cw(steps: int = 30, restarts: int = 1) -> Attack:
    name = "cw" if (steps, restarts) == (30, 1) else f"cw-{steps}-{restarts}"
    return _one(Search(name, ScaledPGD(steps), Margin(), Restarts(restarts)))


@family("noise", "noise[-N]", "N = 10 uniform draws from the ball: a baseline, not an attack")
def _noise(draws: int = 10) -> Attack:
    return Attack(f"noise-{draws}", (noise(draws),))


def noise(draws: int, name: str = "noise") -> Search:
    """Uniform draws from the ball."""
    return Search(name, RandomDraw(), turns=Restarts(draws))


@family("apgd-ce", "apgd-ce[-N[-R]]", "Auto-PGD on cross-entropy: N = 100 steps, R = 1 restarts")
def _apgd_ce(steps: int = 100, restarts: int = 1) -> Attack:
    return _one(auto_pgd(APGD(steps), restarts), (steps, restarts), (100, 1))


@family("apgd-dlr", "apgd-dlr[-N[-R]]", "Auto-PGD on the difference of logits ratio")
def _apgd_dlr(steps: int = 100, restarts: int = 1) -> Attack:
    return _one(auto_pgd_dlr(APGD(steps), restarts), (steps, restarts), (100, 1))


@family("apgd-t", "apgd-t[-N[-T]]", "Auto-PGD on the targeted difference of logits ratio, T = 9 targets")
def _apgd_t(steps: int = 100, targets: int = 9) -> Attack:
    return _one(targeted_auto_pgd(APGD(steps), targets), (steps, targets), (100, 9))


@family("fab", "fab[-N[-R]]", "fast adaptive boundary attack, N = 100 steps, R = 5 restarts")
def _fab(steps: int = 100, restarts: int = 5) -> Attack:
    made = Search("fab", FAB(steps, boundary=NearestPlane()), turns=Restarts(restarts))
    return _one(made, (steps, restarts), (100, 5))


@family("fab-t", "fab-t[-N[-T]]", "fast adaptive boundary attack towards T = 9 targets")
def _fab_t(steps: int = 100, targets: int = 9) -> Attack:
    return _one(targeted_fab(FAB(steps), targets), (steps, targets), (100, 9))


@family("square", "square[-Q[-R]]", "random search with square windows, without gradients, Q = 5000 queries")
def _square(queries: int = 5000, restarts: int = 1) -> Attack:
    return _one(square(Square(queries), restarts), (queries, restarts), (5000, 1))


@family("fmn", "fmn[-N]", "fast minimum-norm attack, N = 100 steps; breaks what it finds within eps")
def _fmn(steps: int = 100) -> Attack:
    return _one(Search("fmn", FMN(steps), LogitMargin()), (steps,), (100,))


@family("ddn", "ddn[-N]", "decoupled direction and norm, L2 alone, N = 100 steps")
def _ddn(steps: int = 100) -> Attack:
    return _one(Search("ddn", DDN(steps)), (steps,), (100,))


@family("deepfool", "deepfool[-N]", "steps to the nearest linearised boundary, N = 50 at most")
def _deepfool(steps: int = 50) -> Attack:
    return _one(Search("deepfool", DeepFool(steps)), (steps,), (50,))


@family(
    "cw-l2", "cw-l2[-N[-S]]", "Carlini and Wagner's L2 attack, N = 200 steps of Adam for S = 9 values of c"
)
def _cw_l2(steps: int = 200, searches: int = 9) -> Attack:
    made = Search("cw-l2", CWL2(steps, searches), LogitMargin())
    return _one(made, (steps, searches), (200, 9))


@family("multitargeted", "multitargeted[-N[-T]]", "PGD on the logit difference to T = 9 targets in turn")
def _multitargeted(steps: int = 20, targets: int = 9) -> Attack:
    made = Search("multitargeted", ScaledPGD(steps), AimedDifference(), Targets(targets))
    return _one(made, (steps, targets), (20, 9))


@family("autoattack", "autoattack", "the standard ensemble: apgd-ce, apgd-t, fab-t, square")
def _autoattack() -> Attack:
    return ensemble("autoattack")


def _autoattack_in_l1() -> Attack:
    """The standard ensemble in L1: APGD, in balls shrinking from 3 eps, has five restarts and targets."""
    return Attack(
        "autoattack", (auto_pgd(restarts=5), targeted_auto_pgd(targets=5), targeted_fab(), square())
    )


_IN_L1: dict[str, Recipe] = {"autoattack": _autoattack_in_l1}  # recipes that differ in L1


@family("autoattack-plus", "autoattack-plus", "the longer ensemble: five restarts, and untargeted stages too")
def _autoattack_plus() -> Attack:
    untargeted = auto_pgd(restarts=5), auto_pgd_dlr(restarts=5), *_fab().stages, square()
    return Attack("autoattack-plus", (*untargeted, targeted_auto_pgd(), targeted_fab()))


@family(
    "autoattack-rand",
    "autoattack-rand",
    "for models that are random: apgd-ce and apgd-dlr, 20 samples a step",
)
def _autoattack_rand() -> Attack:
    eot = APGD(samples=20)
    return Attack("autoattack-rand", (auto_pgd(eot), auto_pgd_dlr(eot)))


def auto_pgd(solver: APGD = APGD(), restarts: int = 1) -> Search:  # noqa: B008  frozen
    """A stage: APGD on cross-entropy."""
    return Search("apgd-ce", solver, CrossEntropy(), Restarts(restarts))


def auto_pgd_dlr(solver: APGD = APGD(), restarts: int = 1) -> Search:  # noqa: B008
    """A stage: APGD on the difference of logits ratio."""
    return Search("apgd-dlr", solver, DLR(), Restarts(restarts))


def targeted_auto_pgd(solver: APGD = APGD(), targets: int = 9) -> Search:  # noqa: B008
    """A stage: APGD on the targeted difference of logits ratio."""
    return Search("apgd-t", solver, AimedDLR(), Targets(targets))


def targeted_fab(solver: FAB = FAB(), targets: int = 9) -> Search:  # noqa: B008
    """A stage: FAB-T."""
    return Search("fab-t", solver, AimedDifference(), Targets(targets))


def square(solver: Square = Square(), restarts: int = 1) -> Search:  # noqa: B008
    """A stage: the Square attack."""
    return Search("square", solver, turns=Restarts(restarts))


def ensemble(
    name: str,
    apgd: APGD = APGD(),  # noqa: B008
    fab: FAB = FAB(),  # noqa: B008
    random_search: Square = Square(),  # noqa: B008
    targets: int = 9,
) -> Attack:
    """AutoAttack's four stages with other budgets."""
    targeted = targeted_auto_pgd(apgd, targets), targeted_fab(fab, targets)
    return Attack(name, (auto_pgd(apgd), *targeted, square(random_search)))


def _one(made: Search, numbers: tuple[int, ...] = (), usual: tuple[int, ...] = ()) -> Attack:
    """An attack of one stage; its name includes the numbers if they are not the usual ones."""
    suffix = "" if numbers == usual else "".join(f"-{number}" for number in numbers)
    return Attack(made.name + suffix, (made,))


def attacks() -> dict[str, str]:
    """The written form of each attack -> its description."""
    return {written: description for _, written, description in _FAMILIES.values()}


def attack_named(attack: str | Attack | Stage, threat: ThreatModel | None = None) -> Attack:
    """The attack with a name such as pgd-50-10; an Attack is returned as it is, a stage becomes an Attack.

    Args:
        attack: its name, or the attack itself.
        threat: the set of perturbations, in which the search is going to run; the standard ensemble is
            another one in L1.

    Raises:
        UserError: for an unknown name, with the nearest one, for counts of zero, and for an attack that the
            threat does not have.
    """
    if isinstance(attack, Attack):
        usual = isinstance(threat, L1) and attack.name in _IN_L1 and attack == _FAMILIES[attack.name][0]()
        return _IN_L1[attack.name]() if usual else attack
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
    recipe = _IN_L1.get(name, recipe) if isinstance(threat, L1) else recipe
    parameters = list(inspect.signature(recipe).parameters)
    if len(numbers) > len(parameters) or (written.startswith(f"{name}-N") and not numbers):
        raise UserError(f"attack {attack!r} must be written {written}")
    at_least_one(f"attack {attack!r}", **dict(zip(parameters, numbers, strict=False)))
    made = recipe(*numbers)
    for stage in made.stages:
        if threat is not None and isinstance(stage, Search):
            stage.solver.check_threat(threat)
    return made
