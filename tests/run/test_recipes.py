"""The recipes agree with what the papers state, also after the user changes something."""

from __future__ import annotations

import json

import pytest

from bivallate import L1, L2, Linf, methods
from bivallate.cli import run
from bivallate.lower.stop import FOSCBelow
from bivallate.methods.entries import create
from bivallate.run.config import Config
from bivallate.run.optim import SGD, AdamW
from bivallate.run.rates import Triangle
from bivallate.run.recipes.published import RECIPES, recipe_for
from bivallate.schedule import value_at
from bivallate.types import Clock

THREAT = Linf(8 / 255)


def resolve(recipe: str, method: str | None = None, data: str = "cifar10", **parameters) -> Config:
    made = create(method or RECIPES[recipe].method, THREAT, **parameters)
    return recipe_for(recipe, made, data, fixed=parameters)


def rates(config: Config, steps: int = 1) -> list[float]:
    """The learning rate at the beginning of each epoch, or at so many steps of it."""
    peak, epochs = config.optimizer.lr, config.epochs
    clocks = [Clock(epoch=e, epochs=epochs, step=s, steps=steps) for e in range(epochs) for s in range(steps)]
    return [peak * config.rate(clock) for clock in clocks]


def drops(config: Config) -> dict[int, float]:
    """Epoch -> learning rate from then on."""
    every = rates(config)
    return {e: every[e] for e in range(config.epochs) if e == 0 or every[e] != every[e - 1]}


BATCH = {"yopo": 256, "atta": 64, "gat": 64, "nuat": 64}
FILL = {"atta": ",fill:0.5", "wmmr": ",fill:reflect"}
MART = {0: 0.01, 75: 1e-3, 90: 1e-4, 100: 1e-5}

SMOOTH = {0: 0.1, 50: 0.01, 75: 1e-3}

# recipe, data: epochs, weight decay, network, held out, attack mode, normalised, rates
PAPERS = {
    ("done", "cifar10"): (60, 5e-4, "resnet18", 0, "train", True, None),
    ("done-fast", "cifar10"): (25, 5e-4, "resnet18", 0, "train", True, None),
    ("fast", "cifar10"): (20, 5e-4, "preact-resnet18", 0.1, "train", True, None),
    ("bilaw", "cifar10"): (100, 2e-4, "small-cnn", 1000, "eval", False, {0: 0.1, 30: 0.01, 60: 0.001}),
    ("bilaw", "mnist"): (100, 2e-4, "tiny-cnn", 1000, "eval", False, {0: 0.1, 30: 0.01, 60: 0.001}),
    ("dynamic", "cifar10"): (120, 1e-4, "small-cnn", 0, "eval", False, {0: 0.01, 60: 1e-3, 100: 1e-4}),
    ("dynamic", "mnist"): (50, 1e-4, "mnist-net", 0, "eval", False, {0: 0.01, 20: 1e-3, 40: 1e-4}),
    ("trades", "cifar10"): (76, 2e-4, "resnet18", 0, "eval", False, {0: 0.1, 75: 0.01}),
    ("gairat", "cifar10"): (100, 2e-4, "resnet18", 0.1, "eval", False, {0: 0.1, 30: 0.01, 60: 0.001}),
    ("fat", "cifar10"): (120, 2e-4, "wrn-32-10", 0.1, "eval", False, {0: 0.1, 60: 0.01, 90: 1e-3, 110: 5e-4}),
    ("mart", "cifar10"): (120, 0.0035, "resnet18", 0.1, "eval", False, MART),
    ("n-fgsm", "cifar10"): (30, 5e-4, "preact-resnet18", 0.1, "train", True, None),
    ("free", "cifar10"): (10, 5e-4, "preact-resnet18", 0.1, "train", True, None),
    ("yopo", "cifar10"): (36, 5e-4, "preact-resnet18", 0.1, "train", False, {0: 0.04, 30: 4e-3, 34: 4e-4}),
    ("yopo", "mnist"): (40, 5e-4, "tiny-cnn", 0.1, "train", False, {0: 2e-3, 30: 2e-4, 35: 2e-5, 39: 2e-6}),
    ("atta", "cifar10"): (38, 2e-4, "wrn-34-10", 0.1, "eval", False, {0: 0.1, 30: 0.01, 36: 1e-3}),
    ("atta", "mnist"): (60, 2e-4, "tiny-cnn", 0.1, "eval", False, {0: 0.01}),
    ("backward-smoothing", "cifar10"): (100, 5e-4, "resnet18", 0.1, "eval", True, SMOOTH),
    ("wmmr", "cifar10"): (100, 5e-4, "resnet18", 0.1, "train", False, {0: 0.2, 60: 0.04}),
    ("wmmr", "mnist"): (100, 5e-4, "tiny-cnn", 0.1, "train", False, {0: 0.01, 60: 2e-3}),
    ("faal", "cifar10"): (2, 5e-4, "preact-resnet18", 0.1, "eval", True, {0: 0.01, 1: 1e-3}),
    ("wat", "cifar10"): (100, 2e-4, "resnet18", 0.1, "eval", False, {0: 0.1, 75: 0.01, 90: 1e-3}),
    ("cfol", "cifar10"): (200, 5e-4, "resnet18", 0.1, "eval", True, {0: 0.1, 100: 0.01, 150: 1e-3}),
    ("dafa", "cifar10"): (110, 5e-4, "resnet18", 0.1, "eval", False, {0: 0.1, 100: 0.01, 105: 1e-3}),
    ("cfa", "cifar10"): (200, 5e-4, "preact-resnet18", 0.1, "train", True, {0: 0.1, 100: 0.01, 150: 1e-3}),
    ("gat", "cifar10"): (100, 5e-4, "resnet18", 0.1, "eval", False, {0: 0.1, 71: 0.01, 86: 1e-3}),
    ("nuat", "cifar10"): (100, 5e-4, "resnet18", 0.1, "eval", False, None),
    ("elle", "cifar10"): (30, 5e-4, "preact-resnet18", 0.1, "train", False, None),
    ("fgsm-pgi", "cifar10"): (110, 5e-4, "resnet18", 0.1, "train", True, {0: 0.1, 100: 0.01, 105: 1e-3}),
    ("liet", "cifar10"): (100, 5e-4, "resnet18", 0.1, "train", False, None),
    ("e-at", "cifar10"): (3, 5e-4, "preact-resnet18", 0.1, "eval", False, {0: 0.01, 1: 1e-3, 2: 1e-4}),
    ("msd", "cifar10"): (50, 5e-4, "preact-resnet18", 0.1, "eval", True, None),
    ("hat", "cifar10"): (100, 5e-4, "resnet18", 0.1, "eval", False, None),
    ("lbgat", "cifar10"): (100, 2e-4, "wrn-34-10", 0.1, "eval", False, {0: 0.1, 75: 0.01, 90: 1e-3}),
    ("ikl", "cifar10"): (200, 5e-4, "wrn-34-10", 0.1, "eval", False, None),
    ("mart-wrn", "cifar10"): (90, 7e-4, "wrn-34-10", 0.1, "eval", False, {0: 0.1, 75: 0.01}),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "data"), PAPERS)
