"""The picture on the front page: `python -m benchmarks.front_picture`, about a minute on one core.

Trains one network plainly and one against attacks (AT), with the demo's settings but without held-out
images, and shows the first test image that
the plain network loses under attack and the other does not, each attacked on its own. Writes
docs/figures/front.svg and prints the numbers that its caption states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import bivallate as bv
from bivallate.reproduce.machine import commit
from bivallate.style import COLOURS, figure, save, styled

EPS, EPOCHS, ATTACK = 0.2, 30, "pgd-20"
TARGET = Path(__file__).parents[1] / "docs" / "figures" / "front"


def main() -> None:
    """Trains, attacks, draws."""
    torch.set_num_threads(1)
    data, threat = bv.data.load("digits", validation=0), bv.Linf(EPS)
    found = {}
    for name, method in {"plain": bv.methods.plain(threat), "against attacks": bv.methods.at(threat)}.items():
        plan: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 64, "optimizer": bv.SGD(0.1), "seed": 0}
        run = bv.train("tiny-cnn", data, method, rate=bv.Triangle(0.4), progress=False, **plan)
        score = bv.evaluate(run.model, data.test, threat, attack=ATTACK, seed=0)
        found[name] = (run.model.eval(), score)
        print(f"{name}: clean {score.clean_accuracy:.1%}, {ATTACK} {score.robust_accuracy:.1%}, n {score.n}")
    plain, trained = (score for _, score in found.values())
    shown = (plain.clean & ~plain.robust & trained.robust).nonzero()[0].item()
    with styled():
        save(_drawn(found, data.test, int(shown), threat), TARGET, ("svg",))
    print(f"test image {int(shown)}, commit {commit().get('id', 'unknown')[:7]}")


def _drawn(found: dict[str, Any], split: Any, row: int, threat: bv.Linf) -> Figure:
    """The image, the image attacked on each network with its answer, and how often each is right."""
    x, y = split.tensors([row])
    fig, panels = figure(4, height=1.75, width=2.0, width_ratios=(1, 1, 1, 1.5))
    _image(panels[0], x, f"a test image: {int(y)}")
    for k, (name, (model, _)) in enumerate(found.items()):
        attacked = bv.attack(model, x, y, threat, ATTACK, seed=0)
        sure, answer = model(attacked).detach().softmax(1).max(1)
        said = f"attacked: “{int(answer)}” ({float(sure):.0%})"
        _image(panels[k + 1], attacked, said, f"trained {name}" if k else "trained plainly", COLOURS[1 - k])
    bars = panels[3]
    for k, (_, score) in enumerate(found.values()):
        for place, value in ((k, score.clean_accuracy), (k + 2.5, score.robust_accuracy)):
            bars.bar(place, 100 * value, color=COLOURS[1 - k])
            bars.text(place, 100 * value + 1, f"{100 * value:.0f}", ha="center", va="bottom")
    bars.set_xticks([0.5, 3], ["as they are", "attacked"])
    bars.set(ylim=(0, 112), title=f"right on {found['plain'][1].n} images (%)")
    bars.grid(axis="x", visible=False)
    return fig


def _image(axes: Any, x: torch.Tensor, title: str, below: str = "", colour: str = "black") -> None:
    axes.imshow(x[0, 0].detach(), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], title=title)
    axes.set_xlabel(below, color=colour, fontweight="bold")
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2 if below else 0.8)


if __name__ == "__main__":
    main()
