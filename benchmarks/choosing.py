"""Make the tables of docs/choosing.md from results/: `python -m benchmarks.choosing`.

For each setting in which several methods were evaluated in the same way, and for each budget of passes, the
tables show the method with the highest accuracy, and those that a paired test does not tell apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.choosing_figure import FIGURE
from benchmarks.choosing_figure import draw as draw_panels
from benchmarks.records import Row, every, mean
from bivallate.evaluation.statistics import Z95, holm
from bivallate.files import write_text
from bivallate.methods.entries import registry
from bivallate.reproduce.judging import LEVEL, sign_flip
from bivallate.reproduce.records import paired_differences

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "choosing.md"
MARKS = "<!-- choosing: begin -->", "<!-- choosing: end -->"
BUDGETS = 50, 100, 250, 1000  # passes of the whole training, an image
FEWEST = 5  # methods of a setting that is shown
DATA = {"digits": "Digits", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class Setting:
    """The conditions that must be equal for a comparison."""

    origin: str
    data: str
    images: int
    threat: str
    network: str
    attack: str
    judged: str
    page: str

    @property
    def title(self) -> str:
        """As a heading."""
        images = f"{self.images:,} training images" if self.images else "all training images"
        return f"{DATA.get(self.data, self.data.upper())}, {self.threat}, {self.network}, {images}"


Shown = list[tuple[list[Setting], dict[str, list[Row]]]]  # the settings that are one table, and its methods


def settings(rows: Iterable[Row]) -> dict[Setting, dict[str, list[Row]]]:
    """Setting -> label of an attacked method -> a row a seed; weights that held-out images chose.

    Variants of a method stand for it, each by itself, where the method itself was not run.
    """
    known = registry()
    found: dict[Setting, dict[str, list[Row]]] = {}
    for r in sorted(rows, key=lambda r: r.variant):  # the method itself comes first
        if r.method in known and r.method != "plain" and r.weights != "last" and not r.trained:
            key = Setting(r.origin, r.data, r.images, r.threat, r.network, r.attack, r.judged, r.page)
            of = found.setdefault(key, {})
            if not r.variant or r.method not in of:
                of.setdefault(r.label, []).append(r)
    return {setting: methods for setting, methods in found.items() if len(methods) >= FEWEST}


def strongest(found: dict[Setting, dict[str, list[Row]]]) -> list[Setting]:
    """The settings, each under its strongest attack only; AutoAttack counts as the strongest."""
    best: dict[tuple, Setting] = {}
    for s in sorted(found, key=lambda s: (s.attack == "autoattack", s.attack)):
        best[s.origin, s.data, s.images, s.threat, s.network] = s
    return sorted(best.values(), key=lambda s: (s.attack != "autoattack", s.data, -s.images))


def table(origins: Sequence[Setting], methods: dict[str, list[Row]]) -> str:
    """Markdown of one setting, of the tables that share it."""
    setting = origins[0]
    some, of = next(iter(methods.values()))[0], len({rows[0].method for rows in methods.values()})
    known = all(row.worst is not None for rows in methods.values() for row in rows)
    lines = [
        f"### {setting.title}, {setting.attack}",
        "",
        f"`{setting.attack}` on {some.points:,} {setting.judged} images; {of} methods, "
        f"{', '.join(f'[{one.origin}]({one.page}.md)' for one in origins)}.",
        "",
        f"| passes an image, at most | highest | robust | {'worst class | ' * known}not told apart from it |",
        f"| --- | --- | --- | {'--- | ' * known}--- |",
    ]
    before = ""
    for budget in BUDGETS:
        within = {name: rows for name, rows in methods.items() if round(mean(rows, "passes")) <= budget}
        if within and (line := _line(within, known)) != before:
            lines.append(f"| {budget:,} {line}")
            before = line
    return "\n".join(lines)


def _line(methods: dict[str, list[Row]], classes: bool) -> str:
    first, *alike = equals(methods)
    best = methods[first]
    low, high = mean(best, "low"), mean(best, "high")
    others = [methods[name][0].label for name in alike]
    seeds = f", {len(best)} seeds" if len(best) > 1 else ""
    told = ", ".join(others) or ("none" if len(methods) > 1 else "no other was run")
    figures = f"{100 * mean(best, 'robust'):.1f} % [{100 * low:.1f}, {100 * high:.1f}]{seeds}"
    worst = f" {100 * mean(best, 'worst'):.1f} % |" if classes else ""
    name = best[0].method
    linked = f"[{name}](methods/{name}.md){first.removeprefix(name)}"
    return f"| {linked} | {figures} |{worst} {told} |"


def equals(methods: dict[str, list[Row]]) -> list[str]:
    """The methods that no test tells apart from the highest, in order of accuracy; the highest comes first.

    With Holm's correction for all pairs, and not only those with the highest, which is chosen on the same
    points.
    """
    first, *others = sorted(methods, key=lambda name: (-mean(methods[name], "robust"), name))
    pairs = list(combinations([first, *others], 2))
    p_values = holm([_p_value(methods[low], methods[high]) for high, low in pairs])
    p_value = dict(zip(pairs, p_values, strict=True))
    return [first, *(name for name in others if p_value[first, name] >= LEVEL)]


def _p_value(rows: Sequence[Row], best: Sequence[Row]) -> float:
    """Two-sided p-value of the difference to a higher method; 1 if it is not higher where both were run.

    By the exact test on the same points, over the seeds that both have. Where records do not have the points,
    from the intervals, as if the points were different ones.
    """
    of_seed = {r.seed: r.verdicts for r in rows}
    gained = paired_differences([(r.verdicts, of_seed[r.seed]) for r in best if r.seed in of_seed])
    if gained is not None:
        return sign_flip(gained.sum(0).astype(int)) if gained.sum() > 0 else 1.0
    halves = [(mean(side, "high") - mean(side, "low")) / 2 for side in (rows, best)]
    gain = mean(best, "robust") - mean(rows, "robust")
    return math.erfc(Z95 * gain / math.hypot(*halves) / math.sqrt(2))


def shown() -> Shown:
    """The tables that share a setting, and the methods of them all."""
    found = settings(every(ROOT / "results")[0])
    joined: Shown = []
    for one in strongest(found):
        methods = found[one]
        for origins, others in joined:
            if _anywhere(origins[0]) == _anywhere(one) and _networks(others) & _networks(methods):
                origins.append(one)
                others |= {name: rows for name, rows in methods.items() if name not in others}
                break
        else:
            joined.append(([one], dict(methods)))
    return joined


def tables(found: Shown) -> str:
    """The tables between the markers, as Markdown."""
    return "\n\n".join(table(origins, methods) for origins, methods in found)


def draw(found: Shown) -> None:
    """Draw the settings that AutoAttack judges on test images."""
    panels = []
    for (setting, *_), methods in found:
        if (setting.attack, setting.judged) == ("autoattack", "test"):
            alike = [methods[name] for name in equals(methods)]
            title = setting.title.replace(", Linf", ",\nLinf", 1).rpartition(", ")[0]
            panels.append((title, list(methods.values()), alike))
    draw_panels(panels, ROOT / FIGURE)


def _networks(methods: dict[str, list[Row]]) -> set[Row]:
    """The rows, as every table has them that shares their records."""
    return {_anywhere(row) for rows in methods.values() for row in rows}


def _anywhere(one: Any) -> Any:
    """A row or a setting, without the table that it is of."""
    return replace(one, origin="", page="")


def main() -> None:
    """Write the tables into the page, and draw them."""
    found = shown()
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    write_text(PAGE, f"{before}{MARKS[0]}\n\n{tables(found)}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    draw(found)


if __name__ == "__main__":
    main()
