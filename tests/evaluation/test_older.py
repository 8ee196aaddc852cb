"""Evaluations of version 1 (commit 487ed02) can still be read, and are reproduced with the same verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bivallate.errors import UserError
from bivallate.evaluation import Score, attack_and_score, attack_named, transfer

OLD = Path(__file__).parent / "old"
VERDICTS = json.loads((OLD / "verdicts.json").read_text())
LONG = ("autoattack", "autoattack-plus", "autoattack-rand")  # read here, made again by nobody


def smooth(seed: int = 0) -> nn.Module:
    """A small network in double precision, so that no machine rounds a verdict away."""
    generator = torch.Generator().manual_seed(seed)
    first, last = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((24, 36), (6, 24))
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 6)).double()
    with torch.no_grad():
        for layer, weight in ((model[1], first / 3), (model[3], last / 2)):
            layer.weight.copy_(weight)
            layer.bias.zero_()
    return model


def points() -> tuple[torch.Tensor, torch.Tensor]:
    """40 random images with the network's own answers, every ninth of them wrong."""
    x = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = smooth()(x).argmax(1)
    y[::9] = (y[::9] + 1) % 6
    return x, y


@pytest.mark.parametrize("key", [key for key in VERDICTS if key.split("/")[1] not in LONG])
def test_verdicts_are_those_of_version_1(key):
    old, name = Score.from_json(VERDICTS[key]), key.split("/")[1]
    if name == "transfer":
        new = transfer(smooth(), smooth(1), points(), old.threat, "apgd-ce-8", batch_size=64, seed=1)
    else:
        new = attack_and_score(smooth(), points(), old.threat, name, batch_size=64, seed=1)
    for column in ("broken_at", "predicted", "y", "index"):
        assert torch.equal(getattr(new, column), getattr(old, column)), column
    assert torch.allclose(new.margin, old.margin, rtol=1e-6, atol=1e-9)
    assert (new.attack, new.passes, new.stage_names) == (old.attack, old.passes, old.stage_names)
    assert new.data_fingerprint == old.data_fingerprint


@pytest.mark.parametrize("key", VERDICTS)
def test_an_attack_that_version_1_wrote_down_is_the_one_of_its_name(key):
    old = Score.from_json(VERDICTS[key])
    assert old.stages == VERDICTS[key]["parts"]
    assert old.robust_accuracy == VERDICTS[key]["robust_accuracy"]
    if not old.attack.startswith("transfer"):
        assert old.detail == attack_named(old.attack)
    again = Score.from_json(json.loads(json.dumps(old.to_json())))
    assert again.to_json() == old.to_json()


def test_what_an_older_file_does_not_say_is_still_an_error():
    entry = json.loads(json.dumps(VERDICTS["Linf/pgd-6-2"]))
    entry["attack_detail"]["parts"][0]["kind"] = "Nobodys"
    with pytest.raises(UserError, match="unknown part"):
        Score.from_json(entry)
    clean = {k: v for k, v in VERDICTS["Linf/clean"].items() if k != "part_names"}
    with pytest.raises(UserError, match="lacks stage_names"):
        Score.from_json(clean)
