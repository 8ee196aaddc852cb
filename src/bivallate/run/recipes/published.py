"""The papers' training recipes.

A recipe gives a complete configuration (optimiser, schedule, epochs, batch, augmentation, BatchNorm while
attacking, selection). The user's own options override its values. In the docstrings "0.1 times 0.1, 0.01 at
30, 60" means: learning rate 0.1, multiplied by 0.1 from epoch 30 and by 0.01 from epoch 60 on; "triangle to
0.2" means: from 0 up to 0.2 and back to 0. Milestones are fractions of the epochs, so a run of fewer epochs
keeps the form of its schedule. Epochs count from 0: a rate that drops "at epoch 75" drops after 75 epochs.

Deviation: the public code of TRADES, MART and GAIRAT counts epochs from 1, so its rates drop one epoch
earlier.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass

from bivallate.errors import unknown
from bivallate.lower.curriculum import Curriculum
from bivallate.lower.pgd import PGD
from bivallate.lower.stop import FOSCBelow
from bivallate.method import Method
from bivallate.methods.composed import epochs_within
from bivallate.run.config import Config
from bivallate.run.defaults import defaults
from bivallate.run.optim import SGD, AdamW
from bivallate.run.rates import Cosine, MultiStep, Triangle
from bivallate.run.recipes import baselines, class_wise, imagenet, one_step, several_norms
from bivallate.run.recipes.task import Task
from bivallate.upper.loss import Mart
from bivallate.weighting.base import After
from bivallate.weighting.rules import GAIRAT

WHOLE = 0.0  # nothing held out: all rows are trained on, and the last weights are the result


def fast(task: Task) -> Config:
    """Fast-AT and Fast-BAT: 20 epochs, triangle to 0.2 (0.04 for Free-AT, 0.2/m for YOPO); best robust epoch.

    MNIST and Fashion-MNIST: 10 epochs of Adam, 0.005, as Wong et al. train MNIST. AT attacks in train mode.

    Deviation: the epoch is chosen by PGD-50 with one restart on 1,000 rows of a stratified tenth. The paper
    uses PGD-50-10 on the last tenth of the file, which would cost more than most methods' training.
    """
    if task.method.name == "at":
        task = task.tuned("attack_mode", "attack_mode", "train")
    optimizer, rate, epochs = SGD(_peak(task.method)), Triangle(0.5), 20
    if task.handwriting:
        optimizer, rate, epochs = AdamW(5e-3, weight_decay=0.0), Triangle(0.4), 10
    return task.config(optimizer, rate, epochs=epochs, colour="preact-resnet18", normalise=True, watched=50)


def done(task: Task) -> Config:
    """DONE: 60 epochs on all rows, triangle to 0.2 at epoch 25; temperatures fall at 40 and 50; last weights.

    The paper states no weight decay; 5e-4 is that of Fast-BAT, on whose code DONE is built.
    """
    return _done(task, epochs=60, peak=25 / 60)


def done_fast(task: Task) -> Config:
    """DONE's fast setting, for all methods it compares: 25 epochs, triangle to 0.2 at epoch 10."""
    return _done(task, epochs=25, peak=10 / 25)


def bilaw(task: Task) -> Config:
    """BiLAW: 100 epochs, 0.1 divided by 10 at 30 and 60; 1,000 rows to learn weights on, 1,000 to choose on.

    The paper states no weight decay; 2e-4 is that of GAIRAT.
    """
    config = task.config(
        SGD(0.1, weight_decay=2e-4),
        MultiStep((0.3, 0.6)),
        epochs=100,
        colour="small-cnn",
        validation=1000,
        augment=task.cropped,
    )
    return config.set("data.meta", 1000)


