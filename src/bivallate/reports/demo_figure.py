"""The figure of `bivallate demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bivallate.run.folder import RunFolder
from bivallate.style import COLOURS, colour, figure, marker, save, styled


def curves(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl."""
    return RunFolder(folder).read_metrics()


def demo_figure(out: Path, rows: list[dict[str, Any]]) -> Path:
    """Draw held-out robust accuracy over training cost, and the final accuracies side by side."""
    with styled():
        fig, (left, right) = figure(2, width=2, height=2.6)
        for k, row in enumerate(rows):
            lines = curves(out / row["method"])
            cost = [line["total_forward"] + line["total_backward"] for line in lines]
            robust = [100 * line["robust"] for line in lines]
            left.plot(cost, robust, color=colour(k), label=row["method"], marker=marker(k), markevery=5)
        left.set_xscale("log")
        left.set_xlabel("cost so far: passes per training example")
        left.set_ylabel("held-out robust accuracy (%)")
        left.set_ylim(0, 100)
        left.legend()
        places = range(len(rows))
        bars = (
            ("clean", "clean", "#bbbbbb"),
            ("robust", "under PGD-20", COLOURS[0]),
            ("tail_30", "weakest 30 %", COLOURS[1]),
        )
        for shift, (key, label, shade) in enumerate(bars):
            heights = [100 * row[key] for row in rows]
            drawn = right.bar(
                [p + 0.27 * (shift - 1) for p in places], heights, 0.25, color=shade, label=label
            )
            right.bar_label(drawn, fmt="%.0f", fontsize=6)
        right.set_xticks(list(places), [row["method"] for row in rows])
        right.set_ylabel("test accuracy (%)")
        right.set_ylim(0, 118)
        right.grid(axis="x", visible=False)
        right.legend(loc="upper center", ncols=3)
        return save(fig, out / "demo")
