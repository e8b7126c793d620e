"""Agreement of areas: of two contrasts with each other, of a method with the reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_softseg.evaluation import REFERENCE
from nnunet_softseg.evaluation.comparison import Comparison
from nnunet_softseg.evaluation.report.appearance import MethodStyle, new_figure, shortened
from nnunet_softseg.evaluation.report.area_figures import AREA, Styles, contrasts_of
from nnunet_softseg.evaluation.report.distribution import FEW, wide_limits
from nnunet_softseg.evaluation.report.wording import MINUS, interval, number, quantity

_COLUMNS = 3
_PREFERRED = ("T1w", "T2w")
_CONTRAST_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MANY_POINTS = 4000
_GREY = "#6b757f"


def contrast_pair(comparison: Comparison, label: int) -> tuple[str, str] | None:
    """Return two contrasts to hold against each other: T1w and T2w, else those that most subjects have."""
    rows = comparison.contrast_agreement
    rows = rows[(rows["label"] == label) & (rows["measure"] == AREA) & (rows["method"] == REFERENCE)]
    rows = rows[rows["num_subjects"] > 0]
    if not len(rows):
        return None
    wanted = {name.lower() for name in _PREFERRED}
    for first, second in zip(rows["contrast_x"], rows["contrast_y"], strict=True):
        if {first.lower(), second.lower()} == wanted:
            return str(first), str(second)
    most = rows.sort_values("num_subjects", ascending=False, kind="stable").iloc[0]
    return str(most["contrast_x"]), str(most["contrast_y"])


def _panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(max(3.25 * columns, 4.2) + 0.3, height * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    # Panels above an empty place are the lowest of their column.
    for axis in axes[max(count - columns, 0) : count]:
        axis.tick_params(labelbottom=True)
    return figure, list(axes[:count])


def draw_csa_agreement(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the area in one contrast against that in another, a panel per method; identity and fitted line."""
    pair = contrast_pair(comparison, label)
    if pair is None:
        return None
    first, second = pair
    names = [REFERENCE, *comparison.methods]
    tables = {name: comparison.areas(name, label=label)[[first, second]].dropna() for name in names}
    low, high = wide_limits(np.concatenate([table.to_numpy(float).ravel() for table in tables.values()]))
    figure, axes = _panels(len(names), 3.1)
    for axis, name in zip(axes, names, strict=True):
        points = tables[name].to_numpy(float)
        style = styles[name]
        axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axis.plot([low, high], [low, high], "--", color=_GREY, lw=1)
        axis.plot(
            points[:, 0],
            points[:, 1],
            style.marker,
            color=style.colour,
            ms=_size(len(points)),
            alpha=0.7,
            mec="white",
            mew=0.4,
        )
        text = _draw_fit(axis, _agreement_row(comparison, label, name, first, second), points, style)
        _set_title(axis, style.short, text)
        axis.set_xlabel(f"{shortened(first, 18)}: CSA, mm²")
    for axis in axes[::_COLUMNS]:
        axis.set_ylabel(f"{shortened(second, 18)}: CSA, mm²")
    return figure


def _agreement_row(comparison: Comparison, label: int, method: str, first: str, second: str) -> pd.DataFrame:
    rows = comparison.contrast_agreement
    return rows[
        (rows["method"] == method)
        & (rows["label"] == label)
        & (rows["measure"] == AREA)
        & (rows["contrast_x"] == first)
        & (rows["contrast_y"] == second)
    ]


def _draw_fit(axis: Any, rows: pd.DataFrame, points: Any, style: MethodStyle) -> list[str]:
    """Draw the line, and return what there is to say about it."""
    if not len(rows):
        return []
    row = rows.iloc[0]
    mean = f"mean difference {quantity(row['bias'], 'mm2')}, n = {row['num_subjects']}"
    if np.isfinite(row["slope"]):
        x = np.array([points[:, 0].min(), points[:, 0].max()])
        axis.plot(x, row["slope"] * x + row["intercept"], "-", color=style.colour, lw=1.8)
        sign = "+" if row["intercept"] >= 0 else MINUS
        line = f"y = {number(row['slope'])} x {sign} {number(abs(row['intercept']))}"
        return [mean, f"{line}, r = {number(row['r'])}"]
    return [mean]


def _set_title(axis: Any, name: str, lines: Sequence[str]) -> None:
    """Write a name above a panel, and what it says below the name."""
    axis.set_title(name, pad=5 + 10.5 * len(lines), loc="left")
    axis.text(0, 1.02, "\n".join(lines), transform=axis.transAxes, va="bottom", fontsize=7.8, color="#444")


# Bland-Altman


