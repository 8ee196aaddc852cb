"""FOSC of a method's own attack at several epochs of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bivallate.evaluation.geometry import fosc_after
from bivallate.lower.problem import LowerProblem
from bivallate.lower.stop import Form
from bivallate.method import BoundMethod
from bivallate.reports.diagnostics.density import log_density, log_grid
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.fosc import named
from bivallate.reports.diagnostics.sample import inspected, sample
from bivallate.reports.diagnostics.weighed_points import SIZE, attacker
from bivallate.style import colour, figure
from bivallate.types import Clock

STYLES = ("-", "--", ":", "-.")
NEAR = 0.1  # nats; the paper compares the fractions of points with FOSC up to this value


@dataclass(frozen=True, eq=False)
class FOSCOverEpochs(Diagnostic):
    """FOSC of training points under a method's own attack, by run and epoch.

    Attributes:
        fosc: label -> epoch, counted from 1 -> (n,) in nats.
        form: form of FOSC.
    """

    fosc: dict[str, dict[int, np.ndarray]]
    form: Form = "ball"

    def share(self, label: str, epoch: int) -> float:
        """Fraction of the points whose FOSC is within [0, 0.1], the paper's measure of good convergence."""
        return float((self.fosc[label][epoch] <= NEAR).mean())

    def data(self) -> dict[str, Any]:
        """The values by label and epoch, the fraction of each within [0, 0.1], and the form."""
        share = {label: {str(e): self.share(label, e) for e in by} for label, by in self.fosc.items()}
        values = {f"{label} {epoch}": v for label, by in self.fosc.items() for epoch, v in by.items()}
        return {"form": self.form, "within_0.1": share, **values}

    def draw(self) -> Figure:
        """A panel for each run with Gaussian kernel densities of the logarithm.

        The legend gives the medians and the fractions within [0, 0.1].
        """
        fig, axes = figure(
            len(self.fosc), width=max(1, 0.66 * len(self.fosc)), height=2.5, sharex=True, squeeze=False
        )
        low, at = log_grid([v for by in self.fosc.values() for v in by.values()])
        for ax, (label, by_epoch) in zip(axes.flat, self.fosc.items(), strict=True):
            for k, (epoch, values) in enumerate(by_epoch.items()):
                name = f"epoch {epoch}: {np.median(values):.2g}, {self.share(label, epoch):.0%}"
                log_density(ax, at, low, values, color=colour(k), ls=STYLES[k % len(STYLES)], label=name)
            ax.set_xscale("log")
            ax.set_ylim(bottom=0)
            title = f"{label} (median, within {NEAR:g})"
            ax.legend(title=title, title_fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 0.98))
        axes.flat[0].set_ylabel("density (per decade)")
        fig.supxlabel(f"{named(self.form)} of training images under the method's attack", fontsize=8)
        return fig


def fosc_over_epochs(values: Mapping[str, Mapping[int, np.ndarray]], form: Form = "ball") -> FOSCOverEpochs:
    """Make the result from the values of `stationarity` for each run and epoch, all in the same form.

    Reference: Wang et al. (Dynamic AT), ICML 2019, Fig. 3, 5.
    """
    return FOSCOverEpochs({label: dict(sorted(by.items())) for label, by in values.items()}, form)


def stationarity(
    model: nn.Module,
    method: BoundMethod,
    data: Any,
    clock: Clock,
    *,
    n: int | None = None,
    seed: int = 0,
    form: Form = "ball",
) -> np.ndarray:
    """Compute FOSC (n,), in nats, of points under the method's attack; lower means better converged.

    The attack is the method's own solver, or PGD-20 if that solver has a memory. The model is in eval mode.
    FOSC is taken of the attack's own objective.

    Cost: that of the solver, and one forward and one backward pass per point.

    Raises:
        UserError: the attack leaves the ball of radius eps (N-FGSM), where FOSC is not defined.
    """
    found: list[torch.Tensor] = []
    solver, objective = attacker(method)
    with inspected(model) as device:
        for batch in sample(data, n, seed, model).batches(device, SIZE):
            problem = LowerProblem(model, batch, objective, method.threat, clock)
            found.append(fosc_after(solver, problem, form).cpu())
    return torch.cat(found).float().numpy()
