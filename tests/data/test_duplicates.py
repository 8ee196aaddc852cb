"""Near-duplicates between training and test images: the search finds planted ones and no others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import bivallate as bv
from bivallate.audits.leak import leak
from bivallate.cli import run
from bivallate.data.duplicates import near_duplicates
from bivallate.data.feature_duplicates import feature_duplicates
from bivallate.data.tensors import from_tensors
from bivallate.run.evaluation_target import EvaluationTarget

SIDE, TRAIN, TEST = 32, 300, 60


def photos(count: int, seed: int, side: int = SIDE) -> torch.Tensor:
    """Smooth colours with some structure on them, as photographs have: (N, 3, side, side) of 256 levels."""
    draw = torch.Generator().manual_seed(seed)
    parts = [
        torch.nn.functional.interpolate(
            torch.rand(count, 3, k, k, generator=draw), (side, side), mode="bicubic"
        )
        for k in (3, 6, 12)
    ]
    return ((0.6 * parts[0] + 0.3 * parts[1] + 0.3 * parts[2]).clamp(0, 1) * 255).round() / 255


def changed(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The first test images, as they might turn up in training data."""
    noise = torch.rand(x[4].shape, generator=torch.Generator().manual_seed(9))
    found = {
        "identical": x[0],
        "mirrored": x[1].flip(-1),
        "darker, with less contrast": 0.1 + 0.6 * x[2],
        "shifted": x[3].roll((1, -1), (1, 2)),
        "noisy": x[4] + 0.06 * (noise - 0.5),
        "mirrored and brighter": 0.2 + 0.8 * x[5].flip(-1),
        "blurred": torch.nn.functional.avg_pool2d(x[6][None], 3, 1, 1, count_include_pad=False)[0],
    }
    return {name: (image.clamp(0, 1) * 255).round() / 255 for name, image in found.items()}


def pair(train, test) -> bv.data.Dataset:
    """A set of these two splits."""
    known = bv.data.load("digits")
    own = [from_tensors(*some, 3) for some in (train, test)]
    return known.but(train=own[0], test=own[1], validation=None, classes=["a", "b", "c"], shape=own[0].shape)


@pytest.fixture(scope="module")
def data() -> bv.data.Dataset:
    x, test = photos(TRAIN, 0), photos(TEST, 1)
    for k, image in enumerate(changed(test).values()):
        x[7 + 40 * k] = image
    labels = torch.arange(TRAIN) % 3, torch.arange(TEST) % 3
    return pair((x, labels[0]), (test, labels[1]))


def test_planted_images_are_found_and_no_others(data):
    told: list[float] = []
    pairs = near_duplicates(data.train, data.test, progress=told.append)
    places = {int(row): k for k, row in enumerate(data.train.index)}
    assert {pair.test: pair.train for pair in pairs} == {k: places[7 + 40 * k] for k in range(7)}
    kinds = {pair.test: pair.kind for pair in pairs}
    assert kinds == {0: "identical", 1: "mirrored", **dict.fromkeys(range(2, 7), "near")}
    assert pairs[0].alike == pairs[1].alike == 1 > pairs[2].alike
    assert [pair.alike for pair in pairs] == sorted((pair.alike for pair in pairs), reverse=True)
    assert not any(pair.extra for pair in pairs)
    assert told == sorted(told)
    assert told[-1] == 1


def test_what_all_images_have_in_common_makes_no_duplicates():
    draw = torch.Generator().manual_seed(3)
    common = photos(1, 4)
    alike = (common + 0.15 * torch.rand(TRAIN + TEST, 3, SIDE, SIDE, generator=draw)).clamp(0, 1)
    y = torch.arange(TRAIN + TEST) % 2
    data = pair((alike[:TRAIN], y[:TRAIN]), (alike[TRAIN:], y[TRAIN:]))
    assert near_duplicates(data.train, data.test) == []


def test_of_small_images_only_copies_count():
    data = bv.data.load("digits", validation=0)
    assert near_duplicates(data.train, data.test) == []
    twice = data.but(train=data.test.subset(slice(0, 30)))
    assert [pair.kind for pair in near_duplicates(twice.train, data.test)] == ["identical"] * 30


@pytest.fixture
def leaking(tmp_path, monkeypatch):
    """A set of digits' test images, hidden in extra data."""
    monkeypatch.chdir(tmp_path)
    test = bv.data.load("digits").test
    rows = torch.arange(200)
    np.savez(tmp_path / "extra.npz", x=test.raw(rows).numpy(), y=test.labels[rows].numpy())
    return tmp_path


def test_extra_data_that_hold_test_images_are_found_by_both_commands(leaking, capsys):
    extra = ["--set=data.extra=extra.npz", "--set=data.extra_ratio=0.1"]
    assert run(["datasets", "digits", "--check", *extra, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["pairs"]) > 50
    assert all(pair["extra"] and pair["kind"] == "identical" for pair in found["pairs"])
    assert run(["datasets", "digits", "--check", *extra, "--sheet", "pairs.png"]) == 0
    told = capsys.readouterr().out
    assert f"{len(found['pairs'])} near-duplicates" in told
    assert "of the extra data" in told
    assert (leaking / "pairs.png").read_bytes().startswith(b"\x89PNG")
    short = ["--epochs=1", "--model=linear", "--quiet", "--out=r", "--threads=1"]
    assert run(["train", "plain", "--data=digits", *extra, *short]) == 0
    capsys.readouterr()
    check = leak(EvaluationTarget.of("r"), 60, 0)
    assert check.outcome == "flag"
    assert check.numbers["extra"] == check.numbers["copies"] > 3
    assert "--set data.extra=" in check.advice
    assert leak(EvaluationTarget.of("r", split="validation"), 60, 0).outcome == "skipped"


def test_features_propose_what_pixels_confirm():
    """A network that sees no more than mean colours takes moved and upturned images for the same."""
    x, test = photos(TRAIN, 5), photos(TEST, 6)
    x[11], x[22], x[33] = test[0].roll((3, -3), (1, 2)), test[1].roll(2, 2).flip(-1), test[2].flip(-2)
    data = pair((x, torch.arange(TRAIN) % 3), (test, torch.arange(TEST) % 3))
    places = {int(row): k for k, row in enumerate(data.train.index)}

    def colours(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 1).flatten(1)

    found = feature_duplicates(colours, data.train, data.test)
    assert {p.test: p.train for p in found if p.test < 3} == {0: places[11], 1: places[22]}
    assert len(found) <= 4


def test_a_network_adds_to_what_is_found(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = photos(60, 5, 28)[:, :1]
    np.savez("set.npz", images=torch.cat([x, x]).numpy(), labels=torch.arange(120).numpy() % 3)
    asked = ["datasets", "set.npz", "--check"]
    assert run([*asked, "--features", "zoo:mnist-at", "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)["pairs"]
    assert sum(not p["by_features"] for p in found) > 5
    assert len({p["test"] for p in found}) == len(found)
    assert run([*asked, "--features", "zoo:mnist-at"]) == 0
    assert "found by the features of zoo:mnist-at alone" in capsys.readouterr().out
    assert run([*asked, "--features", "zoo:cifar10-fast-bat"]) == 2
    assert "is for images of shape (3, 32, 32), not (1, 28, 28)" in capsys.readouterr().err
    assert run([*asked[:-1], "--features", "zoo:mnist-at"]) == 2
