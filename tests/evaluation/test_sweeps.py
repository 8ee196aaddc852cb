"""Curves over eps, smallest distances and transfer agree with what is known exactly."""

from __future__ import annotations

import re

import pytest
import torch
from tests.evaluation.conftest import affine, cloud

import bivallate as bv
from bivallate.audits import audit
from bivallate.errors import UserError
from bivallate.evaluation import (
    attack_and_score,
    black_box,
    eps_curve,
    minimal_distances,
    transfer,
)
from bivallate.evaluation.sweeps import survivors


def test_a_linear_model_has_the_distances_of_its_hyperplane():
    x = 0.5 + 0.1 * (cloud(20, (1, 4, 4)).double() - 0.5)
    model = affine(16, 2).double()
    with torch.no_grad():
        model[1].bias.sub_(model(x).mean(0))
        logits = model(x)
        w = model[1].weight[0] - model[1].weight[1]
    y, gap = logits.argmax(1), (logits[:, 0] - logits[:, 1]).abs()
    for norm, dual in (("linf", w.abs().sum()), ("l2", w.norm()), ("l1", w.abs().max())):
        found = minimal_distances(model, (x, y), norm)
        exact = gap / dual
        assert float(exact.max()) < 0.4, "the box is out of reach"
        assert bool((found >= exact * (1 - 1e-4)).all())
        assert bool((found <= exact * 1.06).all())
        assert survivors(found, [0, float(found.median()), 1]) == [20, 10, 0]
    assert bool((minimal_distances(model, (x, 1 - y), "l2") == 0).all())


def test_the_curve_falls_from_clean_accuracy(robust_model, held_out):
    curve = eps_curve(robust_model, held_out, "linf", [0.2, "1/20", 0], "fgsm")
    values = [score.robust_accuracy for score in curve.values()]
    assert list(curve) == [0, 0.05, 0.2]
    assert values[0] == curve[0].clean_accuracy
    assert values[0] > values[1] > values[2]


def test_transfer_from_itself_is_the_white_box_and_from_noise_is_not(robust_model, held_out):
    threat = bv.Linf(0.1)
    white = attack_and_score(robust_model, held_out, threat, "pgd-5", first=60)
    same = transfer(robust_model, robust_model, held_out, threat, "pgd-5", first=60)
    stranger = transfer(robust_model, {"stranger": affine(64, 10)}, held_out, threat, "pgd-5", first=60)
    assert torch.equal(same.robust, white.robust)
    assert stranger.robust_accuracy > white.robust_accuracy
    assert list(stranger.stages) == ["clean", "stranger"]
    assert re.fullmatch("transfer-pgd-5-from-stranger_[0-9a-f]{8}", stranger.attack)
    other = transfer(robust_model, {"stranger": affine(64, 10, seed=1)}, held_out, threat, "pgd-1", first=2)
    again = transfer(robust_model, {"stranger": affine(64, 10)}, held_out, threat, "pgd-5", first=2)
    assert again.attack == stranger.attack
    assert other.attack.rpartition("_")[2] != stranger.attack.rpartition("_")[2]
    both = transfer(robust_model, [affine(64, 10), robust_model], held_out, threat, "pgd-5", first=60)
    assert bool((both.robust <= stranger.robust).all())


def test_transfer_from_itself_on_a_subset_is_the_white_box(robust_model, held_out):
    """Noise belongs to the row of the data, also where the points are made."""
    white = attack_and_score(robust_model, held_out, bv.Linf(0.1), "pgd-1", n=60, seed=3)
    same = transfer(robust_model, robust_model, held_out, bv.Linf(0.1), "pgd-1", n=60, seed=3)
    assert torch.equal(same.margin, white.margin)


def test_points_that_apgd_transfers_lie_beyond_the_boundary(robust_model, held_out):
    """On the surrogate itself they are wrong by more than those of an attack that stops at once."""
    stopped = attack_and_score(robust_model, held_out, bv.Linf(0.2), "apgd-ce-20", first=60)
    same = transfer(robust_model, robust_model, held_out, bv.Linf(0.2), "apgd-ce-20", first=60)
    assert torch.equal(same.robust, stopped.robust)
    fooled = stopped.broken_at == 1
    assert int(fooled.sum()) > 10
    assert float(same.margin[fooled].mean()) < float(stopped.margin[fooled].mean()) - 0.5


