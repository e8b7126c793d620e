"""The page of a comparison of two releases: verdict, bias, people that changed most, limits."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nnunet_softseg.evaluation.comparison.paired_statistics import limits_of_agreement
from nnunet_softseg.evaluation.releases.areas import level_word, names_of
from nnunet_softseg.evaluation.releases.drift_report import DriftReport
from nnunet_softseg.evaluation.report.drawing import as_svg, drawing, new_figure
from nnunet_softseg.evaluation.report.wording import shortened
from nnunet_softseg.io.html import render_page, template, write_page

_COLOUR, _BAD, _GREY = "#0072B2", "#B3261E", "#6b757f"
_HALF_ROW = 0.5
_INCHES_A_ROW = 0.24


def write_drift_page(report: DriftReport, file: Path) -> None:
    """Write the page: one file, nothing from elsewhere, printable."""
    rows = report.judged
    context = {
        "drift": report.drift,
        "verdict": report.verdict,
        "old": report.old,
        "new": report.new,
        "subjects": report.pairs["subject"].nunique(),
        "areas": len(report.pairs),
        "warnings": report.warnings,
        "lost": names_of(report.areas.lost),
        "rows": _named(rows),
        "worst": _named(report.worst.assign(name=names_of(report.worst))),
        "spread": _named(report.spread),
        "limits": report.limits,
        "limits_file": report.limits_file,
        "limits_shown": [*dataclasses.asdict(report.limits).items()],
        "bias_figure": as_svg(draw_bias(report), "bias of the new release by contrast and level"),
        "agreement_figure": as_svg(draw_agreement(report), "differences against means of both releases"),
    }
    write_page(file, render_page("Drift between two releases", template("drift.html"), context))


def _named(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows for the page: levels by name, rounding errors as 0."""
    numbers = table.select_dtypes("float").apply(lambda column: column.round(9))
    names = [*map(level_word, table["level"])]
    rows: list[dict[str, Any]] = table.assign(level_name=names, **numbers).to_dict("records")
    return rows


@drawing()
def draw_bias(report: DriftReport) -> Figure:
    """Draw the bias of each contrast and level with its interval, in percent of the old mean area."""
    rows = report.judged.iloc[::-1]
    labels = [
        " ".join(filter(None, (shortened(str(contrast)), level_word(level)))) or "all"
        for contrast, level in zip(rows["contrast"], rows["level"], strict=True)
    ]
    places = np.arange(len(rows))
    figure = new_figure(6.5, 1.1 + _INCHES_A_ROW * len(rows))
    axis = figure.subplots()
    axis.axvline(0, color=_GREY, lw=0.8)
    for side in (-1, 1):
        limits = side * rows["limit_percent"]
        axis.vlines(limits, places - _HALF_ROW, places + _HALF_ROW, colors=_GREY, lw=1, ls="--")
    colours = [_BAD if broken else _COLOUR for broken in rows["beyond"]]
    axis.hlines(places, rows["bias_percent_low"], rows["bias_percent_high"], colors=colours)
    axis.scatter(rows["bias_percent"], places, c=colours, s=22, zorder=3)
    axis.set(xlabel="new − old, % of the old area", ylim=(-0.7, len(rows) - 0.3))  # noqa: RUF001
    axis.set_yticks(places, labels)
    return figure


@drawing()
def draw_agreement(report: DriftReport) -> Figure:
    """Draw differences against means of both releases, with the bias and limits of agreement of all."""
    old, new = report.pairs["old"], report.pairs["new"]
    difference = new - old
    agreement = limits_of_agreement(difference, report.pairs["subject"])
    figure = new_figure(6.5, 3.2)
    axis = figure.subplots()
    axis.scatter((old + new) / 2, difference, s=9, color=_COLOUR, alpha=0.5, lw=0)
    axis.axhline(agreement.bias, color=_GREY, lw=1)
    for end in (agreement.low, agreement.high):
        axis.axhline(end, color=_GREY, lw=1, ls="--")
    axis.set(xlabel="mean of both, mm²", ylabel="new − old, mm²")  # noqa: RUF001
    return figure
