"""The user's own modules and factories, and timm."""

import copy
import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import bivallate as bv
from bivallate import models
from bivallate.errors import UserError
from bivallate.run.config import Config, Model
from bivallate.run.from_config import create_model

SHAPE = (1, 8, 8)
SOURCE = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))

def told(num_classes, shape, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], width), nn.Linear(width, num_classes))

class Net(nn.Module):
    def __init__(self, **facts):
        super().__init__()
        self.layer = nn.Linear(64, facts["num_classes"])
    def forward(self, x):
        return self.layer(x.flatten(1))

def nothing(): return None
def maps(): return nn.Conv2d(1, 3, 3)
def pair():
    class Pair(nn.Module):
        def forward(self, x): return x, x
    return Pair()
def fails(): raise ValueError("no weights here")
def narrow(): return nn.Sequential(nn.Flatten(), nn.Linear(10, 3))
number = 3
"""


@pytest.fixture(autouse=True)
def _own_code(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(SOURCE)
    (tmp_path / "broken_nets.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("own_nets", "broken_nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["plain", "told", "Net"])
def test_a_factory_is_wrapped_as_it_is(name):
    path = list(sys.path)
    model = models.create(f"own_nets:{name}", num_classes=3, shape=SHAPE, mean=0.5, std=0.5)
    assert sys.path == path
    x = torch.rand(4, *SHAPE)
    torch.testing.assert_close(model(x), model.network((x - 0.5) / 0.5))
    assert model.architecture == f"own_nets:{name}"
    assert model.spec is None
    assert model.stem is next(m for m in model.network.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_options_reach_the_factory():
    model = models.load_factory("own_nets:told", num_classes=3, shape=SHAPE, width=7)
    assert model.network[1].out_features == 7


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("own_nets", "package.module:name"),
        ("own_nets:", "package.module:name"),
        ("no_such_module:f", "cannot import 'no_such_module'.*working directory"),
        ("broken_nets:f", "cannot import 'broken_nets'.*nowhere_to_be_found"),
        ("own_nets:missing", "own_nets has no 'missing'"),
        ("own_nets:number", "not callable"),
        ("own_nets:nothing", "must return a torch.nn.Module.*NoneType"),
        ("own_nets:maps", r"must return logits .*\(2, 3\); it returned \(2, 3, 6, 6\)"),
        ("own_nets:pair", "it returned tuple"),
        ("own_nets:fails", "ValueError: no weights here"),
        ("own_nets:narrow", r"failed on a batch of shape \(2, 1, 8, 8\)"),
    ],
)
def test_a_factorys_mistakes_are_named(reference, words):
    with pytest.raises(UserError, match=words):
        models.load_factory(reference, num_classes=3, shape=SHAPE)


def test_an_activation_cannot_be_set_for_foreign_code():
    with pytest.raises(UserError, match="its own activation"):
        models.create("own_nets:plain", num_classes=3, shape=SHAPE, activation="silu")


def test_wrapping_leaves_modes_and_running_statistics_as_found():
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(64, 3))
    module[0].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    models.wrap(module, num_classes=3, shape=SHAPE)
    assert [part.training for part in module] == [False, True, True, True]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_in_another_precision_is_wrapped_with_its_normalisation(precision):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
    x, facts = torch.rand(8, *SHAPE), {"num_classes": 3, "shape": SHAPE, "mean": 0.3, "std": 0.4}
    wrapped = models.wrap(copy.deepcopy(net).to(precision), **facts)
    logits = wrapped(x.to(precision))
    assert logits.dtype == precision
    assert wrapped.normalise.mean.item() == torch.tensor(0.3).item(), (
        "not rounded: evaluations are in float32"
    )
    torch.testing.assert_close(logits.float(), models.wrap(net, **facts)(x), rtol=0, atol=0.05)
    score = bv.evaluate(wrapped, (x, logits.argmax(1)), bv.Linf(0.01), "pgd-2")
    assert score.clean_accuracy >= 7 / 8


def test_a_classifier_is_returned_or_refused():
    model = models.create("linear", num_classes=3, shape=SHAPE)
    assert models.wrap(model, num_classes=3, shape=SHAPE) is model
    with pytest.raises(UserError, match="create the model for this data"):
        models.wrap(model, num_classes=4, shape=SHAPE)


def test_a_module_without_a_split_says_so():
    model = models.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), num_classes=3, shape=SHAPE)
    with pytest.raises(UserError, match="stem_name"):
        model.first_layer()


def test_a_registered_architecture_is_created_saved_and_described(tmp_path):
    class Scaled(nn.Linear):
        def __init__(self, entering, leaving):
            super().__init__(entering, leaving)
            self.register_buffer("scale", torch.tensor(3.0), persistent=False)

        def forward(self, x):
            return self.scale * super().forward(x)

    @models.register("for-this-test")
    def own(num_classes, shape, activation, *, width=5):
        """Own: a test's."""
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(shape[0] * shape[1] * shape[2], width),
            activation(),
            Scaled(width, num_classes),
        )

    assert "for-this-test" in models.names()
    model = models.create("for-this-test", num_classes=3, shape=SHAPE, width=6)
    models.save(model, tmp_path)
    x = torch.rand(2, *SHAPE)
    assert torch.equal(models.load(tmp_path)(x), model(x))
    assert models.describe("for-this-test")["summary"] == "Own: a test's."
    assert model.spec == {
        "name": "for-this-test",
        "num_classes": 3,
        "shape": [1, 8, 8],
        "mean": None,
        "std": None,
        "activation": "relu",
        "width": 6,
    }


