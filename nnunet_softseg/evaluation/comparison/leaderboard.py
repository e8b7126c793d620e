"""From cases to subjects, from subjects to ranks: the best method by each measure, and whether it holds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.evaluation.comparison import paired_statistics
from nnunet_softseg.evaluation.comparison.paired_statistics import (
    FEWEST_SUBJECTS,
    SIGNIFICANT,
    Correction,
    Statistic,
    subjects_needed,
)
from nnunet_softseg.evaluation.measuring import AREAS, REFERENCE
from nnunet_softseg.evaluation.tables import CASE_COLUMNS, describe, in_order
from nnunet_softseg.metrics.measure_table import MEASURES, Measure

_MINUS = "\N{MINUS SIGN}"
_AREA_ERROR = f"|CSA of the prediction {_MINUS} CSA of the reference|"
_VOLUME_ERROR = f"|volume of the prediction {_MINUS} volume of the reference| in percent of the reference"
_SPREAD = f"standard deviation (n {_MINUS} 1) of a subject's CSA over contrasts"


def _of_areas(stem: str, maps: str, suffix: str) -> dict[str, Measure]:
    """Return the measures of the soft areas or of those above 0.5."""
    error, spread = f"Absolute CSA error{suffix}", f"STD of CSA over contrasts{suffix}"
    percent = f"{_AREA_ERROR} in percent of the reference, of both maps {maps}"
    return {
        f"abs_{stem}_error_mm2": Measure(f"{_AREA_ERROR}, of both maps {maps}", "mm2", 0.0, title=error),
        f"abs_{stem}_error_percent": Measure(percent, "%", 0.0, title=error),
        f"std_{stem}_mm2": Measure(f"{_SPREAD}, of the map {maps}", "mm2", 0.0, title=spread),
    }


_OVERLAP = ("dice", "soft_dice", "mae", "rmse", "boundary_mae", "boundary_rmse", "brier", "ece")
_INSTANCES = ("pq", "rq", "sq")
_SURFACE = ("asd_mm", "hd95_mm", "surface_dice")
SECONDS = "seconds"
_VOLUME = "Absolute relative volume error"
# Signed errors have no better end: ranked are their absolute values, and the agreement shows the bias.
SCORES: Mapping[str, Measure] = {
    **_of_areas("csa", "as given", ""),
    **_of_areas("csa_hard", "> 0.5", ", binarised"),
    **{name: MEASURES[name] for name in _OVERLAP},
    "abs_rve_percent": Measure(_VOLUME_ERROR, "%", 0.0, title=_VOLUME),
    "abs_hard_rve_percent": Measure(
        f"{_VOLUME_ERROR}, of maps > 0.5", "%", 0.0, title=f"{_VOLUME}, binarised"
    ),
    **{name: MEASURES[name] for name in _SURFACE},
    **{name: MEASURES[name] for name in _INSTANCES},
    SECONDS: Measure(CASE_COLUMNS["seconds"], "s", 0.0, title="Inference time"),
}
"""The paper's two questions first: the area, and its dependence on the contrast."""
HEADLINES = ("abs_csa_error_mm2", "std_csa_mm2", "dice")
"""Measures that are tested, together with the primary one: is the area right, does it depend on the contrast,
do the maps overlap. All others are exploratory: among so many, one differs by chance."""
PRIMARY = HEADLINES[0]
"""The primary measure unless the user names another: soft maps are made for the area."""
PER_SUBJECT = tuple(name for name in SCORES if name.startswith("std_"))
"""Measures of all contrasts of a subject together: a single case has none."""
_STD = {f"std_{area}": area for area in AREAS}
_PER_CASE = [name for name in SCORES if name not in PER_SUBJECT]
STATISTICS_COLUMNS = {
    "label": "value of the label",
    "measure": "what is compared",
    "role": "primary, headline or exploratory",
    "method_a": "first method",
    "method_b": "second method",
    "num_subjects": "that have a value in both",
    "num_cases": "images of these",
    "mean_difference": "a - b, mean over subjects of subject means",
    "median_difference": "its median over subjects",
    "ci_low": "95 % confidence interval over subjects",
    "ci_high": "its upper end",
    "interval_of": "mean, or median where a value is infinite",
    "wilcoxon_w": "smaller sum of signed ranks, subject means",
    "p_subjects": "two-sided Wilcoxon signed-rank test of subject means; decides",
    "p_subjects_corrected": "over num_tests",
    "p_cases": "the same with images as units, paired by subject, session and contrast; images of one "
    "subject are not independent, so this is too small",
    "p_cases_corrected": "over num_tests",
    "num_tests": "corrected for: pairs of methods x labels x primary and headline measures; of an "
    "exploratory measure, pairs of methods",
    "correction": "holm or bonferroni",
    "rank_biserial": "effect size, -1 to 1, above 0 if a is larger",
    "cohens_dz": "effect size, mean / sd of the differences",
    "better": "method with the better value, empty if equal",
    "holds": "a primary or headline measure with p_subjects_corrected < 0.05 and an interval that excludes 0",
    "note": "what limits the test",
}
SCORE_COLUMNS = {
    "label": "value of the label",
    "measure": "key of SCORES",
    "method": "name",
    "num_subjects": "with a value",
    "num_cases": "with a value",
    "mean": "of subject means",
    "sd": "of subject means, ddof 1",
    "median": "of subject means",
    "ci_low": "95 % confidence interval of the mean over subjects, NaN if too few",
    "ci_high": "its upper end",
    "rank": "1 is best; ties share the smaller",
}


