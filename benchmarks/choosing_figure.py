"""Draw the tables of docs/choosing.md that AutoAttack judges: a row a method, with its cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.records import Row, mean
from bivallate.style import COLOURS, COLUMN, save, styled

FIGURE = Path("docs/figures/choosing")


def draw(
    panels: Sequence[tuple[str, Sequence[Sequence[Row]], Sequence[Sequence[Row]]]], stem: Path = FIGURE
) -> Path:
    """Draw a panel for each (title, rows a seed of every method, those of the highest and its equals)."""
    columns = 2
    rows = -(-len(panels) // columns)
    most = max(len(methods) for _, methods, _ in panels)
    with styled():
        height = rows * (0.7 + 0.135 * most)
        fig = Figure(figsize=(2 * COLUMN, height), layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax, (title, methods, equals) in zip(axes.flat, panels, strict=False):
            order = sorted(methods, key=lambda seeds: mean(seeds, "robust"))
            for place, seeds in enumerate(order):
                _draw_row(ax, place, seeds, first=seeds in equals)
            ax.set_yticks(range(len(order)), [_label(seeds) for seeds in order])
            ax.set_ylim(-0.7, most - 0.3)
            lowest = [mean(seeds, what) for seeds in order for what in ("low", *_worst_of(seeds))]
            ax.set_xlim(left=100 * min(lowest) - 4)
            ax.set_title(title)
            ax.set_xlabel("AutoAttack (%)")
        told = {
            "robust, highest or not told apart from it": {"marker": "o", "color": COLOURS[0]},
            "robust": {"marker": "o", "color": COLOURS[1]},
            "worst class": {"marker": "s", "color": "#777777", "markerfacecolor": "none"},
        }
        shown = [axes[0][0].plot([], [], linestyle="none", markersize=4, **how)[0] for how in told.values()]
        fig.legend(shown, told, loc="outside lower center", ncols=3)
        return save(fig, stem, ("svg",))


def _draw_row(ax: Any, place: int, seeds: Sequence[Row], first: bool) -> None:
    paint = COLOURS[0 if first else 1]
    ax.hlines(place, 100 * mean(seeds, "low"), 100 * mean(seeds, "high"), color=paint, linewidth=1)
    ax.plot(100 * mean(seeds, "robust"), place, "o", color=paint, markersize=4)
    if _worst_of(seeds):
        ax.plot(100 * mean(seeds, "worst"), place, "s", color="#777777", mfc="none", markersize=3.5)


def _worst_of(seeds: Sequence[Row]) -> tuple[str, ...]:
    """The name of the worst class's accuracy, if it is known."""
    return () if any(row.worst is None for row in seeds) else ("worst",)


def _label(seeds: Sequence[Row]) -> str:
    of = seeds[0]
    name = of.variant if of.variant.lower().startswith(of.method) else of.label
    return f"{name}, {mean(seeds, 'passes'):,.0f}"
