"""The page: everything above put together, and written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from nnunet_softseg.evaluation.comparison import Comparison
from nnunet_softseg.evaluation.report import tables
from nnunet_softseg.evaluation.report.agreement_figures import contrast_pair
from nnunet_softseg.evaluation.report.appearance import method_styles, shortened
from nnunet_softseg.evaluation.report.area_figures import contrasts_of
from nnunet_softseg.evaluation.report.gallery import ShownFigure, draw_figures, remove_old_figures
from nnunet_softseg.evaluation.report.slice_picture import (
    DIFFERENCE_COLOURS,
    MAP_COLOURS,
    Section,
    colour_bar,
    save_strip,
)
from nnunet_softseg.evaluation.report.verdict import verdict
from nnunet_softseg.evaluation.report.wording import MINUS, counted, listed
from nnunet_softseg.evaluation.report.worst_cases import WorstCase, worst_cases
from nnunet_softseg.evaluation.tables import write_csv
from nnunet_softseg.io.atomic import make_folder, replacing
from nnunet_softseg.io.html import picture, render_page, template, write_page

PAGE = "report.html"
_NAMED_IN_TITLE = 3
_PICTURE_QUALITY = 85


def write_report(comparison: Comparison, output: Path) -> Path:
    """Write a comparison as report.html, its figures as SVG and PNG, and the numbers behind them.

    Writes report.html, figures/<name>.svg and .png, figures/worst_<n>.png, by_contrast.csv and
    worst_cases.csv. Figures of an earlier report there are replaced.

    Args:
        comparison: of any number of methods, also one.
        output: folder; made if missing.

    Returns:
        The page.

    Raises:
        UserError: if a file cannot be written.
    """
    folder = Path(output) / "figures"
    make_folder(folder)
    remove_old_figures(folder)
    styles = method_styles(comparison.methods)
    contrasts = tables.by_contrast(comparison)
    write_csv(Path(output) / "by_contrast.csv", contrasts)
    sections = []
    for label, name in comparison.labels.items():
        worst = [_shown(case, label, comparison, folder) for case in worst_cases(comparison, label)]
        figures = draw_figures(comparison, label, styles, folder)
        sections.append(_label_section(comparison, label, name, contrasts, figures=figures, worst=worst))
    write_csv(Path(output) / "worst_cases.csv", _worst_table(sections))
    context = {
        "comparison": comparison,
        "styles": [styles[name] for name in comparison.methods],
        "sections": sections,
        "facts": _facts(comparison),
        "contrast_counts": tables.contrast_counts(comparison),
        "missing": tables.missing_table(comparison),
        "glossary": tables.glossary(comparison),
        "empty": tables.empty_table(),
        "parameters": tables.parameters_table(comparison),
        "map_bar": picture(colour_bar(MAP_COLOURS)),
        "difference_bar": picture(colour_bar(DIFFERENCE_COLOURS)),
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
    if len(names) > _NAMED_IN_TITLE:
        return f"Comparison of {len(names)} methods"
    return f"Comparison of {listed(names)}"


def _facts(comparison: Comparison) -> str:
    """Return who was compared, in a line."""
    cases = comparison.cases
    contrasts = contrasts_of(cases)
    parts = [
        counted(len(comparison.methods), "method"),
        counted(cases["subject"].nunique(), "subject"),
        counted(cases["case"].nunique(), "image"),
    ]
    if contrasts:
        parts.append(counted(len(contrasts), "contrast"))
    if len(comparison.labels) > 1:
        parts.append(counted(len(comparison.labels), "label"))
    return ", ".join(parts)


def _label_section(
    comparison: Comparison,
    label: int,
    name: str,
    contrasts: pd.DataFrame,
    *,
    figures: Mapping[str, ShownFigure],
    worst: list["ShownCase"],
) -> dict[str, Any]:
    rows = comparison.cases[comparison.cases["label"] == label]
    return {
        "label": label,
        "name": name,
        "verdict": verdict(comparison, label),
        "leaderboard": tables.leaderboard(comparison, label),
        "figures": figures,
        "by_contrast": tables.contrast_tables(comparison, label, contrasts),
        "anova": tables.anova_table(comparison, label),
        "pair": contrast_pair(comparison, label),
        "contrast_agreement": tables.contrast_agreement_table(comparison, label),
        "agreement": tables.agreement_table(comparison, label),
        "statistics": tables.statistics_table(comparison, label),
        "errors": tables.largest_errors(comparison, label),
        "regions": [str(region) for region in rows["csa_region"].dropna().unique() if region],
        "worst": worst,
    }


# Worst cases


@dataclass(frozen=True)
class ShownCase:
    """A worst case in the page.

    Attributes:
        found: what there is to say.
        file: its pictures within figures/, "" if there are none.
        panels: caption and data URI of each picture.
        label: value.
    """

    found: WorstCase
    file: str
    panels: list[tuple[str, str]]
    label: int


def _shown(found: WorstCase, label: int, comparison: Comparison, folder: Path) -> ShownCase:
    if found.section is None:
        return ShownCase(found, "", [], label)
    suffix = f"_label{label}" if len(comparison.labels) > 1 else ""
    file = f"worst_{found.number:02d}{suffix}.png"
    with replacing(folder / file) as aside:
        save_strip(found.section, aside)
    panels = [(caption, picture(pixels, _PICTURE_QUALITY)) for caption, pixels in _panels(found.section)]
    return ShownCase(found, file, panels, label)


def _panels(section: Section) -> Iterator[tuple[str, Any]]:
    if section.image is not None:
        yield "image", section.image
    yield "reference", section.reference
    for method, pixels in section.maps.items():
        yield shortened(method), pixels
        yield f"{shortened(method)} {MINUS} reference", section.differences[method]


def _worst_table(sections: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["label", "number", "method", "case", "contrast", "slice", "compared_with", "figure"]
    rows = [
        (
            case.label,
            case.found.number,
            case.found.method,
            case.found.case,
            case.found.contrast,
            case.found.slice_index,
            case.found.other,
            case.file,
        )
        for section in sections
        for case in section["worst"]
    ]
    return pd.DataFrame(rows, columns=columns)
