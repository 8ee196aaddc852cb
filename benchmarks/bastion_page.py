"""docs/bastion.md: its tables and its figure, from the records of benchmarks/bastion.py."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bivallate.evaluate.statistics import wilson
from bivallate.files import write_text
from bivallate.report.style import COLOURS, figure, save, styled

PAGE, FIGURE = Path("docs/bastion.md"), Path("docs/figures/bastion")
TITLES = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}
Records = dict[tuple[str, str], list[dict[str, Any]]]  # (data, method) -> one record a seed


def records(folder: Path) -> Records:
    """All records, by data set and method."""
    found: Records = {}
    for path in sorted(folder.glob("*/*-seed*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault((record["data"], record["method"]), []).append(record)
    return found


def percent(values: Sequence[float]) -> str:
    """The mean in percent, and the range of the seeds where there are several."""
    each = [100 * v for v in values]
    spread = f" [{min(each):.1f}, {max(each):.1f}]" if len(each) > 1 else ""
    return f"{statistics.fmean(each):.1f}{spread}"


def held_out(found: Records, names: Iterable[str], data: str) -> str:
    """Markdown: what each method reached on held-out images, best first."""
    known = [(name, found[data, name]) for name in names if (data, name) in found]
    known.sort(key=lambda pair: -statistics.fmean(r["validation"]["robust"] for r in pair[1]))
    lines = [
        f"| {TITLES[data]} | epochs | passes | seeds | clean | robust | RA-Tail-30 | robust in training |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rs in known:
        columns = [percent([r["validation"][k] for r in rs]) for k in ("clean", "robust", "tail_30")]
        columns.append(percent([r["train_robust"] for r in rs]))
        cost = f"{rs[0]['epochs']} | {rs[0]['passes']:.0f} | {len(rs)}"
        lines.append(f"| {name} | {cost} | {' | '.join(columns)} |")
    return "\n".join(lines)


def tested(found: Records) -> str:
    """Markdown: AutoAttack on test points, with 95 % intervals."""
    lines = [
        "| data | method | seed | points | clean | AutoAttack | 95 % interval | AutoAttack RA-Tail-30 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (data, name), rs in found.items():
        for r in rs:
            if "test" not in r:
                continue
            t = r["test"]
            low, high = wilson(round(t["robust"] * t["n"]), t["n"])
            lines.append(
                f"| {TITLES[data]} | {name} | {r['seed']} | {t['n']} | {100 * t['clean']:.1f} | "
                f"{100 * t['robust']:.1f} | [{100 * low:.1f}, {100 * high:.1f}] | {100 * t['tail_30']:.1f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else "Not run."


def draw(found: Records, names: Sequence[str]) -> None:
    """Bars: robust accuracy and its tail on held-out images, a panel a data set."""
    with styled():
        sets = [data for data in TITLES if any((data, name) in found for name in names)]
        fig, axes = figure(len(sets), width=2, height=3.0, squeeze=False)
        for ax, data in zip(axes[0], sets, strict=True):
            rows = [(n, found[data, n]) for n in names if (data, n) in found]
            rows.sort(key=lambda pair: statistics.fmean(r["validation"]["robust"] for r in pair[1]))
            for shift, (key, label) in enumerate((("robust", "robust"), ("tail_30", "weakest 30 %"))):
                widths = [100 * statistics.fmean(r["validation"][key] for r in rs) for _, rs in rows]
                places = [p - 0.2 + 0.4 * (1 - shift) for p in range(len(rows))]
                drawn = ax.barh(places, widths, 0.38, color=COLOURS[shift], label=label)
                ax.bar_label(drawn, fmt="%.1f", fontsize=5.5, padding=1)
            ax.set_yticks(range(len(rows)), [name for name, _ in rows])
            for tick, (name, _) in zip(ax.get_yticklabels(), rows, strict=True):
                tick.set_fontweight("bold" if name == "bastion" else "normal")
            ax.set_title(TITLES[data])
            ax.set_xlabel("held-out accuracy (%)")
            ax.set_xlim(0, 108)
            ax.grid(axis="y", visible=False)
        axes[0][0].legend(loc="lower right")
        save(fig, FIGURE, ("svg",))


def write_page(folder: Path, lists: dict[str, Sequence[str]]) -> None:
    """Replaces what stands between the markers of docs/bastion.md, and draws the figure."""
    found = records(folder)
    tables = {
        name: "\n\n".join(
            held_out(found, names, data)
            for data in TITLES
            if any((data, n) in found for n in names if n != "at")
        )
        for name, names in lists.items()
    }
    tables["test"] = tested(found)
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.escape(begin) + r".*?" + re.escape(end)
        text, n = re.subn(pattern, lambda _, b=begin, t=table, e=end: f"{b}\n{t}\n{e}", text, flags=re.DOTALL)
        if n != 1:
            raise SystemExit(f"{PAGE} has no place for {name}: {begin} ... {end}")
    write_text(PAGE, text)
    draw(found, lists["compare"])
