"""The tables of the report: what a cell says, and by what it is sorted."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.evaluation.columns import CASE_COLUMNS
from nnunet_softseg.evaluation.comparison import SCORES, Comparison
from nnunet_softseg.evaluation.comparison.scores import Score
from nnunet_softseg.evaluation.report.agreement_figures import contrast_pair
from nnunet_softseg.evaluation.report.area_figures import contrasts_of
from nnunet_softseg.evaluation.report.verdict import Outcome, outcomes
from nnunet_softseg.evaluation.report.wording import (
    MINUS,
    interval,
    mean_and_sd,
    number,
    plain_p,
    shared_decimals,
    unit_text,
)
from nnunet_softseg.io.html import NO_VALUE
from nnunet_softseg.metrics.measure_table import MEASURES

BY_CONTRAST = ("abs_csa_error_mm2", "dice", "asd_mm", "abs_rve_percent")
"""Measures with a table over contrasts in the page; the file has all."""
MOST_CASES = 20
_MEASURED_NAMES = {"csa_mm2": "CSA", "csa_hard_mm2": "CSA, map > 0.5"}
_LONGEST_WORD = 24
_NAMELESS = "not told by the names"
_COMPUTED = "computed as always"


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what it says.
        key: by what its column is sorted; "" sorts last.
        look: class of the style.
    """

    text: str
    key: str
    look: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: its anchor.
        columns: heads; those of numbers end up on the right.
        rows: of cells.
        numeric: which columns hold numbers.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]


def _text(text: Any, look: str = "") -> Cell:
    words = str(text).split() or [""]
    # Only names that would widen a table without end are broken.
    long = "long" if max(map(len, words)) > _LONGEST_WORD else ""
    short = "short" if len(str(text)) <= _LONGEST_WORD else "words"
    return Cell(str(text), str(text), f"{look} {long or short}".strip())


def _number(value: float, text: str | None = None, look: str = "") -> Cell:
    return Cell(number(value) if text is None else text, _key(value), f"number {look}".rstrip())


def _count(count: int, text: str | None = None) -> Cell:
    return _number(count, str(count) if text is None else text)


def _key(value: float) -> str:
    """Return a number as the page's script reads it."""
    if math.isnan(value):
        return ""
    return repr(float(value)).replace("inf", "Infinity")


