"""What users hand over: types that are welcome, and mistakes that are told."""

from __future__ import annotations

import pytest
import torch
from tests.evaluate.conftest import affine, cloud

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluate import attack, evaluate, minimal_distances, transfer
from bivallate.evaluate.preflight import preflight


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int16])
def test_labels_may_be_any_integers(kind):
    model, x = affine(64, 10), cloud(12, (1, 8, 8))
    y = model(x).argmax(1)
    narrow, threat = y.to(kind), bv.Linf(0.05)
    whole = evaluate(model, (x, y), threat, "pgd-3")
    assert torch.equal(evaluate(model, (x, narrow), threat, "pgd-3").robust, whole.robust)
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
        evaluate(model, (x, y), **given)
    if "device" not in given:
        given["name"] = given.pop("attack")
        with pytest.raises(UserError, match=message):
            attack(model, x, y, **given)


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
