"""The figures of a label as SVG and PNG files, and as SVG for the page."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullFormatter

from nnunet_softseg import __version__
from nnunet_softseg.evaluation.comparison.paired_statistics import Floats
from nnunet_softseg.evaluation.comparison.result import Comparison
from nnunet_softseg.evaluation.measuring import AREAS, REFERENCE
from nnunet_softseg.evaluation.report.drawing import (
    FEW,
    Group,
    MethodStyle,
    draw_groups,
    drawing,
    new_figure,
    whole_limits,
    wide_limits,
)
from nnunet_softseg.evaluation.report.wording import MINUS, interval, number, quantity, shortened
from nnunet_softseg.io.html import figure_as_svg
from nnunet_softseg.io.results import remove_files, replacing, write_bytes

Styles = Mapping[str, MethodStyle]

ERROR, AREA = "abs_csa_error_mm2", AREAS[0]
_MOST_IN_A_ROW = 30
_LARGEST_LEGEND = 4
_MANY_LINES, _MANY_POINTS, _MANY_CURVES = 40, 4000, 12
_BINS_OF_A_MASK = 2
_COLUMNS = 3
_PREFERRED = {"t1w", "t2w"}
_CONTRAST_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_GREY, _DARK = "#6b757f", "#555"
_PNG_DPI = 150


def contrasts_of(cases: pd.DataFrame) -> list[str]:
    """Return the contrasts that names tell, sorted."""
    return [str(name) for name in sorted(cases["contrast"].unique()) if name]


def contrast_pair(comparison: Comparison, label: int) -> tuple[str, str] | None:
    """Return two contrasts to hold against each other: T1w and T2w, else those that most subjects have."""
    rows = _of(comparison.contrast_agreement, label, method=REFERENCE, measure=AREA)
    rows = rows[rows["num_subjects"] > 0]
    if not len(rows):
        return None
    pairs = list(zip(rows["contrast_x"].astype(str), rows["contrast_y"].astype(str), strict=True))
    preferred = [pair for pair in pairs if {name.lower() for name in pair} == _PREFERRED]
    return preferred[0] if preferred else pairs[int(rows["num_subjects"].to_numpy().argmax())]


def _of(table: pd.DataFrame, label: int, **chosen: str) -> pd.DataFrame:
    """Return the rows of a label with these values in other columns."""
    keep = table["label"] == label
    for column, value in chosen.items():
        keep &= table[column] == value
    return table[keep]


def _finite(table: pd.DataFrame, label: int, method: str, column: str) -> Floats:
    values = _of(table, label, method=method)[column].to_numpy(dtype=np.float64)
    finite: Floats = values[np.isfinite(values)]
    return finite


def _width(inches: float, least: float, most: float = 11) -> float:
    return float(np.clip(inches, least, most))


def draw_csa_error(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the absolute area error: subject means over all contrasts, then each contrast, by method."""
    cases, methods = _of(comparison.cases, label), comparison.methods
    contrasts = contrasts_of(cases)
    by_contrast = {name: cases[cases["contrast"] == name] for name in contrasts if len(contrasts) > 1}
    errors = {
        name: [_finite(table, label, each, ERROR) for each in methods]
        for name, table in ({"": comparison.subjects} | by_contrast).items()
    }
    everything = np.concatenate([values for of_methods in errors.values() for values in of_methods])
    if not everything.size:
        return None
    in_row = max(_MOST_IN_A_ROW // len(methods), 1)
    rows = [list(errors)[start : start + in_row] for start in range(0, len(errors), in_row)]
    width = _width(0.34 * len(rows[0]) * (len(methods) + 0.6) + 0.9, 5.5)
    figure = new_figure(width, 2.9 * len(rows) + 0.3)
    share = 0.84 / len(methods)
    for axis, names in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        groups = [
            Group(values, place + share * (n - (len(methods) - 1) / 2), share * 0.92, styles[method])
            for place, name in enumerate(names)
            for n, (method, values) in enumerate(zip(methods, errors[name], strict=True))
        ]
        ticks = [shortened(name, 18) or "all\n(subject means)" for name in names]
        draw_groups(axis, groups, ticks, everything)
        axis.set(xlim=(-0.5, len(rows[0]) - 0.5), ylabel="absolute CSA error, mm²")
        for edge in range(1, len(names)):
            axis.axvline(edge - 0.5, color="#cfd6dc", lw=0.8)
    _legend(figure, [_mark(styles[name].short, styles[name].colour, styles[name].marker) for name in methods])
    return figure


def _mark(label: str, colour: str, marker: str = "o", **look: Any) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, ls="", label=label, **{"ms": 6, **look})