def test_a_recipe_is_its_papers(recipe, data):
    epochs, decay, network, held, mode, normalised, expected = PAPERS[recipe, data]
    config = resolve(recipe, data=data)
    assert isinstance(config.optimizer, SGD)
    assert config.optimizer.momentum == 0.9
    batch = BATCH.get(recipe, 128)
    assert (config.epochs, config.optimizer.weight_decay, config.batch_size) == (epochs, decay, batch)
    assert (config.model.name, config.model.normalise) == (network, normalised)
    assert config.data.validation == held
    assert config.method.attack_mode == mode
    fill = FILL.get(recipe, "")
    assert config.data.augment == (f"crop:4,flip{fill}" if data == "cifar10" else "none")
    assert (config.recipe, config.data.name) == (recipe, data)
    if expected is not None:
        assert drops(config) == pytest.approx(expected)


def test_baselines_attack_mnist_as_in_their_public_code_unless_the_user_says_how():
    eps = THREAT.eps
    solver = resolve("yopo", data="mnist").method.solver
    assert (solver.steps, solver.step_size) == (10, pytest.approx(1 / 30))
    assert resolve("yopo", data="mnist", n=3).method.solver.steps == 3
    solver = resolve("atta", "atta-trades", data="mnist").method.solver
    assert (solver.reset, solver.inner.step_size) == (None, pytest.approx(eps / 30))
    assert resolve("atta", data="mnist", reset=5).method.solver.reset == 5
    method = resolve("wmmr", data="mnist").method
    assert (method.solver.steps, method.solver.step_size) == (40, pytest.approx(eps / 30))
    assert method.weighting.alpha == method.objective.alpha == 0.05
    method = resolve("wmmr", data="mnist", alpha=0.1, steps=20).method
    assert (method.solver.steps, method.solver.step_size) == (20, pytest.approx(eps / 4))
    assert method.weighting.alpha == method.objective.alpha == 0.1
    config = resolve("wmmr", base="trades")
    assert (config.optimizer.weight_decay, drops(config)) == (
        2e-4,
        pytest.approx({0: 0.2, 75: 0.02, 90: 2e-3}),
    )
    assert resolve("n-fgsm", data="svhn").optimizer.lr == 0.05
    for data, alpha in (("cifar10", 0.0), ("cifar100", 6.0)):
        method = resolve("lbgat", data=data).method
        assert (method.loss.alpha, method.solver.weight_decay) == (alpha, 2e-4)
        assert method.solver.inner.step_size == pytest.approx(7 / 31 * eps)
    assert resolve("lbgat", data="cifar100", alpha=1.0).method.loss.alpha == 1
    assert resolve("lbgat", guide_weight_decay=5e-4).method.solver.weight_decay == 5e-4
    assert resolve("lbgat", "at").method == methods.at(THREAT)
    assert resolve("atta", steps=10).method.solver.inner.step_size == pytest.approx(7 / 31 * eps)


