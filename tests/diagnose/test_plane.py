"""The plane of mean and worst class: its points, its front, its picture."""

from __future__ import annotations

import matplotlib
import pytest
import torch

import bivallate as bv
from bivallate.reports.diagnostics.plane import Plane, Standing, plane

matplotlib.use("Agg")


def test_the_front_is_what_nobody_beats_on_both_axes() -> None:
    values = {"a": (0.5, 0.2), "b": (0.5, 0.3), "c": (0.4, 0.35), "d": (0.45, 0.3), "e": (0.6, 0.1)}
    drawn = Plane("pgd", tuple(Standing(k, m, None, w, None) for k, (m, w) in values.items()))
    assert [s.label for s in drawn.front] == ["c", "b", "e"]
    twins = Plane("pgd", (Standing("x", 0.5, None, 0.2, None), Standing("y", 0.5, None, 0.2, None)))
    assert len(twins.front) == 2


def test_it_is_of_scores_and_draws_a_cross_for_each() -> None:
    x, y = torch.rand(120, 1, 4, 4), torch.arange(120) % 3
    models = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)) for _ in range(2)]
    scores = {f"m{k}": bv.evaluate(m, (x, y), bv.Linf(0.01), "fgsm") for k, m in enumerate(models)}
    drawn = plane(scores, ("cat", "dog", "owl"))
    for label, standing in zip(scores, drawn.standings, strict=True):
        number, worst = scores[label].worst_class
        assert (standing.worst_class, standing.worst) == (("cat", "dog", "owl")[number], worst)
        assert standing.mean == scores[label].robust_accuracy
    ax = drawn.figure().axes[0]
    assert len(ax.containers) == 2
    assert [t.get_text() for t in drawn.figure().legends[0].get_texts()] == ["m0", "m1"]
    with pytest.raises(bv.UserError, match="two or more"):
        plane({"m0": scores["m0"]})
