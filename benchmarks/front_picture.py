"""Draw the picture on the front page: `python -m benchmarks.front_picture`, about a minute on one core.

Trains one network plainly and one adversarially (AT), with the demo's settings but without held-out images.
The picture shows the first test image that an attack breaks on the plain network and none breaks on the
other. Writes docs/figures/front.svg and prints the numbers of its caption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import bivallate as bv
from bivallate.reproduce.machine import commit
from bivallate.style import COLOURS, save, styled

EPS, EPOCHS, ATTACK = 0.2, 30, "pgd-20"
TARGET = Path(__file__).parents[1] / "docs" / "figures" / "front"


def main() -> None:
    """Train, attack and draw."""
    torch.set_num_threads(1)
    data, threat = bv.data.load("digits", validation=0), bv.Linf(EPS)
    found = {}
    for name, method in {
        "plainly": bv.methods.plain(threat),
        "against attacks": bv.methods.at(threat),
    }.items():
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
    """Draw the image, and it attacked on each network, with predictions and accuracies."""
    x, y = split.tensors([row])
    fig = Figure(figsize=(4.2, 2.7), layout="constrained")
    panels = fig.subplot_mosaic([["image", *found], ["bars"] * 3], height_ratios=(1.35, 1))
    _image(panels["image"], x, f"a {int(y)}", "a test image\nas it is")
    bars, colours = panels["bars"], dict(zip(found, COLOURS[1::-1], strict=True))
    for k, (name, (model, score)) in enumerate(found.items()):
        attacked = bv.attack(model, x, y, threat, ATTACK, seed=0)
        sure, answer = model(attacked).detach().softmax(1).max(1)
        said = f"“{int(answer)}” ({float(sure):.0%} sure)"
        _image(panels[name], attacked, said, f"attacked, trained\n{name}", colours[name])
        for place, value in ((k, score.clean_accuracy), (k + 2.5, score.robust_accuracy)):
            bars.barh(place, 100 * value, color=colours[name])
            bars.text(100 * value + 1, place, f"{100 * value:.0f} %", va="center")
    bars.set_yticks([0.5, 3], ["as they are", "attacked"])
    bars.set(xlim=(0, 112), xticks=[], title=f"right on {score.n} test images")
    bars.invert_yaxis()
    bars.grid(visible=False)
    bars.spines["bottom"].set_visible(False)
    return fig


def _image(axes: Any, x: torch.Tensor, title: str, below: str, colour: str = "black") -> None:
    axes.imshow(x[0, 0].detach(), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], title=title)
    axes.set_xlabel(below, color=colour, fontweight="bold")
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=0.8 if colour == "black" else 2)


if __name__ == "__main__":
    main()
