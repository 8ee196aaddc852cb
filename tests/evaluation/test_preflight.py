"""The pre-flight before an evaluation finds and names each fault; an ordinary model passes with one line."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.evaluation.conftest import affine, cloud
from torch import nn

import bivallate as bv
from bivallate.evaluation.neighbourhood import probe
from bivallate.evaluation.preflight import preflight


def sound() -> nn.Module:
    """An untrained network of ten classes on 4 x 4 images."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


@pytest.fixture
def points():
    """Images and the labels that the sound network gives them, so that it does not seem to guess."""
    with torch.random.fork_rng():
        model = sound()
    x = cloud(60, (1, 4, 4))
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        return sound()


def after(model, function):
    """The model with a function behind it."""

    class Then(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return function(self.model(x))

    return Then().eval()


def before(model, function):
    """The model with a function before it."""

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(function(x))

    return First().eval()


def names(found):
    return {f.name for f in found.findings}


def test_an_ordinary_model_passes_in_one_line(model, points):
    found = preflight(model, points, bv.Linf(0.1))
    assert found.ok
    assert found.findings == () or names(found) == {"one-class"}
    assert "\n" not in str(found)
    assert "all is well" in str(found)
    assert found.clean.worst == 0
    assert found.near.worst == 0


@pytest.mark.parametrize("threat", [None, bv.L2(0.5), bv.Linf(0.0)], ids=["none", "l2", "zero"])
def test_it_passes_under_every_threat(model, points, threat):
    assert preflight(model, points, threat).ok


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda x: 255 * x, "range", "divide by 255"),
        (lambda x: (x - x.mean()) / x.std(), "range", "standardised outside the model"),
        (lambda x: 2 * x - 1, "range", "[-1, 1]"),
        (lambda x: (255 * x).to(torch.uint8), "dtype", "255"),
        (lambda x: x.clone().index_fill_(0, torch.tensor([0]), torch.nan), "range", "NaN"),
        (lambda x: x / 255, "range", "twice"),
        (lambda x: torch.zeros_like(x), "range", "equal"),
    ],
    ids=["bytes", "standardised", "minus-one", "uint8", "nan", "twice", "black"],
)
def test_images_that_are_not_pixels_are_named_with_the_cure(model, points, change, name, words):
    found = preflight(model, (change(points[0]), points[1]))
    assert not found.ok
    assert words in str(found.named(name))


def test_labels_that_do_not_fit_are_named(model, points):
    x, y = points
    assert "0..9" in str(preflight(model, (x, y + 9)).named("labels"))
    assert "one-class" in names(preflight(model, (x, torch.zeros_like(y))))


def test_normalisation_outside_the_model_is_suspected_from_its_accuracy(robust_model, digits):
    """The model was trained on pixels; with another first layer it wants bytes."""
    x, y = digits[0][:200], digits[1][:200]
    wants_bytes = before(robust_model, lambda v: v / 255)
    found = preflight(wants_bytes, (x, y)).named("normalisation")
    assert "bytes" in found.got
    assert "normalisation" not in names(preflight(robust_model, (x, y)))


@pytest.mark.parametrize(
    ("answers", "own", "words"),
    [
        (lambda logits: 0 * logits, False, "learned nothing"),
        (lambda logits: 0 * logits, True, "learned nothing"),
        (lambda logits: logits.roll(1, 1), True, "learned nothing"),
        (lambda logits: logits.roll(1, 1), False, "labels' order"),
    ],
    ids=["constant", "constant-own", "rolled-own", "rolled"],
)
def test_a_model_that_guesses_is_told_what_may_help(robust_model, digits, answers, own, words):
    points = digits[0][:200], digits[1][:200]
    found = preflight(after(robust_model, answers), points, own=own).named("chance")
    assert words in found.fix
    assert ("Train it again" in found.fix) == (words == "learned nothing")


class Stubborn(nn.Sequential):
    def train(self, mode=True):
        return super().train(True)


