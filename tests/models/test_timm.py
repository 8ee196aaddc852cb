"""timm's own transformers under the methods that differentiate twice, where timm is installed (it needs a
torchvision that fits torch, which the test extra does not bring)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bivallate as bv
from bivallate.methods.entries import create

try:
    import timm  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]

    MISSING = ""
except Exception as error:  # a torchvision that does not fit torch raises a RuntimeError
    MISSING = f"needs timm with a fitting torchvision: {error}"
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "timm is there")

SMALL = {"img_size": 32, "embed_dim": 24}
NETWORKS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**SMALL, "depth": 2, "num_heads": 3},
    "deit_tiny_patch16_224": {**SMALL, "depth": 2, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {**SMALL, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
}
METHODS = ("fast-bat", "done-adam", "fast-at-ga", "bilaw", "at")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_of_timm_train_from_options_of_the_command_line(
    name: str, method: str, tmp_path
) -> None:
    x, y = torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3
    data = bv.data.load(((x, y), (x[:9], y[:9])), validation=9)
    model = bv.models.create(f"timm:{name}", num_classes=3, shape=(3, 32, 32), **NETWORKS[name])
    made = create(method, bv.Linf(8 / 255), **({"steps": 1} if method in ("at", "done-adam") else {}))
    before = [value.clone() for value in model.parameters()]
    run = bv.train(model, data, made, epochs=1, batch_size=8, out=tmp_path / "run", lr=0.01)
    assert run.history[-1]["loss"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    again = bv.load(tmp_path / "run", "last")
    with torch.no_grad():
        assert torch.allclose(again(x[:4]), model.eval()(x[:4]), atol=1e-5)
