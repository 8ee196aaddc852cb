"""Attacked images: the points with the lowest and with the highest margin under an attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.evaluation import attack as attack_points
from bivallate.evaluation.points import as_points
from bivallate.lower.input_guard import call_unharmed
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.sample import inspected
from bivallate.reports.image_panel import change, class_label, panel
from bivallate.style import COLOURS, COLUMN

KINDS = ("hard", "easy")


@dataclass(frozen=True, eq=False)
class EasyAndHard(Diagnostic):
    """Clean and attacked images side by side.

    Attributes:
        attack: name of the attack.
        classes: names of the classes.
        kind: (m,) "hard" (correct when clean and wrong under attack) or "easy" (robust).
        clean, attacked: (m, C, H, W) images in [0, 1].
        y, predicted, predicted_attacked: (m,) labels and predictions.
        index: (m,) rows of the data.
    """

    attack: str
    classes: tuple[str, ...]
    kind: tuple[str, ...]
    clean: np.ndarray
    attacked: np.ndarray
    y: np.ndarray
    predicted: np.ndarray
    predicted_attacked: np.ndarray
    index: np.ndarray

    def data(self) -> dict[str, Any]:
        """The attributes."""
        names = ("clean", "attacked", "y", "predicted", "predicted_attacked", "index")
        arrays = {name: getattr(self, name) for name in names}
        words = {"attack": self.attack, "classes": list(self.classes), "kind": list(self.kind)}
        return words | arrays

    def draw(self) -> Figure:
        """For each kind three rows: clean images, attacked images, and the difference."""
        kinds = [kind for kind in KINDS if kind in self.kind]
        columns = max(self.kind.count(kind) for kind in kinds)
        fig = Figure(figsize=(2 * COLUMN, 3.4 * len(kinds)), layout="constrained")
        grid = fig.subplots(3 * len(kinds), columns, squeeze=False)
        for ax in grid.flat:
            ax.set_axis_off()
        for k, kind in enumerate(kinds):
            rows = [row for row, own in enumerate(self.kind) if own == kind]
            for j, row in enumerate(rows):
                self._example(grid[3 * k : 3 * k + 3, j], row)
            for i, name in enumerate((f"{kind}: clean", "attacked", "change")):
                first = grid[3 * k + i][0]
                first.text(-0.12, 0.5, name, rotation=90, va="center", ha="right", transform=first.transAxes)
        return fig

    def _example(self, axes: Any, row: int) -> None:
        clean, attacked = self.clean[row], self.attacked[row]
        moved = change(clean, attacked, float(np.abs(attacked - clean).max()))
        for ax, image in zip(axes, (clean, attacked, moved), strict=True):
            panel(ax, image)
        y, before, after = int(self.y[row]), int(self.predicted[row]), int(self.predicted_attacked[row])
        names = [class_label(self.classes, k) for k in (y, before, after)]
        axes[0].set_title(names[1] if before == y else f"{names[0]}, not {names[1]}", fontsize=6, pad=2)
        colour = COLOURS[1] if after != y else "#222222"
        axes[1].set_title(names[2], fontsize=6, pad=2, color=colour)


def easy_and_hard(
    model: nn.Module,
    data: Any,
    threat: Any,
    score: Score,
    classes: tuple[str, ...] = (),
    *,
    attack: str = "pgd-20",
    count: int = 6,
    seed: int = 0,
) -> EasyAndHard:
    """Attack the hardest and the easiest points of an evaluation again, to show them.

    Hard points are correct when clean and have the lowest margins under the evaluation's attack; easy points
    are robust and have the highest margins. They are shown under `attack`, which may be weaker than the
    evaluation's and need not succeed on every hard point.

    Args:
        model: the evaluated model.
        data: the evaluated split.
        threat: the set of perturbations.
        score: the evaluation.
        classes: names of the classes; default their numbers.
        attack: attack that makes the images.
        count: largest number of images of each kind.
        seed: seed of the attack.

    Raises:
        UserError: no point is correct when clean, or the data are not those that were evaluated.
    """
    source = as_points(data, model)
    if len(source) <= int(score.index.max()):
        raise UserError("the data has fewer points than were evaluated: it has changed")
    order = score.margin.argsort(stable=True)
    right = score.clean[order]
    robust = score.robust[order]
    hard = order[right & ~robust][:count]
    easy = order[right & robust].flip(0)[:count]
    rows = torch.cat([hard, easy])
    if not len(rows):
        raise UserError("no point is classified correctly even without an attack")
    x, y = source.tensors(score.index[rows])
    if not torch.equal(y.long().cpu(), score.y[rows]):
        raise UserError("the data has other labels than were evaluated: it has changed")
    moved = attack_points(model, x, y, threat, attack, seed=seed).cpu()
    return EasyAndHard(
        attack,
        tuple(classes) or tuple(str(k) for k in range(score.classes)),
        ("hard",) * len(hard) + ("easy",) * len(easy),
        x.float().cpu().numpy(),
        moved.float().numpy(),
        y.cpu().numpy(),
        _predicted(model, x),
        _predicted(model, moved),
        score.index[rows].numpy(),
    )


def _predicted(model: nn.Module, x: Tensor) -> np.ndarray:
    with inspected(model) as device, torch.no_grad():
        return call_unharmed(model, x.to(device)).argmax(1).cpu().numpy()
