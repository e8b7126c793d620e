"""How figures look: one colour, marker and short name per method; groups of values; axes no outlier rules."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from nnunet_softseg.evaluation.comparison.paired_statistics import Floats
from nnunet_softseg.evaluation.measuring import REFERENCE
from nnunet_softseg.evaluation.report.wording import counted, number, shortened
from nnunet_softseg.io.html import figure_as_svg

# Told apart with every kind of colour vision, on white and in grey print; markers repeat the message.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B1E4B", "#7F7F2A")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
_REFERENCE_COLOUR = "#4A4A4A"
FEWEST_FOR_VIOLIN = 8
FEW = 15
MOST_POINTS = 60
"""More values than this are a violin without points."""
_OUTLIER_FACTOR = 2.5
_MOST_OUTLIERS = 0.03
_GOLDEN = 0.6180339887
_STYLE: Any = {
    # Names may hold anything: `$` starts no formula.
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a949e",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7eb",
    "grid.linewidth": 0.7,
    "xtick.color": "#3c4650",
    "ytick.color": "#3c4650",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class MethodStyle:
    """How one method is shown; its short name is printable and unlike any other method's."""

    name: str
    short: str
    colour: str
    marker: str


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """Return name -> style of all methods and, last, of the reference."""
    shorts = [shortened(name) for name in methods]
    shorts = [f"{name} #{n}" if shorts.count(name) > 1 else name for n, name in enumerate(shorts, 1)]
    looks = zip(methods, shorts, itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False)
    styles = {name: MethodStyle(name, short, colour, marker) for name, short, colour, marker in looks}
    return styles | {REFERENCE: MethodStyle(REFERENCE, REFERENCE, _REFERENCE_COLOUR, "o")}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that leaves room for its texts, in inches."""
    # A browser's letters may be a little wider than those that matplotlib measures.
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw and save figures in here: the report's style, names as plain text."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks: boxes in the PNG, right in the SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def as_svg(figure: Figure, description: str) -> Markup:
    """Return a figure as SVG for a page, see `figure_as_svg`."""
    with drawing():
        return figure_as_svg(figure, description)


@dataclass(frozen=True)
class Group:
    """Finite values of one method, at a place on the x axis; hollow: an outline only."""

    values: Floats
    place: float
    width: float
    style: MethodStyle
    hollow: bool = False


def draw_groups(axis: Any, groups: Sequence[Group], names: Sequence[str], everything: Floats) -> None:
    """Draw groups of values over an axis from 0: violin, points, median and mean of each.

    `names` are ticks at 0, 1, ...; the axis has room for `everything`; a note says how many lie beyond.
    """
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, _top_of(everything)))
    for group in groups:
        if group.values.size:
            _draw_group(axis, group)
    axis.set_xticks(range(len(names)), names)
    axis.grid(visible=False, axis="x")
    shown = np.concatenate([group.values for group in groups])
    beyond = shown[shown > axis.get_ylim()[1]]
    if beyond.size:
        text = f"▲ {counted(beyond.size, 'value')} above, up to {number(float(beyond.max()))}"
        axis.text(1, 1.05, text, transform=axis.transAxes, ha="right", fontsize=8, color="#555")


def _draw_group(axis: Any, group: Group) -> None:
    """Draw one group; values above the axis are triangles at its top."""
    values, place, width, colour = group.values, group.place, group.width, group.style.colour
    face, top = "none" if group.hollow else colour, axis.get_ylim()[1]
    inside = values[values <= top]
    beyond = values.size - inside.size
    if inside.size >= FEWEST_FOR_VIOLIN and np.ptp(inside) > 0:
        violin = axis.violinplot(inside, [place], widths=width * 0.95, showextrema=False, points=60)
        for body in violin["bodies"]:
            body.set(facecolor=face, edgecolor=colour, alpha=1 if group.hollow else 0.35, lw=0.8)
    if values.size <= MOST_POINTS:
        x, size = place + width * 0.55 * spread(inside.size), 4.5 if values.size <= FEW else 2.8
        look = {"color": colour, "mfc": face, "ms": size, "mew": 0.8, "alpha": 0.75, "clip_on": False}
        axis.plot(x, inside, group.style.marker, **look)
    if beyond:
        x = place + width * 0.4 * spread(beyond)
        axis.plot(x, np.full(beyond, top), "^", color=colour, ms=5, clip_on=False)
    axis.plot([place - 0.42 * width, place + 0.42 * width], [np.median(values)] * 2, color=colour, lw=2)
    if values.mean() <= top:
        axis.plot(place, values.mean(), "D", color="white", mec=colour, ms=4.2, mew=1.2, zorder=5)


def spread(count: int) -> Floats:
    """Return offsets in (-0.5, 0.5) that lie apart, the same every time."""
    offsets: Floats = np.modf(np.arange(1, count + 1, dtype=np.float64) * _GOLDEN)[0] - 0.5
    return offsets if count > 1 else np.zeros(count)


def _top_of(values: Floats) -> float:
    """Return the end of an axis from 0: above all values, unless a few lie far beyond the others."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.max() <= 0:
        return 1.0
    usual = float(np.quantile(finite, 1 - _MOST_OUTLIERS))
    return 1.25 * usual if 0 < _OUTLIER_FACTOR * usual < finite.max() else 1.06 * float(finite.max())


def wide_limits(values: Floats) -> tuple[float, float]:
    """Return the ends of an axis for values of either sign, with the outermost few left out if far off."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, [_MOST_OUTLIERS, 1 - _MOST_OUTLIERS])
    reach = max(high - low, 1e-9)
    low = finite.min() if finite.min() > low - _OUTLIER_FACTOR * reach else low - reach / 2
    high = finite.max() if finite.max() < high + _OUTLIER_FACTOR * reach else high + reach / 2
    return whole_limits(np.array([low, high]))


def whole_limits(values: Floats) -> tuple[float, float]:
    """Return the ends of an axis that shows all finite values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = 0.06 * max(high - low, 1e-3 * max(abs(high), abs(low), 1e-6))
    return low - margin, high + margin
