"""How the areas of a new release differ from those of the old one: a row per contrast and level."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.evaluation.comparison.deming import DemingLine, deming_line
from nnunet_softseg.evaluation.comparison.paired_statistics import (
    FEWEST_SUBJECTS,
    NO_INTERVAL,
    Floats,
    Interval,
    confidence_interval,
    limits_of_agreement,
    student_t,
)
from nnunet_softseg.evaluation.releases.areas import KEYS, NO_LEVEL

DRIFT_COLUMNS = {
    "contrast": "empty if the names or tables tell none",
    "level": "vertebral level: 1-7 are C1-C7, 8-19 T1-T12, 20-24 L1-L5; empty without levels",
    "n": "subjects",
    "bias_mm2": "mean of new - old, mm2",
    "bias_low_mm2": "95 % interval of the bias over subjects: bootstrap (BCa), Student's t below 30 subjects",
    "bias_high_mm2": "its upper end",
    "loa_low_mm2": "95 % limits of agreement, bias - 1.96 SD of the differences, mm2",
    "loa_high_mm2": "bias + 1.96 SD",
    "mean_ratio": "mean over subjects of new / old",
    "sd_ratio": "SD over subjects of the new areas / SD of the old: a spread that shrinks spoils z-scores",
    "deming_slope": "of the line new = slope old + intercept, errors in both",
    "deming_intercept_mm2": "of the same line, mm2",
}
"""The columns of drift.csv."""
STD_COLUMNS = ("level", "n", "std_old_mm2", "std_new_mm2", "contrast_std_mm2", "contrast_std_mm2_low")
ALL_CONTRASTS = "all"
_MOST_SHOWN = 10


def statistics_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the columns `DRIFT_COLUMNS` and more, a row per contrast and level in the order of both.

    More: mean_old_mm2, geometric_mean_ratio, bias_percent of the old mean with its interval, slope_low and
    slope_high (95 %), and of the Deming line slope_se, intercept_se_mm2, covariance_mm2.
    """
    groups = pairs.groupby(["contrast", "level"], sort=True)
    return _table([_row(str(contrast), int(level), rows) for (contrast, level), rows in groups])


def over_contrasts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the same of all contrasts together, a row per level; none where there is one contrast only."""
    if pairs["contrast"].nunique() <= 1:
        return _table([])
    groups = pairs.groupby("level", sort=True)
    return _table([_row(ALL_CONTRASTS, int(level), rows) for level, rows in groups])


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=None if rows else [*DRIFT_COLUMNS])
    return table.assign(level=table["level"].astype("Int64").replace(NO_LEVEL, pd.NA))


def _row(contrast: str, level: int, rows: pd.DataFrame) -> dict[str, Any]:
    old, new = (rows[name].to_numpy(dtype=np.float64) for name in ("old", "new"))
    subjects = rows["subject"].to_numpy()
    limits = limits_of_agreement(new - old, subjects)
    interval = _interval(_per_subject(new - old, subjects))
    line, mean_old = deming_line(old, new, subjects), float(old.mean())
    percent = [100 * value / mean_old for value in (limits.bias, *interval)]
    named = {"mm2": (limits.bias, *interval), "percent": percent}
    ends = ("bias_{}", "bias_{}_low", "bias_{}_high")
    more = {
        end.format(unit): value
        for unit, values in named.items()
        for end, value in zip(ends, values, strict=True)
    }
    return {
        "contrast": contrast,
        "level": level,
        "n": len(np.unique(subjects)),
        "bias_low_mm2": interval.low,
        "bias_high_mm2": interval.high,
        "loa_low_mm2": limits.low,
        "loa_high_mm2": limits.high,
        "mean_ratio": float((new / old).mean()),
        "geometric_mean_ratio": float(np.exp(np.log(new / old).mean())),
        "sd_ratio": _sd_ratio(old, new),
        "mean_old_mm2": mean_old,
        "deming_intercept_mm2": line.intercept,
        **more,
        **_of_line(line),
    }


def _of_line(line: DemingLine) -> dict[str, float]:
    half = 1.96 * line.slope_se
    return {
        "deming_slope": line.slope,
        "slope_low": line.slope - half,
        "slope_high": line.slope + half,
        "slope_se": line.slope_se,
        "intercept_se_mm2": line.intercept_se,
        "covariance_mm2": line.covariance,
    }


def _interval(per_subject: Floats) -> Interval:
    """Return the interval of the mean; of two subjects or more: a wide interval lets no small drift count."""
    if per_subject.size >= FEWEST_SUBJECTS:
        return confidence_interval(per_subject)
    return student_t(per_subject) if per_subject.size > 1 else NO_INTERVAL


def _per_subject(values: Floats, subjects: Any) -> Floats:
    means: Floats = pd.Series(values).groupby(subjects).mean().to_numpy(dtype=np.float64)
    return means


def _sd_ratio(old: Floats, new: Floats) -> float:
    spread = old.std(ddof=1) if old.size > 1 else 0.0
    return float(new.std(ddof=1) / spread) if spread > 0 else np.nan


def spread_over_contrasts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the STD of a subject's area over contrasts, old and new, means over subjects; a row per level.

    Of subjects with all contrasts. `contrast_std_mm2` is the mean of new - old, with its 95 % interval.
    """
    found = pairs["contrast"].nunique() > 1
    rows = [*map(_spread_row, *zip(*pairs.groupby("level", sort=True), strict=True))] if found else []
    table = pd.DataFrame(rows, columns=[*STD_COLUMNS, "contrast_std_mm2_high"])
    return table.assign(level=table["level"].astype("Int64").replace(NO_LEVEL, pd.NA))


def _spread_row(level: int, rows: pd.DataFrame) -> tuple[Any, ...]:
    std = {}
    for release in ("old", "new"):
        wide = rows.pivot(index=["subject", "session"], columns="contrast", values=release).dropna()
        std[release] = wide.std(axis=1, ddof=1).groupby("subject").mean()
    grown = (std["new"] - std["old"]).to_numpy(dtype=np.float64)
    mean = float(grown.mean()) if grown.size else np.nan
    low, high = _interval(grown)
    return int(level), grown.size, std["old"].mean(), std["new"].mean(), mean, low, high


def worst_cases(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the ten areas that changed most: `KEYS`, old, new, difference_mm2, difference_percent."""
    difference = pairs["new"] - pairs["old"]
    table = pairs.assign(difference_mm2=difference, difference_percent=100 * difference / pairs["old"])
    order = difference.abs().sort_values(ascending=False, kind="stable").index[:_MOST_SHOWN]
    table = table.loc[order, [*KEYS, "old", "new", "difference_mm2", "difference_percent"]]
    return table.assign(level=table["level"].astype("Int64").replace(NO_LEVEL, pd.NA)).reset_index(drop=True)


def few_subjects(table: pd.DataFrame) -> Iterator[str]:
    """Say where so few subjects are compared that a drift may go unseen."""
    fewest = int(table["n"].min())
    if fewest < FEWEST_SUBJECTS:
        yield (
            f"{fewest} subjects only in some contrast or level: the interval of the bias is wide, and a "
            f"drift may go unseen; compare {FEWEST_SUBJECTS} or more"
        )