def _legend(figure: Figure, entries: Sequence[Line2D]) -> None:
    median = Line2D([], [], color=_DARK, lw=2, label="median")
    mean = _mark("mean", "white", "D", mec=_DARK, ms=4.5, mew=1.2)
    handles = [*entries, median, mean]
    longest = max(len(str(each.get_label())) for each in handles)
    # Inches: marker and gaps, and a letter.
    columns = int(figure.get_figwidth() / (0.55 + 0.068 * longest))
    columns = min(max(columns, 1), _LARGEST_LEGEND + 1)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8.5)


def draw_csa_std(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the STD of area over contrasts of each subject: map as given, filled, and map > 0.5, hollow."""
    names = [*comparison.methods, REFERENCE]
    groups = []
    for place, name in enumerate(names):
        soft, hard = (_finite(comparison.subjects, label, name, f"std_{area}") for area in AREAS)
        groups.append(Group(soft, place - 0.2, 0.38, styles[name]))
        groups.append(Group(hard, place + 0.2, 0.38, styles[name], hollow=True))
    everything = np.concatenate([group.values for group in groups])
    if not everything.size:
        return None
    figure = new_figure(_width(1.15 * len(names) + 1.2, 5.5), 3.7)
    axis = figure.subplots()
    draw_groups(axis, groups, [styles[name].short for name in names], everything)
    if len(names) > _LARGEST_LEGEND:
        axis.tick_params(axis="x", labelrotation=25)
    axis.set_ylabel("STD of CSA over contrasts, mm²")
    _legend(figure, [_mark("map as given", _DARK), _mark("map > 0.5", _DARK, mfc="none")])
    return figure


def draw_csa_over_contrasts(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the area of every subject over contrasts, a line each, soft beside binarised; reference first."""
    names = [REFERENCE, *comparison.methods]
    tables = {
        (name, area): comparison.areas(name, label=label, measure=area) for name in names for area in AREAS
    }
    contrasts = [name for name in tables[REFERENCE, AREA].columns if name]
    everything = np.concatenate([table[contrasts].to_numpy(float).ravel() for table in tables.values()])
    if len(contrasts) < 2 or not np.isfinite(everything).any():  # noqa: PLR2004
        return None
    figure = new_figure(_width(1.24 * len(contrasts) + 1.6, 6.5), 1.75 * len(names) + 0.9)
    panels = figure.subplots(len(names), 2, squeeze=False, sharex=True, sharey=True)
    panels[0, 0].set_ylim(*whole_limits(everything))
    for line, name in zip(panels, names, strict=True):
        for axis, area in zip(line, AREAS, strict=True):
            _draw_lines(axis, tables[name, area][contrasts], styles[name])
            std = _finite(comparison.subjects, label, name, f"std_{area}")
            if std.size:
                box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
                look = {"ha": "right", "va": "top", "fontsize": 8, "color": "#333", "bbox": box}
                text = f"STD {quantity(float(std.mean()), 'mm2')}"
                axis.text(0.99, 0.96, text, transform=axis.transAxes, **look)
        line[0].set_ylabel(f"{shortened(styles[name].short, 18)}\nCSA, mm²", fontsize=8.5)
    panels[0, 0].set_title("Map as given")
    panels[0, 1].set_title("Map > 0.5")
    for axis in panels[-1]:
        axis.set_xticks(range(len(contrasts)), [shortened(name, 14) for name in contrasts])
        axis.tick_params(axis="x", labelrotation=35 if len(contrasts) > _LARGEST_LEGEND else 0)
    return figure


def _draw_lines(axis: Any, table: pd.DataFrame, style: MethodStyle) -> None:
    x = np.arange(table.shape[1])
    few = len(table) <= _MANY_LINES
    look = {"color": style.colour, "lw": 0.7, "alpha": 0.5 if few else 0.22}
    for values in table.to_numpy(float):
        axis.plot(x, values, "-", **look)
        if few:
            axis.plot(x, values, style.marker, ms=2, **look)
    means = table.mean().to_numpy(float)
    axis.plot(x, means, style.marker, ls="-", color=style.colour, mec="white", mew=0.8, lw=2.2, ms=5.5)


def draw_csa_agreement(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the area in one contrast against that in another, a panel per method; identity and fitted line."""
    pair = contrast_pair(comparison, label)
    if pair is None:
        return None
    names = [REFERENCE, *comparison.methods]
    tables = {name: comparison.areas(name, label=label)[[*pair]].dropna().to_numpy(float) for name in names}
    low, high = whole_limits(np.concatenate([points.ravel() for points in tables.values()]))
    pairs = comparison.contrast_agreement[comparison.contrast_agreement["measure"] == AREA]
    figure, axes = _panels(len(names), 3.1)
    for axis, (name, points) in zip(axes, tables.items(), strict=True):
        style = styles[name]
        axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axis.plot([low, high], [low, high], "--", color=_GREY, lw=1)
        look = {"color": style.colour, "ms": _size(points), "alpha": 0.7, "mec": "white", "mew": 0.4}
        axis.plot(*points.T, style.marker, **look)
        found = _of(pairs, label, method=name, contrast_x=pair[0], contrast_y=pair[1])
        texts = [text for _, row in found.iterrows() for text in _draw_fit(axis, row, points, style)]
        _set_title(axis, style.short, texts)
        axis.set_xlabel(f"{shortened(pair[0], 18)}: CSA, mm²")
    for axis in axes[::_COLUMNS]:
        axis.set_ylabel(f"{shortened(pair[1], 18)}: CSA, mm²")
    return figure


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


def _draw_fit(axis: Any, row: "pd.Series[Any]", points: Any, style: MethodStyle) -> Iterator[str]:
    """Draw the line, and give mean difference and equation."""
    yield f"mean difference {quantity(row['bias'], 'mm2')}, n = {row['num_subjects']}"
    if np.isfinite(row["slope"]):
        x = np.array([points[:, 0].min(), points[:, 0].max()])
        axis.plot(x, row["slope"] * x + row["intercept"], "-", color=style.colour, lw=1.8)
        sign = "+" if row["intercept"] >= 0 else MINUS
        line = f"y = {number(row['slope'])} x {sign} {number(abs(row['intercept']))}"
        yield f"{line}, r = {number(row['r'])}"


def _set_title(axis: Any, name: str, lines: Sequence[str]) -> None:
    """Write a name above a panel, and its numbers below the name."""
    axis.set_title(name, pad=5 + 10.5 * len(lines), loc="left")
    axis.text(0, 1.02, "\n".join(lines), transform=axis.transAxes, va="bottom", fontsize=7.8, color="#444")


def _size(points: Any) -> float:
    return 6.0 if len(points) <= FEW else 4.0


def draw_bland_altman(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw prediction - reference over the mean of both, a panel per method, a marker per contrast."""
    cases = _of(comparison.cases, label)
    cases = cases[np.isfinite(cases["csa_error_mm2"])]
    if not len(cases):
        return None
    cases = cases.assign(middle=(cases["csa_mm2"] + cases["reference_csa_mm2"]) / 2)
    figure, axes = _panels(len(comparison.methods), 2.9)
    limits = _of(comparison.agreement, label, measure=AREA, contrast="")
    axes[0].set(xlim=whole_limits(cases["middle"].to_numpy(float)), ylim=_error_limits(limits, cases))
    contrasts = contrasts_of(cases)
    few = 1 < len(contrasts) <= len(_CONTRAST_MARKERS)  # more cannot be told apart
    markers = dict(zip(contrasts, _CONTRAST_MARKERS, strict=False)) if few else {}
    for axis, method in zip(axes, comparison.methods, strict=True):
        rows, style = cases[cases["method"] == method], styles[method]
        axis.axhline(0, color=_GREY, lw=0.8)
        of_method = limits[(limits["method"] == method) & np.isfinite(limits["bias"])]
        texts = [text for _, row in of_method.iterrows() for text in _draw_limits(axis, row, style)]
        _set_title(axis, style.short, texts)
        look = {"color": style.colour, "ms": _size(rows), "alpha": 0.65, "mec": "white", "mew": 0.4}
        for contrast, marker in markers.items() or {"": "o"}.items():
            chosen = rows[rows["contrast"] == contrast] if markers else rows
            many = len(cases) > _MANY_POINTS
            axis.plot(chosen["middle"], chosen["csa_error_mm2"], marker, rasterized=many, **look)
        _write_number_outside(axis, rows["csa_error_mm2"].to_numpy(float))
        axis.set_xlabel("mean of method and reference, mm²")
    for axis in axes[::_COLUMNS]:
        axis.set_ylabel(f"method {MINUS} reference, mm²")
    if markers:
        entries = [_mark(shortened(name, 14), _GREY, marker, ms=5) for name, marker in markers.items()]
        figure.legend(handles=entries, loc="outside upper left", ncols=min(len(entries), 6), fontsize=8.5)
    return figure


def _error_limits(rows: pd.DataFrame, cases: pd.DataFrame) -> tuple[float, float]:
    """Return limits that show 0, the errors and, unless a failure blows them up, the limits of agreement."""
    low, high = wide_limits(cases["csa_error_mm2"].to_numpy(float))
    reach = high - low
    ends = rows[["loa_low", "loa_high"]].to_numpy(float).ravel()
    near = ends[(ends > low - reach / 2) & (ends < high + reach / 2)]
    margin = 0.04 * reach
    return min(low, *(near - margin), -margin), max(high, *(near + margin), margin)


def _draw_limits(axis: Any, row: "pd.Series[Any]", style: MethodStyle) -> Iterator[str]:
    """Draw bias and limits of agreement with their intervals, and give them as text."""
    axis.axhline(row["bias"], color=style.colour, lw=1.6)
    yield f"bias {quantity(row['bias'], 'mm2')}"
    for name in ("bias", "loa_low", "loa_high"):
        ends = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
        if np.isfinite(ends).all():
            axis.axhspan(*ends, color=style.colour, alpha=0.12, lw=0)
    if np.isfinite(row["loa_low"]):
        for limit in (row["loa_low"], row["loa_high"]):
            axis.axhline(limit, color=style.colour, lw=1.1, ls="--")
        yield f"limits of agreement {interval(row['loa_low'], row['loa_high'], 'mm2')}"


def _write_number_outside(axis: Any, values: Floats) -> None:
    low, high = axis.get_ylim()
    outside = values[(values < low) | (values > high)]
    if outside.size:
        furthest = float(outside[np.argmax(np.abs(outside))])
        text = f"{outside.size} outside, up to {number(furthest)}"
        axis.text(0.97, 0.03, text, transform=axis.transAxes, ha="right", fontsize=7.5, color="#b3261e")


def draw_reliability(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the mean reference value over the mean prediction of each bin, and how many voxels are in it."""
    rows = _of(comparison.reliability, label)
    if not rows["num_voxels"].sum():
        return None
    figure = new_figure(5.8, 5.4)
    curves, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    curves.plot([0, 1], [0, 1], "--", color=_GREY, lw=1, label="perfect")
    for method in comparison.methods:
        bins = rows[(rows["method"] == method) & (rows["num_voxels"] > 0)]
        style = styles[method]
        # A line between 0 and 1 would invent values that a hard mask does not have.
        line = "-" if len(bins) > _BINS_OF_A_MASK else ""
        look = {"color": style.colour, "marker": style.marker, "ls": line, "lw": 1.6, "ms": 4.5, "alpha": 0.9}
        curves.plot(bins["mean_prediction"], bins["mean_reference"], label=style.short, **look)
        counts.plot((bins["bin_low"] + bins["bin_high"]) / 2, bins["num_voxels"], **look)
    curves.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="mean reference value")
    curves.legend(loc="upper left", fontsize=8.5, ncols=1 + (len(comparison.methods) > _MANY_CURVES))
    counts.set(yscale="log", xlabel="predicted value", ylabel="voxels")
    # matplotlib writes powers as formulae, which are off here.
    counts.yaxis.set_major_formatter(EngFormatter())
    counts.yaxis.set_minor_formatter(NullFormatter())
    return figure


def draw_inference_time(comparison: Comparison, label: int, styles: Styles) -> Figure | None:
    """Draw the seconds of each prediction, for methods that noted them."""
    seconds = {name: _finite(comparison.cases, label, name, "seconds") for name in comparison.methods}
    seconds = {name: values for name, values in seconds.items() if values.size}
    if not seconds:
        return None
    figure = new_figure(_width(1.1 * len(seconds) + 1.4, 4.2, 10), 3.1)
    axis = figure.subplots()
    names, groups = [], []
    for place, (name, values) in enumerate(seconds.items()):
        names.append(f"{styles[name].short}\nmedian {quantity(float(np.median(values)), 's', 2)}")
        groups.append(Group(values, place, 0.5, styles[name]))
    draw_groups(axis, groups, names, np.concatenate(list(seconds.values())))
    axis.set_ylabel("inference time per image, s")
    return figure


Draw = Callable[[Comparison, int, Styles], Figure | None]
_KINDS: Mapping[str, tuple[Draw, str]] = {
    "csa_error": (
        draw_csa_error,
        "Absolute CSA error. Left: means over the images of a subject, the unit of the statistics; then "
        "the images of each contrast.",
    ),
    "csa_std": (
        draw_csa_std,
        "Standard deviation of a subject's CSA over contrasts; the anatomy is the same in all, so less "
        "is better. Filled: map as given; hollow: map > 0.5. Only subjects with every contrast in every "
        "method.",
    ),
    "csa_over_contrasts": (
        draw_csa_over_contrasts,
        "CSA over contrasts, a thin line per subject, the mean bold. Left: map as given; right: map > "
        "0.5. A method that does not depend on contrast draws level lines. STD: mean over subjects.",
    ),
    "csa_agreement": (
        draw_csa_agreement,
        "CSA of the same subjects in two contrasts, {pair}. Dashed: identity; line: least squares.",
    ),
    "bland_altman": (
        draw_bland_altman,
        "Method against reference (Bland-Altman), a point per image. Line: bias; dashed: 95 % limits of "
        "agreement, images of one subject taken as repeated measurements; bands: their 95 % intervals.",
    ),
    "reliability": (
        draw_reliability,
        "Reliability of the predicted fractions, in and around the object, all images together. On the "
        "dashed line a voxel predicted as 0.3 is 0.3 in the reference. Hard masks have values at the "
        "ends only.",
    ),
    "inference_time": (
        draw_inference_time,
        "Time per image as noted by the method itself in softseg.json.",
    ),
}
FIGURES = tuple(_KINDS)
_OUR_FILES = re.compile(rf"({'|'.join(FIGURES)}|worst_\d+)(_label\d+)?\.(svg|png)")
_GROUP_NAME = re.compile(r'<g id="[\w.]+_\d+">')


@dataclass(frozen=True)
class ShownFigure:
    """A figure in the page, with the words below it; its files are figures/<name>.svg and .png."""

    name: str
    svg: Markup
    caption: str


def remove_old_figures(folder: Path) -> None:
    """Remove what an earlier report left: a figure that is drawn no more would be taken for a new one."""
    remove_files(file for file in folder.glob("*") if _OUR_FILES.fullmatch(file.name))


def draw_figures(
    comparison: Comparison, label: int, styles: Styles, folder: Path, *, kinds: Iterable[str] = FIGURES
) -> dict[str, ShownFigure]:
    """Draw the figures (of `FIGURES`) that a label has values for, write them, and return them by kind."""
    shown = {}
    first, second = (shortened(name) for name in contrast_pair(comparison, label) or ("", ""))
    suffix = f"_label{label}" if len(comparison.labels) > 1 else ""
    for kind in kinds:
        with drawing():
            draw, caption = _KINDS[kind]
            figure = draw(comparison, label, styles)
            if figure is not None:
                caption = caption.format(pair=f"{second} against {first}")
                shown[kind] = _save(figure, f"{kind}{suffix}", caption, folder)
    return shown


def _save(figure: Figure, name: str, caption: str, folder: Path) -> ShownFigure:
    svg = figure_as_svg(figure, f"{name}: {caption}")
    # Names of groups are the same in every figure, and in a page every name may stand once.
    svg = Markup(_GROUP_NAME.sub("<g>", svg))
    by = f"<!-- Made by nnunet-softseg {__version__} -->"
    write_bytes(folder / f"{name}.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{by}\n{svg}'.encode())
    # Laid out once: twice would take twice as long and look the same.
    figure.set_layout_engine("none")
    with replacing(folder / f"{name}.png") as aside:
        figure.savefig(aside, dpi=_PNG_DPI, metadata={"Software": f"nnunet-softseg {__version__}"})
    return ShownFigure(name, svg, caption)
