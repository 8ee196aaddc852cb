"""Tables and figure of docs/contest.md, made from the records of benchmarks/contest.py."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest_entrants import ENTRANTS, EPOCHS, PASSES, absent
from benchmarks.contest_trials import (
    CLASSES,
    SEEDS,
    SETTINGS,
    WHO,
    Trial,
    bar,
    chosen,
    judged,
    most,
    repeats,
    tuned,
)
from bivallate.evaluation.statistics import Z95, welch, wilson
from bivallate.files import write_text
from bivallate.style import COLOURS, figure, save, styled

PAGE, FIGURE = Path("docs/contest.md"), Path("docs/figures/contest")
GUESSING = 1.5 / CLASSES  # robust accuracy below which nothing was learnt
TITLES = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10"}
WORDS = {"low": "N-FGSM's cost", "high": "PGD-10's cost"}
Figures = Mapping[str, Any]


def title(data: str, cost: str) -> str:
    """The data set and the cost in words."""
    return f"{TITLES[data]}, {WORDS[cost]} ({EPOCHS * PASSES[cost]} passes)"


def _images(data: str, whole: bool) -> str:
    """The number of training images in words, where values are tuned with fewer than the judged have."""
    setting = SETTINGS[data]
    return f", {setting.images if whole else setting.tuning:,} training images" if setting.tuning else ""


def held_out(data: str, cost: str) -> str:
    """Markdown: everyone's values on held-out images, the most robust first; empty without any."""
    everyone = tuned(data, cost)
    if not everyone:
        return ""
    lines = [
        f"### {title(data, cost)}{_images(data, False)}{_missing(data, cost)}",
        "",
        "| method | tuned (values tried) | epochs | clean | robust | each value | worst class | each value "
        "| its best value |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for held in sorted(everyone.values(), key=lambda held: -held[most(held, "robust")]["robust"]):
        best, fair = most(held, "robust"), most(held, "worst_class")
        entrant, of = best.entrant, held[best]
        tried = ", ".join(shown(v) for v in entrant.values)
        cells = (
            _name(best),
            f"{entrant.parameter} = {shown(best.value)} ({tried})",
            str(best.read()["epochs"]),
            _percent(of["clean"]),
            _percent(of["robust"]),
            _each(held, "robust"),
            f"{_percent(of['worst_class'])} {_span(worst_interval([of]))}",
            _each(held, "worst_class"),
            f"{shown(fair.value)}: {_percent(held[fair]['worst_class'])} "
            f"{_span(worst_interval([held[fair]]))}, {_percent(held[fair]['robust'])} robust",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _each(held: Mapping[Trial, Figures], what: str) -> str:
    """The figures of all values."""
    return " / ".join("diverged" if "diverged" in t.read() else _percent(h[what]) for t, h in held.items())


def judgement(data: str, cost: str) -> str:
    """Markdown: AutoAttack on test images for those that were chosen, and whether ours win; empty before."""
    roles = chosen(data, cost)
    tests: dict[str, list[Figures]] = {}
    for trial in judged(data, cost):
        found = trial.read() if trial.recorded else {}
        tests.setdefault(_value(trial), []).extend([found["test"]] if "test" in found else [])
    if not roles or not all(len(found) == len(SEEDS) for found in tests.values()):
        return ""
    points = next(iter(tests.values()))[0]["n"]
    lines = [
        f"### {title(data, cost)}{_images(data, True)}",
        "",
        f"| chosen as | method | clean | AutoAttack ({points:,}) | its seeds | worst class | RA-Tail-30 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in tests.items():
        means = {
            k: statistics.fmean(t[k] for t in found) for k in ("clean", "robust", "worst_class", "tail_30")
        }
        seeds = " / ".join("diverged" if "diverged" in t else _percent(t["robust"]) for t in found)
        by = ", ".join(role for role, trial in roles.items() if _value(trial) == name)
        cells = (by, name, _percent(means["clean"]), _percent(means["robust"]), seeds)
        worst = f"{_percent(means['worst_class'])} {_span(worst_interval(found))}"
        lines.append(f"| {' | '.join(cells)} | {worst} | {_percent(means['tail_30'])} |")
    return "\n".join([*lines, "", *_verdicts(data, cost, tests), *_others(data, cost)])


def _verdicts(data: str, cost: str, tests: Mapping[str, Sequence[Figures]]) -> list[str]:
    roles, (top, least) = {k: _value(t) for k, t in chosen(data, cost).items()}, bar(data, cost)
    ours, theirs = roles["best composition"], roles["best rival"]
    said = [
        f"* AutoAttack, {ours} - {theirs}: {_robust(tests[ours], tests[theirs])}.",
        f"* The bar of the fairest: {_percent(least)} on held-out images, half a point below {_value(top)}, "
        "the most robust of all.",
    ]
    if missing := [who for who in WHO if f"fairest {who}" not in roles]:
        return [*said, f"* No {missing[0]} reaches the bar: worst classes are not compared."]
    ours, theirs = roles["fairest composition"], roles["fairest rival"]
    return [*said, f"* Worst class, {ours} - {theirs}: {_worst(tests[ours], tests[theirs])}."]


def _others(data: str, cost: str) -> list[str]:
    """The judged networks that are not those of their records, being trained again elsewhere."""
    lines = []
    for trial in judged(data, cost):
        record = trial.read()
        network = record["test"].get("network", record)
        if repeats(network["held_out"], record["held_out"]):
            continue
        now, then = (
            f"{_percent(one['held_out']['robust'])} % (commit {one['commit']['id'][:7]}, "
            f"{one['machine']['processor']}, {one['machine'].get('instructions', 'instructions unknown')})"
            for one in (network, record)
        )
        lines.append(
            f"* {_value(trial)}, seed {trial.seed}: the judged network was trained again, and withstands on "
            f"{now} of the held-out images, where the record has {then}."
        )
    return lines or ["* Every judged network has the held-out figures of its record."]


def absentees() -> str:
    """Markdown: the methods of the catalogue that take no part, and why."""
    by: dict[tuple[str, str], list[str]] = {}
    for cost in PASSES:
        other = next(c for c in PASSES if c != cost)
        for name, why in absent(cost).items():
            where = "neither cost" if name in absent(other) else f"{WORDS[cost]}"
            if name not in by.setdefault((where, why), []):
                by[where, why].append(name)
    lines = ["| methods | take no part at | why |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {', '.join(names)} | {at} | {why} |" for (at, why), names in by.items())])


def worst_interval(found: Sequence[Figures]) -> tuple[float, float]:
    """95 % interval of the mean worst class over seeds, by the points of the class: the seeds share them."""
    points = min(t.get("worst_class_n", t["n"] // CLASSES) for t in found)
    return wilson(round(statistics.fmean(t["worst_class"] for t in found) * points), points)


def difference_interval(first: Sequence[Figures], second: Sequence[Figures]) -> tuple[float, float]:
    """95 % interval of the difference of two worst classes, which may be different ones.

    Reference: Newcombe 1998, Interval estimation for the difference between independent proportions, method
    10: from both score intervals.
    """
    (a, low_a, high_a), (b, low_b, high_b) = (
        (statistics.fmean(t["worst_class"] for t in found), *worst_interval(found))
        for found in (first, second)
    )
    gap = a - b
    return gap - math.hypot(a - low_a, high_b - b), gap + math.hypot(high_a - a, b - low_b)


def _robust(ours: Sequence[Figures], theirs: Sequence[Figures]) -> str:
    """The difference of accuracies in words: the interval over the points, and the test over the seeds."""
    a, b = (np.array([[int(c) for c in t["right"]] for t in found]).mean(0) for found in (ours, theirs))
    gap = a - b
    half, middle = Z95 * float(gap.std(ddof=1)) / math.sqrt(len(gap)), float(gap.mean())
    p = welch([t["robust"] for t in ours], [t["robust"] for t in theirs])
    return _decided(middle, (middle - half, middle + half), p)


def _worst(ours: Sequence[Figures], theirs: Sequence[Figures]) -> str:
    """The difference of the worst classes in words, likewise."""
    a, b = ([t["worst_class"] for t in found] for found in (ours, theirs))
    gap = statistics.fmean(a) - statistics.fmean(b)
    return _decided(gap, difference_interval(ours, theirs), welch(a, b))


def _decided(gap: float, interval: tuple[float, float], p: float | None) -> str:
    low, high = (100 * edge for edge in interval)
    decided = (low > 0 or high < 0) and p is not None and p < 0.05
    told = f"{100 * gap:+.1f} points [{low:+.1f}, {high:+.1f}], {_p(p)} over the seeds"
    return told + (": decided" if decided else ": not decided")


def draw() -> None:
    """Draw everyone's values on held-out images and the interval of the best, a panel for each table."""
    panels = {(d, c): found for d in SETTINGS for c in PASSES if len(found := tuned(d, c)) > 2}
    if not panels:
        return
    with styled():
        rows = (len(panels) + 1) // 2  # two panels side by side
        tall = max(map(len, panels.values()))
        fig, _ = figure(width=2, height=rows * (0.9 + 0.13 * tall))
        fig.clear()
        axes = fig.subplots(rows, 2, squeeze=False)
        for ax, ((data, cost), found) in zip(axes.flat, panels.items(), strict=False):
            everyone = sorted(found.values(), key=lambda held: held[most(held, "robust")]["robust"])
            best = [max(h["robust"] for h in held.values()) for held in everyone]
            left = 100 * min(value for value in best if value > GUESSING) - 3
            for place, held in enumerate(everyone):
                if best[place] > GUESSING:
                    _draw_row(ax, place, held, left)
                else:
                    ax.text(left, place, " at chance", va="center", color="0.4", fontsize="small")
            ax.set_yticks(range(len(everyone)), [next(iter(held)).name for held in everyone])
            ax.set_ylim(-1, len(everyone))
            ax.set_xlim(left=left)
            ax.set_title(f"{TITLES[data]}, {WORDS[cost]}")
            ax.set_xlabel("robust, held out (%)")
        for empty in axes.flat[len(panels) :]:
            empty.set_axis_off()
        for k, label in enumerate(("composition", "rival")):
            axes[0][0].plot([], [], "o", color=COLOURS[k], markersize=4, label=label)
        fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        save(fig, FIGURE, ("svg",))


def _draw_row(ax: Any, place: int, held: Mapping[Trial, Figures], left: float) -> None:
    best = most(dict(held), "robust")
    top, paint = held[best], COLOURS[0 if best.entrant.composed else 1]
    low, high = wilson(round(top["robust"] * top["n"]), top["n"])
    ax.hlines(place, 100 * low, 100 * high, color=paint, linewidth=1, alpha=0.6)
    each = [100 * h["robust"] for trial, h in held.items() if "diverged" not in trial.read()]
    inside, outside = [v for v in each if v >= left], sorted(v for v in each if v < left)
    ax.plot(inside, [place] * len(inside), "o", mfc="none", color=paint, markersize=3)
    if outside:  # an arrow at the edge, with the values that it stands for
        ax.plot(left, place, "<", color=paint, markersize=3, clip_on=False)
        values = ", ".join(f"{v:.0f}" for v in outside)
        ax.text(left, place, f"   {values}", va="center", color=paint, fontsize="xx-small")
    ax.plot(100 * top["robust"], place, "o", color=paint, markersize=4)


def write_page() -> None:
    """Replace the text between the markers of docs/contest.md, and draw the figure."""
    text = PAGE.read_text(encoding="utf-8")
    for what, made in (("held-out", held_out), ("test", judgement)):
        parts = [table for data in SETTINGS for cost in PASSES if (table := made(data, cost))]
        text = _replaced(text, what, "\n\n".join(parts) or "Not run yet.")
    write_text(PAGE, _replaced(text, "absent", absentees()))
    draw()


def _replaced(text: str, what: str, by: str) -> str:
    new, pattern = (
        f"<!-- {what}:begin -->\n\n{by}\n\n<!-- {what}:end -->",
        f"<!-- {what}:begin -->.*?<!-- {what}:end -->",
    )
    text, n = re.subn(pattern, lambda _: new, text, flags=re.DOTALL)
    if n != 1:
        raise SystemExit(f"{PAGE} has no place for {what}: <!-- {what}:begin --> ... <!-- {what}:end -->")
    return text


def _missing(data: str, cost: str) -> str:
    everyone, there = [e.name for e in ENTRANTS[cost]], tuned(data, cost)
    missing = ", ".join(name for name in everyone if name not in there)
    return f" ({len(there)} of {len(everyone)} are tuned; missing: {missing})" if missing else ""


def _name(trial: Trial) -> str:
    what = "" if trial.entrant.composed or not trial.entrant.what else f" ({trial.entrant.what})"
    return f"**{trial.name}**" if trial.entrant.composed else trial.name + what


def _value(trial: Trial) -> str:
    """An entrant with its value, in words."""
    return f"{trial.name} ({trial.entrant.parameter} = {shown(trial.value)})"


def shown(value: Any) -> str:
    """The value of a tuned parameter in words."""
    return f"{value:.3g}" if isinstance(value, float) else "its default" if value is None else str(value)


def _span(interval: tuple[float, float]) -> str:
    return f"[{_percent(interval[0])}, {_percent(interval[1])}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _p(value: float | None) -> str:
    return "p unknown" if value is None else f"p = {value:.2g}"
