"""Minimal-norm attacks against foolbox and adversarial-library, where these are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bivallate as bv
from bivallate.lower.minimal_norm import CWL2, DDN, FMN, DeepFool
from bivallate.lower.objective import CrossEntropy, LogitMargin
from bivallate.lower.problem import LowerProblem
from bivallate.types import Batch

POINTS = 40
LINF, L2, L1 = bv.Linf(0.1), bv.L2(0.5), bv.L1(2.0)
Theirs = Callable[[nn.Module, Tensor, Tensor], Tensor]  # -> the images that it found


def by_foolbox(name: str, **settings: Any) -> Theirs:
    """An attack of foolbox by its class."""

    def found(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        foolbox = pytest.importorskip("foolbox", reason="needs foolbox")
        attack = getattr(foolbox.attacks, name)(**settings)
        return attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)[1]

    return found


def by_library(name: str, **settings: Any) -> Theirs:
    """An attack of adversarial-library by its function."""

    def found(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attacks = pytest.importorskip("adv_lib.attacks", reason="needs adv-lib")
        return getattr(attacks, name)(model, x, y, **settings)

    return found


INF = float("inf")
CW = {"binary_search_steps": 6, "initial_const": 0.01, "abort_early": False}
CASES = {  # ours, threat, theirs, whether the sizes are the same or ours may be smaller
    "deepfool-linf foolbox": (DeepFool(), LINF, by_foolbox("LinfDeepFoolAttack", steps=50), True),
    "deepfool-l2 foolbox": (DeepFool(), L2, by_foolbox("L2DeepFoolAttack", steps=50), True),
    "cw-l2 foolbox": (CWL2(100, 6), L2, by_foolbox("L2CarliniWagnerAttack", steps=100, **CW), True),
    "fmn-linf foolbox": (FMN(60), LINF, by_foolbox("LInfFMNAttack", steps=60), True),
    "fmn-l2 foolbox": (FMN(60), L2, by_foolbox("L2FMNAttack", steps=60), False),
    "fmn-l1 foolbox": (FMN(60), L1, by_foolbox("L1FMNAttack", steps=60), False),
    "ddn foolbox": (DDN(60), L2, by_foolbox("DDNAttack", steps=60), True),
    "deepfool-linf library": (DeepFool(), LINF, by_library("df", steps=50, norm=INF), True),
    "deepfool-l2 library": (DeepFool(), L2, by_library("df", steps=50, norm=2), True),
    "cw-l2 library": (
        CWL2(100, 6),
        L2,
        by_library("carlini_wagner_l2", max_iterations=100, learning_rate=0.01, **CW),
        True,
    ),
    "fmn-linf library": (FMN(60), LINF, by_library("fmn", steps=60, norm=INF), True),
    "fmn-l2 library": (FMN(60), L2, by_library("fmn", steps=60, norm=2), False),
    "fmn-l1 library": (FMN(60), L1, by_library("fmn", steps=60, norm=1), False),
    "ddn library": (DDN(60), L2, by_library("ddn", steps=60, levels=None), True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_sizes_found_agree(robust_model, held_out, case) -> None:
    solver, threat, theirs, same = CASES[case]
    x, y = held_out[0][:POINTS], held_out[1][:POINTS]
    robust_model.eval()
    try:
        with torch.no_grad():
            right = robust_model(x).argmax(1) == y
        x, y = x[right], y[right]
        their_images = theirs(robust_model, x, y).detach()
        objective = CrossEntropy() if isinstance(solver, DDN) else LogitMargin()
        batch = Batch(x, y, torch.arange(len(x)))
        ours = x + solver.solve(LowerProblem(robust_model, batch, objective, threat)).delta
        sizes = []
        for images in (ours, their_images):
            with torch.no_grad():
                fooled = robust_model(images).argmax(1) != y
            sizes.append(torch.where(fooled, threat.size(images - x), torch.inf))
        ours_size, their_size = sizes
        both = ours_size.isfinite() & their_size.isfinite()
        # of points that C&W has not reached in so few steps foolbox returns others, far away
        assert int(both.sum()) > 0.6 * len(x)
        assert int(ours_size.isfinite().sum()) >= (0.7 if isinstance(solver, CWL2) else 0.99) * len(x)
        ratio = float(ours_size[both].median() / their_size[both].median())
        assert ratio < 1.01
        assert not same or ratio > 0.98
    finally:
        robust_model.train()
