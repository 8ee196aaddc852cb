"""The defaults of a training: values of the data set, a batch size that fits, a growing radius."""

from __future__ import annotations

import json

import pytest
import torch
from tests.run.tiny import AT, Radii, plan, run

import bivallate as bv
from bivallate.methods.entries import create
from bivallate.run.config import Config
from bivallate.run.defaults import defaults, fitted, threat_on
from bivallate.run.recipes.published import RECIPES, recipe_for
from bivallate.run.sentinel import Sentinel
from bivallate.run.signals import Interrupted
from bivallate.run.warm_up import growth
from bivallate.types import Clock


@pytest.mark.parametrize(
    ("data", "eps", "lr", "warm_up"),
    [
        ("digits", "0.15", 0.1, 0.0),
        ("mnist", "0.3", 0.05, 0.5),
        ("fashion_mnist", "0.1", 0.05, 0.5),
        ("a/folder/fashion-mnist", "0.1", 0.05, 0.5),
        ("gtsrb", "8/255", 0.05, 0.5),
        ("cifar10", "8/255", 0.05, 0.5),
        ("photographs of mine", "8/255", 0.05, 0.5),
    ],
)
def test_the_usual_values_stand_with_the_data_set(data, eps, lr, warm_up):
    usual = bv.data.registry.training_defaults(data)
    config = recipe_for(None, AT, data)
    assert (usual.eps, config.optimizer.lr, config.warm_up) == (eps, lr, warm_up)
    assert config.model.name == usual.model


def test_the_customary_radius_is_that_of_the_norm():
    assert threat_on("cifar10", "l1", None, "") == bv.L1(12.0)
    assert (
        threat_on("cifar10", "linf", None, "") == threat_on("a folder", "linf", None, "") == bv.Linf(8 / 255)
    )
    assert threat_on("mnist", "l1", "10", "") == bv.L1(10.0)
    for data, norm, example in (("mnist", "l1", "12"), ("cifar10", "l2", r"0.5 \(128/255\)")):
        with pytest.raises(bv.UserError, match=f"^a radius, such as {example}: {data} has no customary one"):
            threat_on(data, norm, None, "a radius")


def test_summed_replays_take_a_smaller_rate():
    yopo = create("yopo", bv.Linf(0.1))
    assert yopo.accumulate
    assert defaults(yopo, "mnist").optimizer.lr == 0.05 / yopo.replays


def test_recipes_and_old_configurations_do_not_grow():
    papers = RECIPES.keys() - {"finetune", "ikl"}  # the package's own, and one whose public code does
    assert {recipe_for(name, AT, "mnist").warm_up for name in papers} == {0.0}
    assert recipe_for("ikl", AT, "mnist").warm_up == 199 / 200
    assert Config(AT).warm_up == 0
    with pytest.raises(bv.UserError, match="warm_up is a share"):
        Config(AT, warm_up=1.0)


@pytest.mark.parametrize(
    ("rows", "method", "batch"),
    [
        *[(54000, "at", 128), (1024, "at", 128), (320, "at", 40), (17, "at", 8), (3, "at", 3), (1, "at", 1)],
        *[(54000, "bilaw", 128), (320, "bilaw", 40), (12, "bilaw", 3)],
    ],
)
def test_the_batch_fits_the_data(rows, method, batch):
    assert fitted(Config(create(method, bv.Linf(0.1))), rows).batch_size == batch


def test_a_small_set_trains_with_nothing_said(few, tmp_path):
    few = few.but(train=few.train.subset(slice(0, 60)))
    bv.train("tiny-cnn", few, AT, epochs=1, out=tmp_path)
    assert Config.read(tmp_path / "config.toml").batch_size == 8
    with pytest.raises(bv.UserError, match="batch size 64 does not fit"):
        bv.train("tiny-cnn", few, AT, epochs=1, batch_size=64)


def test_the_radius_grows_by_the_minibatch_and_reaches_eps():
    clocks = [Clock(epoch=e, epochs=2, step=k, steps=5) for e in range(2) for k in range(5)]
    assert [growth(c, 0.4) for c in clocks] == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)
    assert {growth(c, 0.0) for c in clocks} == {1.0}
    assert growth(clocks[5], 0.4, begun=0.5) == pytest.approx(0.25)


def test_a_growing_run_is_recorded_and_resumes_to_the_bit(few, tmp_path):
    config = plan(epochs=4, warm_up=0.5, sentinel=Sentinel(share=0.2))
    radii = Radii()
    whole = run(config, few, tmp_path / "whole", radii)
    assert radii.seen == pytest.approx([0.4 * min(1, (k + 1) / 20) for k in range(40)])
    assert [line["eps"] for line in whole.history] == pytest.approx([0.2, 0.4, 0.4, 0.4])
    with pytest.raises(Interrupted):
        run(config, few, tmp_path / "cut", Radii(13))
    again = bv.resume(tmp_path / "cut", dataset=few)
    lines = [[{**line, "seconds": 0} for line in one.history] for one in (again, whole)]
    assert json.dumps(lines[0]) == json.dumps(lines[1])
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_growing_radius_learns_where_the_whole_one_stays_at_chance(few):
    at_once, grown = (run(plan(epochs=8, warm_up=share), few).history[-1] for share in (0.0, 0.5))
    assert at_once["clean"] < 0.2
    assert grown["clean"] > 0.4
    assert "eps" not in at_once


@pytest.mark.parametrize(
    ("made", "fixed", "last"),
    [
        (lambda ball: bv.methods.done_adam(ball), (), 3.0),
        (lambda ball: bv.methods.done_fast(ball), (), 3.0),
        (lambda ball: bv.methods.done_adam(ball, steps=2), (), 3.0),
        (lambda ball: bv.methods.done_adam(ball), ("temperature",), 0.1),
        (lambda ball: bv.methods.done_adam(ball, temperature=None), (), 0.1),
        (lambda ball: bv.methods.done_gd(ball, temperature=0.5), (), 0.5),
        (lambda ball: bv.methods.done_gd(ball).but(weighting=bv.KLDRO(0.5)), (), 0.5),
        (lambda ball: bv.methods.at(ball).but(weighting=bv.KLDRO()), (), 0.1),
    ],
)
def test_dones_temperature_stays_where_a_small_network_learns_unless_one_was_asked_for(made, fixed, last):
    method = made(bv.Linf(0.1))
    end = Clock(epoch=19, epochs=20)
    assert recipe_for(None, method, "mnist", fixed=fixed).method.weighting.temperature_at(end) == last
    paper = recipe_for("done", method, "mnist", fixed=fixed).method
    assert paper == method


@pytest.mark.parametrize(
    ("data", "eps", "parameters", "size"),
    [
        ("mnist", 0.3, {}, 1000.0),
        ("mnist", 0.3, {"step_size": None}, 2500 / 255),
        ("mnist", 0.3, {"step_size": 2.0}, 2.0),
        ("mnist", 0.1, {}, 2500 / 255),
        ("digits", 0.3, {}, 2500 / 255),
        ("cifar10", 8 / 255, {}, 5000 / 255),
    ],
)
def test_fast_bats_step_reaches_the_bounds_of_mnists_balls(data, eps, parameters, size):
    method = recipe_for(None, bv.methods.fast_bat(bv.Linf(eps), **parameters), data).method
    assert (method.solver.step_size, method.coupling.step_size) == (size, size)
    at = bv.methods.at(bv.Linf(eps))
    assert recipe_for(None, at, data).method == at