def draw_bland_altman(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw prediction - reference over the mean of both, a panel per method, a marker per contrast."""
    cases = comparison.cases[comparison.cases["label"] == label]
    cases = cases[np.isfinite(cases["csa_error_mm2"])]
    if not len(cases):
        return None
    means = (cases["csa_mm2"] + cases["reference_csa_mm2"]) / 2
    figure, axes = _panels(len(comparison.methods), 2.9)
    axes[0].set(xlim=wide_limits(means.to_numpy(float)), ylim=_error_limits(comparison, label, cases))
    markers = _markers(contrasts_of(cases))
    for axis, method in zip(axes, comparison.methods, strict=True):
        rows = cases[cases["method"] == method]
        axis.axhline(0, color=_GREY, lw=0.8)
        _set_title(axis, styles[method].short, _draw_limits(axis, comparison, label, method, styles[method]))
        for contrast, marker in markers.items() or {"": "o"}.items():
            chosen = rows[rows["contrast"] == contrast] if markers else rows
            axis.plot(
                means[chosen.index],
                chosen["csa_error_mm2"],
                marker,
                color=styles[method].colour,
                ms=_size(len(rows)),
                alpha=0.65,
                mec="white",
                mew=0.4,
                rasterized=len(cases) > _MANY_POINTS,
            )
        _say_what_is_outside(axis, rows["csa_error_mm2"].to_numpy(float))
        axis.set_xlabel("mean of method and reference, mm²")
    for axis in axes[::_COLUMNS]:
        axis.set_ylabel(f"method {MINUS} reference, mm²")
    _contrast_legend(figure, markers)
    return figure


def _error_limits(comparison: Comparison, label: int, cases: pd.DataFrame) -> tuple[float, float]:
    """Return limits that show 0, the errors and, unless a failure blows them up, the limits of agreement."""
    rows = comparison.agreement
    rows = rows[(rows["label"] == label) & (rows["measure"] == AREA) & (rows["contrast"] == "")]
    low, high = wide_limits(cases["csa_error_mm2"].to_numpy(float))
    reach = high - low
    ends = rows[["loa_low", "loa_high"]].to_numpy(float).ravel()
    near = ends[(ends > low - reach / 2) & (ends < high + reach / 2)]
    margin = 0.04 * reach
    return min(low, *(near - margin), -margin), max(high, *(near + margin), margin)


def _size(count: int) -> float:
    return 6.0 if count <= FEW else 4.0


def _markers(contrasts: Sequence[str]) -> dict[str, str]:
    """Return a marker per contrast, or nothing if there are too many to tell apart."""
    if not 1 < len(contrasts) <= len(_CONTRAST_MARKERS):
        return {}
    return dict(zip(contrasts, _CONTRAST_MARKERS, strict=False))


def _contrast_legend(figure: Figure, markers: dict[str, str]) -> None:
    if markers:
        entries = [
            Line2D([], [], color=_GREY, marker=marker, ls="", ms=5, label=shortened(contrast, 14))
            for contrast, marker in markers.items()
        ]
        figure.legend(handles=entries, loc="outside upper left", ncols=min(len(entries), 6), fontsize=8.5)


def _draw_limits(axis: Any, comparison: Comparison, label: int, method: str, style: MethodStyle) -> list[str]:
    """Draw bias and limits of agreement with their intervals, and return what they are."""
    rows = comparison.agreement
    chosen = (rows["method"] == method) & (rows["label"] == label) & (rows["measure"] == AREA)
    rows = rows[chosen & (rows["contrast"] == "")]
    if not len(rows) or not np.isfinite(rows["bias"].iloc[0]):
        return []
    row = rows.iloc[0]
    axis.axhline(row["bias"], color=style.colour, lw=1.6)
    text = [f"bias {quantity(row['bias'], 'mm2')}"]
    for name in ("bias", "loa_low", "loa_high"):
        if np.isfinite(row[f"{name}_ci_low"]) and np.isfinite(row[f"{name}_ci_high"]):
            axis.axhspan(row[f"{name}_ci_low"], row[f"{name}_ci_high"], color=style.colour, alpha=0.12, lw=0)
    if np.isfinite(row["loa_low"]):
        for limit in (row["loa_low"], row["loa_high"]):
            axis.axhline(limit, color=style.colour, lw=1.1, ls="--")
        text.append(f"limits of agreement {interval(row['loa_low'], row['loa_high'], 'mm2')}")
    return text


def _say_what_is_outside(axis: Any, values: Any) -> None:
    low, high = axis.get_ylim()
    outside = values[(values < low) | (values > high)]
    if outside.size:
        furthest = float(outside[np.argmax(np.abs(outside))])
        text = f"{outside.size} outside, up to {number(furthest)}"
        axis.text(0.97, 0.03, text, transform=axis.transAxes, ha="right", fontsize=7.5, color="#b3261e")
