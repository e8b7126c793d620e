"""The figure of a study of `evidence.py`: mean and 95 % interval of each method, a panel per measure."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_softseg.evaluation.report.drawing import drawing, method_styles, new_figure

COLUMNS = 4
_LONGEST = 30
"""Letters of a line of a panel's title."""
_DIFFERENCE = " - "


def draw(rows: Sequence[Mapping[str, Any]], measures: Sequence[str], file: Path) -> None:
    """Write the figure of the measures named, of a group of cases (`dice, real images`), too, as PNG.

    Args:
        rows: of evidence.json; differences between methods and rows without a mean are left out.
        measures: their names.
        file: to write.
    """
    shown = [
        row
        for row in rows
        if row["mean"] is not None
        and not any(sign in row["method"] for sign in (_DIFFERENCE, " / "))
        and row["measure"].split(", ")[0] in measures
    ]
    panels = sorted(
        dict.fromkeys((row["label"], row["measure"]) for row in shown), key=lambda panel: panel[0]
    )
    methods = list(dict.fromkeys(row["method"] for row in shown))
    lines = -(-len(panels) // COLUMNS)
    with drawing():
        figure = new_figure(2.5 * min(len(panels), COLUMNS) + 1, (0.5 + 0.24 * len(methods)) * lines + 0.3)
        axes = figure.subplots(lines, min(len(panels), COLUMNS), squeeze=False, sharey=True)
        for axis, panel in zip(axes.flat, panels, strict=False):
            draw_panel(axis, [row for row in shown if (row["label"], row["measure"]) == panel], methods)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        figure.savefig(file, dpi=110)


def draw_panel(axis: Any, rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Draw one measure of one label: a point and its interval per method, the first method on top."""
    styles = method_styles(methods)
    for row in rows:
        place, style = -methods.index(row["method"]), styles[row["method"]]
        if row["low"] is not None:
            axis.hlines(place, row["low"], row["high"], colors=style.colour, lw=1.5)
        axis.plot(row["mean"], place, style.marker, color=style.colour, ms=5)
    unit = f", {rows[0]['unit']}" if rows[0]["unit"] else ""
    title = f"{rows[0]['measure']}{unit} ({rows[0]['label']})"
    axis.set_title(textwrap.fill(title, _LONGEST), fontsize=8)
    axis.set_yticks([-place for place in range(len(methods))], methods)
    axis.set_ylim(-len(methods) + 0.5, 0.5)
