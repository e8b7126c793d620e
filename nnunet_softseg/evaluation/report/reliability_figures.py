"""Whether predicted fractions can be taken at their word; and how long a prediction takes."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from nnunet_softseg.evaluation.comparison import Comparison
from nnunet_softseg.evaluation.report.appearance import MethodStyle, new_figure
from nnunet_softseg.evaluation.report.area_figures import Styles
from nnunet_softseg.evaluation.report.distribution import draw_distribution, note_on_top, top_of
from nnunet_softseg.evaluation.report.wording import quantity

_LARGEST_LEGEND = 12
_BINS_OF_A_MASK = 2


def draw_reliability(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the mean reference value over the mean prediction of each bin, and how many voxels are in it."""
    rows = comparison.reliability[comparison.reliability["label"] == label]
    if not rows["num_voxels"].sum():
        return None
    figure = new_figure(5.8, 5.4)
    curves, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    curves.plot([0, 1], [0, 1], "--", color="#6b757f", lw=1, label="perfect")
    for method in comparison.methods:
        bins = rows[(rows["method"] == method) & (rows["num_voxels"] > 0)]
        # A line between 0 and 1 would invent what a hard mask does not say.
        line = "-" if len(bins) > _BINS_OF_A_MASK else ""
        look = {**_look(styles[method]), "ls": line}
        curves.plot(bins["mean_prediction"], bins["mean_reference"], label=styles[method].short, **look)
        middles = (bins["bin_low"] + bins["bin_high"]) / 2
        counts.plot(middles, bins["num_voxels"], **look)
    curves.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="mean reference value")
    curves.legend(loc="upper left", fontsize=8.5, ncols=1 + (len(comparison.methods) > _LARGEST_LEGEND))
    counts.set(yscale="log", xlabel="predicted value", ylabel="voxels")
    # matplotlib writes powers as formulae, which are off here.
    counts.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_count(value)))
    counts.yaxis.set_minor_formatter(NullFormatter())
    return figure


def _look(style: MethodStyle) -> dict[str, Any]:
    return {"color": style.colour, "marker": style.marker, "lw": 1.6, "ms": 4.5, "alpha": 0.9}


def _short_count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def draw_inference_time(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the seconds of each prediction, for methods that noted them."""
    cases = comparison.cases[comparison.cases["label"] == label]
    seconds = {
        method: cases.loc[(cases["method"] == method) & np.isfinite(cases["seconds"]), "seconds"].to_numpy(
            float
        )
        for method in comparison.methods
    }
    seconds = {method: values for method, values in seconds.items() if values.size}
    if not seconds:
        return None
    everything = np.concatenate(list(seconds.values()))
    width = float(np.clip(1.1 * len(seconds) + 1.4, 4.2, 10))
    figure = new_figure(width, 3.1)
    axis = figure.subplots()
    axis.set(xlim=(-0.6, len(seconds) - 0.4), ylim=(0, top_of(everything)))
    for place, (method, values) in enumerate(seconds.items()):
        draw_distribution(
            axis, values, place, 0.5, colour=styles[method].colour, marker=styles[method].marker
        )
    names = [
        f"{styles[method].short}\nmedian {quantity(float(np.median(values)), 's', 2)}"
        for method, values in seconds.items()
    ]
    axis.set_xticks(range(len(seconds)), names)
    axis.grid(visible=False, axis="x")
    axis.set_ylabel("inference time per image, s")
    note_on_top(axis, everything)
    return figure
