"""A training with a resume, every attack and the audit on the stand-in device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bivallate as bv
from bivallate.evaluation import attack_and_score
from bivallate.evaluation.named_attacks import attacks
from bivallate.methods.entries import create
from bivallate.run.progress import Progress

NAMES = {  # each family, in a few steps
    "clean": "clean",
    "fgsm": "fgsm",
    "pgd": "pgd-2-2",
    "pgd-best": "pgd-best-2",
    "pgd-zero": "pgd-zero-2",
    "cw": "cw-2-1",
    "noise": "noise-2",
    "apgd-ce": "apgd-ce-4",
    "apgd-dlr": "apgd-dlr-4",
    "apgd-t": "apgd-t-4-2",
    "fab": "fab-2-1",
    "fab-t": "fab-t-2-2",
    "square": "square-10",
    "multitargeted": "multitargeted-2-2",
    "fmn": "fmn-4",
    "deepfool": "deepfool-3",
    "ddn": "ddn-4",
    "cw-l2": "cw-l2-3-2",
}
L2_ALONE = "ddn", "cw-l2"
IN_L1 = "fgsm", "apgd-ce", "fab-t"  # the others step and project as these do, many times as slowly here


class Power(Exception):
    """It was cut."""


class Cut(Progress):
    """Ends the training after so many minibatches, whose checkpoint stays."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Power


def images(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of three classes that a line tells apart."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(rows) % 3
    return torch.rand(rows, 1, 4, 4, generator=generator) * 0.4 + 0.2 * y.view(-1, 1, 1, 1), y


RESUMED: dict[str, tuple[dict[str, Any], int]] = {  # parameters, epochs; memories of rows, of a network
    "atta": ({}, 2),
    "hat": ({"steps": 1, "plain": 0.0}, 1),
    "lbgat": ({"steps": 1}, 1),
}


def trained(name: str, folder: str, device: str, cut: int) -> bytes:
    """The weights of a training, cut and resumed if that is wanted."""
    data = bv.data.load((images(36), images(12)), validation=6)
    model = bv.models.create("linear", num_classes=3, shape=(1, 4, 4), seed=0)
    parameters, epochs = RESUMED[name]
    method, out = create(name, bv.Linf(0.05), **parameters), Path(folder)
    settings = {
        "device": device,
        "epochs": epochs,
        "batch_size": 10,
        "average": 0.5,
        "checkpoint_minutes": 1e-9,
    }
    if cut:
        with pytest.raises(Power):
            bv.train(model, data, method, out=out, progress=Cut(cut), **settings)
        bv.resume(out, dataset=data)
    else:
        bv.train(model, data, method, out=out, **settings)
    return (out / "model.safetensors").read_bytes() + (out / "ema.safetensors").read_bytes()


@pytest.mark.parametrize("name", RESUMED)
def test_a_training_is_resumed_to_the_bit(card, tmp_path, name: str) -> None:
    whole = card(trained, name, str(tmp_path / "whole"), "cuda", 0)
    cut = 3 * RESUMED[name][1] - 1  # the last minibatch is missing
    assert card(trained, name, str(tmp_path / "cut"), "cuda", cut) == whole


def network() -> torch.nn.Module:
    """Tells most of the images apart."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(-1, 1, 3, dtype=torch.double)[:, None].expand(3, 16))
        model[1].bias.copy_(torch.tensor([6.4, 0.0, -6.4], dtype=torch.double) * 1.0)
        model[1].weight[1] += 0.3 * torch.eye(16, dtype=torch.double)[0]
    return model


def scored(name: str, device: str, ball: Any) -> list[bool]:
    """Verdicts of an attack."""
    x, y = images(24)
    return attack_and_score(
        network().to(device), (x.double().to(device), y.to(device)), ball, name
    ).robust.tolist()


def test_every_family_of_attacks_is_tried() -> None:
    families = {written.split("[")[0].removesuffix("-N") for written in attacks()}
    assert families - {"autoattack", "autoattack-plus", "autoattack-rand"} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "ball"),
    [
        pytest.param(name, ball, id=f"{name}-{type(ball).__name__}")
        for family, name in NAMES.items()
        for ball in (bv.Linf(0.06), bv.L2(0.3), bv.L1(0.8))
        if isinstance(ball, bv.L2) or family not in L2_ALONE
        if not isinstance(ball, bv.L1) or family in IN_L1
    ],
)
def test_an_attack_finds_what_it_finds_on_the_processor(card, name: str, ball: Any) -> None:
    assert card(scored, name, "cuda", ball) == scored(name, "cpu", ball)


def audited(device: str) -> tuple[str, list[str]]:
    """Verdict and answers of a short audit."""
    x, y = images(6)
    found = bv.audit(
        network().to(device), (x.double().to(device), y.to(device)), bv.Linf(0.06), budget_passes=7e3
    )
    return found.verdict, [f"{check.name}: {check.outcome}" for check in found.checks]


def test_the_audit_says_what_it_says_on_the_processor(card) -> None:
    assert card(audited, "cuda") == audited("cpu")