UNMEASURABLE = [
    ({"x": torch.full((4, 1, 8, 8), 255.0)}, r"\[0, 1\], got values"),
    ({"x": torch.zeros(4, 1, 8, 8).byte()}, "floating point"),
    ({"x": torch.full((4, 1, 8, 8), torch.nan)}, r"\[0, 1\]"),
    ({"y": torch.full((4,), 10)}, "labels must lie in 0..9"),
    ({"y": torch.zeros(4)}, "labels must be integers"),
    ({"steps": 0}, "steps must be"),
    ({"targets": 0}, "targets must be"),
    ({"batch_size": 0}, "batch_size must be"),
    ({"seed": -1}, "seed must be"),
]


@pytest.mark.parametrize(("changed", "message"), UNMEASURABLE, ids=lambda v: v if isinstance(v, str) else "")
def test_distances_refuse_what_they_cannot_measure(changed, message):
    given = {"x": torch.rand(4, 1, 8, 8), "y": torch.zeros(4).long(), **changed}
    with pytest.raises(UserError, match=message):
        minimal_distances(affine(64, 10), (given.pop("x"), given.pop("y")), "linf", **given)


def test_a_model_without_logits_is_not_infinitely_robust():
    data, broken = (torch.rand(4, 1, 8, 8), torch.zeros(4).long()), affine(64, 10)
    with torch.no_grad():
        broken[1].bias[0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite logits"):
        minimal_distances(broken, data, "linf")


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_distances_take_any_whole_labels_and_half_precision(kind):
    x, model = cloud(8, (1, 8, 8)), affine(64, 10)
    y = model(x).argmax(1)
    expected = minimal_distances(model, (x, y), "linf", steps=5)
    assert torch.equal(minimal_distances(model, (x, y.to(kind)), "linf", steps=5), expected)
    half = minimal_distances(affine(64, 10).bfloat16(), (x, y), "linf", steps=5)
    assert bool(half.isfinite().all())


def test_an_eps_curve_resumes_radius_by_radius(robust_model, held_out, tmp_path):
    options = {"eps": [0.1, 0.05, 0.2], "attack": "pgd-3", "first": 30}
    whole = eps_curve(robust_model, held_out, "linf", **options)

    def stop(moment):
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt

    file = tmp_path / "curve"
    with pytest.raises(KeyboardInterrupt):
        eps_curve(robust_model, held_out, "linf", resume=file, progress=stop, **options)
    left = {place.name for place in tmp_path.iterdir()}
    assert left == {"curve.0.05", "curve.0.1"}
    resumed = eps_curve(robust_model, held_out, "linf", resume=file, **options)
    for radius, score in whole.items():
        assert torch.equal(score.robust, resumed[radius].robust)
        assert score.passes == resumed[radius].passes


class Named(torch.nn.Sequential):
    """A model that names its classes."""

    classes: list[str]


def named(model, names):
    made = Named(model)
    made.classes = list(names)
    return made


def test_points_do_not_transfer_between_models_that_number_their_classes_differently():
    x = cloud(60, (1, 4, 4))
    model = named(affine(16, 3), "abc")
    y = model(x).argmax(1)
    turned = named(torch.nn.Sequential(model, torch.nn.Linear(3, 3, bias=False)), "cba")
    with torch.no_grad():
        turned[0][1].weight.copy_(torch.eye(3).flip(0))  # the same function, its classes in another order
    kept = transfer(model, named(model, "abc"), (x, y), bv.Linf(0.05), "fgsm")
    assert kept.robust_accuracy < 1
    with pytest.raises(UserError, match="in another order"):
        transfer(model, turned, (x, y), bv.Linf(0.05), "fgsm")
    with pytest.raises(UserError, match="in another order"):
        audit(model, (x, y), bv.Linf(0.05), surrogates=[affine(16, 3), turned], budget_passes=1e5)


def test_a_surrogate_has_weights_that_name_the_attack(monkeypatch):
    model, x = affine(16, 3), cloud(10, (1, 4, 4))
    monkeypatch.setattr(black_box, "attack_rows", None)  # said before anything is attacked
    with pytest.raises(UserError, match=r"f must be a torch.nn.Module, .* got function"):
        transfer(model, {"f": lambda z: model(z)}, (x, model(x).argmax(1)), bv.Linf(0.1), "fgsm")