def test_what_was_set_in_python_stays():
    own = methods.wmmr(THREAT, alpha=2.0, steps=20)
    assert recipe_for("wmmr", own, "mnist").method == own
    own = methods.trades(THREAT, steps=20)
    assert recipe_for("trades", own, "mnist").method == own
    own = methods.wmmr(THREAT, alpha=2.0).but(name="mine")
    assert recipe_for("wmmr", own, "mnist").method == own
    for own in (
        methods.curriculum(THREAT).but(solver__level=3),
        methods.dynamic(THREAT).but(solver__stop=FOSCBelow(0.3)),
    ):
        assert recipe_for("dynamic", own, "mnist").method == own
    made = recipe_for("atta", methods.atta(THREAT, reset=3), "mnist").method
    assert (made.solver.reset, made.solver.inner.step_size) == (3, pytest.approx(THREAT.eps / 30))
    own = methods.trades(THREAT).but(name="mine")
    assert recipe_for("trades", own, "cifar10").method == own


@pytest.mark.parametrize(("recipe", "peak"), [("fast", 10), ("done", 25), ("done-fast", 10)])
def test_triangles_peak_where_the_papers_say_and_end_at_zero(recipe, peak):
    config = resolve(recipe)
    every = rates(config)
    assert every[0] == 0
    assert every.index(max(every)) == peak
    assert every[peak] == pytest.approx(0.2)
    last = Clock(epoch=config.epochs - 1, epochs=config.epochs, step=9, steps=10)
    falling = 10 * (config.epochs - peak)  # minibatches from the peak to zero
    assert config.optimizer.lr * config.rate(last) == pytest.approx(0.2 / falling)


def test_done_adam_is_the_papers_run():
    config = resolve("done", "done-adam")
    temperature = config.method.weighting.temperature
    falls = [value_at(temperature, Clock(epoch=e, epochs=60)) for e in range(60)]
    assert falls == [10.0] * 40 + [1.0] * 10 + [0.1] * 10
    assert config.method.solver.steps == 10
    assert config.rate == Triangle(25 / 60, cycle_momentum=False)


def test_five_epochs_keep_the_form_of_every_recipe():
    for name in RECIPES:
        config = resolve(name).set("epochs", "5")
        every, within = rates(config), rates(config, steps=10)  # a corner may lie inside an epoch
        assert max(within) >= 0.8 * config.optimizer.lr, name
        assert min(every[1:]) < max(every), f"{name} never lowers its rate"
    config = resolve("done").set("epochs", "5")
    falls = [value_at(config.method.weighting.temperature, Clock(epoch=e, epochs=5)) for e in range(5)]
    assert falls == [10.0, 10.0, 10.0, 1.0, 0.1]
    weighting = resolve("gairat").set("epochs", "5").method.weighting
    assert [weighting.over(Clock(epoch=e, epochs=5)) for e in range(5)] == [False, False, True, True, True]


def test_one_epoch_keeps_the_peak_rate():
    for name in ("bilaw", "dynamic", "trades", "fat", "gairat", "mart", "mart-wrn"):
        config = resolve(name).set("epochs", "1")
        assert rates(config) == [config.optimizer.lr], name


def test_fast_trains_mnist_with_adam_and_colour_with_sgd():
    config = resolve("fast", "fast-at", "mnist")
    assert config.optimizer == AdamW(5e-3, weight_decay=0.0)
    assert (config.epochs, config.model.name, config.data.augment) == (10, "tiny-cnn", "none")
    assert resolve("fast", "fast-at", "gtsrb").data.augment == "crop:4"


def test_only_fast_rotates_cifar100():
    assert resolve("fast", data="cifar100").data.augment == "crop:4,flip,rotate:15"
    others = {resolve(name, data="cifar100").data.augment for name in RECIPES if name != "fast"}
    assert others == {"crop:4,flip", *(f"crop:4,flip{fill}" for fill in FILL.values())}


def test_replays_divide_the_rate_of_the_fast_family():
    assert resolve("fast", "yopo", m=5).optimizer.lr == pytest.approx(0.04)
    assert resolve("fast", "free-at").optimizer.lr == 0.04
    assert resolve("fast", "fast-at").optimizer.lr == 0.2


