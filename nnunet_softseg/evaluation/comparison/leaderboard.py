"""From cases to subjects, from subjects to ranks: who wins by which measure, and does it hold."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.evaluation.comparison.paired_statistics import (
    FEWEST_SUBJECTS,
    Correction,
    Interval,
    Statistic,
    bootstrap_interval,
    cohens_dz,
    corrected,
    rank_biserial,
    signed_rank_test,
    smallest_p,
)
from nnunet_softseg.evaluation.comparison.scores import SCORES, SIGNIFICANT
from nnunet_softseg.evaluation.measuring import AREAS, REFERENCE

_STD = {f"std_{area}": area for area in AREAS}
_PER_CASE = [name for name, score in SCORES.items() if not score.per_subject]


# Cases -> subjects


def subject_table(cases: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a row per method (and the reference), subject and label, and warnings.

    Args:
        cases: of an evaluation.

    Returns:
        method, subject, label, num_cases, the mean over the subject's cases of every measure, csa_mm2,
        csa_hard_mm2, and the STD of both over contrasts: NaN unless the subject has every contrast in every
            method.
    """
    everything = with_reference(cases)
    groups = everything.groupby(["method", "subject", "label"], sort=True)
    with np.errstate(invalid="ignore"):  # an infinite distance is one in the mean
        means = groups[[*_PER_CASE, *AREAS]].mean()
    table = means.assign(num_cases=groups.size()).reset_index()
    deviations, warnings = _std_over_contrasts(everything)
    table = table.merge(deviations, on=["method", "subject", "label"], how="left")
    order = {name: place for place, name in enumerate([*dict.fromkeys(cases["method"]), REFERENCE])}
    table = table.sort_values(
        ["method", "label", "subject"],
        key=lambda column: column.map(order) if column.name == "method" else column,
        ignore_index=True,
    )
    return table[["method", "subject", "label", "num_cases", *_PER_CASE, *_STD, *AREAS]], warnings