def _table(name: str, heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    cells = list(rows)
    numeric = [
        bool(cells) and all("number" in row[place].look for row in cells) for place in range(len(heads))
    ]
    return Table(name, heads, cells, numeric)


def measure_name(measure: str) -> str:
    """Return title and unit: "STD of CSA over contrasts, mm²"."""
    score = SCORES.get(measure)
    if score is None:
        return _MEASURED_NAMES.get(measure, measure)
    return f"{score.title}, {unit_text(score.unit)}" if score.unit else score.title


def direction(score: Score) -> str:
    """Return an arrow to the better end."""
    return "↑" if score.higher_is_better else "↓"


# The leaderboard


@dataclass(frozen=True)
class LeaderboardRow:
    """One measure.

    Attributes:
        name: title and unit.
        arrow: to the better end.
        cells: one per method.
        outcome: who wins.
    """

    name: str
    arrow: str
    cells: Sequence[Cell]
    outcome: Outcome


def leaderboard(comparison: Comparison, label: int) -> list[LeaderboardRow]:
    """Return a row per measure that has values."""
    scores = comparison.scores[comparison.scores["label"] == label]
    rows = []
    for found in outcomes(comparison, label):
        table = scores[scores["measure"] == found.measure].set_index("method")
        decimals = shared_decimals(table["mean"])
        cells = [
            _score_cell(table, method, decimals, several=len(comparison.methods) > 1)
            for method in comparison.methods
        ]
        rows.append(LeaderboardRow(measure_name(found.measure), direction(found.score), cells, found))
    return rows


def _score_cell(table: pd.DataFrame, method: str, decimals: int, *, several: bool) -> Cell:
    if method not in table.index:
        return _number(math.nan)
    row = table.loc[method]
    text = mean_and_sd(row["mean"], row["sd"], decimals)
    if math.isinf(row["mean"]):
        text = f"{text} (median {number(row['median'])})"
    return _number(row["mean"], text, "best" if several and row["rank"] == 1 else "")


# Per contrast


def by_contrast(comparison: Comparison) -> pd.DataFrame:
    """Return every measure per contrast and method: mean, SD and median over images.

    Returns:
        label, measure, contrast, method, num_cases, mean, sd (ddof 1), median; images with a value only.
    """
    rows = []
    measures = [name for name in SCORES if name in comparison.cases and comparison.cases[name].notna().any()]
    keys = ["label", "contrast", "method"]
    for (label, contrast, method), cases in comparison.cases.groupby(keys, sort=False):
        for measure in measures:
            values = cases[measure].dropna().to_numpy(float)
            finite = values.size > 1 and bool(np.isfinite(values).all())
            rows.append(
                {
                    "label": label,
                    "measure": measure,
                    "contrast": contrast,
                    "method": method,
                    "num_cases": values.size,
                    "mean": values.mean() if values.size else math.nan,
                    "sd": values.std(ddof=1) if finite else math.nan,
                    "median": np.median(values) if values.size else math.nan,
                }
            )
    columns = ["label", "measure", "contrast", "method", "num_cases", "mean", "sd", "median"]
    table = pd.DataFrame(rows, columns=columns)
    # A method may be called like a measure.
    places = {"measure": list(SCORES), "method": list(comparison.methods)}
    return table.sort_values(
        columns[:4],
        key=lambda column: column.map(places[column.name].index) if column.name in places else column,
        ignore_index=True,
    )


def contrast_tables(comparison: Comparison, label: int, table: pd.DataFrame) -> list[tuple[str, Table]]:
    """Return a title and a table over contrasts for each of `BY_CONTRAST` that has values.

    Args:
        comparison: of methods.
        label: value.
        table: of `by_contrast`.
    """
    table = table[table["label"] == label]
    shown = []
    for measure in BY_CONTRAST:
        rows = table[(table["measure"] == measure) & (table["num_cases"] > 0)]
        if len(contrasts_of(rows)) > 1:
            name = f"contrasts-{measure}-{label}"
            shown.append((measure_name(measure), _one_measure(name, rows, measure, comparison.methods)))
    return shown


def _one_measure(name: str, rows: pd.DataFrame, measure: str, methods: Sequence[str]) -> Table:
    lines = []
    for contrast, line in rows.groupby("contrast"):
        found = line.set_index("method")
        best = found["mean"].max() if SCORES[measure].higher_is_better else found["mean"].min()
        decimals = shared_decimals(found["mean"])
        cells = [_text(contrast or _NAMELESS), _count(int(found["num_cases"].max()))]
        for method in methods:
            if method not in found.index:
                cells.append(_number(math.nan))
                continue
            mean, sd = found.loc[method, "mean"], found.loc[method, "sd"]
            cells.append(
                _number(
                    mean, mean_and_sd(mean, sd, decimals), "best" if mean == best and len(methods) > 1 else ""
                )
            )
        lines.append(cells)
    return _table(name, ["contrast", "images", *methods], lines)


# Statistics


def statistics_table(comparison: Comparison, label: int) -> Table:
    """Return all pairs of methods by all measures."""
    heads = [
        "measure",
        "a",
        "b",
        "subjects",
        f"a {MINUS} b",
        "95 % CI",
        "W",
        "p",
        "p corrected",
        "p over images",
        "rank-biserial",
        "Cohen's dz",
        "better",
        "holds",
        "note",
    ]
    rows = comparison.statistics[comparison.statistics["label"] == label]
    return _table(f"statistics-{label}", heads, [_pair_cells(row) for row in rows.to_dict("records")])


def _pair_cells(row: Mapping[Any, Any]) -> list[Cell]:
    difference = row[f"{row['interval_of']}_difference"]
    median = " (median)" if row["interval_of"] == "median" else ""
    return [
        _text(measure_name(row["measure"])),
        _text(row["method_a"]),
        _text(row["method_b"]),
        _count(row["num_subjects"]),
        _number(difference, number(difference, 2) + median),
        _number(row["ci_low"], interval(row["ci_low"], row["ci_high"])),
        _number(row["wilcoxon_w"]),
        _number(row["p_subjects"], plain_p(row["p_subjects"])),
        _number(row["p_subjects_corrected"], plain_p(row["p_subjects_corrected"])),
        _number(row["p_cases"], plain_p(row["p_cases"])),
        _number(row["rank_biserial"], number(row["rank_biserial"], 2)),
        _number(row["cohens_dz"], number(row["cohens_dz"], 2)),
        _text(row["better"] or "equal"),
        _text("yes" if row["holds"] else "no", "good" if row["holds"] else ""),
        _text(row["note"]),
    ]


def anova_table(comparison: Comparison, label: int) -> Table:
    """Return whether area depends on contrast, per method."""
    heads = [
        "method",
        "area",
        "subjects",
        "contrasts",
        "F",
        "df",
        "ε",
        "p",
        "p corrected",
        "partial η²",
        "note",
    ]
    rows = comparison.anova[comparison.anova["label"] == label]
    return _table(f"anova-{label}", heads, [_anova_cells(row) for row in rows.to_dict("records")])


def _anova_cells(row: Mapping[Any, Any]) -> list[Cell]:
    known = math.isfinite(row["df_contrasts"]) and math.isfinite(row["df_error"])
    df = f"{row['df_contrasts']:g}, {row['df_error']:g}" if known else NO_VALUE
    return [
        _text(row["method"]),
        _text(_MEASURED_NAMES[row["measure"]]),
        _count(row["num_subjects"]),
        _count(row["num_contrasts"]),
        _number(row["f"]),
        _number(row["df_contrasts"], df),
        _number(row["epsilon"], number(row["epsilon"], 2)),
        _number(row["p"], plain_p(row["p"])),
        _number(row["p_corrected"], plain_p(row["p_corrected"])),
        _number(row["partial_eta_squared"], number(row["partial_eta_squared"], 2)),
        _text(row["note"]),
    ]


def agreement_table(comparison: Comparison, label: int) -> Table:
    """Return bias and limits of agreement per method and contrast."""
    heads = [
        "method",
        "area",
        "contrast",
        "images",
        "bias, mm²",
        "95 % CI",
        "SD, mm²",
        "limits of agreement, mm²",
        "note",
    ]
    rows = comparison.agreement[comparison.agreement["label"] == label]
    return _table(f"agreement-{label}", heads, [_agreement_cells(row) for row in rows.to_dict("records")])


def _agreement_cells(row: Mapping[Any, Any]) -> list[Cell]:
    return [
        _text(row["method"]),
        _text(_MEASURED_NAMES[row["measure"]]),
        _text(row["contrast"] or "all"),
        _count(row["num_cases"]),
        _number(row["bias"]),
        _number(row["bias_ci_low"], interval(row["bias_ci_low"], row["bias_ci_high"])),
        _number(row["sd"]),
        _number(row["loa_low"], interval(row["loa_low"], row["loa_high"])),
        _text(row["note"]),
    ]


def contrast_agreement_table(comparison: Comparison, label: int) -> Table | None:
    """Return how the areas of the two contrasts in the figure agree, per method and area."""
    pair = contrast_pair(comparison, label)
    if pair is None:
        return None
    rows = comparison.contrast_agreement
    chosen = (rows["label"] == label) & (rows["contrast_x"] == pair[0]) & (rows["contrast_y"] == pair[1])
    heads = [
        "method",
        "area",
        "subjects",
        f"{pair[1]} {MINUS} {pair[0]}, mm²",
        "limits of agreement, mm²",
        "slope",
        "intercept, mm²",
        "r",
    ]
    lines = [
        [
            _text(row["method"]),
            _text(_MEASURED_NAMES[row["measure"]]),
            _count(row["num_subjects"]),
            _number(row["bias"]),
            _number(row["loa_low"], interval(row["loa_low"], row["loa_high"])),
            _number(row["slope"]),
            _number(row["intercept"]),
            _number(row["r"]),
        ]
        for row in rows[chosen].to_dict("records")
    ]
    return _table(f"contrast-agreement-{label}", heads, lines)


# Cases


def largest_errors(comparison: Comparison, label: int) -> Table:
    """Return the cases with the largest absolute area errors, whatever the method."""
    heads = [
        "case",
        "method",
        "contrast",
        "CSA, mm²",
        "reference, mm²",
        "error, mm²",
        "error, %",
        "Dice",
        "HD95, mm",
        "empty slices",
        "area over",
    ]
    cases = comparison.cases[comparison.cases["label"] == label]
    worst = cases.sort_values(["abs_csa_error_mm2", "dice"], ascending=[False, True]).head(MOST_CASES)
    lines = [
        [
            _text(row["case"]),
            _text(row["method"]),
            _text(row["contrast"]),
            _number(row["csa_mm2"]),
            _number(row["reference_csa_mm2"]),
            _number(row["csa_error_mm2"]),
            _number(row["csa_error_percent"], number(row["csa_error_percent"], 2)),
            _number(row["dice"]),
            _number(row["hd95_mm"]),
            _count(row["csa_missed_slices"], f"{row['csa_missed_slices']} of {row['csa_slices']}"),
            _text(row["csa_region"]),
        ]
        for row in worst.to_dict("records")
    ]
    return _table(f"errors-{label}", heads, lines)


def contrast_counts(comparison: Comparison) -> Table:
    """Return how many images and subjects each contrast has."""
    images = comparison.cases.drop_duplicates("case")
    lines = [
        [_text(contrast or _NAMELESS), _count(len(rows)), _count(rows["subject"].nunique())]
        for contrast, rows in images.groupby("contrast")
    ]
    return _table("contrasts", ["contrast", "images", "subjects"], lines)


def missing_table(comparison: Comparison) -> Table:
    """Return which cases some method lacks, and why."""
    rows = comparison.missing.to_dict("records")
    lines = [[_text(row["case"]), _text(row["method"]), _text(row["reason"])] for row in rows]
    return _table("missing", ["case", "method", "reason"], lines)


# What the words mean


def glossary(comparison: Comparison) -> Table:
    """Return what the measures of the leaderboard mean."""
    lines = [
        [
            _text(score.title),
            _text(unit_text(score.unit) or "1"),
            _text("higher is better" if score.higher_is_better else "lower is better"),
            _text(_meaning(name)),
        ]
        for name, score in SCORES.items()
        if name in set(comparison.scores["measure"])
    ]
    return _table("glossary", ["measure", "unit", "direction", "meaning"], lines)


def _meaning(name: str) -> str:
    if name in MEASURES:
        return MEASURES[name].meaning
    area = "the map as given" if "hard" not in name else "the map > 0.5"
    if name.startswith("std_csa"):
        return f"standard deviation (n {MINUS} 1) of a subject's CSA over contrasts, of {area}"
    if name.startswith("abs_csa"):
        end = " in percent of the reference" if name.endswith("percent") else ""
        of = "both maps as given" if "hard" not in name else "both maps > 0.5"
        return f"|CSA of the prediction {MINUS} CSA of the reference|{end}, of {of}"
    if name.startswith("abs_"):
        of = "" if "hard" not in name else ", of maps > 0.5"
        return f"|volume of the prediction {MINUS} volume of the reference| in percent of the reference{of}"
    return CASE_COLUMNS[name]


def empty_table() -> Table:
    """Return the value of each measure where a map is empty."""
    words = {
        "soft": "no voxel above 0",
        "hard": "no voxel above 0.5",
        "object": "reference: none above 0; prediction: none above 0.5",
    }
    lines = [
        [
            _text(name),
            _text(words[measure.empty.empty_if]),
            *(_empty_value(getattr(measure.empty, which)) for which in ("both", "prediction", "reference")),
        ]
        for name, measure in MEASURES.items()
    ]
    heads = ["column", "a map is empty if it has", "both empty", "prediction empty", "reference empty"]
    return _table("empty", heads, lines)


def _empty_value(value: float | None) -> Cell:
    if value is None:
        return _text(_COMPUTED, "muted")
    return _text("no value" if math.isnan(value) else number(value))


def parameters_table(comparison: Comparison) -> Table:
    """Return what made the report."""
    parameters = comparison.made_by.get("parameters", {})
    lines = [[_text(name), _text(_as_words(value))] for name, value in parameters.items()]
    return _table("parameters", ["parameter", "value"], lines)


def _as_words(value: Any) -> str:
    if value is None or value in ({}, []):
        return NO_VALUE
    if isinstance(value, dict):
        return "; ".join(f"{name}: {part}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
