"""Tables and figure of docs/contest.md, made from the records of benchmarks/contest.py."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import PASSES, SEEDS, SETTINGS, chosen, judged, shown, trials, tuned
from benchmarks.contest_entrants import ENTRANTS
from bivallate.evaluation.statistics import Z95, welch, wilson
from bivallate.files import write_text
from bivallate.style import COLOURS, figure, save, styled

PAGE, FIGURE = Path("docs/contest.md"), Path("docs/figures/contest")
TITLES = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10"}
WORDS = {"low": "N-FGSM's cost", "high": "PGD-10's cost"}


def title(data: str, cost: str) -> str:
    """The data set and the cost in words."""
    passes = SETTINGS[data].epochs * PASSES[cost]
    return f"{TITLES[data]}, {WORDS[cost]} ({passes} passes)"


def held_out(data: str, cost: str) -> str:
    """Markdown: everyone with the best of its values on held-out images, best first; empty without any."""
    best, everyone = tuned(data, cost), {e.name: e for e in ENTRANTS[cost]}
    if not best:
        return ""
    missing = "" if len(best) == len(everyone) else f" ({len(best)} of {len(everyone)} are tuned)"
    lines = [
        f"### {title(data, cost)}{missing}",
        "",
        "| method | tuned (values tried) | epochs | clean | robust | each value | worst class | RA-Tail-30 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in sorted(best.items(), key=lambda pair: -pair[1]["held_out"]["robust"]):
        entrant, held = everyone[name], r["held_out"]
        tried = ", ".join(shown(v) for v in entrant.values)
        spread = " / ".join(_percent(t.read()["held_out"]["robust"]) for t in _in_order(data, cost, name))
        cells = (
            f"**{name}**" if entrant.composed else name,
            f"{entrant.parameter} = {shown(entrant.values[r['number']])} ({tried})",
            str(r["epochs"]),
            _percent(held["clean"]),
            _percent(held["robust"]),
            spread,
            _percent(held["worst_class"]),
            _percent(held["tail_30"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def judgement(data: str, cost: str) -> str:
    """Markdown: AutoAttack on test images for those that were chosen, and whether ours win; empty before."""
    roles = chosen(tuned(data, cost), cost)
    tests: dict[str, list[dict[str, Any]]] = {}
    for trial in judged(data, cost):
        found = trial.read() if trial.record.exists() else {}
        tests.setdefault(trial.name, []).extend([found["test"]] if "test" in found else [])
    if not roles or not all(len(found) == len(SEEDS) for found in tests.values()):
        return ""
    points = next(iter(tests.values()))[0]["n"]
    lines = [
        f"### {title(data, cost)}",
        "",
        f"| chosen as | method | clean | AutoAttack ({points:,}) | its seeds | worst class | RA-Tail-30 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in tests.items():
        means = {
            k: statistics.fmean(t[k] for t in found) for k in ("clean", "robust", "worst_class", "tail_30")
        }
        seeds = " / ".join(_percent(t["robust"]) for t in found)
        by = ", ".join(role for role, who in roles.items() if who == name)
        cells = (by, name, _percent(means["clean"]), _percent(means["robust"]), seeds)
        lines.append(
            f"| {' | '.join(cells)} | {_percent(means['worst_class'])} | {_percent(means['tail_30'])} |"
        )
    ours, theirs = (tests[roles[f"best {who}"]] for who in ("composition", "rival"))
    fair = [tests[roles[f"fairest {who}"]] for who in ("composition", "rival")]
    lines += [
        "",
        f"* AutoAttack, {roles['best composition']} - {roles['best rival']}: {_robust(ours, theirs)}.",
        f"* Worst class, {roles['fairest composition']} - {roles['fairest rival']}: {_worst(*fair)}.",
    ]
    return "\n".join(lines)


def _robust(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> str:
    """The difference of accuracies in words: the interval over the points, and the test over the seeds."""
    a, b = (np.array([[int(c) for c in t["right"]] for t in found]).mean(0) for found in (ours, theirs))
    gap = a - b
    half = Z95 * float(gap.std(ddof=1)) / math.sqrt(len(gap))
    middle, p = float(gap.mean()), welch([t["robust"] for t in ours], [t["robust"] for t in theirs])
    low, high = 100 * (middle - half), 100 * (middle + half)
    decided = (low > 0 or high < 0) and p is not None and p < 0.05
    told = f"{100 * middle:+.1f} points [{low:+.1f}, {high:+.1f}], {_p(p)} over the seeds"
    return told + (": decided" if decided else ": not decided")


def _worst(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> str:
    """The difference of the worst classes in words, with the test over the seeds."""
    a, b = ([t["worst_class"] for t in found] for found in (ours, theirs))
    p = welch(a, b)
    gap = 100 * (statistics.fmean(a) - statistics.fmean(b))
    decided = "decided" if p is not None and p < 0.05 else "not decided"
    return f"{gap:+.1f} points, {_p(p)} over the seeds: {decided}"


def draw() -> None:
    """Draw everyone's values on held-out images and the interval of the best, a panel for each table."""
    panels = [(d, c) for d in SETTINGS for c in PASSES if len(tuned(d, c)) > 2]
    if not panels:
        return
    with styled():
        fig, axes = figure(len(panels), width=2 if len(panels) > 1 else 1, height=3.6, squeeze=False)
        for ax, (data, cost) in zip(axes[0], panels, strict=True):
            composed = {e.name: e.composed for e in ENTRANTS[cost]}
            best = sorted(tuned(data, cost).items(), key=lambda pair: pair[1]["held_out"]["robust"])
            for place, (name, record) in enumerate(best):
                held, paint = record["held_out"], COLOURS[0 if composed[name] else 1]
                low, high = wilson(round(held["robust"] * held["n"]), held["n"])
                each = [100 * t.read()["held_out"]["robust"] for t in _in_order(data, cost, name)]
                ax.hlines(place, 100 * low, 100 * high, color=paint, linewidth=1, alpha=0.6)
                ax.plot(each, [place] * len(each), "o", mfc="none", color=paint, markersize=3)
                ax.plot(100 * held["robust"], place, "o", color=paint, markersize=4)
            ax.set_yticks(range(len(best)), [name for name, _ in best])
            least = min(record["held_out"]["robust"] for _, record in best)
            ax.set_xlim(left=100 * least - 3)
            ax.set_title(f"{TITLES[data]}, {WORDS[cost]}")
            ax.set_xlabel("robust, held out (%)")
        for k, label in enumerate(("composition", "catalogue")):
            axes[0][0].plot([], [], "o", color=COLOURS[k], markersize=4, label=label)
        axes[0][0].legend(loc="lower right")
        save(fig, FIGURE, ("svg",))


def write_page() -> None:
    """Replace the text between the markers of docs/contest.md, and draw the figure."""
    text = PAGE.read_text(encoding="utf-8")
    for what, made in (("held-out", held_out), ("test", judgement)):
        parts = [table for data in SETTINGS for cost in PASSES if (table := made(data, cost))]
        new = f"<!-- {what}:begin -->\n\n" + ("\n\n".join(parts) or "Not run.") + f"\n\n<!-- {what}:end -->"
        pattern = f"<!-- {what}:begin -->.*?<!-- {what}:end -->"
        text, n = re.subn(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        if n != 1:
            raise SystemExit(f"{PAGE} has no place for {what}: <!-- {what}:begin --> ... <!-- {what}:end -->")
    write_text(PAGE, text)
    draw()


def _in_order(data: str, cost: str, name: str) -> list[Any]:
    return sorted(trials(data, cost, [name]), key=lambda trial: trial.number)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _p(value: float | None) -> str:
    return "p unknown" if value is None else f"p = {value:.2g}"