class Norm(nn.Module):
    """BatchNorm that never leaves train mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("var", torch.ones(10))

    def forward(self, z):
        return F.batch_norm(z, self.mean, self.var, training=True)


def blind(model):
    def function(x):
        with torch.no_grad():
            return model(x)

    return function


FAULTS = {
    "probabilities": lambda m: after(m, lambda z: z.softmax(1)),
    "random": lambda m: after(m, lambda z: F.dropout(z, 0.5, training=True)),
    "batch": lambda m: after(m, lambda z: z - z.mean(0)),
    "stateful": lambda m: nn.Sequential(m, Norm()).eval(),
    "ignores-eval": lambda m: Stubborn(m),
    "no-gradient": lambda m: before(nn.Identity(), blind(m)),
    "nonfinite": lambda m: after(m, lambda z: z + 0 * (z - z).abs().sqrt()),
    "quantised": lambda m: before(m, lambda x: (4 * x).round() / 4),
    "saturated": lambda m: after(m, lambda z: 1e5 * z),
    "dead": lambda m: after(m, lambda z: 1e-36 * z),
    "false-gradient": lambda m: before(m, lambda x: 2 * x.detach() - x),
    "logits": lambda m: after(m, lambda z: z * torch.nan),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_of_a_model_is_found(model, points, name):
    found = preflight(FAULTS[name](model), points, bv.Linf(0.1))
    assert name in names(found)
    assert not found.ok
    assert found.named(name).fix


@pytest.mark.parametrize("name", ["random", "batch", "false-gradient"])
@pytest.mark.parametrize("mask", [-1e4, -1e9])
def test_a_masked_class_hides_no_fault(model, points, name, mask):
    padded = after(FAULTS[name](model), lambda z: torch.cat([z, z.new_full((len(z), 2), mask)], 1))
    assert name in names(preflight(padded, points, bv.Linf(0.1)))
    honest = after(model, lambda z: torch.cat([z, z.new_full((len(z), 2), mask)], 1))
    assert preflight(honest, points, bv.Linf(0.1)).ok


@pytest.mark.parametrize("name", ["random", "batch"])
def test_a_number_that_is_added_to_all_logits_hides_no_fault(model, points, name):
    assert name in names(preflight(after(FAULTS[name](model), lambda z: z + 1e4), points, bv.Linf(0.1)))
    assert not names(preflight(after(model, lambda z: z + 1e4), points, bv.Linf(0.1))) & {"random", "batch"}


def test_a_straight_through_quantiser_is_found_although_it_has_gradients(model, points):
    layer = before(model, lambda x: x + ((4 * x).round() / 4 - x).detach())
    assert "quantised" in names(preflight(layer, points))


def test_log_probabilities_and_few_classes_are_notes(points):
    x = points[0]
    for classes in (2, 3, 5):
        small = affine(16, classes, scale=3.0)
        with torch.no_grad():
            y = small(x).argmax(1)
        found = preflight(after(small, lambda z: z.log_softmax(1)), (x, y))
        assert found.ok
        assert {"classes", "log-probabilities"} <= names(found)
    assert "needs 4" in str(preflight(affine(16, 3), (x, y % 3)).named("classes"))


def test_model_and_generator_are_left_as_found(model, points):
    norm = nn.Sequential(model, Norm(), nn.Dropout(0.5))
    norm.train()
    model.eval()
    state = {k: v.clone() for k, v in norm.state_dict().items()}
    modes = [m.training for m in norm.modules()]
    generator = torch.get_rng_state()
    found = preflight(norm, points)
    assert {"train-mode", "stateful"} <= names(found)
    assert torch.equal(generator, torch.get_rng_state())
    assert modes == [m.training for m in norm.modules()]
    assert all(torch.equal(v, norm.state_dict()[k]) for k, v in state.items())
    assert all(p.requires_grad and p.grad is None for p in norm.parameters())


def test_plain_functions_and_half_precision_are_looked_at(model, points):
    assert preflight(lambda x: model(x), points).ok
    with torch.random.fork_rng():
        half = sound().to(torch.bfloat16)
    assert "false-gradient" not in names(preflight(half, points))


def test_nothing_to_look_at_is_an_error(model):
    with pytest.raises(bv.UserError, match="empty"):
        preflight(model, (torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)))


def test_the_probe_is_silent_where_gradients_are_exact():
    """On a linear model the central difference is the gradient."""
    found = probe(affine(16, 10), cloud(40, (1, 4, 4)), torch.arange(40) % 10)
    assert found.worst == 0
    assert found.differentiable