_DECIMALS = 12
"""Of means and differences. A sum of floats in another order differs beyond, which must decide no rank and no
test: an area of 80 mm2 by 1e-14."""


def role_of(measure: str, primary: str) -> str:
    """Return "primary", "headline" or "exploratory"."""
    if measure == primary:
        return "primary"
    return "headline" if measure in HEADLINES else "exploratory"


class Verdict(Enum):
    """Whether a difference is more than chance, and if not, why."""

    HOLDS = "holds"
    EXPLORATORY = "exploratory"
    EQUAL = "equal"
    ALONE = "no other method to compare with"
    TOO_FEW = "too few subjects"
    CONTRADICTED = "differences of the cases that both have a value in say otherwise"
    INCLUDES_ZERO = "the interval includes 0"
    NOT_SIGNIFICANT = "the corrected p is too large"


@dataclass(frozen=True)
class Outcome:
    """The best method by one measure of a label, against the next best.

    Attributes:
        best: the methods that share the first rank, in the order given.
        winner: "" if there is none, as `runner_up`: a tie, or a single method.
        difference: winner - runner-up, of subject means; with its 95 % interval.
        p_corrected: over `num_tests`, see `pair_table`.
        role: of the measure, see `role_of`.
        interval_of: "mean", or "median" where a value is infinite.
    """

    label: int
    measure: str
    verdict: Verdict
    best: tuple[str, ...]
    winner: str = ""
    runner_up: str = ""
    difference: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    p_corrected: float = math.nan
    num_subjects: int = 0
    num_tests: int = 0
    interval_of: Statistic = "mean"
    role: str = "exploratory"

    @property
    def holds(self) -> bool:
        """Whether the data show that the difference is more than chance."""
        return self.verdict is Verdict.HOLDS

    def in_words(self) -> str:
        """Return the verdict as tables and the terminal show it."""
        if self.verdict is Verdict.EQUAL:
            first, second = sorted(self.best)[:2]
            return f"{first} and {second} are equal"
        if self.verdict is Verdict.TOO_FEW:
            return too_few_subjects(self.num_subjects, self.num_tests)
        if self.verdict is Verdict.NOT_SIGNIFICANT:
            return f"does not hold: p = {self.p_corrected:.2g}"
        denied = self.verdict in {Verdict.CONTRADICTED, Verdict.INCLUDES_ZERO}
        return f"does not hold: {self.verdict.value}" if denied else self.verdict.value


# Cases -> subjects


