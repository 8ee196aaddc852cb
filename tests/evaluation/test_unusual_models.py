"""Models and arguments that are rare: each is evaluated rightly, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bivallate as bv
from bivallate.evaluation import attack, attack_and_score, attack_named, eps_curve, minimal_distances
from bivallate.evaluation.attacked_images import craft
from bivallate.evaluation.predictions import predict
from bivallate.evaluation.preflight import preflight
from bivallate.lower.threat import ThreatModel

THREAT = bv.Linf(0.05)


def network(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval()


def points(model: Callable[[Tensor], Tensor], n: int = 40) -> tuple[Tensor, Tensor]:
    """Images, with the model's own predictions as labels."""
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model(x).argmax(1)


class Shifted(nn.Module):
    """A number that no state dict holds decides what it answers."""

    def __init__(self, inner: nn.Module, shift: float) -> None:
        super().__init__()
        self.inner, self.shift = inner, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x + self.shift) % 1)


def test_distances_are_not_taken_from_another_models_file(tmp_path):
    one, other = (Shifted(network(), shift) for shift in (0.0, 0.5))
    data = points(one)
    given: dict[str, Any] = {"steps": 5, "targets": 2, "resume": tmp_path / "x"}
    found = minimal_distances(one, data, "linf", **given)
    assert torch.equal(minimal_distances(one, data, "linf", **given), found)
    with pytest.raises(bv.UserError, match="was begun with another model"):
        minimal_distances(other, data, "linf", **given)
    with pytest.raises(bv.UserError, match="was begun with another model"):
        minimal_distances(lambda x: one(x), data, "linf", **given | {"resume": made(tmp_path, data)})


def made(folder: Any, data: Any) -> Any:
    """A file of distances of a function."""
    inner = network()
    minimal_distances(lambda x: inner(1 - x), data, "linf", steps=5, targets=2, resume=folder / "function")
    return folder / "function"


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_a_wrapper_does_not_hide_the_names_of_the_classes(wrap: Any) -> None:
    digits = bv.data.load("digits")
    model = bv.models.create("linear", num_classes=10, shape=(1, 8, 8), seed=0)
    model.classes = list(reversed(digits.classes))
    own, wrapped = (attack_and_score(m, digits.test, THREAT, "clean") for m in (model, wrap(model).eval()))
    assert torch.equal(own.broken_at, wrapped.broken_at)


def with_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(16, 5)
    ).train()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("freeze", [False, True])
def test_a_script_is_evaluated_as_its_network(freeze: bool) -> None:
    model = with_norm()
    data = points(lambda x: model.eval()(x))
    expected = attack_and_score(model, data, THREAT, "pgd-3")
    script = torch.jit.script(model.train())
    modes = [m.training for m in script.modules()]
    used = torch.jit.freeze(script.eval()) if freeze else script
    assert torch.equal(attack_and_score(used, data, THREAT, "pgd-3").broken_at, expected.broken_at)
    if not freeze:
        assert [m.training for m in script.modules()] == modes


def test_what_breaks_in_float64_is_not_told_to_survive() -> None:
    model = network().double()
    x, y = points(lambda x: model(x.double()), 400)
    threat = bv.Linf(0.3)
    score = attack_and_score(model, (x, y), threat, "fmn-100", seed=3)
    survive = sum(bool(p.survives) for p in predict(model, x, threat, "fmn-100", seed=3))
    left = int((~craft(model, (x, y), threat, "fmn-100", seed=3).fooled).sum())
    assert survive == left == int(score.robust.sum())


@pytest.mark.parametrize("threat", [bv.L1(8), bv.L2(1), THREAT], ids=str)
def test_images_in_float64_are_attacked_within_the_threat(threat: ThreatModel) -> None:
    model = network()
    x, y = points(model)
    precise = (x.double() + 1e-9 * torch.arange(16).view(1, 1, 4, 4)).clamp(0, 1)
    x_adv = attack(model, precise, y, threat, "pgd-5")
    assert x_adv.dtype == torch.float64
    assert float(threat.size(x_adv - precise).max()) <= threat.eps * (1 + 1e-12)
    assert (model(x_adv.float()).argmax(1) != y).sum() > 5