def test_timm_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'bivallate\[timm\]'"):
        models.create("timm:resnet18", num_classes=3, shape=SHAPE)


@pytest.fixture
def timm(monkeypatch):
    """A stand-in that would run a file, as timm did before 1.0.26; `made` keeps what it was asked for."""
    made = []

    def create_model(name, *, pretrained, num_classes, in_chans, checkpoint_path="", **options):
        made.append({"name": name, "pretrained": pretrained, **options})
        if checkpoint_path:
            pickle.loads(Path(checkpoint_path).read_bytes())
        if "depth" in options:
            raise TypeError("no argument depth")
        side = options.get("img_size", 8)
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(4 * (side - 2) ** 2, num_classes),
        )

    fake = types.SimpleNamespace(
        __version__="1.0.26",
        made=made,
        create_model=create_model,
        is_model=lambda name: name.partition(":")[0] in ("resnet18", "local-dir", "hf-hub"),
        list_models=lambda pattern: ["resnet18"],
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def test_timm_models_are_made_without_downloads_or_in_place_activations(timm):
    model = models.create("timm:resnet18", num_classes=3, shape=SHAPE, mean=0.5, std=0.5)
    assert timm.made == [{"name": "resnet18", "pretrained": False}]
    assert not any(getattr(part, "inplace", False) for part in model.modules())
    assert models.create(**model.spec).architecture == "timm:resnet18"
    with pytest.raises(UserError, match="timm has no model 'resnet17': it has resnet18"):
        models.create("timm:resnet17", num_classes=3, shape=SHAPE)


def test_options_of_timm_reach_it_and_the_manifest(timm, tmp_path):
    model = models.create("timm:resnet18", num_classes=3, shape=(1, 6, 6), img_size=6, drop_rate=0.1)
    assert timm.made[-1] == {"name": "resnet18", "pretrained": False, "img_size": 6, "drop_rate": 0.1}
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    x = torch.rand(2, 1, 6, 6)
    assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_sise": 6}, "did you mean 'img_size'"),
        ({"img_size": object()}, "must be a number, a word"),
        ({"act_layer": "../layer"}, "must be a number, a word"),
        ({"depth": 2}, "timm:resnet18 failed with TypeError: no argument depth"),
        ({}, "model.options.img_size=6"),
    ],
)
def test_mistaken_options_of_timm_are_told(timm, options, words):
    with pytest.raises(UserError, match=words):
        models.create("timm:resnet18", num_classes=3, shape=(1, 6, 6), **options)


