"""Small plots for a page of many subjects: a few kB of SVG each, coloured by the page's style.

A page for hundreds of subjects cannot afford a figure of matplotlib for each: 30 kB and a fifth of a second.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.path import Path as MplPath
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 250, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 8, 22, 30
_ROW = 26
_NAMES_WIDTH = 66
_LONGEST_NAME = 10
_LINE_TOLERANCE = 0.15  # of a unit of the plot, which is about a screen's pixel
_PADDING = 0.06
_LEAST_POINTS = 2


@dataclass(frozen=True)
class Line:
    """One contrast in a plot of a quantity against height.

    Attributes:
        colour: CSS class.
        value: (n,).
        height_mm: (n,), from inferior to superior.
        firm: (n,) False where the line is dashed; None for nowhere.
    """

    colour: str
    value: Sequence[float]
    height_mm: Sequence[float]
    firm: Sequence[bool] | None = None


@dataclass(frozen=True)
class Pair:
    """One contrast in a plot of a number before and after.

    Attributes:
        colour: CSS class.
        name: of the contrast.
        before: the number, or None.
        after: likewise.
    """

    colour: str
    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Scale:
    """From a quantity to a place in the plot.

    Attributes:
        low: the value at `start`.
        high: the value at `end`.
        start: place in the plot's units.
        end: likewise.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return places."""
        share = (np.asarray(value, np.float64) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Return places and texts of at most so many round values."""
        values = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        inside = [value for value in values if self.low <= value <= self.high]
        return [(round(float(self(value)), 1), f"{value:g}") for value in np.round(inside, 6)]


def value_range(values: Iterable[float], *, least: float, around: float | None = None) -> tuple[float, float]:
    """Return the limits of an axis that shows values, with a little room.

    Args:
        values: what is shown; may be empty.
        least: smallest difference of the limits.
        around: a value that must be shown as well.
    """
    known = [*values] + ([] if around is None else [around])
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    missing = max(least - (high - low), 0.0) / 2
    room = _PADDING * max(high - low, least)
    return low - missing - room, high + missing + room


def height_plot(
    lines: Sequence[Line], title: str, values: tuple[float, float], heights_mm: tuple[float, float]
) -> Markup:
    """Return a plot of a quantity (across) against height (upwards), a line for each contrast.

    Args:
        lines: of the contrasts.
        title: what is plotted, with its unit.
        values: limits of the quantity.
        heights_mm: limits of the height.
    """
    across = Scale(*values, _LEFT, WIDTH - _RIGHT)
    up = Scale(*heights_mm, HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(across, up, title), f'<text x="3" y="{_TOP - 8}">z, mm</text>']
    if values[0] < 0 < values[1]:
        zero = round(float(across(0)), 1)
        parts.append(f'<path class="zero" d="M{zero} {_TOP}V{HEIGHT - _BOTTOM}"/>')
    for line in lines:
        parts += _line(line, across, up, heights_mm)
    return _svg(WIDTH, HEIGHT, title, parts)


def _frame(across: Scale, up: Scale, title: str) -> Iterator[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for place, text in across.ticks(5):
        yield f'<path class="grid" d="M{place} {_TOP}V{bottom}"/>'
        yield f'<text x="{place}" y="{bottom + 12}" class="m">{text}</text>'
    for place, text in up.ticks(5):
        yield f'<path class="grid" d="M{_LEFT} {place}H{right}"/>'
        yield f'<text x="{_LEFT - 4}" y="{place + 3.5}" class="e">{text}</text>'
    yield f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 4}" class="m">{Markup.escape(title)}</text>'


def _line(line: Line, across: Scale, up: Scale, heights_mm: tuple[float, float]) -> Iterator[str]:
    shown = [place for place, z in enumerate(line.height_mm) if heights_mm[0] <= z <= heights_mm[1]]
    points = np.column_stack([across([line.value[i] for i in shown]), up([line.height_mm[i] for i in shown])])
    firm = np.ones(len(shown), bool) if line.firm is None else np.array([line.firm[i] for i in shown], bool)
    for solid, start, stop in _runs(firm):
        # A dashed part joins the solid ones beside it.
        first, last = (start, stop) if solid else (max(start - 1, 0), min(stop + 1, len(shown)))
        yield _polyline(points[first:last], f"{line.colour}{'' if solid else ' dashed'}")


def _runs(firm: npt.NDArray[np.bool_]) -> Iterator[tuple[bool, int, int]]:
    """Yield the value, start and end of each run of equal values."""
    if not firm.size:
        return
    borders = [0, *(np.flatnonzero(np.diff(firm)) + 1).tolist(), firm.size]
    for start, stop in pairwise(borders):
        yield bool(firm[start]), start, stop


def _polyline(points: npt.NDArray[np.float64], css: str) -> str:
    if len(points) < _LEAST_POINTS:
        x, y = points[0]
        return f'<circle class="dot {css}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>'
    way = " ".join(f"{x:.1f} {y:.1f}" for x, y in _thinned(points))
    return f'<path class="line {css}" d="M{way}"/>'


def _thinned(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a line with fewer points; matplotlib's way, as it takes a hundredth of scikit-image's time."""
    whole = MplPath(points)
    whole.simplify_threshold = _LINE_TOLERANCE
    thin = whole.cleaned(simplify=True)
    vertices: npt.NDArray[np.float64] = np.asarray(thin.vertices)
    return vertices[np.flatnonzero(np.asarray(thin.codes) != MplPath.STOP)]


def pair_plot(pairs: Sequence[Pair], title: str, values: tuple[float, float]) -> Markup:
    """Return a plot with a row for each contrast: a ring before, a disc after, a line between them.

    Args:
        pairs: of the contrasts.
        title: what is plotted, with its unit.
        values: limits of the number.
    """
    height = _TOP + _ROW * len(pairs) + _BOTTOM
    across = Scale(*values, _NAMES_WIDTH, WIDTH - _RIGHT)
    bottom = height - _BOTTOM
    parts = []
    for place, text in across.ticks(4):
        parts.append(f'<path class="grid" d="M{place} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{place}" y="{bottom + 12}" class="m">{text}</text>')
    for row, pair in enumerate(pairs):
        parts += _pair(pair, across, _TOP + _ROW * (row + 0.5))
    middle = (_NAMES_WIDTH + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 4}" class="m">{Markup.escape(title)}</text>')
    return _svg(WIDTH, height, title, parts)


def _pair(pair: Pair, across: Scale, y: float) -> Iterator[str]:
    short = pair.name if len(pair.name) <= _LONGEST_NAME else pair.name[: _LONGEST_NAME - 1] + "…"
    yield f'<text x="{_NAMES_WIDTH - 8}" y="{y + 3.5}" class="e">{Markup.escape(short)}</text>'
    known = [round(float(across(value)), 1) for value in (pair.before, pair.after) if value is not None]
    if len(known) == _LEAST_POINTS:
        yield f'<path class="line {pair.colour}" d="M{known[0]} {y}H{known[1]}"/>'
    for value, css in ((pair.before, "ring"), (pair.after, "dot")):
        if value is not None:
            yield f'<circle class="{css} {pair.colour}" cx="{float(across(value)):.1f}" cy="{y}" r="4.5"/>'


def _svg(width: int, height: int, description: str, parts: Iterable[str]) -> Markup:
    start = f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="'
    return Markup("".join([start, Markup.escape(description), '">', *parts, "</svg>"]))
