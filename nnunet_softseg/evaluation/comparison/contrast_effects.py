"""Whether area depends on contrast, within a method; and how a method's areas agree with the reference's."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.evaluation.comparison import paired_statistics
from nnunet_softseg.evaluation.comparison.leaderboard import complete_areas, with_reference
from nnunet_softseg.evaluation.measuring import AREAS, REFERENCE

ANOVA_COLUMNS = {
    "method": "name, or reference",
    "label": "value of the label",
    "measure": "csa_mm2 or csa_hard_mm2",
    "num_subjects": "with all contrasts in all methods",
    "num_contrasts": "levels of the factor",
    "f": "repeated-measures analysis of variance over contrasts",
    "df_contrasts": "contrasts - 1",
    "df_error": "(contrasts - 1)(subjects - 1)",
    "p": "uncorrected",
    "epsilon": "Greenhouse-Geisser",
    "p_corrected": "with degrees of freedom times epsilon",
    "partial_eta_squared": "effect size",
    "note": "why there is no value",
}
_LIMITS = ("bias", "sd", "loa_low", "loa_high")
_INTERVALS = tuple(f"{name}_ci_{end}" for name in ("bias", "loa_low", "loa_high") for end in ("low", "high"))
_WHOSE = ("method", "label", "measure")
AGREEMENT_COLUMNS = (*_WHOSE, "contrast", "num_subjects", "num_cases", *_LIMITS, *_INTERVALS, "note")
"""Bias (prediction - reference), its standard deviation, 95 % limits of agreement, intervals of these."""
_PAIR = ("contrast_x", "contrast_y", "num_subjects", "bias", "loa_low", "loa_high", "slope", "intercept", "r")
PAIR_COLUMNS = (*_WHOSE, *_PAIR)
"""Bias (y - x) and limits of agreement; least-squares line, and Pearson's r."""
_FEWEST_FOR_ANOVA = 3


def anova_table(cases: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return whether area depends on contrast, a row per method (and the reference), label and measure."""
    rows = []
    for (label, table), area in product(with_reference(cases).groupby("label"), AREAS):
        wide = complete_areas(table, area)
        for method in [*methods, REFERENCE]:
            there = method in wide.index.get_level_values("method")
            values = wide.loc[method].to_numpy() if there else np.empty((0, wide.shape[1]))
            rows.append({"method": method, "label": label, "measure": area, **_anova(values)})
    return pd.DataFrame(rows, columns=list(ANOVA_COLUMNS))


def _anova(values: Any) -> dict[str, Any]:
    subjects, contrasts = values.shape
    result, note = paired_statistics.RepeatedMeasures(), ""
    if contrasts <= 1:
        note = "fewer than two contrasts"
    elif subjects < _FEWEST_FOR_ANOVA:
        note = f"too few subjects with all contrasts: {subjects}, needed are {_FEWEST_FOR_ANOVA}"
    else:
        result = paired_statistics.repeated_measures_anova(values)
        note = "no variance to test against" if np.isnan(result.f) else ""
    return {"num_subjects": subjects, "num_contrasts": contrasts, **asdict(result), "note": note}


def agreement_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Return Bland-Altman statistics of prediction - reference, per contrast and (contrast "") of all."""
    rows = []
    for (method, label), table in cases.groupby(["method", "label"], sort=False):
        contrasts = [name for name in sorted(table["contrast"].unique()) if name]
        for area, contrast in product(AREAS, ["", *contrasts]):
            error = f"{area.removesuffix('_mm2')}_error_mm2"
            chosen = table[table["contrast"] == contrast] if contrast else table
            chosen = chosen[np.isfinite(chosen[error])]
            limits = paired_statistics.limits_of_agreement(chosen[error], chosen["subject"])
            subjects = chosen["subject"].nunique()
            note = f"too few subjects: {subjects}" if subjects < paired_statistics.FEWEST_SUBJECTS else ""
            intervals = (*limits.bias_interval, *limits.low_interval, *limits.high_interval)
            numbers = (limits.bias, limits.sd, limits.low, limits.high, *intervals)
            rows.append((method, label, area, contrast, subjects, len(chosen), *numbers, note))
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))


def contrast_agreement_table(cases: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return how the areas of two contrasts of a subject agree, a row per method, label, measure and pair."""
    rows = []
    for (label, table), area in product(with_reference(cases).groupby("label"), AREAS):
        wide = table.pivot(index=["method", "subject", "session"], columns="contrast", values=area)
        contrasts = sorted(name for name in wide.columns if name)
        for method, (first, second) in product([*methods, REFERENCE], combinations(contrasts, 2)):
            pairs = wide.loc[method][[first, second]].dropna()
            subjects = pairs.index.get_level_values("subject")
            limits = paired_statistics.limits_of_agreement(pairs[second] - pairs[first], subjects)
            line = paired_statistics.fitted_line(pairs[first], pairs[second])
            who = (method, label, area, first, second, subjects.nunique())
            rows.append((*who, limits.bias, limits.low, limits.high, *line))
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS))
