"""A normative table brought from the old release to the new one by the line between them, level by level."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.comparison.paired_statistics import DemingLine, Floats
from nnunet_softseg.evaluation.releases.areas import NO_LEVEL, level_number
from nnunet_softseg.evaluation.tables import read_table

_SPREADS = ("sd", "std")
_EARLIER = re.compile(r"^deming_|_se_mm2$")
"""Columns of an earlier update, which are replaced."""


def updated_table(file: Path, relations: pd.DataFrame, pooled: pd.DataFrame) -> pd.DataFrame:
    """Return a table of areas as the new release would have measured them.

    Every column that ends in `_mm2` is taken for areas of the old release: slope x area + intercept of the
    row's contrast and level; one with `sd` or `std` as a word of its name for a spread: slope x spread. Added
    are `<column>_se_mm2`, the standard error that the line brings (of the line alone, not of the table), and
    the line: deming_slope, deming_slope_se, deming_intercept_mm2, deming_intercept_se_mm2.

    Args:
        file: CSV with level, perhaps contrast, and areas; other columns stay as they are.
        relations: of `drift_report.statistics_table`.
        pooled: the same of all contrasts together, for a table without contrasts.

    Raises:
        UserError: if it cannot be read, has no area, or a level or contrast that was not compared.
    """
    table = read_table(file, "a CSV of areas", dtype={"level": str, "contrast": str})
    table = table[[name for name in table.columns if not _EARLIER.search(str(name))]]
    areas = [str(name) for name in table.columns if str(name).endswith("_mm2")]
    if not areas:
        raise UserError(
            f"{file}: expected columns of areas whose names end in _mm2, found "
            f"{examples(list(map(str, table.columns)), 8)}: rename them"
        )
    for name in areas:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise UserError(f"{file}: {name}: expected numbers in mm2, found text: correct it")
    lines = _lines(relations if "contrast" in table or pooled.empty else pooled, "contrast" in table)
    keys = _keys(file, table)
    lacking = sorted({" ".join(filter(None, map(str, key))) for key in keys if key not in lines})
    if lacking:
        raise UserError(
            f"{file}: expected levels and contrasts that were compared, found {examples(lacking)} beside "
            "them: compare these too, or leave their rows out"
        )
    return _converted(table, areas, [lines[key] for key in keys])


def _keys(file: Path, table: pd.DataFrame) -> list[tuple[str, int]]:
    contrasts = table["contrast"].fillna("") if "contrast" in table else [""] * len(table)
    texts = table["level"].fillna("") if "level" in table else [""] * len(table)
    return [
        (str(contrast), level_number(file, str(text)))
        for contrast, text in zip(contrasts, texts, strict=True)
    ]


def _lines(relations: pd.DataFrame, by_contrast: bool) -> dict[tuple[str, int], DemingLine]:
    names = ["deming_slope", "deming_intercept_mm2", "slope_se", "intercept_se_mm2", "covariance_mm2"]
    keys = zip(relations["contrast"], relations["level"].fillna(NO_LEVEL), strict=True)
    lines = [DemingLine(*map(float, row)) for row in relations[names].to_numpy(dtype=np.float64)]
    named = {
        (contrast if by_contrast else "", int(level)): line
        for (contrast, level), line in zip(keys, lines, strict=True)
    }
    return {key: line for key, line in named.items() if not np.isnan(line.slope)}


def _converted(table: pd.DataFrame, areas: list[str], lines: list[DemingLine]) -> pd.DataFrame:
    columns = np.array(lines, dtype=np.float64).reshape(-1, 5).T
    line = DemingLine(*columns)  # one line per row, as arrays
    added: dict[str, Floats] = {}
    for name in areas:
        values = table[name].to_numpy(dtype=np.float64)
        spread = any(word in _SPREADS for word in name.lower().split("_"))
        new = line.slope * values if spread else line.at(values)
        errors = np.abs(values) * line.slope_se if spread else line.se_at(values)
        added |= {name: new, f"{name.removesuffix('_mm2')}_se_mm2": errors}
    kept = {"deming_slope": line.slope, "deming_slope_se": line.slope_se}
    kept |= {"deming_intercept_mm2": line.intercept, "deming_intercept_se_mm2": line.intercept_se}
    return table.assign(**added, **kept)