def subject_table(cases: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a row per method (and the reference), subject and label, and warnings.

    Columns: method, subject, label, num_cases, the mean over the subject's cases of every measure, csa_mm2,
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
    order = [*dict.fromkeys(cases["method"]), REFERENCE]
    table = in_order(table, ["method", "label", "subject"], method=order)
    return table[["method", "subject", "label", "num_cases", *_PER_CASE, *_STD, *AREAS]], warnings


def with_reference(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the cases with the reference's areas as rows of a method of their own, all else NaN there."""
    first = cases[cases["method"] == cases["method"].iloc[0]]
    areas = {area: first[f"reference_{area}"] for area in AREAS}
    who = first[["case", "subject", "session", "contrast", "label"]].assign(method=REFERENCE, **areas)
    return pd.concat([cases, who], ignore_index=True)


def complete_areas(cases: pd.DataFrame, area: str) -> pd.DataFrame:
    """Return areas (a column) of the subjects that have every contrast in every method, for one label.

    Indexed by (method, subject), a column per contrast; means over complete sessions. Empty for one contrast.
    """
    wide, complete = _over_contrasts(cases, area)
    if wide.shape[1] < 2:  # noqa: PLR2004
        return wide.iloc[:0].droplevel("session")
    return wide[complete].groupby(["method", "subject"]).mean()


def _over_contrasts(cases: pd.DataFrame, area: str) -> tuple[pd.DataFrame, "pd.Series[bool]"]:
    """Return a column per contrast, and which rows are complete in every method."""
    wide = cases.pivot(index=["method", "subject", "session"], columns="contrast", values=area)
    return wide, np.isfinite(wide).all(axis=1).groupby(["subject", "session"]).transform("all")


def _std_over_contrasts(cases: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    tables, warnings = [], []
    for label, rows in cases.groupby("label"):
        columns = {}
        for name, area in _STD.items():
            wide, complete = _over_contrasts(rows, area)
            std = wide.std(axis=1, ddof=1).where(complete)
            columns[name] = std.groupby(["method", "subject"]).mean()  # over sessions
        tables.append(pd.DataFrame(columns).assign(label=label))
        complete = tables[-1]["std_csa_mm2"].notna().groupby("subject").any()
        subjects, left_out = complete.size, int((~complete).sum())
        if rows["contrast"].nunique() > 1 and left_out:
            warnings.append(
                f"STD of CSA: {left_out} of {subjects} subjects are left out, as they lack a contrast, or "
                "an area in some method"
            )
    return pd.concat(tables).reset_index(), list(dict.fromkeys(warnings))


# Subjects -> ranks and tests


def score_table(
    cases: pd.DataFrame, subjects: pd.DataFrame, methods: Sequence[str], seed: int
) -> pd.DataFrame:
    """Return the leaderboard in long form: a row per label, measure and method, means of subject means.

    A measure without any value is left out.
    """
    rows = []
    for label, measure in _label_measures(subjects):
        ranked = []
        of_methods = subjects[subjects["label"] == label].groupby("method")[measure]
        for method in methods:
            values = of_methods.get_group(method).dropna().to_numpy(dtype=np.float64)
            if values.size:
                who = {"method": method, "num_cases": _num_cases(cases, subjects, (method, label), measure)}
                low, high = paired_statistics.confidence_interval(values, seed=seed)
                numbers = {"num_subjects": values.size, **describe(values), "ci_low": low, "ci_high": high}
                ranked.append(who | numbers)
        rows += [{"label": label, "measure": measure, **row} for row in _with_ranks(ranked, measure)]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def _label_measures(subjects: pd.DataFrame) -> Iterator[tuple[int, str]]:
    for label in sorted(subjects["label"].unique()):
        of_methods = subjects[(subjects["label"] == label) & (subjects["method"] != REFERENCE)]
        yield from ((int(label), measure) for measure in SCORES if of_methods[measure].notna().any())


def _num_cases(cases: pd.DataFrame, subjects: pd.DataFrame, who: tuple[str, int], measure: str) -> int:
    """Return how many cases of a method and label have a value, themselves or by their subject."""
    method, label = who
    rows, people = (
        table[(table["method"] == method) & (table["label"] == label)] for table in (cases, subjects)
    )
    if measure in rows:
        return int(rows[measure].notna().sum())
    return int(rows["subject"].isin(people.loc[people[measure].notna(), "subject"]).sum())


def _with_ranks(rows: list[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """Return the rows with their rank by mean; infinite means (a failed case) are ranked by their medians."""
    sign = -1 if SCORES[measure].higher_is_better else 1
    means = [round(row["mean"], _DECIMALS) for row in rows]
    keys = [
        (sign * mean, 0.0 if np.isfinite(mean) else sign * row["median"])
        for mean, row in zip(means, rows, strict=True)
    ]
    return [
        row | {"rank": 1 + sum(other < key for other in keys)} for row, key in zip(rows, keys, strict=True)
    ]


def pair_table(
    cases: pd.DataFrame,
    subjects: pd.DataFrame,
    methods: Sequence[str],
    *,
    correction: Correction,
    seed: int,
    primary: str,
) -> pd.DataFrame:
    """Return the tests of all pairs of methods.

    Those of the primary measure and the headlines, of all labels, are corrected together: the probability
    that any of them holds by chance is below 5 %. Those of another measure are corrected by themselves; they
    are exploratory, and do not hold.
    """
    families: dict[tuple[int, str] | None, list[dict[str, Any]]] = {}
    for label, measure in _label_measures(subjects):
        per_subject = measure in PER_SUBJECT
        table = subjects if per_subject else cases
        key = ["subject"] if per_subject else ["subject", "session", "contrast", "case"]
        values = (
            table[table["label"] == label].pivot(index=key, columns="method", values=measure).sort_index()
        )
        pairs = [_pair(values, measure, both, seed) for both in combinations(methods, 2)]
        for pair in pairs if per_subject else []:
            num_cases = _num_cases(cases, subjects, (pair["method_a"], label), measure)
            pair |= {"num_cases": num_cases, "p_cases": np.nan}
        role = role_of(measure, primary)
        family = families.setdefault((label, measure) if role == "exploratory" else None, [])
        family += [{"label": label, "measure": measure, "role": role, **pair} for pair in pairs]
    rows = [row for family in families.values() for row in _decided(family, correction)]
    table = pd.DataFrame(rows, columns=list(STATISTICS_COLUMNS))
    return in_order(table, ["label", "measure"], measure=list(SCORES))


def _pair(values: pd.DataFrame, measure: str, methods: tuple[str, str], seed: int) -> dict[str, Any]:
    first, second = methods
    per_case, per_subject = _differences(values[[first, second]].dropna())
    of: Statistic = "mean" if np.isfinite(per_subject).all() else "median"
    low, high = paired_statistics.confidence_interval(per_subject, statistic=of, seed=seed)
    w, p = paired_statistics.signed_rank_test(per_subject)
    centre = {name: round(value, _DECIMALS) for name, value in describe(per_subject).items()}
    better = first if (centre[of] > 0) == SCORES[measure].higher_is_better else second
    return {
        "method_a": first,
        "method_b": second,
        "num_subjects": per_subject.size,
        "num_cases": per_case.size,
        "mean_difference": centre["mean"],
        "median_difference": centre["median"],
        "ci_low": low,
        "ci_high": high,
        "interval_of": of,
        "wilcoxon_w": w,
        "p_subjects": p,
        "p_cases": paired_statistics.signed_rank_test(per_case).p,
        "rank_biserial": paired_statistics.rank_biserial(per_subject),
        "cohens_dz": paired_statistics.cohens_dz(per_subject),
        "better": "" if not centre[of] or np.isnan(centre[of]) else better,
    }


def _differences(pairs: pd.DataFrame) -> tuple[Any, Any]:
    """Return a - b per case, and its mean per subject, in the order of subjects."""
    first, second = (pairs.iloc[:, column] for column in (0, 1))
    with np.errstate(invalid="ignore"):
        # Both infinite: both failed, no difference.
        difference = (first - second).where(first != second, 0.0).round(_DECIMALS)
        means = difference.groupby(level="subject").mean()
    # One failed here and the other there: inf - inf.
    return difference.to_numpy(), means.fillna(0.0).round(_DECIMALS).to_numpy(dtype=np.float64)


def _decided(pairs: list[dict[str, Any]], correction: Correction) -> list[dict[str, Any]]:
    """Return pairs that are corrected together, with corrected p values and what follows."""
    by_subjects = paired_statistics.corrected([pair["p_subjects"] for pair in pairs], correction)
    by_cases = paired_statistics.corrected([pair["p_cases"] for pair in pairs], correction)
    num_tests = int(np.count_nonzero(~np.isnan(by_subjects)))
    decided = []
    for pair, p_subjects, p_cases in zip(pairs, by_subjects, by_cases, strict=True):
        above = pair[f"{pair['interval_of']}_difference"] > 0
        excludes_zero = pair["ci_low"] > 0 if above else pair["ci_high"] < 0
        what_follows = {
            "p_subjects_corrected": p_subjects,
            "p_cases_corrected": p_cases,
            "num_tests": num_tests,
            "correction": correction,
            "holds": bool(pair["role"] != "exploratory" and p_subjects < SIGNIFICANT and excludes_zero),
            # Holm spares the later ones of a family: few subjects may be enough.
            "note": "" if p_subjects < SIGNIFICANT else too_few_subjects(pair["num_subjects"], num_tests),
        }
        decided.append(pair | what_follows)
    return decided


# Does the best hold?


def too_few_subjects(num_subjects: int, num_tests: int) -> str:
    """Return why a test of so few subjects cannot be significant, "" if it can."""
    lacking = subjects_lacking(num_subjects, num_tests)
    return f"{Verdict.TOO_FEW.value}: {lacking}" if lacking else ""


def subjects_lacking(num_subjects: int, num_tests: int) -> str:
    """Return how many subjects there are and how many a test needs, "" if there are enough."""
    if num_subjects < FEWEST_SUBJECTS:
        return f"{num_subjects}, a test needs at least {FEWEST_SUBJECTS}"
    needed = subjects_needed(num_tests)
    wanted = f"p < {SIGNIFICANT} in {num_tests} tests needs at least {needed}"
    return f"{num_subjects}, {wanted}" if num_subjects < needed else ""


def outcomes(scores: pd.DataFrame, statistics: pd.DataFrame, primary: str) -> tuple[Outcome, ...]:
    """Return the best method, the next one, and whether the difference holds, by label and measure."""
    by_measure = scores.groupby(["label", "measure"], sort=False)
    return tuple(_outcome(ranked, statistics, primary) for _, ranked in by_measure)


def _outcome(ranked: pd.DataFrame, statistics: pd.DataFrame, primary: str) -> Outcome:
    label, measure = int(ranked["label"].iloc[0]), str(ranked["measure"].iloc[0])
    best, role = tuple(ranked.loc[ranked["rank"] == 1, "method"]), role_of(measure, primary)
    if len(ranked) == 1:
        return Outcome(label, measure, Verdict.ALONE, best, role=role)
    if len(best) > 1:
        return Outcome(label, measure, Verdict.EQUAL, best, difference=0.0, role=role)
    first, second = ranked.sort_values(["rank", "method"])["method"].iloc[:2]
    pairs = statistics[(statistics["label"] == label) & (statistics["measure"] == measure)]
    both = [first, second]
    pair = pairs[pairs["method_a"].isin(both) & pairs["method_b"].isin(both)].iloc[0]
    sign = 1 if pair["method_a"] == first else -1
    low, high = sorted((sign * pair["ci_low"], sign * pair["ci_high"]))
    return Outcome(
        label,
        measure,
        _verdict(pair, same=pair["better"] in ("", first)),
        best,
        winner=first,
        runner_up=second,
        difference=sign * pair[f"{pair['interval_of']}_difference"],
        ci_low=low,
        ci_high=high,
        p_corrected=float(pair["p_subjects_corrected"]),
        num_subjects=int(pair["num_subjects"]),
        num_tests=int(pair["num_tests"]),
        interval_of=pair["interval_of"],
        role=role,
    )


def _verdict(pair: Any, *, same: bool) -> Verdict:
    """Return the verdict; `same`: the better rank is no worse over the subjects that both have."""
    if not same:
        return Verdict.CONTRADICTED
    if pair["holds"]:
        return Verdict.HOLDS
    if pair["role"] == "exploratory":
        return Verdict.EXPLORATORY
    if pair["note"]:
        return Verdict.TOO_FEW
    significant = float(pair["p_subjects_corrected"]) < SIGNIFICANT
    return Verdict.INCLUDES_ZERO if significant else Verdict.NOT_SIGNIFICANT


def winner_table(found: Sequence[Outcome]) -> pd.DataFrame:
    """Return a row per label and measure, the verdict in words."""
    columns = ["label", "measure", "role", "winner", "runner_up"]
    columns += ["difference", "ci_low", "ci_high", "p_corrected"]
    rows = [[*(getattr(each, name) for name in columns), each.holds, each.in_words()] for each in found]
    return pd.DataFrame(rows, columns=[*columns, "holds", "verdict"])


def wide_leaderboard(scores: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return a row per label and method; mean, sd, median, interval and rank of each measure in columns."""
    numbers = ["mean", "sd", "median", "ci_low", "ci_high", "rank"]
    wide = scores.pivot(index=["label", "method"], columns="measure", values=[*numbers]).swaplevel(axis=1)
    shown = [measure for measure in SCORES if measure in set(scores["measure"])]
    wide = wide.reindex(columns=pd.MultiIndex.from_product([shown, numbers]))
    wide.columns = pd.Index([f"{measure}_{number}" for measure, number in wide.columns])
    people = scores.groupby(["label", "method"])[["num_subjects", "num_cases"]].max()
    return in_order(people.join(wide).reset_index(), ["label", "method"], method=methods)
