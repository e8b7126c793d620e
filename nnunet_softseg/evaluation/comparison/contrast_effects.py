"""Whether area depends on contrast, within a method; and how a method's areas agree with the reference's."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.evaluation.comparison.leaderboard import complete_areas, with_reference
from nnunet_softseg.evaluation.comparison.paired_statistics import (
    FEWEST_SUBJECTS,
    LimitsOfAgreement,
    fitted_line,
    limits_of_agreement,
    repeated_measures_anova,
)
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
_FEWEST_FOR_ANOVA = 3


def anova_table(cases: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return whether area depends on contrast, a row per method (and the reference), label and measure."""
    rows = []
    for label, area, table in _per_label_and_area(with_reference(cases)):
        wide = complete_areas(table, area)
        for method in [*methods, REFERENCE]:
            there = method in wide.index.get_level_values("method")
            values = wide.loc[method].to_numpy() if there else np.empty((0, wide.shape[1]))
            rows.append({"method": method, "label": label, "measure": area, **_anova(values)})
    return pd.DataFrame(rows, columns=list(ANOVA_COLUMNS))


def _per_label_and_area(areas: pd.DataFrame) -> list[tuple[int, str, pd.DataFrame]]:
    return [(int(label), area, rows) for label, rows in areas.groupby("label") for area in AREAS]


def _anova(values: Any) -> dict[str, Any]:
    subjects, contrasts = values.shape
    enough = subjects >= _FEWEST_FOR_ANOVA and contrasts > 1
    result = repeated_measures_anova(values if enough else np.empty((0, 0)))
    return {
        "num_subjects": subjects,
        "num_contrasts": contrasts,
        "f": result.f,
        "df_contrasts": result.df_factor,
        "df_error": result.df_error,
        "p": result.p,
        "epsilon": result.epsilon,
        "p_corrected": result.p_corrected,
        "partial_eta_squared": result.partial_eta_squared,
        "note": _anova_note(subjects, contrasts, known=not np.isnan(result.f)),
    }


def _anova_note(subjects: int, contrasts: int, *, known: bool) -> str:
    if contrasts <= 1:
        return "fewer than two contrasts"
    if subjects < _FEWEST_FOR_ANOVA:
        return f"too few subjects with all contrasts: {subjects}, needed are {_FEWEST_FOR_ANOVA}"
    return "" if known else "no variance to test against"


# Agreement


def agreement_table(cases: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return Bland-Altman statistics of prediction - reference, per contrast and (contrast "") of all."""
    rows = []
    for (method, label), table in cases.groupby(["method", "label"], sort=False):
        for area in AREAS:
            error = f"{area.removesuffix('_mm2')}_error_mm2"
            contrasts = [name for name in sorted(table["contrast"].unique()) if name]
            for contrast in ["", *contrasts]:
                chosen = table[table["contrast"] == contrast] if contrast else table
                chosen = chosen[np.isfinite(chosen[error])]
                limits = limits_of_agreement(chosen[error], chosen["subject"], seed=seed)
                rows.append(
                    {
                        "method": method,
                        "label": label,
                        "measure": area,
                        "contrast": contrast,
                        "num_subjects": chosen["subject"].nunique(),
                        "num_cases": len(chosen),
                        **_limits(limits),
                        "note": _limits_note(chosen["subject"].nunique()),
                    }
                )
    return pd.DataFrame(rows)


def _limits(limits: LimitsOfAgreement) -> dict[str, float]:
    return {
        "bias": limits.bias,
        "sd": limits.sd,
        "loa_low": limits.low,
        "loa_high": limits.high,
        "bias_ci_low": limits.bias_interval.low,
        "bias_ci_high": limits.bias_interval.high,
        "loa_low_ci_low": limits.low_interval.low,
        "loa_low_ci_high": limits.low_interval.high,
        "loa_high_ci_low": limits.high_interval.low,
        "loa_high_ci_high": limits.high_interval.high,
    }


def _limits_note(subjects: int) -> str:
    return f"too few subjects: {subjects}" if subjects < FEWEST_SUBJECTS else ""


def contrast_agreement_table(cases: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return how the areas of two contrasts of a subject agree, a row per method, label, measure and pair."""
    columns = [
        "method",
        "label",
        "measure",
        "contrast_x",
        "contrast_y",
        "num_subjects",
        "bias",
        "loa_low",
        "loa_high",
    ]
    rows = []
    for label, area, table in _per_label_and_area(with_reference(cases)):
        wide = table.pivot(index=["method", "subject", "session"], columns="contrast", values=area)
        for method in [*methods, REFERENCE]:
            for first, second in combinations(sorted(name for name in wide.columns if name), 2):
                pairs = wide.loc[method][[first, second]].dropna()
                subjects = pairs.index.get_level_values("subject")
                limits = limits_of_agreement(pairs[second] - pairs[first], subjects)
                line = fitted_line(pairs[first], pairs[second])
                who = (method, label, area, first, second, subjects.nunique())
                rows.append((*who, limits.bias, limits.low, limits.high, *line))
    return pd.DataFrame(rows, columns=[*columns, "slope", "intercept", "r"])
