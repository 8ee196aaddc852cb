"""RobustBench itself loads what is exported: its own `load_model`, entries of its own zoo, nothing replaced.

The package stands on PyTorch, timm and gdown of its own choice, so it has an environment of its own: see
docs/dependencies.md. Without it these tests are skipped.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.models.conftest import lived_in

from bivallate import models

pytestmark = [
    pytest.mark.skipif(find_spec("robustbench") is None, reason="needs the package robustbench"),
    pytest.mark.filterwarnings("ignore"),  # what its dependencies say while they are imported
]

OWN = {"mean": (0.41, 0.42, 0.43), "std": (0.21, 0.22, 0.23)}  # not those of the entries' classes
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ENTRIES = {
    "Wong2020Fast": ("cifar10", "Linf", "preact-resnet18", {"final_bn": False, **OWN}),
    "Rice2020Overfitting": ("cifar10", "L2", "preact-resnet18", {"shortcut": "activated", **OWN}),
    "Engstrom2019Robustness": ("cifar10", "Linf", "resnet50", OWN),
    "Sehwag2021Proxy_R18": ("cifar10", "Linf", "resnet18", {}),
    "Standard": ("cifar10", "Linf", "wrn-28-10", {}),
    "Salman2020Do_R18": (
        "imagenet",
        "Linf",
        "resnet18",
        {"stem": "imagenet", "shape": (3, 64, 64), "num_classes": 1000, **IMAGENET},
    ),
}


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page of evaluations imports AutoAttack by the name that a copy from its repository has."""
    package = import_module("pyautoattack")
    monkeypatch.setitem(sys.modules, "autoattack", package)
    monkeypatch.setitem(sys.modules, "autoattack.state", import_module("pyautoattack.state"))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.usefixtures("attacks")
def test_its_loader_gives_our_logits(entry: str, tmp_path: Path) -> None:
    """And its state dict is read back to the same ones."""
    from robustbench.utils import load_model  # pyright: ignore[reportMissingImports]

    data, threat, name, options = ENTRIES[entry]
    options = {"num_classes": 10, "shape": (3, 32, 32), **options}
    model = lived_in(name, **options)
    (folder := tmp_path / data / threat).mkdir(parents=True)
    models.export_robustbench(model, folder / f"{entry}.pt")
    theirs = load_model(entry, model_dir=tmp_path, dataset=data, threat_model=threat)
    x = torch.rand(4, *options["shape"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(theirs(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "again.pt")
    kept = {key: options[key] for key in ("shape", "shortcut") if key in options}
    again = models.load_robustbench(tmp_path / "again.pt", name, **kept)
    with torch.no_grad():
        assert torch.equal(again(x), expected)