def with_reference(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the cases with the reference's areas as rows of a method of their own, all else NaN there."""
    first = cases[cases["method"] == cases["method"].iloc[0]]
    areas = {area: first[f"reference_{area}"] for area in AREAS}
    who = first[["case", "subject", "session", "contrast", "label"]].assign(method=REFERENCE, **areas)
    return pd.concat([cases, who], ignore_index=True)


def complete_areas(cases: pd.DataFrame, area: str) -> pd.DataFrame:
    """Return areas of the subjects that have every contrast in every method.

    Args:
        cases: of one label, the reference as a method of its own or not.
        area: column.

    Returns:
        Index (method, subject), a column per contrast; mean over sessions that are complete. Empty for fewer
        than two contrasts.
    """
    wide = cases.pivot(index=["method", "subject", "session"], columns="contrast", values=area)
    if wide.shape[1] < 2:  # noqa: PLR2004
        return wide.iloc[:0].droplevel("session")
    complete = np.isfinite(wide).all(axis=1).groupby(["subject", "session"]).transform("all")
    return wide[complete].groupby(["method", "subject"]).mean()


def _std_over_contrasts(cases: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    tables, warnings = [], []
    for label, rows in cases.groupby("label"):
        columns = {name: _std_of_label(rows, area) for name, area in _STD.items()}
        tables.append(pd.DataFrame(columns).assign(label=label))
        complete = tables[-1]["std_csa_mm2"].notna().groupby("subject").any()
        subjects, left_out = complete.size, int((~complete).sum())
        if rows["contrast"].nunique() > 1 and left_out:
            warnings.append(
                f"STD of CSA: {left_out} of {subjects} subjects are left out, as they lack a contrast, or "
                "an area in "
                "some method"
            )
    result = pd.concat(tables)
    result.index = result.index.set_names(["method", "subject"])
    return result.reset_index(), list(dict.fromkeys(warnings))


def _std_of_label(rows: pd.DataFrame, area: str) -> "pd.Series[float]":
    """Return the STD (ddof 1) over contrasts per method and subject, within sessions, then their mean."""
    wide = rows.pivot(index=["method", "subject", "session"], columns="contrast", values=area)
    complete = np.isfinite(wide).all(axis=1).groupby(["subject", "session"]).transform("all")
    return wide.std(axis=1, ddof=1).where(complete).groupby(["method", "subject"]).mean()


# Subjects -> leaderboard


def score_table(
    cases: pd.DataFrame, subjects: pd.DataFrame, methods: Sequence[str], seed: int
) -> pd.DataFrame:
    """Return the leaderboard in long form: a row per label, measure and method, means of subject means.

    A measure without any value is left out.
    """
    rows = []
    for label, measure in _label_measures(subjects):
        ranked = []
        for method in methods:
            values = _values(subjects, method, label, measure)
            if values.size:
                ranked.append(_score(values, seed) | {"method": method})
                ranked[-1]["num_cases"] = _num_cases(cases, method, label, measure)
        rows += [{"label": label, "measure": measure, **row} for row in _with_ranks(ranked, measure)]
    columns = [
        "label",
        "measure",
        "method",
        "num_subjects",
        "num_cases",
        "mean",
        "sd",
        "median",
        "ci_low",
        "ci_high",
    ]
    return pd.DataFrame(rows, columns=[*columns, "rank"])


def _label_measures(subjects: pd.DataFrame) -> Iterator[tuple[int, str]]:
    for label in sorted(subjects["label"].unique()):
        of_methods = subjects[(subjects["label"] == label) & (subjects["method"] != REFERENCE)]
        yield from ((int(label), measure) for measure in SCORES if of_methods[measure].notna().any())


def _values(subjects: pd.DataFrame, method: str, label: int, measure: str) -> Any:
    chosen = (subjects["method"] == method) & (subjects["label"] == label)
    return subjects.loc[chosen, measure].dropna().to_numpy(dtype=np.float64)


def _num_cases(cases: pd.DataFrame, method: str, label: int, measure: str) -> int:
    rows = cases[(cases["method"] == method) & (cases["label"] == label)]
    return int(rows[measure].notna().sum()) if measure in rows else len(rows)


def _score(values: Any, seed: int) -> dict[str, Any]:
    interval = bootstrap_interval(values, seed=seed)
    finite = bool(np.isfinite(values).all())
    return {
        "num_subjects": values.size,
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if finite and values.size > 1 else np.nan,
        "median": float(np.median(values)),
        "ci_low": interval.low,
        "ci_high": interval.high,
    }


def _with_ranks(rows: list[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """Return the rows with their rank by mean; infinite means (a failed case) are ranked by their medians."""
    sign = -1 if SCORES[measure].higher_is_better else 1
    keys = [(sign * row["mean"], 0.0 if np.isfinite(row["mean"]) else sign * row["median"]) for row in rows]
    return [
        row | {"rank": 1 + sum(other < key for other in keys)} for row, key in zip(rows, keys, strict=True)
    ]


# Pairs of methods


def pair_table(
    cases: pd.DataFrame, subjects: pd.DataFrame, methods: Sequence[str], correction: Correction, seed: int
) -> pd.DataFrame:
    """Return the tests of all pairs of methods, a row per label, measure and pair.

    p values are corrected over all pairs of methods within one label and measure.
    """
    rows = []
    for label, measure in _label_measures(subjects):
        pairs = [
            _pair(cases, subjects, label, measure, first, second, seed)
            for first, second in combinations(methods, 2)
        ]
        rows += _decided(pairs, measure, correction)
    return pd.DataFrame(rows, columns=list(STATISTICS_COLUMNS))


STATISTICS_COLUMNS = {
    "label": "value of the label",
    "measure": "what is compared",
    "method_a": "first method",
    "method_b": "second method",
    "num_subjects": "that have a value in both",
    "num_cases": "images of these",
    "mean_difference": "a - b, mean over subjects of subject means",
    "median_difference": "its median over subjects",
    "ci_low": "95 % bootstrap interval over subjects",
    "ci_high": "its upper end",
    "interval_of": "mean, or median where a value is infinite",
    "wilcoxon_w": "smaller sum of signed ranks, subject means",
    "p_subjects": "two-sided Wilcoxon signed-rank test of subject means; decides",
    "p_subjects_corrected": "over num_tests",
    "p_cases": "the same with images as units, paired by subject, session and contrast; images of one "
    "subject are not "
    "independent, so this is too small",
    "p_cases_corrected": "over num_tests",
    "num_tests": "pairs of methods tested with this measure",
    "correction": "holm or bonferroni",
    "rank_biserial": "effect size, -1 to 1, above 0 if a is larger",
    "cohens_dz": "effect size, mean / sd of the differences",
    "better": "method with the better value, empty if equal",
    "holds": "p_subjects_corrected < 0.05 and the interval excludes 0",
    "note": "what limits the test",
}
"""The columns of statistics.csv."""


def _pair(  # noqa: PLR0917
    cases: pd.DataFrame, subjects: pd.DataFrame, label: int, measure: str, first: str, second: str, seed: int
) -> dict[str, Any]:
    per_case, per_subject = _differences(cases, subjects, label, measure, first, second)
    num_cases = _num_cases(cases, first, label, measure) if SCORES[measure].per_subject else per_case.size
    of: Statistic = "mean" if np.isfinite(per_subject).all() else "median"
    interval = bootstrap_interval(per_subject, statistic=of, seed=seed)
    test = signed_rank_test(per_subject)
    with np.errstate(invalid="ignore"):
        centre = {
            "mean": float(np.mean(per_subject)) if per_subject.size else np.nan,
            "median": float(np.median(per_subject)) if per_subject.size else np.nan,
        }
    return {
        "label": label,
        "measure": measure,
        "method_a": first,
        "method_b": second,
        "num_subjects": per_subject.size,
        "num_cases": num_cases,
        "mean_difference": centre["mean"],
        "median_difference": centre["median"],
        "ci_low": interval.low,
        "ci_high": interval.high,
        "interval_of": of,
        "wilcoxon_w": test.w,
        "p_subjects": test.p,
        "p_cases": np.nan if SCORES[measure].per_subject else signed_rank_test(per_case).p,
        "rank_biserial": rank_biserial(per_subject),
        "cohens_dz": cohens_dz(per_subject),
        "better": _better(centre[of], measure, first, second),
    }


def _differences(  # noqa: PLR0917
    cases: pd.DataFrame, subjects: pd.DataFrame, label: int, measure: str, first: str, second: str
) -> tuple[Any, Any]:
    """Return a - b per case, and its mean per subject, in the order of subjects."""
    per_subject = SCORES[measure].per_subject
    table = subjects if per_subject else cases
    # The explicit key of the pairs; a measure per subject has no session or contrast.
    key = ["subject"] if per_subject else ["subject", "session", "contrast", "case"]
    rows = table[(table["label"] == label) & table["method"].isin([first, second])]
    wide = rows.pivot(index=key, columns="method", values=measure).sort_index()
    pairs = wide[[first, second]].dropna()
    with np.errstate(invalid="ignore"):
        difference = pairs[first] - pairs[second]
        # Both infinite: both failed, no difference.
        difference = difference.where(pairs[first] != pairs[second], 0.0)
        means = difference.groupby(level="subject").mean()
    # One failed here and the other there: inf - inf.
    return difference.to_numpy(), means.fillna(0.0).to_numpy(dtype=np.float64)


def _better(difference: float, measure: str, first: str, second: str) -> str:
    if not difference or np.isnan(difference):
        return ""
    return first if (difference > 0) == SCORES[measure].higher_is_better else second


def _decided(pairs: list[dict[str, Any]], measure: str, correction: Correction) -> list[dict[str, Any]]:
    """Return the pairs of one measure with corrected p values and what follows."""
    by_subjects = corrected([pair["p_subjects"] for pair in pairs], correction)
    by_cases = corrected([pair["p_cases"] for pair in pairs], correction)
    num_tests = int(np.count_nonzero(~np.isnan(by_subjects)))
    return [
        pair
        | {
            "p_subjects_corrected": p_subjects,
            "p_cases_corrected": p_cases,
            "num_tests": num_tests,
            "correction": correction,
            "holds": _holds(pair, float(p_subjects)),
            "note": _note(pair["num_subjects"], num_tests),
        }
        for pair, p_subjects, p_cases in zip(pairs, by_subjects, by_cases, strict=True)
    ]


def _holds(pair: dict[str, Any], p_corrected: float) -> bool:
    interval = Interval(pair["ci_low"], pair["ci_high"])
    same_side = interval.low > 0 if pair[f"{pair['interval_of']}_difference"] > 0 else interval.high < 0
    return bool(p_corrected < SIGNIFICANT and interval.excludes_zero() and same_side)


def _note(num_subjects: int, num_tests: int) -> str:
    if num_subjects < FEWEST_SUBJECTS:
        return f"too few subjects: {num_subjects}, a test needs at least {FEWEST_SUBJECTS}"
    if smallest_p(num_subjects, num_tests) >= SIGNIFICANT:
        needed = next(n for n in range(FEWEST_SUBJECTS, 64) if smallest_p(n, num_tests) < SIGNIFICANT)
        wanted = f"p < {SIGNIFICANT} in {num_tests} tests needs at least {needed}"
        return f"too few subjects: {num_subjects}, {wanted}"
    return ""


# Winners


def winner_table(scores: pd.DataFrame, statistics: pd.DataFrame) -> pd.DataFrame:
    """Return a row per label and measure: the best method, the next one, and whether the difference holds."""
    rows = [
        {"label": label, "measure": measure, **_winner(ranked, statistics)}
        for (label, measure), ranked in scores.groupby(["label", "measure"], sort=False)
    ]
    columns = ["winner", "runner_up", "difference", "ci_low", "ci_high", "p_corrected", "holds", "verdict"]
    return pd.DataFrame(rows, columns=["label", "measure", *columns])


def _winner(ranked: pd.DataFrame, statistics: pd.DataFrame) -> dict[str, Any]:
    unknown = {
        "difference": np.nan,
        "ci_low": np.nan,
        "ci_high": np.nan,
        "p_corrected": np.nan,
        "holds": False,
    }
    in_order = ranked.sort_values(["rank", "method"])
    first = in_order["method"].iloc[0]
    if len(in_order) == 1:
        return unknown | {"winner": "", "runner_up": "", "verdict": "no other method to compare with"}
    second = in_order["method"].iloc[1]
    if in_order["rank"].iloc[1] == 1:
        return unknown | {
            "winner": "",
            "runner_up": "",
            "difference": 0.0,
            "verdict": f"{first} and {second} are equal",
        }
    pair = statistics[
        (statistics["label"] == ranked["label"].iloc[0])
        & (statistics["measure"] == ranked["measure"].iloc[0])
        & statistics["method_a"].isin([first, second])
        & statistics["method_b"].isin([first, second])
    ].iloc[0]
    sign = 1 if pair["method_a"] == first else -1
    ends = sorted((sign * pair["ci_low"], sign * pair["ci_high"]))
    holds = bool(pair["holds"] and pair["better"] == first)
    return {
        "winner": first,
        "runner_up": second,
        "difference": sign * pair[f"{pair['interval_of']}_difference"],
        "ci_low": ends[0],
        "ci_high": ends[1],
        "p_corrected": pair["p_subjects_corrected"],
        "holds": holds,
        "verdict": _verdict(pair, holds=holds, same=pair["better"] == first),
    }


def _verdict(pair: Any, *, holds: bool, same: bool) -> str:
    if holds:
        return "holds"
    if pair["note"]:
        return str(pair["note"])
    if not same:
        return "does not hold: the cases that both have a value in say otherwise"
    p = float(pair["p_subjects_corrected"])
    if p < SIGNIFICANT:
        return "does not hold: the interval includes 0"
    return f"does not hold: p = {p:.2g}"


def wide_leaderboard(scores: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return a row per label and method; mean, sd, median, interval and rank of each measure in columns."""
    numbers = ["mean", "sd", "median", "ci_low", "ci_high", "rank"]
    wide = scores.pivot(index=["label", "method"], columns="measure", values=[*numbers])
    shown = [measure for measure in SCORES if measure in set(scores["measure"])]
    wide = wide.reindex(columns=pd.MultiIndex.from_product([numbers, shown])).swaplevel(axis=1)
    wide = wide.reindex(columns=pd.MultiIndex.from_product([shown, numbers]))
    wide.columns = pd.Index([f"{measure}_{number}" for measure, number in wide.columns])
    people = scores.groupby(["label", "method"])[["num_subjects", "num_cases"]].max()
    table = people.join(wide).reset_index()
    order = {method: place for place, method in enumerate(methods)}
    return table.sort_values(
        ["label", "method"],
        key=lambda column: column.map(order) if column.name == "method" else column,
        ignore_index=True,
    )
