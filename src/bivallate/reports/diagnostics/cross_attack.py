"""Every model under the training attack of every other one, and the convergence of each one's own attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bivallate.errors import UserError
from bivallate.lower.problem import LowerProblem
from bivallate.lower.stop import Form, fosc
from bivallate.method import BoundMethod
from bivallate.reports.diagnostics.density import density, log_density, log_grid
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.fosc import named
from bivallate.reports.diagnostics.sample import inspected, problem_of, sample
from bivallate.reports.diagnostics.weighed_points import SIZE, attacker
from bivallate.style import COLUMN, colour
from bivallate.types import Clock

STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, eq=False)
class CrossAttack(Diagnostic):
    """Robust accuracy of models under each other's training attacks; FOSC and loss under their own.

    Attributes:
        labels: labels of the runs.
        accuracy: (models, attacks) robust accuracies on test points.
        fosc, loss: (runs, n) in nats, of training points under the run's own attack.
        form: form of FOSC.
    """

    labels: tuple[str, ...]
    accuracy: np.ndarray
    fosc: np.ndarray
    loss: np.ndarray
    form: Form = "ball"

    def data(self) -> dict[str, Any]:
        """The attributes."""
        arrays = {"accuracy": self.accuracy, "fosc": self.fosc, "loss": self.loss}
        return {"labels": list(self.labels), "form": self.form, **arrays}

    def draw(self) -> Figure:
        """A table of accuracies, and two panels of densities."""
        fig = Figure(figsize=(2 * COLUMN, 2.9), layout="constrained")
        table, left, right = fig.subplots(1, 3, width_ratios=(1.15, 1, 1))
        self._table(table)
        low, at = log_grid(list(self.fosc))
        for k, label in enumerate(self.labels):
            style = {"color": colour(k), "ls": STYLES[k % len(STYLES)], "label": label}
            log_density(left, at, low, self.fosc[k], **style)
            density(right, self.loss[k], 1.1 * float(self.loss.max()), **style)
        left.set_xscale("log")
        for ax, name, unit in ((left, named(self.form), "decade"), (right, "loss (nats)", "nat")):
            ax.set_ylim(bottom=0)
            ax.set_xlabel(name)
            ax.set_ylabel(f"density (per {unit})")
        handles, labels = left.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper right", ncols=min(3, len(labels)))
        return fig

    def _table(self, ax: Any) -> None:
        share = 100 * self.accuracy
        ax.imshow(share, cmap="Blues", vmin=share.min() - 5, vmax=share.max() + 10, aspect="auto")
        ax.grid(visible=False)
        middle = (share.min() + share.max() + 5) / 2
        for i, j in np.ndindex(share.shape):
            shade = "white" if share[i, j] > middle else "#222222"
            ax.text(j, i, f"{share[i, j]:.1f}", ha="center", va="center", fontsize=6.5, color=shade)
        places = range(len(self.labels))
        ax.set_xticks(places, self.labels, rotation=90, fontsize=6.5)
        ax.set_yticks(places, self.labels, fontsize=6.5)
        ax.set_xlabel("attack")
        ax.set_ylabel("trained by; accuracy (%)")


def cross_attack(
    models: Mapping[str, nn.Module],
    methods: Mapping[str, BoundMethod],
    test: Any,
    train: Any,
    clock: Clock,
    *,
    n: int | None = None,
    seed: int = 0,
    form: Form = "ball",
) -> CrossAttack:
    """Attack every model with the attack of every method, at the clock's place in its schedules.

    Only points that are correct when clean count as robust.

    Args:
        models, methods: networks and bound methods by label.
        test, train: points for the accuracies, and for FOSC and loss.
        clock: place in training, for the methods' schedules.
        n: largest number of points; None takes all.
        seed: seed of the points.
        form: form of FOSC.

    Cost: that of the solver for each point and pair of runs, and once more for each run's training points.

    Reference: Wang et al. (Dynamic AT), ICML 2019, Fig. 2.

    Raises:
        UserError: an attack leaves the ball of radius eps.
    """
    rows = [[_accuracy(m, own, test, clock, n, seed) for own in methods.values()] for m in models.values()]
    ends = [_converged(models[label], methods[label], train, clock, n, seed, form) for label in models]
    gap, loss = (np.stack(column) for column in zip(*ends, strict=True))
    return CrossAttack(tuple(models), np.array(rows), gap, loss, form)


def _accuracy(
    model: nn.Module, method: BoundMethod, data: Any, clock: Clock, n: int | None, seed: int
) -> float:
    solver, objective = attacker(method)
    right = total = 0
    with inspected(model) as device:
        for batch in sample(data, n, seed, model).batches(device, SIZE):
            problem = LowerProblem(model, batch, objective, method.threat, clock)
            delta = solver.solve(problem).delta
            with torch.no_grad():
                held = [problem.forward(x).argmax(1) == batch.y for x in (batch.x, batch.x + delta)]
            right, total = right + int((held[0] & held[1]).sum()), total + len(batch.y)
    return right / total


def _converged(
    model: nn.Module, method: BoundMethod, data: Any, clock: Clock, n: int | None, seed: int, form: Form
) -> tuple[np.ndarray, np.ndarray]:
    """FOSC (n,) and loss (n,) of points under the method's own attack."""
    solver, objective = attacker(method)
    gaps, losses = list[torch.Tensor](), list[torch.Tensor]()
    with inspected(model) as device:
        for batch in sample(data, n, seed, model).batches(device, SIZE):
            problem = LowerProblem(model, batch, objective, method.threat, clock)
            delta = solver.solve(problem).delta.detach()
            if bool((method.threat.size(delta) > (1 + 1e-4) * method.threat.eps).any()):
                raise UserError(
                    "this method's attack leaves the ball of radius eps, for which FOSC is defined"
                )
            logits, grad = problem.logits_and_gradient(delta)
            gaps.append(fosc(form, method.threat, grad, batch.x, delta).detach().cpu())
            plain = problem_of(model, batch, method.threat, seed)
            losses.append(plain.objective(plain, logits.detach()).cpu())
    return torch.cat(gaps).float().numpy(), torch.cat(losses).float().numpy()
