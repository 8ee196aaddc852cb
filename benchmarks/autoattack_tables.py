"""Tables of docs/evaluation.md, made from the records of `benchmarks.autoattack`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
SIDES = ("ours", "theirs")


def read(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Read the records, grouped by case and norm."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        mine, other = sorted(record["pair"], key=lambda r: r["program"])
        record |= {"ours": mine, "theirs": other}
        groups.setdefault((mine["case"], mine["norm"]), []).append(record)
    return groups


def agreement(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Robust accuracy after each stage of the sequence, and under each stage alone."""
    text = [
        "Robust accuracy in per cent after each stage of the sequence, mean over seeds: ours / pyautoattack. "
        "The whole may be above the reference by the larger of 0.4 points and the reference's spread over "
        "seeds; each stage run alone may differ by 1 point and that stage's spread (Square alone with the "
        "public code's moves: `edges=False, shrink=False`).",
        "",
        "| model | threat | seeds | clean | " + " | ".join(PARTS) + " | agrees | alone: largest difference |",
        "| --- " * (len(PARTS) + 6) + "|",
    ]
    for (name, norm), group in groups.items():
        seeds = {r["ours"]["seed"]: r for r in group}.values()
        cells = [
            " / ".join(
                f"{100 * mean(r[side]['accuracy'][part] for r in seeds):.1f}" for side in ("ours", "theirs")
            )
            for part in PARTS
        ]
        last = [[100 * r[side]["accuracy"][PARTS[-1]] for r in seeds] for side in SIDES]
        agrees = mean(last[0]) - mean(last[1]) <= max(0.4, max(last[1]) - min(last[1]))
        clean = f"{100 * group[0]['ours']['accuracy']['clean']:.1f}"
        cells = [name, norm, str(len(seeds)), clean, *cells, "yes" if agrees else "NO", _alone(group)]
        text.append(f"| {' | '.join(cells)} |")
    return text


def _alone(group: list[dict[str, Any]]) -> str:
    """The stage with the largest difference of means over seeds, and whether that is within its allowance."""
    found = []
    for part in PARTS:
        records = [r["ours"]["alone"][part] for r in group if part in r["ours"]["alone"]]
        if not records:
            return "not run"
        mine, other = ([100 * r[side] for r in records] for side in (0, 1))
        spread = max(max(v) - min(v) for v in (mine, other))
        found.append((mean(mine) - mean(other), 1 + spread, part, len(records)))
    gap, allowed, part, seeds = max(found, key=lambda f: abs(f[0]) - f[1])
    return f"{part} {gap:+.1f} (allowed {allowed:.1f}, {seeds} seed{'s' * (seeds > 1)})"


def speed(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Time of each stage."""
    text = ["Seconds of each stage, mean over seeds: ours / pyautoattack.", ""]
    text += [
        "| model | threat | points | threads | seeds | " + " | ".join(PARTS) + " | whole | ratio |",
        "| --- " * (len(PARTS) + 7) + "|",
    ]
    for (name, norm), group in groups.items():
        for threads, points in sorted({(r["threads"], r["points"]) for r in group}):
            some = [r for r in group if (r["threads"], r["points"]) == (threads, points)]
            both = [
                [mean(r[side]["seconds"][part] for r in some) for part in PARTS]
                for side in ("ours", "theirs")
            ]
            cells = [name, norm, str(points), str(threads), str(len(some))]
            cells += [f"{a:.1f} / {b:.1f}" for a, b in zip(*both, strict=True)]
            a, b = map(sum, both)
            text.append(f"| {' | '.join(cells)} | {a:.1f} / {b:.1f} | {a / b:.2f} |")
    return text
