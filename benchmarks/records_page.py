"""What docs/records.md shows on the site: all records as a table, and passes against AutoAttack accuracy as
plots, in HTML that says the same without scripts. `docs/_static/records.js` makes it sortable."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.records import Row, every

FEWEST = 3  # methods that a plot needs
WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 420, 300, 40, 128, 8, 36
LINE = 13  # pixels between two names
COLUMNS = {  # heading -> explanation
    "method": "as `bivallate methods` lists it; compositions have names of their own, on their pages",
    "data": "",
    "threat": "norm and radius in pixels of [0, 1]",
    "attack": "",
    "clean %": "accuracy on the same images without an attack",
    "robust %": "accuracy under the attack",
    "95 %": "interval of the images that were attacked",
    "passes": "forward and backward, of the whole training, an image",
    "trained on": "number of training images",
    "judged on": "how many images, and which",
    "from": "the page that tells of it",
    "network": "",
    "seed": "",
    "weights": "which of the run",
    "commit": "a + says that files had been changed",
}
Place = tuple[str, str, str, int]  # data, threat, network, images


@dataclass(frozen=True)
class Point:
    """A method in a plot: means over its seeds.

    Attributes:
        label: position of its name, in pixels from the top.
    """

    method: str
    passes: float
    robust: float
    low: float
    high: float
    seeds: int
    label: float = 0.0


def html(results: Path) -> str:
    """The plots and the table as HTML, with the number of records."""
    rows, left = every(results)
    older = f" {left} records are left out: their cell has been defined otherwise since." if left else ""
    places = sorted({(r.data, r.threat, r.network, r.images) for r in rows if _plotted(r)})
    drawn = {place: _points(rows, place) for place in places}
    plots = [plot(place, points) for place, points in drawn.items() if len(points) >= FEWEST]
    said = f"<p>{len(rows)} measurements.{older}</p>"
    return "\n".join(['<div class="plots">', *plots, "</div>", said, table(rows)])


def table(rows: Sequence[Row]) -> str:
    """The table of all rows as HTML; numbers carry their unrounded values for sorting."""
    heads = "".join(
        f'<th scope="col"{f" title={chr(34)}{escape(text)}{chr(34)}" if text else ""}>{escape(name)}</th>'
        for name, text in COLUMNS.items()
    )
    body = "\n".join(f"<tr>{''.join(_cells(row))}</tr>" for row in rows)
    return (
        '<div class="table-wrapper records" tabindex="0" role="region" aria-label="All records">\n'
        '<table class="docutils records">\n'
        "<caption>All records, one row for each training, threat and attack</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cells(row: Row) -> list[str]:
    images = f"{row.images:,}" if row.images else "all"
    return [
        *(f"<td>{escape(word)}</td>" for word in (row.label, row.data, row.threat, row.attack)),
        *(_number(f"{100 * value:.1f}", value) for value in (row.clean, row.robust)),
        _number(f"{100 * row.low:.1f} to {100 * row.high:.1f}", row.low),
        _number(f"{row.passes:,.0f}", row.passes),
        _number(images, row.images or math.inf),
        f"<td>{row.points:,} {row.judged}</td>",
        f'<td><a href="{row.page}.html">{escape(row.origin)}</a></td>',
        f"<td>{escape(row.network)}</td>",
        _number(str(row.seed), row.seed),
        f"<td>{escape(row.weights)}</td>",
        f"<td><code>{escape(row.commit)}</code></td>",
    ]


def _number(text: str, value: float) -> str:
    return f'<td class="number" data-value="{value:g}">{text}</td>'


def _plotted(row: Row) -> bool:
    """Whether a row is plotted; plain training and that under another norm are far below all others."""
    return (row.attack, row.judged, row.trained) == ("autoattack", "test", "") and row.method != "plain"


def _chosen(row: Row) -> bool:
    """Whether held-out images chose the weights."""
    return row.weights != "last"


def _points(rows: Sequence[Row], place: Place) -> list[Point]:
    """The methods of a plot, sorted by accuracy, with positions for their names.

    Of a training with two kinds of weights those that held-out images chose are shown. A training that two
    tables share counts once.
    """
    found: dict[str, list[Row]] = {}
    here = [row for row in rows if (row.data, row.threat, row.network, row.images) == place]
    one = {(row.origin, row.label, row.seed): row for row in sorted(here, key=_chosen) if _plotted(row)}
    trainings = {(row.label, row.seed, row.clean, row.robust, row.commit): row for row in one.values()}
    for row in trainings.values():
        found.setdefault(row.label, []).append(row)
    points = []
    for method, each in found.items():
        means = [
            statistics.fmean(getattr(r, key) for r in each) for key in ("passes", "robust", "low", "high")
        ]
        points.append(Point(method, *means, len({row.seed for row in each})))
    return sorted(points, key=lambda p: -p.robust)


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions as little as needed to be a gap apart, and within the bounds if they fit.

    Example:
        >>> spread_out([10, 11, 50], 13, 0, 100)
        [10, 23, 50]
        >>> spread_out([90, 95, 99], 10, 0, 100)
        [80, 90, 100]
    """
    placed: list[float] = []
    for want in wanted:
        placed.append(max(want, placed[-1] + gap if placed else low))
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], placed[k + 1] - gap if k + 1 < len(placed) else high)
    return placed


