"""Tables and figure of docs/bastion.md, made from the records of benchmarks/bastion.py."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bivallate.evaluation.statistics import wilson
from bivallate.files import write_text
from bivallate.style import COLOURS, figure, save, styled

PAGE, FIGURE = Path("docs/bastion.md"), Path("docs/figures/bastion")
TITLES = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}
Setting = tuple[str, int]  # data set, and how many training images
Records = dict[Setting, dict[str, list[dict[str, Any]]]]  # setting -> method -> one record a seed


def records(folder: Path) -> Records:
    """Read all records, by setting and method; settings with more images come later."""
    every = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*-seed*.json"))]
    found: Records = {}
    for record in sorted(every, key=lambda r: (list(TITLES).index(r["data"]), r["rows"])):
        found.setdefault((record["data"], record["rows"]), {}).setdefault(record["method"], []).append(record)
    return found


def title(setting: Setting) -> str:
    """The setting in words."""
    return f"{TITLES[setting[0]]}, {setting[1]:,} images"


def percent(values: Sequence[float]) -> str:
    """Format the mean in percent, with the range of the seeds if there are several."""
    each = [100 * v for v in values]
    spread = f" [{min(each):.1f}, {max(each):.1f}]" if len(each) > 1 else ""
    return f"{statistics.fmean(each):.1f}{spread}"


def mean(rs: list[dict[str, Any]], key: str) -> float:
    """The mean over the seeds on held-out images."""
    return statistics.fmean(r["validation"][key] for r in rs)


def held_out(of: dict[str, list[dict[str, Any]]], names: Iterable[str], setting: Setting) -> str:
    """Markdown: what each method reached on held-out images, best first."""
    known = sorted(((n, of[n]) for n in names if n in of), key=lambda pair: -mean(pair[1], "robust"))
    lines = [
        f"| {title(setting)} | epochs | passes | seeds | clean | robust | RA-Tail-30 | robust in training |",
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
    for setting, of in found.items():
        for r in (r for rs in of.values() for r in rs if "test" in r):
            t = r["test"]
            low, high = wilson(round(t["robust"] * t["n"]), t["n"])
            lines.append(
                f"| {title(setting)} | {r['method']} | {r['seed']} | {t['n']} | {100 * t['clean']:.1f} | "
                f"{100 * t['robust']:.1f} | [{100 * low:.1f}, {100 * high:.1f}] | {100 * t['tail_30']:.1f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else "Not run."


def draw(found: Records, names: Sequence[str]) -> None:
    """Draw robust accuracy and its tail on held-out images as bars, one panel for each complete setting."""
    wide = [setting for setting, of in found.items() if sum(name in of for name in names) > len(names) / 2]
    with styled():
        fig, axes = figure(len(wide), width=2, height=3.2, squeeze=False)
        for ax, setting in zip(axes[0], wide, strict=True):
            of = found[setting]
            rows = sorted((n for n in names if n in of), key=lambda n: mean(of[n], "robust"))
            for shift, (key, label) in enumerate((("robust", "robust"), ("tail_30", "weakest 30 %"))):
                widths = [100 * mean(of[n], key) for n in rows]
                places = [p + 0.2 - 0.4 * shift for p in range(len(rows))]
                drawn = ax.barh(places, widths, 0.38, color=COLOURS[shift], label=label)
                ax.bar_label(drawn, fmt="%.1f", fontsize=5.5, padding=1)
            ax.set_yticks(range(len(rows)), rows)
            for tick, name in zip(ax.get_yticklabels(), rows, strict=True):
                tick.set_fontweight("bold" if name == "bastion" else "normal")
            ax.set_title(title(setting))
            ax.set_xlabel("held-out accuracy (%)")
            ax.set_xlim(0, 110)
            ax.grid(axis="y", visible=False)
        axes[0][0].legend(loc="lower right")
        save(fig, FIGURE, ("svg",))


def write_page(folder: Path, lists: Mapping[str, Sequence[str]], notes: Mapping[str, str]) -> None:
    """Replace the text between the markers of docs/bastion.md, and draw the figure.

    Args:
        lists: the methods of each table. notes: the meaning of each name of the ablation.
    """
    found = records(folder)
    tables = {
        what: "\n\n".join(
            held_out(of, names, setting) for setting, of in found.items() if sum(n in of for n in names) > 2
        )
        for what, names in lists.items()
    }
    tables["ablate"] += "\n\n" + "\n".join(f"* `{name}`: {note}" for name, note in notes.items())
    tables["test"] = tested(found)
    text = PAGE.read_text(encoding="utf-8")
    for what, table in tables.items():
        begin, end = f"<!-- {what}:begin -->", f"<!-- {what}:end -->"
        pattern = re.escape(begin) + r".*?" + re.escape(end)
        new = f"{begin}\n\n{table}\n\n{end}"
        text, n = re.subn(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        if n != 1:
            raise SystemExit(f"{PAGE} has no place for {what}: {begin} ... {end}")
    write_text(PAGE, text)
    draw(found, lists["compare"])
