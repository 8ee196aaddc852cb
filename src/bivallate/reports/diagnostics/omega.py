"""The weights that BiLAW's weight network gives to clean and to adversarial margins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bivallate.errors import UserError
from bivallate.lower.objective import logit_margin
from bivallate.method import BoundMethod
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.weighed_points import weigh_points
from bivallate.style import COLOURS, figure
from bivallate.types import Clock, Evidence
from bivallate.weighting.margin_net import BoundMarginNet, weighs_by_margins

Place = Literal["clean", "adversarial"]
PLACES: tuple[Place, ...] = ("clean", "adversarial")


@dataclass(frozen=True, eq=False)
class Omega(Diagnostic):
    """The weights that the network gives to the clean and the adversarial margins of the same points.

    Attributes:
        label: label of the run.
        clean, attacked: (2, n): the scalar margins p_y - max p_k, and the weights divided by their mean.
    """

    label: str
    clean: np.ndarray
    attacked: np.ndarray

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {"label": self.label, "clean": self.clean, "attacked": self.attacked}

    def draw(self) -> Figure:
        """A panel for clean and one for adversarial margins."""
        fig, axes = figure(2, width=2, height=2.1, sharey=True)
        names = ("clean images", "their adversarial points")
        for k, (ax, (margin, weight), name) in enumerate(
            zip(axes, (self.clean, self.attacked), names, strict=True)
        ):
            ax.plot(margin, weight, ".", color=COLOURS[k], ms=3, mew=0, alpha=0.6)
            ax.axhline(1, color="#555555", lw=0.7, ls=":")
            ax.set_xlim(-1.05, 1.05)
            ax.set_xlabel(f"margin at {name}")
        most = float(max(self.clean[1].max(), self.attacked[1].max()))
        axes[0].set_ylim(0, 1.1 * most)
        axes[0].set_ylabel(f"weight / mean, {self.label}")
        return fig


def omega(
    label: str,
    model: nn.Module,
    method: BoundMethod,
    data: Any,
    clock: Clock,
    *,
    n: int | None = None,
    seed: int = 0,
) -> Omega:
    """Compute the weights of a bound BiLAW at the clean and at the adversarial margins of some points.

    Args:
        label: label of the run.
        model, method: the network and the bound method.
        data: a split or a pair (x, y) of tensors.
        clock: place in training, for the method's schedules.
        n: largest number of points; None takes all.
        seed: seed of the points.

    Cost: the method's attack twice.

    Reference: BiLAW, Fig. 5.

    Raises:
        UserError: the method has no network that weights by margins.
    """
    net = method.weighting
    if not (isinstance(net, BoundMarginNet) and weighs_by_margins(net.rule)):
        raise UserError("this method has no network that weights by margins; BiLAW has one")
    rules = [partial(_at, net, place) for place in PLACES]
    found = [weigh_points(model, method, data, clock, n=n, seed=seed, weighting=rule) for rule in rules]
    margin = logit_margin(torch.from_numpy(found[0].clean), torch.from_numpy(found[0].y))  # of probabilities
    clean = np.stack([margin.numpy(), found[0].weights])
    return Omega(label, clean, np.stack([found[1].margin, found[1].weights]))


def _at(net: BoundMarginNet, place: Place, evidence: Evidence) -> torch.Tensor:
    features = replace(net.rule, margins_from=place).features(evidence)
    return net.omega(features)
