"""The tables of the report: the text of each cell, and the key by which its column is sorted."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.evaluation.comparison.leaderboard import SCORES
from nnunet_softseg.evaluation.comparison.result import Comparison
from nnunet_softseg.evaluation.report import wording
from nnunet_softseg.evaluation.report.figures import contrast_pair, contrasts_of
from nnunet_softseg.evaluation.tables import describe, in_order
from nnunet_softseg.io.html import NO_VALUE
from nnunet_softseg.metrics.measure_table import MEASURES

BY_CONTRAST = ("abs_csa_error_mm2", "dice", "asd_mm", "abs_rve_percent")
"""Measures with a table over contrasts in the page; the file has all."""
MOST_CASES = 20
_AREA_NAMES = {"csa_mm2": "CSA", "csa_hard_mm2": "CSA, map > 0.5"}
_LONGEST_WORD = 24
_NAMELESS = "not told by the names"

Row = Any
Column = str | Callable[[Row], Any]
"""A name of a column of the data, or a function of a row; the type of its value decides how a cell looks."""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the key by which its column is sorted ("" sorts last), the class of its style."""

    text: str
    key: str
    look: str = ""


@dataclass(frozen=True)
class Table:
    """A table: its anchor, the heads, rows of cells, and which columns hold numbers, on the right."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]


def _table(name: str, rows: pd.DataFrame | Iterable[Row], columns: Mapping[str, Column]) -> Table:
    """Return a table with a row for each row of the data."""
    records: Iterable[Row] = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    values = [[of(row) if callable(of) else row[of] for of in columns.values()] for row in records]
    return _of_values(name, list(columns), values)


def _of_values(name: str, heads: Sequence[str], values: Iterable[Sequence[Any]]) -> Table:
    cells = [[_cell(value) for value in line] for line in values]
    numeric = [all("number" in each.look for each in column) for column in zip(*cells, strict=True)]
    return Table(name, heads, cells, numeric or [False] * len(heads))


def _cell(value: Any) -> Cell:
    """Return a cell as it is, a whole number in full, other numbers with three digits, all else as text."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, int | np.integer):
        return _number(float(value), str(value))
    return _number(value) if isinstance(value, float) else _text(value)


def _text(text: Any, look: str = "") -> Cell:
    words = str(text).split() or [""]
    # Only names that would widen a table without end are broken.
    long = "long" if max(map(len, words)) > _LONGEST_WORD else ""
    short = "short" if len(str(text)) <= _LONGEST_WORD else "words"
    return Cell(str(text), str(text), f"{look} {long or short}".strip())


def _number(value: float, text: str | None = None, look: str = "") -> Cell:
    # The page's script reads the key.
    key = "" if math.isnan(value) else repr(float(value)).replace("inf", "Infinity")
    return Cell(wording.number(value) if text is None else text, key, f"number {look}".rstrip())


def _p(name: str) -> Column:
    return lambda row: _number(row[name], wording.plain_p(row[name]))


def _two_digits(name: str) -> Column:
    return lambda row: _number(row[name], wording.number(row[name], 2))


def _ends(low: str, high: str) -> Column:
    return lambda row: _number(row[low], wording.interval(row[low], row[high]))


def _area(row: Row) -> str:
    return _AREA_NAMES[row["measure"]]


def measure_name(measure: str) -> str:
    """Return title and unit: "STD of CSA over contrasts, mm²"."""
    score = SCORES[measure]
    return f"{score.title}, {wording.unit_text(score.unit)}" if score.unit else score.title


def leaderboard(comparison: Comparison, label: int) -> list[dict[str, Any]]:
    """Return a row per measure that has values: name, arrow to the better end, cells, and who wins."""
    scores = comparison.scores[comparison.scores["label"] == label]
    tables = {measure: rows.set_index("method") for measure, rows in scores.groupby("measure")}
    return [
        {
            "name": measure_name(found.measure),
            "role": "" if found.role == "exploratory" else found.role,
            "arrow": "↑" if SCORES[found.measure].higher_is_better else "↓",
            "cells": _mean_cells(tables[found.measure], comparison.methods, found.best),
            "outcome": found,
            "badge": wording.badge(found),
            "against": wording.against(found),
            "uncertainty": wording.uncertainty(found),
        }
        for found in comparison.outcomes
        if found.label == label
    ]


