"""A large confusion matrix as SVG in full size, for a box that scrolls."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
from PIL import Image

from bivallate import quoting
from bivallate.reports.diagnostics.per_class import Confusion

CELL = 13  # pixels of a row or column, enough for a line of text
LETTER = 6.2  # approximate width of a letter in pixels
NAME = 40  # most letters of a class's name


def matrix_svg(confusion: Confusion, caption: str) -> str:
    """Draw each row's fractions as shades, with the names of the classes at both sides."""
    size = len(confusion.classes)
    short = [quoting.line(name, NAME) for name in confusion.classes]
    names = list(map(quoting.html, short))
    attack = quoting.html(quoting.line(confusion.attack, NAME))
    edge = 24 + LETTER * max(map(len, short))
    side = CELL * size
    rows = "".join(
        f'<text x="{edge - 5:.0f}" y="{_at(edge, k)}">{name}</text>' for k, name in enumerate(names)
    )
    columns = "".join(
        f'<text transform="translate({_at(edge, k)} {edge - 5:.0f}) rotate(-90)">{name}</text>'
        for k, name in enumerate(names)
    )
    whole = edge + side + 2
    return (
        f'<svg role="img" aria-label="{quoting.html(caption)}" viewBox="0 0 {whole:.0f} {whole:.0f}" '
        f'style="width:{whole:.0f}px;height:auto" font-size="11" fill="#1d2530">'
        f'<g text-anchor="end">{rows}</g><g>{columns}</g>'
        f'<rect x="{edge:.0f}" y="{edge:.0f}" width="{side}" height="{side}" fill="none" stroke="#ccc"/>'
        f'<image x="{edge:.0f}" y="{edge:.0f}" width="{side}" height="{side}" '
        f'preserveAspectRatio="none" style="image-rendering:pixelated" href="{_shades(confusion)}"/>'
        f'<text x="{edge:.0f}" y="12">predicted under {attack}</text>'
        f'<text transform="translate(12 {edge:.0f}) rotate(-90)" text-anchor="end">true class</text>'
        "</svg>"
    )


def _at(edge: float, k: int) -> str:
    """Coordinate of the k-th line of text."""
    return f"{edge + CELL * k + 10:.0f}"


def _shades(confusion: Confusion) -> str:
    """The matrix as an image with one pixel per cell, as a data URI."""
    shades = mpl.colormaps["Blues"](confusion.fractions, bytes=True)
    stream = io.BytesIO()
    Image.fromarray(shades[..., :3]).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