@pytest.mark.parametrize("version", ["1.0.25", "0.9.16", "1.0"])
def test_a_timm_that_executes_what_it_loads_is_refused(timm, version):
    timm.__version__ = version
    with pytest.raises(UserError, match=r"pip install 'timm>=1.0.26'"):
        models.create("timm:resnet18", num_classes=3, shape=SHAPE)


class _Bomb:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


HOSTILE = [
    {"checkpoint_path": "model.pt"},
    {"pretrained": True},
    {"pretrained_cfg": {"file": "model.pt"}},
    {"pretrained_cfg_overlay": {"file": "model.pt"}},
    {"cache_dir": "."},
    {"block_fn": "model.pt"},
    {"act_layer": "model.pt"},
    {"img_size": {"checkpoint_path": "model.pt"}},
    {"scriptable": True},
    {"features_only": True},
    {"name": "timm:local-dir:."},
    {"name": "timm:hf-hub:owner/name"},
    {"name": "own_nets:plain"},
    {"num_classes": "three"},
    {"num_classes": -3},
    {"shape": [1, 8]},
    {"shape": "large"},
    {"mean": "half"},
    {"std": [0]},
    {"activation": ["relu"]},
]


@pytest.mark.parametrize("entry", HOSTILE, ids=str)
@pytest.mark.parametrize("name", ["timm:resnet18", "tiny-cnn"])
def test_no_entry_of_a_manifest_runs_or_loads_anything(timm, tmp_path, entry, name):
    models.save(models.create("tiny-cnn", num_classes=3, shape=SHAPE), tmp_path)
    (tmp_path / "model.pt").write_bytes(pickle.dumps(_Bomb()))
    described = json.loads((tmp_path / "model.json").read_text())
    described["spec"] = {
        "name": name,
        "num_classes": 3,
        "shape": [1, 8, 8],
        "mean": None,
        "std": None,
    } | entry
    (tmp_path / "model.json").write_text(json.dumps(described))
    for read in (models.load, bv.load, models.from_pretrained):
        with pytest.raises(UserError):
            read(tmp_path, weights="model")
    assert not (tmp_path / "ran").exists()
    assert all(set(made) == {"name", "pretrained"} and not made["pretrained"] for made in timm.made)
    assert all(made["name"] == "resnet18" for made in timm.made)


def test_options_of_a_configuration(timm, tmp_path):
    config = Config(bv.methods.at(bv.Linf(0.1)), model=Model("timm:resnet18"))
    config = config.set("model.options.img_size", "7").set("model.options.drop_rate", "1e-1")
    config = config.set("model.options.img_size", "8")
    config.write(tmp_path / "config.toml")
    assert Config.read(tmp_path / "config.toml") == config
    digits = bv.data.load("digits")
    assert create_model(config.model, digits, 0).spec["img_size"] == 8
    assert timm.made[-1]["drop_rate"] == 0.1
    wide = config.set("model.name", "fc1").set("model.options", ()).set("model.options.hidden", "16")
    assert create_model(wide.model, digits, 0).network.stem[1].out_features == 16
    hostile = config.set("model.options.checkpoint_path", "model.pt")
    with pytest.raises(UserError, match="unknown option of timm:resnet18 'checkpoint_path'"):
        create_model(hostile.model, digits, 0)
    own = config.set("model.name", "own_nets:plain")
    with pytest.raises(UserError, match="own_nets:plain is your own"):
        create_model(own.model, digits, 0)
    with pytest.raises(UserError, match="KEY=VALUE"):
        Model("fc1", options=("hidden",))


def test_the_real_timm_if_it_is_there(tmp_path):
    timm = pytest.importorskip("timm")
    assert timm.is_model("vit_tiny_patch16_224")
    options = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 3}
    model = models.create("timm:vit_tiny_patch16_224", num_classes=3, shape=SHAPE, seed=0, **options)
    models.save(model, tmp_path)
    x = torch.rand(2, *SHAPE)
    assert torch.equal(models.load(tmp_path)(x), model.eval()(x))
    described = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.pt").write_bytes(pickle.dumps(_Bomb()))
    described["spec"]["checkpoint_path"] = str(tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="unknown option"):
        models.load(tmp_path)
    assert not (tmp_path / "ran").exists()