def _mean_cells(table: pd.DataFrame, methods: Sequence[str], best: Sequence[str]) -> list[Cell]:
    """Return mean and SD of each method; where a mean is infinite, its median too, if the table has ranks."""
    decimals, cells = wording.shared_decimals(table["mean"]), []
    printed = {method: f"{mean:.{decimals}f}" for method, mean in table["mean"].items()}
    others = {text for method, text in printed.items() if method not in best}
    for method, row in table.reindex(methods).iterrows():
        text = wording.mean_and_sd(row["mean"], row["sd"], decimals)
        if math.isinf(row["mean"]) and "rank" in row:
            text = f"{text} (median {wording.number(row['median'])})"
        # A mean that is printed as another's is not best by anything that a reader sees.
        is_best = method in best and len(table) > 1 and printed[method] not in others
        cells.append(_number(row["mean"], text, "best" if is_best else ""))
    return cells


def by_contrast(comparison: Comparison) -> pd.DataFrame:
    """Return every measure per label, contrast and method: mean, sd, median of images with a value."""
    rows = []
    measures = [name for name in SCORES if name in comparison.cases and comparison.cases[name].notna().any()]
    keys = ["label", "contrast", "method"]
    for who, cases in comparison.cases.groupby(keys, sort=False):
        for measure in measures:
            values = cases[measure].dropna().to_numpy(float)
            row = {"measure": measure, "num_cases": values.size, **describe(values)}
            rows.append(dict(zip(keys, who, strict=True)) | row)
    columns = ["label", "measure", "contrast", "method", "num_cases", "mean", "sd", "median"]
    table = pd.DataFrame(rows, columns=columns)
    return in_order(table, columns[:4], measure=list(SCORES), method=comparison.methods)


def contrast_tables(comparison: Comparison, label: int, table: pd.DataFrame) -> list[tuple[str, Table]]:
    """Return a title and a table, made from that of `by_contrast`, for each of `BY_CONTRAST` with values."""
    shown = []
    heads = ("contrast", "images", *comparison.methods)
    for measure in BY_CONTRAST:
        rows = table[(table["label"] == label) & (table["measure"] == measure) & (table["num_cases"] > 0)]
        if len(contrasts_of(rows)) > 1:
            lines = []
            for contrast, of_contrast in rows.groupby("contrast"):
                numbers = of_contrast.set_index("method")
                means = numbers["mean"]
                nearest = means.max() if SCORES[measure].higher_is_better else means.min()
                cells = _mean_cells(numbers, comparison.methods, list(means.index[means == nearest]))
                lines.append([contrast or _NAMELESS, int(numbers["num_cases"].max()), *cells])
            shown.append((measure_name(measure), _of_values(f"contrasts-{measure}-{label}", heads, lines)))
    return shown


def _difference(row: Row) -> Cell:
    difference = row[f"{row['interval_of']}_difference"]
    return _number(difference, wording.number(difference, 2) + " (median)" * (row["interval_of"] == "median"))


def _degrees_of_freedom(row: Row) -> Cell:
    known = math.isfinite(row["df_contrasts"]) and math.isfinite(row["df_error"])
    text = f"{row['df_contrasts']:g}, {row['df_error']:g}" if known else NO_VALUE
    return _number(row["df_contrasts"], text)


_STATISTICS: dict[str, Column] = {
    "measure": lambda row: measure_name(row["measure"]),
    "role": "role",
    "a": "method_a",
    "b": "method_b",
    "subjects": "num_subjects",
    f"a {wording.MINUS} b": _difference,
    "95 % CI": _ends("ci_low", "ci_high"),
    "W": "wilcoxon_w",
    "p": _p("p_subjects"),
    "p corrected": _p("p_subjects_corrected"),
    "p over images": _p("p_cases"),
    "rank-biserial": _two_digits("rank_biserial"),
    "Cohen's dz": _two_digits("cohens_dz"),
    "better": lambda row: row["better"] or "equal",
    "holds": lambda row: _text("yes", "good") if row["holds"] else "no",
    "note": "note",
}
_ANOVA: dict[str, Column] = {
    "method": "method",
    "area": _area,
    "subjects": "num_subjects",
    "contrasts": "num_contrasts",
    "F": "f",
    "df": _degrees_of_freedom,
    "ε": _two_digits("epsilon"),
    "p": _p("p"),
    "p corrected": _p("p_corrected"),
    "partial η²": _two_digits("partial_eta_squared"),
    "note": "note",
}
_AGREEMENT: dict[str, Column] = {
    "method": "method",
    "area": _area,
    "contrast": lambda row: row["contrast"] or "all",
    "images": "num_cases",
    "bias, mm²": "bias",
    "95 % CI": _ends("bias_ci_low", "bias_ci_high"),
    "SD, mm²": "sd",
    "limits of agreement, mm²": _ends("loa_low", "loa_high"),
    "note": "note",
}
_ERRORS: dict[str, Column] = {
    "case": "case",
    "method": "method",
    "contrast": "contrast",
    "CSA, mm²": "csa_mm2",
    "reference, mm²": "reference_csa_mm2",
    "error, mm²": "csa_error_mm2",
    "error, %": _two_digits("csa_error_percent"),
    "Dice": "dice",
    "HD95, mm": "hd95_mm",
    "empty slices": lambda row: _number(
        row["csa_missed_slices"], f"{row['csa_missed_slices']} of {row['csa_slices']}"
    ),
    "area over": "csa_region",
}