def test_the_attack_mode_stays_the_methods_but_for_at_in_the_fast_family():
    assert resolve("fast", "at").method.attack_mode == "train"
    assert resolve("fast", "at", attack_mode="eval").method.attack_mode == "eval"
    assert resolve("fast", "trades").method.attack_mode == "eval"
    assert resolve("trades", "fast-at").method.attack_mode == "train"


def test_recipes_move_a_methods_milestones_unless_the_user_set_them():
    assert resolve("gairat").method.weighting.burn_in == 0.3
    assert resolve("gairat", burn_in=0.5).method.weighting.burn_in == 0.5
    assert resolve("gairat", "mail-at").method.weighting.burn_in == 0.625
    assert resolve("dynamic", data="mnist").method.solver.stop.threshold.until == 0.8
    assert resolve("dynamic", data="mnist", until=0.5).method.solver.stop.threshold.until == 0.5
    assert resolve("dynamic", "curriculum", data="mnist").method.solver.level.until == 0.8
    assert resolve("dynamic", "at", data="mnist").method == methods.at(THREAT)


def test_trades_attacks_as_in_its_public_code_unless_the_user_says_how():
    def attack(data: str = "cifar10", method: str = "trades", **parameters) -> tuple[int, float]:
        solver = resolve("trades", method, data, **parameters).method.solver
        return solver.steps, solver.step_size / THREAT.eps

    assert attack() == pytest.approx((10, 7 / 31))
    assert attack("mnist") == pytest.approx((40, 1 / 30))
    assert attack(steps=20) == pytest.approx((20, 7 / 31))
    assert attack(step_size=0.25) == (10, 0.25)
    assert attack("mnist", steps=10) == attack("mnist", step_size=0.25) == (10, 0.25)
    assert attack(method="at") == attack("mnist", "at") == (10, 0.25)
    assert resolve("dynamic", "trades").method == methods.trades(THREAT)


def test_several_threats_are_the_papers_on_cifar10_alone_unless_the_user_names_them():
    assert resolve("e-at").method.threats == (THREAT, L1(12.0))
    assert resolve("msd").method.threats == (THREAT, L2(0.5), L1(12.0))
    assert resolve("msd", "max-at").method.threats == (THREAT, L2(0.5), L1(12.0))
    assert resolve("msd", others=(L2(0.3),)).method.threats == (THREAT, L2(0.3))
    assert resolve("e-at", data="mnist").method.threats == (THREAT,)
    assert recipe_for("e-at", create("e-at", L2(0.5)), "cifar10").method.threats == (L2(0.5),)
    assert resolve("msd", "at").method == methods.at(THREAT)


def test_mart_has_another_beta_with_a_wide_network():
    assert resolve("mart-wrn").method.loss.beta == 6
    assert resolve("mart-wrn", beta=3.0).method.loss.beta == 3
    assert resolve("mart-wrn", "mail-mart").method.loss.beta == resolve("mart").method.loss.beta == 5


def test_unknown_images_get_a_network_for_colour_and_the_loaders_augmentation(tmp_path):
    config = resolve("done", data=str(tmp_path))
    assert (config.model.name, config.data.augment) == ("resnet18", "default")
    assert resolve("done", data="digits").model.name == "tiny-cnn"


def test_every_recipe_is_printed_as_a_file_that_trains(tmp_path, capsys):
    for name in RECIPES:
        assert run(["recipes", name, "--data", "digits"]) == 0
        file = tmp_path / f"{name}.toml"
        file.write_text(capsys.readouterr().out)
        assert Config.read(file).recipe == name
    short = ["--epochs", "1", "--batch-size", "500", "--set", "validation.steps=1", "--model", "linear"]
    assert (
        run(["train", "--config", str(tmp_path / "done.toml"), "--out", str(tmp_path / "run"), *short]) == 0
    )
    kept = Config.read(tmp_path / "run" / "config.toml")
    assert (kept.recipe, kept.epochs, kept.model.name) == ("done", 1, "linear")


def test_the_list_names_every_recipe(capsys):
    assert run(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == RECIPES.keys()
    assert run(["recipes"]) == 0
    assert "done" in capsys.readouterr().out
    assert run(["recipes", "dnoe"]) == 2
    assert "did you mean 'done'" in capsys.readouterr().err


def test_cyclic_momentum_is_a_setting():
    config = resolve("done").set("rate.cycle_momentum", "true")
    peak = Clock(epoch=25, epochs=60, steps=10)
    assert config.rate.momentum(peak, 0.9) == pytest.approx(0.8)
    assert resolve("done").rate.momentum(peak, 0.9) == 0.9
