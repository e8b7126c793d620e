"""One group of values as a violin with its points, median and mean; axes that no outlier rules."""

from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.evaluation.report.wording import counted, number

Floats = npt.NDArray[np.float64]

FEWEST_FOR_VIOLIN = 8
FEW = 15
MOST_POINTS = 60
"""More values than this are a violin without points."""
_OUTLIER_FACTOR = 2.5
_MOST_OUTLIERS = 0.03
_GOLDEN = 0.6180339887


def draw_distribution(axis: Any, values: Floats, place: float, width: float, **look: Any) -> None:
    """Draw values at a place on the x axis.

    Args:
        axis: of matplotlib; its limits on y are set before, values above are triangles at its top.
        values: finite.
        place: centre.
        width: of all of it.
        look: `colour`; `marker`; `hollow` for an outline only.
    """
    if not values.size:
        return
    colour, hollow = look["colour"], look.get("hollow", False)
    top = axis.get_ylim()[1]
    inside = values[values <= top]
    if inside.size >= FEWEST_FOR_VIOLIN and np.ptp(inside) > 0:
        _draw_violin(axis, inside, place, width, colour, hollow=hollow)
    if values.size <= MOST_POINTS:
        x = place + width * 0.55 * _spread(inside.size)
        face, size = "none" if hollow else colour, 4.5 if values.size <= FEW else 2.8
        axis.plot(
            x, inside, look["marker"], color=colour, mfc=face, ms=size, mew=0.8, alpha=0.75, clip_on=False
        )
    beyond = values.size - inside.size
    if beyond:
        axis.plot(
            np.full(beyond, place) + width * 0.4 * _spread(beyond),
            np.full(beyond, top),
            "^",
            color=colour,
            ms=5,
            clip_on=False,
        )
    axis.plot([place - 0.42 * width, place + 0.42 * width], [np.median(values)] * 2, color=colour, lw=2)
    if values.mean() <= top:
        axis.plot(place, values.mean(), "D", color="white", mec=colour, ms=4.2, mew=1.2, zorder=5)


def _draw_violin(axis: Any, values: Floats, place: float, width: float, colour: str, *, hollow: bool) -> None:
    violin = axis.violinplot(values, [place], widths=width * 0.95, showextrema=False, points=60)
    for body in violin["bodies"]:
        body.set(
            facecolor="none" if hollow else colour, edgecolor=colour, alpha=1 if hollow else 0.35, lw=0.8
        )


def _spread(count: int) -> Floats:
    """Return offsets in (-0.5, 0.5) that lie apart, the same every time."""
    offsets: Floats = np.modf(np.arange(1, count + 1, dtype=np.float64) * _GOLDEN)[0] - 0.5
    return offsets if count > 1 else np.zeros(count)


def top_of(values: Floats) -> float:
    """Return the end of an axis from 0: above all values, unless a few lie far beyond the others."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.max() <= 0:
        return 1.0
    usual = float(np.quantile(finite, 1 - _MOST_OUTLIERS))
    return 1.25 * usual if 0 < _OUTLIER_FACTOR * usual < finite.max() else 1.06 * float(finite.max())


def note_on_top(axis: Any, values: Floats) -> None:
    """Say in the figure how many values lie above it, and how far."""
    beyond = values[values > axis.get_ylim()[1]]
    if beyond.size:
        text = f"▲ {counted(beyond.size, 'value')} above, up to {number(float(beyond.max()))}"
        axis.text(1, 1.05, text, transform=axis.transAxes, ha="right", fontsize=8, color="#555")


def wide_limits(values: Floats) -> tuple[float, float]:
    """Return the ends of an axis for values of either sign, with the outermost few left out if far off."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, [_MOST_OUTLIERS, 1 - _MOST_OUTLIERS])
    reach = max(high - low, 1e-9)
    low = finite.min() if finite.min() > low - _OUTLIER_FACTOR * reach else low - reach / 2
    high = finite.max() if finite.max() < high + _OUTLIER_FACTOR * reach else high + reach / 2
    margin = 0.06 * max(high - low, 1e-3 * max(abs(high), abs(low), 1e-6))
    return float(low - margin), float(high + margin)
