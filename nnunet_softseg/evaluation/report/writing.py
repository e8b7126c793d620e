"""The report: verdict, figures, tables and worst cases in one HTML file."""

from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from nnunet_softseg.evaluation.comparison.result import Comparison
from nnunet_softseg.evaluation.report import figures, tables, worst_cases
from nnunet_softseg.evaluation.report.drawing import method_styles
from nnunet_softseg.evaluation.report.wording import counted, listed, shortened, verdict
from nnunet_softseg.evaluation.tables import write_csv
from nnunet_softseg.io.html import picture, render_page, template, write_page
from nnunet_softseg.io.results import make_folder

PAGE = "report.html"
_NAMED_IN_TITLE = 3
_WORST_COLUMNS = ("number", "method", "case", "contrast", "slice_index", "other")


def write_report(comparison: Comparison, output: Path) -> Path:
    """Write a comparison of one method or more to a folder, made if missing, and return the page.

    Writes report.html, figures/<name>.svg and .png, figures/worst_<n>.png, by_contrast.csv and
    worst_cases.csv. Figures of an earlier report there are replaced.

    Raises:
        UserError: if a file cannot be written.
    """
    folder = Path(output) / "figures"
    make_folder(folder)
    figures.remove_old_figures(folder)
    styles = method_styles(comparison.methods)
    contrasts = tables.by_contrast(comparison)
    write_csv(Path(output) / "by_contrast.csv", contrasts)
    sections, worst_rows = [], []
    for label in comparison.labels:
        worst = list(worst_cases.worst_cases(comparison, label))
        suffix = f"_label{label}" if len(comparison.labels) > 1 else ""
        for found in worst:
            strip = worst_cases.save_strip(found, folder / f"worst_{found.number:02d}{suffix}.png")
            worst_rows.append((label, *(getattr(found, name) for name in _WORST_COLUMNS), strip))
        drawn = figures.draw_figures(comparison, label, styles, folder)
        sections.append(_label_section(comparison, label, contrasts) | {"figures": drawn, "worst": worst})
    columns = ["label", "number", "method", "case", "contrast", "slice", "compared_with", "figure"]
    write_csv(Path(output) / "worst_cases.csv", pd.DataFrame(worst_rows, columns=columns))
    context = {
        "comparison": comparison,
        "styles": [styles[name] for name in comparison.methods],
        "sections": sections,
        "facts": _facts(comparison),
        "tables": tables.general_tables(comparison),
        "map_bar": picture(worst_cases.colour_bar(worst_cases.MAP_COLOURS)),
        "difference_bar": picture(worst_cases.colour_bar(worst_cases.DIFFERENCE_COLOURS)),
        "style_of_page": Markup(template("report.css")),
        "script_of_page": Markup(template("report.js")),
    }
    page = Path(output) / PAGE
    write_page(page, render_page(_title(comparison), template("report.html"), context))
    return page


def _title(comparison: Comparison) -> str:
    names = [shortened(name, 40) for name in comparison.methods]
    if len(names) == 1:
        return f"{names[0]} against the reference"
    return f"Comparison of {listed(names) if len(names) <= _NAMED_IN_TITLE else f'{len(names)} methods'}"


def _facts(comparison: Comparison) -> str:
    """Return the numbers of methods, subjects, images, contrasts and labels, in a line."""
    cases = comparison.cases
    contrasts, labels = len(figures.contrasts_of(cases)), len(comparison.labels)
    parts = [
        counted(len(comparison.methods), "method"),
        counted(cases["subject"].nunique(), "subject"),
        counted(cases["case"].nunique(), "image"),
        counted(contrasts, "contrast") if contrasts else "",
        counted(labels, "label") if labels > 1 else "",
    ]
    return ", ".join(filter(None, parts))


def _label_section(comparison: Comparison, label: int, contrasts: pd.DataFrame) -> dict[str, Any]:
    """Return the part of the page on a label, figures and worst cases apart."""
    regions = comparison.cases.loc[comparison.cases["label"] == label, "csa_region"].dropna().unique()
    return {
        "label": label,
        "name": comparison.labels[label],
        "verdict": verdict(comparison, label),
        "leaderboard": tables.leaderboard(comparison, label),
        "by_contrast": tables.contrast_tables(comparison, label, contrasts),
        "tables": tables.label_tables(comparison, label),
        "pair": figures.contrast_pair(comparison, label),
        "regions": [str(region) for region in regions if region],
    }