@pytest.mark.parametrize("answer", [torch.int64, torch.int32], ids=str)
def test_whole_numbers_are_logits(answer: torch.dtype) -> None:
    inner = network()

    def votes(x: Tensor) -> Tensor:
        return F.one_hot(inner(x).argmax(1), 5).to(answer)

    data = points(votes)
    assert attack_and_score(votes, data, THREAT, "square-50").robust_accuracy < 1
    assert any("cannot be differentiated" in str(f) for f in preflight(votes, data, THREAT).findings)
    with pytest.raises(bv.UserError, match="follows the gradient"):
        attack_and_score(votes, data, THREAT, "pgd-2")
    with pytest.raises(bv.UserError, match="complex numbers"):
        attack_and_score(lambda x: inner(x) + 0j, data, THREAT, "clean")


def test_the_standard_ensemble_is_that_of_l1_also_as_an_object() -> None:
    assert attack_named(attack_named("autoattack"), bv.L1(1)) == attack_named("autoattack", bv.L1(1))
    assert attack_named(attack_named("autoattack"), THREAT) == attack_named("autoattack")


def test_another_default_type_changes_nothing() -> None:
    model = network()
    data = points(model)
    expected = attack_and_score(model, data, THREAT, "pgd-3")
    torch.set_default_dtype(torch.float64)
    try:
        found = attack_and_score(model, data, THREAT, "pgd-3")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.margin, expected.margin)


def test_images_are_crafted_in_inference_mode_and_with_a_checked_seed() -> None:
    model = network()
    data = points(model)
    expected = craft(model, data, THREAT, "pgd-3", seed=1).x_adv
    with torch.inference_mode():
        assert torch.equal(craft(model, data, THREAT, "pgd-3", seed=np.int64(1)).x_adv, expected)
    for seed in (-1, 2**64):
        with pytest.raises(bv.UserError, match="seed must be"):
            craft(model, data, THREAT, "pgd-3", seed=seed)


def test_a_lone_number_does_not_decide_the_type_nor_a_nan_that_a_buffer_moved() -> None:
    class Warm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
            self.inner = network()
            self.register_buffer("unused", torch.full((3,), torch.nan))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) / self.temperature

    model = Warm().eval()
    data = points(model)
    assert attack_and_score(model, data, THREAT, "pgd-3").clean_accuracy == 1
    assert not any("changes while" in str(f) for f in preflight(model, data, THREAT).findings)


def test_numbers_of_numpy_and_mistakes_in_python(tmp_path):
    model = network()
    data = points(model)
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(9, 5))
    run = bv.train(
        "linear", "digits", bv.methods.plain(bv.Linf(0.1)), epochs=1, batch_size=400, out=tmp_path / "r"
    )
    assert bv.evaluate(run, attack="fgsm", n=np.int64(30)).n == 30
    assert list(eps_curve(model, data, "linf", 0.1, "fgsm")) == [0.1]
    assert list(eps_curve(model, data, "linf", "1/4", "fgsm")) == [0.25]
    mistakes: list[tuple[Callable[[], Any], str]] = [
        (lambda: bv.evaluate(model, data, "linf:0.1"), "must be a threat model"),
        (lambda: bv.evaluate(run, threat=["linf:0.1"]), "must be a threat model"),
        (lambda: predict(model, data[0], "linf:0.1"), "must be a threat model"),  # pyright: ignore
        (lambda: predict(model, data[0], top=-1), "top must be"),
        (lambda: attack_and_score(model, data, THREAT, resume=True), "resume must be a path"),
        (lambda: attack_and_score(wrong, data, THREAT, batch_size=8), "failed on images of shape"),
        (lambda: minimal_distances(wrong, data, "linf"), "failed on images of shape"),
        (lambda: predict(wrong, data[0]), "failed on images of shape"),
    ]
    for call, message in mistakes:
        with pytest.raises(bv.UserError, match=message):
            call()
    assert len(predict(model, data[0].numpy())) == 40  # pyright: ignore
