"""Cross-sectional areas as figures: how far off, how much they differ over contrasts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_softseg.evaluation import REFERENCE
from nnunet_softseg.evaluation.comparison import Comparison
from nnunet_softseg.evaluation.report.appearance import MethodStyle, new_figure, shortened
from nnunet_softseg.evaluation.report.distribution import draw_distribution, note_on_top, top_of, wide_limits
from nnunet_softseg.evaluation.report.wording import quantity

Styles = Mapping[str, MethodStyle]
Floats = npt.NDArray[np.float64]

ERROR, AREA, HARD_AREA = "abs_csa_error_mm2", "csa_mm2", "csa_hard_mm2"
_TOGETHER = ""
_MOST_IN_A_ROW = 30
_LARGEST_LEGEND = 4
_MANY_LINES = 40


def contrasts_of(cases: pd.DataFrame) -> list[str]:
    """Return the contrasts that names tell, sorted."""
    return [str(name) for name in sorted(cases["contrast"].unique()) if name]


def draw_csa_error(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the absolute area error: subject means over all contrasts, then each contrast, by method."""
    groups = _error_groups(comparison, label)
    everything = np.concatenate([values for group in groups.values() for values in group.values()])
    if not everything.size:
        return None
    methods = comparison.methods
    in_row = max(_MOST_IN_A_ROW // len(methods), 1)
    rows = [list(groups)[start : start + in_row] for start in range(0, len(groups), in_row)]
    width = float(np.clip(0.34 * len(rows[0]) * (len(methods) + 0.6) + 0.9, 5.5, 11))
    figure = new_figure(width, 2.9 * len(rows) + 0.3)
    for axis, names in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axis.set(xlim=(-0.5, len(rows[0]) - 0.5), ylim=(0, top_of(everything)))
        shown = {name: groups[name] for name in names}
        _draw_groups(axis, shown, methods, styles)
        axis.set_xticks(range(len(names)), [shortened(name, 18) or "all\n(subject means)" for name in names])
        axis.set_ylabel("absolute CSA error, mm²")
        note_on_top(axis, np.concatenate([values for group in shown.values() for values in group.values()]))
    _legend(figure, [styles[name] for name in methods])
    return figure


def _error_groups(comparison: Comparison, label: int) -> dict[str, dict[str, Floats]]:
    cases = comparison.cases[comparison.cases["label"] == label]
    subjects = comparison.subjects[comparison.subjects["label"] == label]
    groups = {_TOGETHER: {name: _finite(subjects, name, ERROR) for name in comparison.methods}}
    contrasts = contrasts_of(cases)
    for contrast in contrasts if len(contrasts) > 1 else []:
        rows = cases[cases["contrast"] == contrast]
        groups[contrast] = {name: _finite(rows, name, ERROR) for name in comparison.methods}
    return groups


def _finite(table: pd.DataFrame, method: str, column: str) -> Floats:
    values = table.loc[table["method"] == method, column].to_numpy(dtype=np.float64)
    finite: Floats = values[np.isfinite(values)]
    return finite


def _draw_groups(
    axis: Any, groups: Mapping[str, Mapping[str, Floats]], methods: Sequence[str], styles: Styles
) -> None:
    width = 0.84 / len(methods)
    for place, values in enumerate(groups.values()):
        for number, method in enumerate(methods):
            style = styles[method]
            centre = place + width * (number - (len(methods) - 1) / 2)
            draw_distribution(
                axis, values[method], centre, width * 0.92, colour=style.colour, marker=style.marker
            )
    axis.grid(visible=False, axis="x")
    for edge in range(1, len(groups)):
        axis.axvline(edge - 0.5, color="#cfd6dc", lw=0.8)


def _legend(figure: Figure, styles: Iterable[MethodStyle], *more: Line2D) -> None:
    entries = [
        *(
            Line2D([], [], color=style.colour, marker=style.marker, ls="", ms=6, label=style.short)
            for style in styles
        ),
        *more,
        Line2D([], [], color="#555", lw=2, label="median"),
        Line2D([], [], color="white", mec="#555", marker="D", ls="", ms=4.5, mew=1.2, label="mean"),
    ]
    figure.legend(handles=entries, loc="outside upper left", ncols=_LARGEST_LEGEND + 1, fontsize=8.5)


# STD over contrasts


def draw_csa_std(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the STD of area over contrasts of each subject: map as given, filled, and map > 0.5, hollow."""
    subjects = comparison.subjects[comparison.subjects["label"] == label]
    columns = {"std_csa_mm2": False, "std_csa_hard_mm2": True}
    names = [*comparison.methods, REFERENCE]
    values = {(name, column): _finite(subjects, name, column) for name in names for column in columns}
    if not sum(found.size for found in values.values()):
        return None
    everything = np.concatenate(list(values.values()))
    figure = new_figure(float(np.clip(1.15 * len(names) + 1.2, 5.5, 11)), 3.7)
    axis = figure.subplots()
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, top_of(everything)))
    for (name, column), found in values.items():
        hollow = columns[column]
        look = {"colour": styles[name].colour, "marker": styles[name].marker, "hollow": hollow}
        draw_distribution(axis, found, names.index(name) + (0.2 if hollow else -0.2), 0.38, **look)
    axis.set_xticks(range(len(names)), [styles[name].short for name in names])
    if len(names) > _LARGEST_LEGEND:
        axis.tick_params(axis="x", labelrotation=25)
    axis.grid(visible=False, axis="x")
    axis.set_ylabel("STD of CSA over contrasts, mm²")
    note_on_top(axis, everything)
    filled = Line2D([], [], color="#555", marker="o", ls="", ms=6, label="map as given")
    hollow_mark = Line2D([], [], color="#555", mfc="none", marker="o", ls="", ms=6, label="map > 0.5")
    _legend(figure, [], filled, hollow_mark)
    return figure


# Area over contrasts


def draw_csa_over_contrasts(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the area of every subject over contrasts, a line each, soft beside binarised; reference first."""
    names = [REFERENCE, *comparison.methods]
    columns = [AREA, HARD_AREA]
    tables = {
        (name, column): comparison.areas(name, label=label, measure=column)
        for name in names
        for column in columns
    }
    contrasts = [name for name in tables[REFERENCE, AREA].columns if name]
    everything = np.concatenate([table[contrasts].to_numpy(float).ravel() for table in tables.values()])
    if len(contrasts) < 2 or not np.isfinite(everything).any():  # noqa: PLR2004
        return None
    width = float(np.clip(0.62 * len(contrasts) * 2 + 1.6, 6.5, 11))
    figure = new_figure(width, 1.75 * len(names) + 0.9)
    panels = figure.subplots(len(names), 2, squeeze=False, sharex=True, sharey=True)
    panels[0, 0].set_ylim(*wide_limits(everything))
    for line, name in zip(panels, names, strict=True):
        for axis, column in zip(line, columns, strict=True):
            _draw_lines(axis, tables[name, column][contrasts], styles[name])
            _mean_std(axis, comparison, name, label, f"std_{column}")
        line[0].set_ylabel(f"{shortened(styles[name].short, 18)}\nCSA, mm²", fontsize=8.5)
    panels[0, 0].set_title("Map as given")
    panels[0, 1].set_title("Map > 0.5")
    for axis in panels[-1]:
        axis.set_xticks(range(len(contrasts)), [shortened(name, 14) for name in contrasts])
        axis.tick_params(axis="x", labelrotation=35 if len(contrasts) > _LARGEST_LEGEND else 0)
    return figure


def _draw_lines(axis: Any, table: pd.DataFrame, style: MethodStyle) -> None:
    x = np.arange(table.shape[1])
    alpha = 0.5 if len(table) <= _MANY_LINES else 0.22
    for values in table.to_numpy(float):
        axis.plot(x, values, "-", color=style.colour, lw=0.7, alpha=alpha)
        if len(table) <= _MANY_LINES:
            axis.plot(x, values, style.marker, color=style.colour, ms=2, alpha=alpha)
    means = table.mean().to_numpy(float)
    axis.plot(x, means, style.marker, ls="-", color=style.colour, mec="white", mew=0.8, lw=2.2, ms=5.5)


def _mean_std(axis: Any, comparison: Comparison, name: str, label: int, column: str) -> None:
    subjects = comparison.subjects
    std = _finite(subjects[subjects["label"] == label], name, column)
    if std.size:
        text = f"STD {quantity(float(std.mean()), 'mm2')}"
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
        axis.text(
            0.99,
            0.96,
            text,
            transform=axis.transAxes,
            ha="right",
            va="top",
            fontsize=8,
            color="#333",
            bbox=box,
        )