def dynamic(task: Task) -> Config:
    """Dynamic AT: 120 epochs on all rows, 0.01 divided by 10 at 60 and 100; MNIST 50 epochs, at 20 and 40."""
    epochs, at = 120, (60 / 120, 100 / 120)
    if task.handwriting:
        epochs, at = 50, (20 / 50, 40 / 50)
        solver = task.method.solver
        if isinstance(getattr(solver, "stop", None), FOSCBelow):
            task = task.tuned("until", "solver.stop.threshold.until", 40 / 50)
        elif isinstance(solver, Curriculum):
            task = task.tuned("until", "solver.level.until", 40 / 50)
    return task.config(
        SGD(0.01, weight_decay=1e-4),
        MultiStep(at),
        epochs=epochs,
        colour="small-cnn",
        grey="mnist-net",
        validation=WHOLE,
        augment=task.cropped,
    )


def trades(task: Task) -> Config:
    """TRADES: 76 epochs on all rows, 0.1 and in the last epoch 0.01; last weights.

    The method `trades` attacks as in its public code: 10 steps of 0.007 at eps = 0.031; on MNIST 40 steps of
    0.01 at 0.3. The paper's network is wrn-34-10; the default here is resnet18.
    """
    if task.method.name == "trades" and isinstance(task.method.solver, PGD):
        task = _attack_of_trades(task)
    return task.config(
        SGD(0.1, weight_decay=2e-4),
        MultiStep((75 / 76,)),
        epochs=76,
        colour="resnet18",
        grey="mnist-net",
        validation=WHOLE,
        augment=task.cropped,
    )


def gairat(task: Task) -> Config:
    """GAIRAT with ResNet-18: 100 epochs, 0.1 divided by 10 at 30 and 60; weighted from epoch 30; best epoch.

    Deviation: the best epoch is chosen on held-out data, not on the test data. The public code's default
    begins to weight examples at epoch 60.
    """
    if isinstance(task.method.weighting, After) and isinstance(task.method.weighting.rule, GAIRAT):
        task = task.tuned("burn_in", "weighting.burn_in", 0.3)
    return task.config(
        SGD(0.1, weight_decay=2e-4),
        MultiStep((0.3, 0.6)),
        epochs=100,
        colour="resnet18",
        augment=task.cropped,
    )


def fat(task: Task) -> Config:
    """FAT, and GAIRAT with a wide network: 120 epochs, 0.1 times 0.1, 0.01, 0.005 at 60, 90, 110; best epoch.

    Deviation: the best epoch is chosen on held-out data.
    """
    return task.config(
        SGD(0.1, weight_decay=2e-4),
        MultiStep((60 / 120, 90 / 120, 110 / 120), factors=(0.1, 0.01, 0.005)),
        epochs=120,
        colour="wrn-32-10",
        augment=task.cropped,
    )


def mart(task: Task) -> Config:
    """MART and MAIL, ResNet-18: 120 epochs, 0.01 times 0.1, 0.01, 0.001 at 75, 90, 100; weight decay 3.5e-3.

    Deviation: the best epoch is chosen on held-out data.
    """
    return task.config(
        SGD(0.01, weight_decay=3.5e-3),
        MultiStep((75 / 120, 90 / 120, 100 / 120)),
        epochs=120,
        colour="resnet18",
        augment=task.cropped,
    )


def mart_wrn(task: Task) -> Config:
    """MART and MAIL with a wide network: 90 epochs, 0.1 times 0.1 at 75; weight decay 7e-4; best epoch.

    The method `mart` gets beta = 6, its value for wide networks.
    """
    if task.method.name == "mart" and isinstance(task.method.loss, Mart):
        task = task.tuned("beta", "loss.beta", 6.0)
    return task.config(
        SGD(0.1, weight_decay=7e-4),
        MultiStep((75 / 90,)),
        epochs=90,
        colour="wrn-34-10",
        augment=task.cropped,
    )


def bastion(task: Task) -> Config:
    """Bastion: 27 epochs, which cost as much as 10 of PGD-10 AT; triangle to 0.05 after a fifth; averaged.

    It was tried only with tiny-cnn on MNIST and Fashion-MNIST, with batches of 32 (docs/bastion.md).
    """
    config = task.config(
        SGD(0.05, weight_decay=2e-4),
        Triangle(0.2),
        epochs=epochs_within(10 * 22),
        colour="preact-resnet18",
        augment=task.cropped,
    )
    return dataclasses.replace(config, average=0.99)