def label_tables(comparison: Comparison, label: int) -> dict[str, Table]:
    """Return statistics, anova, agreement, largest errors, agreement of the two contrasts in the figure."""
    cases = comparison.cases[comparison.cases["label"] == label]
    worst = cases.sort_values(["abs_csa_error_mm2", "dice"], ascending=[False, True]).head(MOST_CASES)
    shown = {
        "statistics": (comparison.statistics, _STATISTICS),
        "anova": (comparison.anova, _ANOVA),
        "agreement": (comparison.agreement, _AGREEMENT),
        "errors": (worst, _ERRORS),
    }
    pair = contrast_pair(comparison, label)
    if pair is not None:
        rows = comparison.contrast_agreement
        rows = rows[(rows["contrast_x"] == pair[0]) & (rows["contrast_y"] == pair[1])]
        columns: dict[str, Column] = {
            "method": "method",
            "area": _area,
            "subjects": "num_subjects",
            f"{pair[1]} {wording.MINUS} {pair[0]}, mm²": "bias",
            "limits of agreement, mm²": _ends("loa_low", "loa_high"),
            "slope": "slope",
            "intercept, mm²": "intercept",
            "r": "r",
        }
        shown["contrast_agreement"] = (rows, columns)
    return {
        name: _table(f"{name.replace('_', '-')}-{label}", rows[rows["label"] == label], columns)
        for name, (rows, columns) in shown.items()
    }


def general_tables(comparison: Comparison) -> dict[str, Table]:
    """Return images per contrast, cases that are in no table, what measures mean, empty values, options."""
    images = comparison.cases.drop_duplicates("case").groupby("contrast", as_index=False)
    counts = images.agg(images=("case", "size"), subjects=("subject", "nunique"))
    ranked = set(comparison.scores["measure"])
    measures = [vars(measure) for name, measure in SCORES.items() if name in ranked]
    empty = [{"column": name, **vars(measure.empty)} for name, measure in MEASURES.items()]
    options = [{"parameter": name, "value": _option(value)} for name, value in comparison.parameters.items()]
    failed = [{"case": case_id, "reason": why} for case_id, why in comparison.failed.items()]
    shown: dict[str, tuple[pd.DataFrame | Iterable[Row], dict[str, Column]]] = {
        "contrasts": (counts.replace({"contrast": {"": _NAMELESS}}), _same("contrast", "images", "subjects")),
        "missing": (comparison.missing, _same("case", "method", "reason")),
        "failed": (failed, _same("case", "reason")),
        "glossary": (measures, _GLOSSARY),
        "empty": (empty, _EMPTY),
        "parameters": (options, _same("parameter", "value")),
    }
    return {name: _table(name, rows, columns) for name, (rows, columns) in shown.items()}


def _same(*names: str) -> dict[str, Column]:
    """Return columns whose heads are their names in the data."""
    return {name: name for name in names}


_GLOSSARY: dict[str, Column] = {
    "measure": "title",
    "unit": lambda row: wording.unit_text(row["unit"]) or "1",
    "direction": lambda row: "higher is better" if row["ideal"] else "lower is better",
    "meaning": "meaning",
}
_EMPTY_IF = {"soft": "no voxel above 0", "hard": "no voxel above 0.5"}
_EMPTY: dict[str, Column] = {
    "column": "column",
    "a map is empty if it has": lambda row: _EMPTY_IF[row["empty_if"]],
    "both empty": lambda row: _empty_value(row["both"]),
    "prediction empty": lambda row: _empty_value(row["prediction"]),
    "reference empty": lambda row: _empty_value(row["reference"]),
}


def _empty_value(value: float | None) -> Cell:
    if value is None:
        return _text("computed as always", "muted")
    return _text("no value" if math.isnan(value) else wording.number(value))


def _option(value: Any) -> str:
    if value is None or value in ({}, []):
        return NO_VALUE
    if isinstance(value, dict):
        return "; ".join(f"{name}: {part}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
