"""Inputs of `evaluate`: accepted types, and errors for mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.evaluation.conftest import affine, cloud
from torch.utils.data import DataLoader, Subset, TensorDataset

import bivallate as bv
from bivallate.audits.audit_model import audit
from bivallate.errors import UserError
from bivallate.evaluation import attack, attack_and_score, eps_curve, inference, minimal_distances, transfer
from bivallate.evaluation.preflight import preflight
from bivallate.evaluation.search import AimedDifference, AimedDLR, Restarts, ScaledPGD, Search, Targets
from bivallate.lower.objective import CrossEntropy


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int16])
def test_labels_may_be_any_integers(kind):
    model, x = affine(64, 10), cloud(12, (1, 8, 8))
    y = model(x).argmax(1)
    narrow, threat = y.to(kind), bv.Linf(0.05)
    whole = attack_and_score(model, (x, y), threat, "pgd-3")
    assert torch.equal(attack_and_score(model, (x, narrow), threat, "pgd-3").robust, whole.robust)
    assert torch.equal(transfer(model, model, (x, narrow), threat, "pgd-3").robust, whole.robust)
    assert torch.equal(attack(model, x, narrow, threat, "pgd-3"), attack(model, x, y, threat, "pgd-3"))
    assert len(minimal_distances(model, (x, narrow), "linf", steps=3)) == 12
    assert preflight(model, (x, narrow)).classes == 10


MISTAKES = [
    ({"threat": 0.1}, "threat must be .* got 0.1"),
    ({"threat": bv.Linf}, "threat must be a threat model"),
    ({"batch_size": 2.5}, "batch_size must be a whole number .* got 2.5"),
    ({"batch_size": "8"}, "batch_size must be a whole number .* got '8'"),
    ({"device": "nope"}, "device 'nope' cannot be used"),
    ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ({"attack": "pgd\n5"}, "unknown attack"),
]


@pytest.mark.parametrize(("changed", "message"), MISTAKES, ids=[str(c) for c, _ in MISTAKES])
def test_mistakes_are_told(changed, message):
    model, x, y = affine(64, 10), cloud(4, (1, 8, 8)), torch.zeros(4, dtype=torch.int64)
    given = {"threat": bv.Linf(0.1), "attack": "fgsm", **changed}
    with pytest.raises(UserError, match=message):
        attack_and_score(model, (x, y), **given)
    if "device" not in given:
        given["name"] = given.pop("attack")
        with pytest.raises(UserError, match=message):
            attack(model, x, y, **given)


ASKED = {
    "evaluate": lambda *data, **shown: attack_and_score(*data, bv.Linf(0.1), "fgsm", **shown),
    "attack": lambda model, data, **shown: attack(model, *data, bv.Linf(0.1), "fgsm", **shown),
    "audit": lambda *data, **shown: audit(*data, bv.Linf(0.1), budget_passes=1e5, **shown),
    "minimal_distances": lambda *data, **shown: minimal_distances(*data, "linf", steps=2, **shown),
    "eps_curve": lambda *data, **shown: eps_curve(*data, "linf", [0.1], "fgsm", **shown),
    "transfer": lambda model, data, **shown: transfer(model, model, data, bv.Linf(0.1), "fgsm", **shown),
}


@pytest.mark.parametrize("name", ASKED)
def test_progress_is_shown_or_told(name):
    model, x = affine(64, 10), cloud(40, (1, 8, 8))
    data, moments = (x, model(x).argmax(1)), []
    for progress in (True, False, moments.append):
        ASKED[name](model, data, progress=progress)
    assert moments
    with pytest.raises(UserError, match="progress must be True, False or a function of a moment, got 'yes'"):
        ASKED[name](model, data, progress="yes")


@pytest.mark.parametrize("threat", [bv.Linf(8 / 255), bv.L2(0.5)], ids=["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_crafted_points_are_within_the_threat_and_without_graph(threat, dtype):
    model, x = affine(64, 10), cloud(12, (1, 8, 8)).to(dtype).requires_grad_()
    y = torch.zeros(12, dtype=torch.int64)
    found = attack(model, x, y, threat, "pgd-3")
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found.requires_grad
    assert x.grad is None
    assert float(threat.size(found.double() - x.detach().double()).max()) <= threat.eps + 1e-6


def _sequences(x, y):
    whole = TensorDataset(x, y)
    big = x.numpy().astype(">f4")
    return {
        "TensorDataset": whole,
        "Subset": Subset(whole, list(range(len(x)))),
        "list of pairs": list(zip(x, y, strict=True)),
        "labels by number": [(image, int(label)) for image, label in zip(x, y, strict=True)],
        "arrays by row": [(image.numpy(), label.numpy()) for image, label in zip(x, y, strict=True)],
        "arrays": (x.numpy(), y.numpy()),
        "of the other order": (big, y.numpy().astype(">i8")),
        "reversed": (big[::-1][::-1], y.tolist()),
        "a list": [x, y],
    }


@pytest.mark.parametrize("kind", list(_sequences(torch.rand(2, 1, 2, 2), torch.zeros(2).long())))
def test_data_as_people_have_it(kind):
    model, x = affine(64, 10), cloud(12, (1, 8, 8))
    y, threat = model(x).argmax(1), bv.Linf(0.05)
    data = _sequences(x, y)[kind]
    expected = attack_and_score(model, (x, y), threat, "pgd-3")
    found = attack_and_score(model, data, threat, "pgd-3")
    assert torch.equal(found.margin, expected.margin)
    assert attack_and_score(model, data, threat, "pgd-3", n=5).n == 5
    assert preflight(model, data, threat).classes == 10
    assert len(minimal_distances(model, data, "linf", steps=2)) == 12


class _Broken:
    def __len__(self):
        return 5

    def __getitem__(self, row):
        raise OSError("the disk\nis gone")


OTHERS = [
    (DataLoader(TensorDataset(torch.rand(3, 1, 2, 2), torch.zeros(3))), "hand over its data set"),
    ({"x": 1, "y": 2}, "sequence of pairs.*got dict"),
    ("digits", r"hand over bv.data.load\('digits'\).test"),
    (iter([1]), "got list_iterator"),
    (7, "got int"),
    ((torch.rand(3, 1, 2, 2), torch.zeros(3), torch.zeros(3)), "row 0 of the data must be a pair"),
    ([(torch.rand(1, 2, 2), 0), (torch.rand(1, 3, 3), 0), (torch.rand(1, 2, 2), 0)], "several shapes"),
    ([("a", 0), ("b", 0), ("c", 1)], "the image of row 0 must be"),
    ([(torch.rand(1, 2, 2), torch.zeros(3))] * 3, "the label of row 0 must be one number"),
    ((np.array([["a"]]), [0]), "x must be a tensor or an array of numbers"),
    (_Broken(), r"row 0 of the data cannot be read \(OSError"),
]


@pytest.mark.parametrize(("data", "words"), OTHERS, ids=[words for _, words in OTHERS])
def test_other_data_is_told(data, words):
    model = affine(4, 10)
    for call in (attack_and_score, preflight):
        with pytest.raises(UserError, match=words):
            call(model, data, bv.Linf(0.1))


def test_a_whole_data_set_is_told_to_be_cut():
    with pytest.raises(UserError, match=r"such as data.test"):
        attack_and_score(affine(64, 10), bv.data.load("digits"), bv.Linf(0.1), "fgsm")


def _numb(x: torch.Tensor) -> torch.Tensor:
    return x.detach().flatten(1)[:, :4]


def _silent(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return x.flatten(1)[:, :4] * 2


def _aside(x: torch.Tensor) -> torch.Tensor:
    return _numb(x) + torch.zeros(4, requires_grad=True)


@pytest.mark.parametrize("model", [_numb, _silent, _aside])
def test_a_model_without_gradient_is_told_and_square_goes_on(model):
    x, threat = cloud(6, (1, 4, 4)), bv.Linf(0.05)
    y = model(x).argmax(1).detach()
    for name in ("fgsm", "pgd-2", "cw", "apgd-ce", "autoattack"):
        with pytest.raises(UserError, match="no_grad"):
            attack_and_score(model, (x, y), threat, name)
    with pytest.raises(UserError, match="no_grad"):
        attack(model, x, y, threat, "pgd-2")
    with pytest.raises(UserError, match="no_grad"):
        minimal_distances(model, (x, y), "linf", steps=2)
    assert attack_and_score(model, (x, y), threat, "square").clean_accuracy == 1


class _OnSecondCard(torch.Tensor):
    device = torch.device("cuda:1")


@pytest.mark.parametrize("asked", [None, "cuda", "cuda:1"])
def test_images_go_to_the_card_on_which_the_model_stays(asked, monkeypatch):
    """`cuda` alone means the first card; a model on the second stays, and the images follow it."""
    monkeypatch.setattr(inference, "check_device", lambda name, _: torch.device(name))
    model = torch.nn.Flatten()
    model.register_buffer("scale", torch.ones(1).as_subclass(_OnSecondCard))
    with inference.for_inference(model, asked) as (module, device, _):
        assert module is model
        assert device == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("objective", "turns", "said"),
    [
        (CrossEntropy(), Targets(3), "mine: Targets need a function from targets to an objective"),
        (AimedDLR(), Restarts(2), "mine: Restarts need an objective, such as CrossEntropy"),
        (AimedDifference(), Restarts(1), "got AimedDifference"),
    ],
)
def test_an_objective_that_does_not_fit_the_turns_is_refused(objective, turns, said):
    with pytest.raises(UserError, match=said):
        Search("mine", ScaledPGD(2), objective, turns)