def finetune(task: Task) -> Config:
    """Fine-tuning of trained weights (`--init`): 10 epochs, half a cosine from half the usual rate; best.

    The radius grows over the first half of training: without that, TRADES learns nothing from plainly trained
    weights (docs/finetuning.md). An average of the weights with decay 0.99 per step is kept too.
    """
    own = defaults(task.method, task.data)
    config = dataclasses.replace(own, rate=Cosine(warm_up=0.1), epochs=10, average=0.99, warm_up=0.5)
    augment = task.cropped or (task.known.augment if task.known is not None else "default")
    return config.set("optimizer.lr", own.optimizer.lr / 2).set("data.augment", augment)


@dataclass(frozen=True)
class Recipe:
    """A recipe: the function that makes its configuration, and the method whose paper it comes from."""

    make: Callable[[Task], Config]
    method: str

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return self.about.partition("\n")[0]

    @property
    def about(self) -> str:
        """The function's docstring."""
        return inspect.getdoc(self.make) or ""


BY_METHOD = baselines.BY_METHOD | class_wise.BY_METHOD | one_step.BY_METHOD | several_norms.BY_METHOD
RECIPES: dict[str, Recipe] = {
    "fast": Recipe(fast, "fast-bat"),
    "imagenet": Recipe(imagenet.imagenet, "fast-bat"),
    "done": Recipe(done, "done-adam"),
    "done-fast": Recipe(done_fast, "done-fast"),
    "bilaw": Recipe(bilaw, "bilaw"),
    "dynamic": Recipe(dynamic, "dynamic"),
    "trades": Recipe(trades, "trades"),
    "fat": Recipe(fat, "fat"),
    "gairat": Recipe(gairat, "gairat"),
    "mart": Recipe(mart, "mart"),
    "mart-wrn": Recipe(mart_wrn, "mart"),
    "n-fgsm": Recipe(baselines.n_fgsm, "n-fgsm"),
    "free": Recipe(baselines.free, "free-at"),
    "yopo": Recipe(baselines.yopo, "yopo"),
    "atta": Recipe(baselines.atta, "atta"),
    "backward-smoothing": Recipe(baselines.backward_smoothing, "backward-smoothing"),
    "wmmr": Recipe(baselines.wmmr, "wmmr"),
    **{name: Recipe(make, name) for name, make in BY_METHOD.items()},
    "bastion": Recipe(bastion, "bastion"),
    "finetune": Recipe(finetune, "at"),
}


def recipe_for(name: str | None, method: Method, data: str, *, fixed: Collection[str] = ()) -> Config:
    """The configuration of a recipe, or the package's own defaults.

    Args:
        name: name of a recipe; None for the defaults. data: name of the data set.
        method: the method. A recipe changes only those of its parameters that the paper sets.
        fixed: parameters of the method that the user has set; recipes leave them alone.

    Raises:
        UserError: the name is unknown.
    """
    if name is None:
        return defaults(method, data, fixed=fixed)
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return dataclasses.replace(RECIPES[name].make(Task(method, data, fixed)), recipe=name)


def _done(task: Task, *, epochs: int, peak: float) -> Config:
    return task.config(
        SGD(0.2),
        Triangle(peak),
        epochs=epochs,
        colour="resnet18",
        normalise=True,
        validation=WHOLE,
        augment=task.cropped,
    )


def _attack_of_trades(task: Task) -> Task:
    eps = task.method.threat.eps
    if not task.handwriting:
        return task.tuned("step_size", "solver.step_size", 0.007 / 0.031 * eps)
    both = ("solver.steps", "solver.step_size")  # changed together: 40 steps are meant to be small
    if {"steps", "step_size"} & set(task.fixed) or not task.as_made(*both):
        return task
    return task.tuned("steps", "solver.steps", 40).tuned("step_size", "solver.step_size", 0.01 / 0.3 * eps)


def _peak(method: Method) -> float:
    """Peak rate: lower with replays, which make more steps (Free-AT) or sum more gradients (YOPO)."""
    if method.replays == 1:
        return 0.2
    return 0.2 / method.replays if method.accumulate else 0.04