def plot(place: Place, points: Sequence[Point]) -> str:
    """Draw one panel as SVG: accuracies with intervals over passes (logarithmic), names at the right."""
    data, threat, network, images = place
    bottom, top = _bounds([p.low for p in points], [p.high for p in points])
    least, most = min(p.passes for p in points), max(p.passes for p in points)
    begin, end = math.log(least / 1.3), math.log(most * 1.3)

    def across(passes: float) -> float:
        return LEFT + (math.log(passes) - begin) / (end - begin) * (WIDTH - LEFT - RIGHT)

    def up(share: float) -> float:
        return TOP + (top - share) / (top - bottom) * (HEIGHT - TOP - FOOT)

    title = f"{data}, {threat}, {network}, {images:,} training images"
    parts = [_axes(bottom, top, [across(v) for v in _ticks(least, most)], _ticks(least, most), up)]
    labels = spread_out([up(p.robust) for p in points], LINE, TOP + 8, HEIGHT - FOOT)
    for point, label in zip(points, labels, strict=True):
        parts.append(_mark(point, across(point.passes), up, label, data))
    described = "; ".join(f"{p.method} {100 * p.robust:.1f} %" for p in points)
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>\n'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(title)}: passes of training '
        f'against AutoAttack accuracy. {escape(described)}">\n{"".join(parts)}</svg></figure>'
    )


def _bounds(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    step = 0.02 if max(highs) - min(lows) < 0.15 else 0.05
    return math.floor(min(lows) / step) * step, min(1.0, math.ceil(max(highs) / step) * step)


def _ticks(least: float, most: float) -> list[int]:
    steps = [m * 10**e for e in range(5) for m in (1, 2, 3, 5)]
    return [step for step in steps if least / 1.3 <= step <= most * 1.3]


def _axes(bottom: float, top: float, places: Sequence[float], ticks: Sequence[int], up) -> str:
    step = 0.02 if top - bottom < 0.15 else 0.05
    parts = []
    for k in range(round((top - bottom) / step) + 1):
        y, share = up(bottom + k * step), bottom + k * step
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f}</text>')
    for x, tick in zip(places, ticks, strict=True):
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - FOOT + 16}" text-anchor="middle">{tick}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">passes an image</text>')
    parts.append(
        f'<text transform="translate(10 {(HEIGHT - FOOT) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "right under AutoAttack (%)</text>"
    )
    return "\n".join(parts) + "\n"


def _mark(point: Point, x: float, up, label: float, data: str) -> str:
    seeds = f"mean of {point.seeds} seeds" if point.seeds > 1 else "one seed"
    said = (
        f"{point.method} on {data}: {100 * point.robust:.1f} % under AutoAttack "
        f"[{100 * point.low:.1f}, {100 * point.high:.1f}], {point.passes:.0f} passes an image, {seeds}"
    )
    y, right, level = up(point.robust), WIDTH - RIGHT, label - 4
    return (
        f'<g class="mark" data-method="{escape(point.method)}" data-data="{escape(data)}" '
        f'role="img" aria-label="{escape(said)}"><title>{escape(said)}</title>'
        f'<line class="range" x1="{x:.1f}" x2="{x:.1f}" y1="{up(point.high):.1f}" y2="{up(point.low):.1f}"/>'
        f'<polyline class="lead" points="{x:.1f},{y:.1f} {right},{level:.1f} {right + 6},{level:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        f'<text x="{right + 9}" y="{label:.1f}">{escape(point.method)}</text></g>\n'
    )
