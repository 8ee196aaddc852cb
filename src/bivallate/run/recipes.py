"""The papers' training recipes: optimiser, schedule, epochs, batch, attack mode, early stopping; all scale
with epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bivallate.errors import unknown
from bivallate.lower.problem import AttackMode
from bivallate.method import Method
from bivallate.run.config import Config, Data, Model, Validation
from bivallate.run.optim import SGD, MultiStep, Triangle

EPS = {"mnist": "0.3", "fashion-mnist": "0.1", "fashion_mnist": "0.1", "digits": "0.15"}


def default_eps(data: str) -> str:
    """The customary radius for a data set."""
    return EPS.get(data, "8/255")


def fast(method: Method) -> Config:
    """Fast-AT family (Wong et al. 2020; Fast-BAT): 20 epochs, triangle to 0.2, best robust epoch on 10 % held
    out."""
    return _config(method, SGD(0.2), Triangle(0.5), epochs=20, mode="train", validation=Validation(50, 1000))


def done(method: Method) -> Config:
    """DONE: 60 epochs, triangle with its peak of 0.2 at epoch 25, temperatures 10, 1, 0.1 from epochs 0, 40,
    50."""
    return _config(
        method, SGD(0.2), Triangle(25 / 60), epochs=60, mode="train", validation=Validation(20, 1000)
    )


def bilaw(method: Method) -> Config:
    """BiLAW: 100 epochs, 0.1 divided by 10 at 30 and 60, 1000 examples to learn weights from and 1000 to stop
    on."""
    config = _config(method, SGD(0.1, weight_decay=2e-4), MultiStep((0.3, 0.6)), epochs=100, mode="eval")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, validation=1000, meta=1000))


def dynamic(method: Method) -> Config:
    """Dynamic AT: 120 epochs, 0.01 divided by 10 at 60 and 100, weight decay 1e-4."""
    rate = MultiStep((0.5, 100 / 120))
    return _config(method, SGD(0.01, weight_decay=1e-4), rate, epochs=120, mode="eval")


def trades(method: Method) -> Config:
    """TRADES: 76 epochs of a schedule with drops at 75, 90 and 100, so that the last epoch alone has the
    lower rate."""
    return _config(method, SGD(0.1, weight_decay=2e-4), MultiStep((75 / 76,)), epochs=76, mode="eval")


def gairat(method: Method) -> Config:
    """GAIRAT with ResNet-18: 100 epochs, 0.1 divided by 10 at 30 % and by 100 at 60 %; selection on held-out
    data."""
    return _config(method, SGD(0.1, weight_decay=2e-4), MultiStep((0.3, 0.6)), epochs=100, mode="eval")


def mart(method: Method) -> Config:
    """MART and MAIL with ResNet-18: 120 epochs, 0.01 times 0.1, 0.01, 0.001 at 75, 90, 100; weight decay
    3.5e-3."""
    rate = MultiStep((75 / 120, 90 / 120, 100 / 120))
    return _config(method, SGD(0.01, weight_decay=3.5e-3), rate, epochs=120, mode="eval")


RECIPES: dict[str, Callable[[Method], Config]] = {
    "fast": fast,
    "done": done,
    "bilaw": bilaw,
    "dynamic": dynamic,
    "trades": trades,
    "gairat": gairat,
    "mart": mart,
}


def recipe_for(name: str | None, method: Method, data: str) -> Config:
    """The configuration of a recipe, or the package's own defaults without one. Raises UserError for an
    unknown name."""
    if name is None:
        return Config(method=method, data=Data(name=data))
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    config = RECIPES[name](method)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, name=data), recipe=name)


def _config(
    method: Method,
    optimizer: SGD,
    rate: Triangle | MultiStep,
    *,
    epochs: int,
    mode: AttackMode,
    validation: Validation | None = None,
) -> Config:
    return Config(
        method=method.but(attack_mode=mode),
        model=Model(name="resnet18"),
        optimizer=optimizer,
        rate=rate,
        epochs=epochs,
        batch_size=128,
        validation=validation or Validation(20, 1000),
    )
