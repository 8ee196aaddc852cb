"""Requirements on every registered architecture."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from bivallate import models
from bivallate.errors import UserError

NAMES = models.names()
# The others have the same blocks, only more of them or wider: their shapes are checked on the meta device.
RUN = [
    "linear",
    "fc1",
    "tiny-cnn",
    "small-cnn",
    "mnist-net",
    "resnet18",
    "resnet50",
    "preact-resnet18",
    "preact-resnet50",
    "wrn-16-8",
]
DIGITS = (1, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pixels(shape, rows=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(rows, *shape, generator=generator, dtype=torch.float64).to(dtype)


SIZES = [((1, 8, 8), 2), ((3, 96, 96), 43)]
# Networks that end in a dense layer on all positions compute its size; the others average.
DENSE = [((1, 28, 28), 43), ((3, 32, 32), 2), ((3, 64, 64), 43), ((2, 9, 13), 5)]
SHAPED = [(n, *size) for n in NAMES for size in SIZES]
SHAPED += [(n, *size) for n in ("linear", "fc1", "tiny-cnn", "small-cnn", "mnist-net") for size in DENSE]


@pytest.mark.parametrize(("name", "shape", "classes"), SHAPED)
def test_logits_have_the_right_shape_for_every_size(name, shape, classes):
    with torch.device("meta"):
        model = models.create(name, num_classes=classes, shape=shape, mean=0.5, std=0.25)
        x = torch.empty(2, *shape)
    assert model(x).shape == (2, classes)


SMOOTH = [(n, a) for n in ("fc1", "tiny-cnn", "small-cnn", "mnist-net") for a in ("softplus", "silu")]
SMOOTH += [("preact-resnet18", "softplus"), ("resnet18", "silu"), ("wrn-16-8", "silu")]


@pytest.mark.parametrize(("name", "activation"), [(name, "relu") for name in RUN] + SMOOTH)
def test_double_backward_is_finite_and_reaches_every_parameter(name, activation):
    model = models.create(
        name, num_classes=3, shape=DIGITS, mean=[0.3], std=[0.4], activation=activation, seed=0
    )
    x = pixels(DIGITS, rows=3).requires_grad_()
    loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2]), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    assert gradient.abs().amax() > 0
    # The kept graph is used twice, which an in-place operation would forbid.
    (gradient.square().sum() + loss).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path


@pytest.mark.parametrize("name", [name for name in RUN if not name.endswith("50")])
def test_float64_runs_throughout(name):
    model = models.create(name, num_classes=2, shape=DIGITS, mean=0.5, std=0.5, seed=0).double().eval()
    logits = model(pixels(DIGITS, dtype=torch.float64))
    assert logits.dtype == torch.float64
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", RUN)
def test_forward_is_first_layer_then_rest(name):
    model = models.create(name, num_classes=2, shape=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=0.5, seed=0).eval()
    x = pixels((3, 8, 8))
    torch.testing.assert_close(model.rest(model.first_layer()(x)), model(x), rtol=0, atol=0)
    own = {id(p) for p in model.stem.parameters()}
    assert own == {id(p) for p in model.first_layer().parameters()}
    assert next(model.parameters()) is next(model.stem.parameters())
    assert model.get_submodule(model.stem_name) is model.stem


@pytest.mark.parametrize("name", NAMES)
def test_spec_rebuilds_the_architecture_and_survives_json(name):
    options = {"dropout": 0.3} if name.startswith("wrn") else {}
    with torch.device("meta"):
        model = models.create(
            name,
            num_classes=43,
            shape=(3, 32, 32),
            mean=(0.1, 0.2, 0.3),
            std=0.5,
            activation="silu",
            **options,
        )
        spec = json.loads(json.dumps(model.spec))
        again = models.create(**spec)
    assert again.spec == model.spec == spec
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert str(again) == str(model)


@pytest.mark.parametrize("name", [name for name in RUN if not name.endswith("50")])
def test_save_and_load_keep_every_bit(name, tmp_path):
    model = models.create(name, num_classes=3, shape=DIGITS, mean=0.31, std=0.4, activation="silu", seed=3)
    model.train()(pixels(DIGITS, rows=4))  # moves the running statistics
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert not again.training
    assert list(again.state_dict()) == list(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    x = pixels(DIGITS)
    assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet18", "wrn-16-8"])
def test_seed_decides_the_weights_and_leaves_the_generator_as_found(name):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = models.create(name, num_classes=2, shape=DIGITS, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = models.create(name, num_classes=2, shape=DIGITS, seed=5)
    other = models.create(name, num_classes=2, shape=DIGITS, seed=6)
    torch.manual_seed(5)
    unseeded = models.create(name, num_classes=2, shape=DIGITS)
    weights = [m.stem.weight for m in (first, second, unseeded, other)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_models_travel_to_workers():
    for name in ("tiny-cnn", "wrn-16-8"):
        model = models.create(
            name, num_classes=2, shape=DIGITS, mean=0.5, std=0.5, activation="softplus"
        ).eval()
        x = pixels(DIGITS)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
        assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_no_module_works_in_place():
    for name in NAMES:
        with torch.device("meta"):
            model = models.create(name, num_classes=2, shape=(3, 32, 32))
        assert not any(getattr(part, "inplace", False) for part in model.modules()), name


def test_softplus_has_the_papers_sharpness():
    model = models.create("fc1", num_classes=2, shape=DIGITS, activation="softplus")
    assert [m.beta for m in model.modules() if isinstance(m, nn.Softplus)] == [10]


def test_normalisation_is_the_first_layer():
    x = pixels((3, 4, 4), dtype=torch.float64)
    plain = models.create("linear", num_classes=2, shape=(3, 4, 4), seed=0).double()
    normalised = models.create(
        "linear", num_classes=2, shape=(3, 4, 4), mean=(0.25, 0.5, 0.75), std=(0.5, 0.25, 0.125), seed=0
    ).double()
    scaled = torch.stack([(x[:, 0] - 0.25) / 0.5, (x[:, 1] - 0.5) / 0.25, (x[:, 2] - 0.75) / 0.125], 1)
    torch.testing.assert_close(normalised(x), plain(scaled))
    assert isinstance(plain.normalise, nn.Identity)


def test_shortcut_option_changes_the_computation_and_not_the_keys():
    raw = models.create("preact-resnet18", num_classes=2, shape=DIGITS, seed=0, shortcut="raw").eval()
    activated = models.create(
        "preact-resnet18", num_classes=2, shape=DIGITS, seed=0, shortcut="activated"
    ).eval()
    assert list(raw.state_dict()) == list(activated.state_dict())
    assert not torch.allclose(raw(pixels(DIGITS)), activated(pixels(DIGITS)))


def test_dropout_is_a_module_that_rests_in_eval_mode():
    model = models.create("wrn-16-8", num_classes=2, shape=DIGITS, seed=0, dropout=0.5).eval()
    x = pixels(DIGITS)
    assert torch.equal(model(x), model(x))
    dropped = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert {m.p for m in dropped} == {0.5}
    for module in dropped:
        module.train()
    assert not torch.equal(model(x), model(x))


def test_zero_head_starts_at_uniform_predictions():
    model = models.create("wrn-16-8", num_classes=4, shape=DIGITS, zero_head=True).eval()
    assert torch.equal(model(pixels(DIGITS)), torch.zeros(2, 4))


GOOD = {"name": "small-cnn", "num_classes": 10, "shape": (3, 32, 32)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "smal-cnn"}, "did you mean 'small-cnn'"),
        ({"activation": "relo"}, "did you mean 'relu'"),
        ({"dropout": 0.1}, "option of small-cnn"),
        ({"name": "wrn-28-10", "droput": 0.1}, "did you mean 'dropout'"),
        ({"name": "wrn-28-10", "dropout": 1.5}, "probability"),
        ({"name": "resnet18", "stem": "imagnet"}, "did you mean 'imagenet'"),
        ({"name": "preact-resnet18", "shortcut": "row"}, "did you mean 'raw'"),
        ({"num_classes": 1}, "at least 2 classes"),
        ({"shape": (32, 32)}, "channels, height, width"),
        ({"shape": (3, 0, 32)}, "channels, height, width"),
        ({"shape": (3, 7, 7)}, "at least 8 x 8"),
        ({"mean": (0.5, 0.5), "std": (1, 1, 1)}, "2 values"),
        ({"mean": 0.5, "std": 0.0}, "positive"),
        ({"mean": float("nan"), "std": 1.0}, "finite"),
    ],
)
def test_mistakes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        models.create(**{**GOOD, **change})


def test_images_of_another_shape_are_refused():
    model = models.create("preact-resnet18", num_classes=2, shape=DIGITS)
    with pytest.raises(UserError, match=r"\(batch, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        model(torch.zeros(2, 3, 8, 8))
