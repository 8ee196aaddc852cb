"""Verdicts are computed in full precision, whatever context the caller is in."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tests.evaluation.conftest import affine, cloud
from torch import nn

import bivallate as bv
from bivallate.evaluation import attack, attack_and_score, minimal_distances
from bivallate.evaluation.full_precision import full_float32
from bivallate.evaluation.preflight import preflight


class Watched(nn.Module):
    """Notes the type of its logits and what torch allows at each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = affine(64, 4)
        self.types: set[torch.dtype] = set()
        self.allowed: list[tuple[bool, str]] = []

    def forward(self, x):
        logits = self.body(x)
        self.types.add(logits.dtype)
        self.allowed.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return logits


def points(model):
    x = cloud(12, (1, 8, 8))
    with torch.no_grad():
        return x, model(x).argmax(1)


def test_an_outer_autocast_does_not_reach_the_model():
    model = Watched()
    x, y = points(model)
    plain = attack_and_score(model, (x, y), bv.Linf(0.02), "pgd-3")
    with torch.autocast("cpu", torch.bfloat16):
        score = attack_and_score(model, (x, y), bv.Linf(0.02), "pgd-3")
        attack(model, x, y, bv.Linf(0.02), "pgd-3")
    assert model.types == {torch.float32}
    assert torch.equal(score.margin, plain.margin)


def test_a_network_that_was_trained_in_mixed_precision_is_evaluated_in_full():
    model = Watched()
    x, y = points(model)
    plain = attack_and_score(model, (x, y), bv.Linf(0.02), "pgd-3")
    model.autocast_dtype = torch.bfloat16
    score = attack_and_score(model, (x, y), bv.Linf(0.02), "pgd-3")
    assert model.types == {torch.float32}
    assert torch.equal(score.margin, plain.margin)
    assert model.autocast_dtype == torch.bfloat16, "it is left as it was found"


def test_neither_search_nor_verdict_takes_short_cuts_and_puts_them_back():
    model = Watched()
    data = points(model)
    torch.set_float32_matmul_precision("high")
    try:
        model.allowed.clear()
        attack_and_score(model, data, bv.Linf(0.02), "pgd-3")
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(model.allowed) >= 5  # a point that leaves a search is never asked again: it must be exact, too
    assert set(model.allowed) == {(False, "highest")}


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has no newer names")
def test_full_precision_where_torchs_newer_names_were_used():
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    conv.fp32_precision, matmul.fp32_precision = "ieee", "tf32"
    try:
        with full_float32():
            assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "tf32")
    finally:
        conv.fp32_precision, matmul.fp32_precision = before


@pytest.mark.parametrize(
    "inside", [contextlib.nullcontext, torch.inference_mode], ids=["normal", "inference"]
)
def test_attacks_run_inside_inference_mode(inside):
    usual = affine(64, 4)
    expected = attack_and_score(usual, points(usual), bv.Linf(0.02), "pgd-3")
    with inside():
        model = affine(64, 4)
        x, y = points(model)
        assert x.is_inference() == (inside is torch.inference_mode)
    with torch.inference_mode():
        for name in ("pgd-3", "apgd-t-3", "fab-t-3", "square-5"):
            score = attack_and_score(model, (x, y), bv.Linf(0.02), name)
            found = attack(model, x, y, bv.Linf(0.02), name)
            assert float((found - x).abs().max()) <= 0.02 + 1e-6
            if name == "pgd-3":
                assert torch.equal(score.margin, expected.margin)
        assert preflight(usual, (x, y)).classes == 4
        assert len(minimal_distances(usual, (x, y), "linf", steps=3)) == 12
