"""One style for every figure: readable at the width of a column, safe for colour-blind readers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, Formatter, FuncFormatter, MaxNLocator

from bivallate.files import write_whole
from bivallate.quoting import line

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C6D31",
)  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLUMN = 3.4  # inches
NAME, SENTENCE = 32, 200  # characters of a name beside an axis or in a legend, and of a title
TICK = 22  # characters of a class under an axis
LARGEST = 4000  # pixels of a side of a PNG


def colour(k: int) -> str:
    """The colour of the k-th of several runs; colours repeat after eight."""
    return COLOURS[k % len(COLOURS)]


def marker(k: int) -> str:
    """The marker of the k-th of several runs; markers repeat after eight."""
    return MARKERS[k % len(MARKERS)]


SETTINGS: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "svg.hashsalt": "bivallate",
    "pdf.fonttype": 42,
}


@contextmanager
def styled() -> Iterator[None]:
    """Use the package's style within the context; the caller's own is restored afterwards."""
    settings: Any = {**SETTINGS, "axes.prop_cycle": cycler(color=COLOURS)}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # matplotlib then draws a box
        yield


def figure(
    columns: int = 1, *, height: float = 2.4, width: float = 1.0, **settings: Any
) -> tuple[Figure, Any]:
    """A figure with one row of axes and no window; `height` in inches, `width` in columns of a paper."""
    fig = Figure(figsize=(COLUMN * width, height), layout="constrained")
    return fig, fig.subplots(1, columns, **settings)


def literally(fig: Figure) -> Figure:
    """Show the words of a figure literally, and return it.

    Names of run folders and classes are arbitrary text: dollar signs must not begin a formula, control
    characters are written out, and names that are too long lose their middle. Numbers on axes keep their
    exponents.
    """
    legends = [found for found in (*(ax.get_legend() for ax in fig.axes), *fig.legends) if found is not None]
    names = [text for legend in legends for text in (legend.get_title(), *legend.get_texts())]
    titles = list(fig.texts)
    for ax in fig.axes:
        titles += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter | FuncFormatter):  # words, not numbers
                axis.set_major_formatter(_named(formatter))
                for text in axis.get_ticklabels():
                    text.set_parse_math(False)
    for text in (*names, *titles):
        own = text.get_text().split("\n")
        shown = [line(text.get_text(), NAME)] if text in names else [line(part, SENTENCE) for part in own[:3]]
        text.set_text("\n".join(shown))
        text.set_parse_math(False)
    return fig


def _named(formatter: Formatter) -> FuncFormatter:
    """The words of a formatter, each in one line of bounded length."""
    return FuncFormatter(lambda value, place: line(formatter(value, place), NAME))


def whole_ticks(ax: Any) -> None:
    """Put ticks at whole numbers only on the x axis, of epochs or steps, also if there is a single one."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def name_classes(ax: Any, names: Sequence[str], most: int = 48) -> None:
    """Put names under the positions 0, 1, ... of an axis.

    With more than `most` names only every second, third, ... is shown, so that they do not overlap.
    """
    every = max(1, -(-len(names) // most))
    places = range(0, len(names), every)
    shown = [line(names[k], TICK) for k in places]
    flat = max(map(len, shown), default=0) < 4 and len(shown) <= 20
    ax.set_xticks(list(places), shown, rotation=0 if flat else 90 if len(shown) > 16 else 40)
    if not flat and len(shown) <= 16:
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    ax.grid(axis="x", visible=False)


def save(fig: Figure, stem: Path, kinds: tuple[str, ...] = ("svg", "png", "pdf")) -> Path:
    """Write the figure in each format, completely or not at all, and return the path of the first."""
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in kinds]  # with_suffix would cut eps0.1
    dpi = min(200.0, LARGEST / max(fig.get_size_inches()))
    for file, kind in zip(files, kinds, strict=True):
        metadata = {"Date": None} if kind == "svg" else ({"CreationDate": None} if kind == "pdf" else None)

        def write(place: Path, kind: str = kind, metadata: Any = metadata) -> None:
            fig.savefig(place, format=kind, metadata=metadata, dpi=dpi)

        write_whole(file, write)
    return files[0]
