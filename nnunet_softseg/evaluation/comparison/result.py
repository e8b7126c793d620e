"""Methods compared: all tables, how they are made from an evaluation, and written.

Beside the leaderboard: does area depend on contrast, and how do areas agree with the reference's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.comparison import leaderboard, paired_statistics
from nnunet_softseg.evaluation.comparison.leaderboard import Outcome, complete_areas, with_reference
from nnunet_softseg.evaluation.comparison.paired_statistics import (
    BOOTSTRAP_FROM,
    FEWEST_SUBJECTS,
    RESAMPLES,
    SIGNIFICANT,
)
from nnunet_softseg.evaluation.evaluate import Evaluation, write_evaluation
from nnunet_softseg.evaluation.measuring import AREAS, REFERENCE
from nnunet_softseg.evaluation.tables import records, write_csv
from nnunet_softseg.io.results import write_json

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
TESTS = "statistics.json"
"""Of all files that a comparison writes, one that no other command does."""
_LIMITS = ("bias", "sd", "loa_low", "loa_high")
_INTERVALS = tuple(f"{name}_ci_{end}" for name in ("bias", "loa_low", "loa_high") for end in ("low", "high"))
_WHOSE = ("method", "label", "measure")
AGREEMENT_COLUMNS = (*_WHOSE, "contrast", "num_subjects", "num_cases", *_LIMITS, *_INTERVALS, "note")
"""Bias (prediction - reference), its standard deviation, 95 % limits of agreement, intervals of these."""
_PAIR = ("contrast_x", "contrast_y", "num_subjects", "bias", "loa_low", "loa_high", "slope", "intercept", "r")
PAIR_COLUMNS = (*_WHOSE, *_PAIR)
"""Bias (y - x) and limits of agreement; least-squares line, and Pearson's r."""
_FEWEST_FOR_ANOVA = 3


@dataclass(frozen=True)
class Comparison(Evaluation):
    """Methods against one reference on the cases that all of them have: an evaluation, and its statistics.

    Every table is tidy and has a plain RangeIndex. Rows are sorted: methods in the order of `methods`, then
    label, case (or subject, contrast). Units stand in the names of columns; "hard" is of maps > 0.5. A
    `measure` is a key of `leaderboard.SCORES`. asd_mm and hd95_mm are inf where one of both maps is
    empty; NaN: no value. Names of methods may be any text, also `<script>`.

    Attributes:
        reference: the folder (or file) of the references.
        subjects: of `leaderboard.subject_table`; the reference has areas and their STD only.
        scores: the leaderboard in long form, columns `leaderboard.SCORE_COLUMNS`.
        outcomes: the best method by each label and measure, and whether it holds.
        statistics: a row per label, measure and pair of methods; `leaderboard.STATISTICS_COLUMNS`.
        anova: a row per method (and `REFERENCE`), label and area; `ANOVA_COLUMNS`.
        agreement: Bland-Altman of prediction against reference; a row per method, label, area and contrast;
            contrast "" is all together; `AGREEMENT_COLUMNS`.
        contrast_agreement: areas of one contrast against another of the same subject; a row per method (and
            `REFERENCE`), label, area and pair of contrasts; `PAIR_COLUMNS`.
        made_by: version, command and every parameter, as JSON can hold them.
    """

    reference: Path
    subjects: pd.DataFrame
    scores: pd.DataFrame
    outcomes: tuple[Outcome, ...]
    statistics: pd.DataFrame
    anova: pd.DataFrame
    agreement: pd.DataFrame
    contrast_agreement: pd.DataFrame
    made_by: Mapping[str, Any]

    @property
    def winners(self) -> pd.DataFrame:
        """A row per label and measure: label, measure, role, winner, runner_up, difference, ci_low, ci_high.

        And p_corrected, holds, verdict (in words); see `verdict.Outcome`.
        """
        return leaderboard.winner_table(self.outcomes)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The options of the user."""
        return dict(self.made_by.get("parameters", {}))

    def areas(self, method: str, *, label: int, measure: str = "csa_mm2") -> pd.DataFrame:
        """Return the areas of a method or `REFERENCE`, a row per (subject, session), a column per contrast.

        `measure` is one of `AREAS`; NaN if a subject has none.
        """
        rows = with_reference(self.cases)
        rows = rows[(rows["label"] == label) & (rows["method"] == method)]
        return rows.pivot(index=["subject", "session"], columns="contrast", values=measure)

    def as_text(self) -> str:
        """Return files, mean and sd over subjects, and whether differences hold, for a terminal."""
        lines = [f"{method}: {note}" for method, note in self.method_notes.items()]
        lines += self.failures
        winners = self.winners
        for label, name in self.labels.items():
            scores = self.scores[self.scores["label"] == label]
            rows = {
                measure: {row.method: f"{row.mean:.4g} +- {row.sd:.2g}" for row in table.itertuples()}
                for measure, table in scores.groupby("measure", sort=False)
            }
            table = pd.DataFrame.from_dict(rows, orient="index", columns=list(self.methods)).fillna("")
            decided = winners[winners["label"] == label].set_index("measure")[["winner", "verdict"]]
            # A method may have one of these names.
            table = pd.concat([table, decided.set_axis(["best", "difference"], axis=1)], axis=1)
            lines += ["", f"{name}: mean and standard deviation over subjects", table.to_string()]
        return "\n".join(lines)


def compared(evaluation: Evaluation, reference: Path, origin: Mapping[str, Any]) -> Comparison:
    """Return the statistics of methods that have been measured.

    `origin` is of `tables.made_by`, with `correction`, `primary` and `seed` among its parameters.

    Raises:
        UserError: if no case has a value of a primary measure other than the default.
    """
    cases, methods = evaluation.cases, evaluation.methods
    how = {name: origin["parameters"][name] for name in ("correction", "primary", "seed")}
    seed, primary = how["seed"], how["primary"]
    subjects, warnings = leaderboard.subject_table(cases)
    scores = leaderboard.score_table(cases, subjects, methods, seed)
    of_primary = _without_primary(evaluation.labels, scores, primary)
    statistics = leaderboard.pair_table(cases, subjects, methods, **how)
    people = cases["subject"].nunique()
    if people < FEWEST_SUBJECTS:
        warnings.append(
            f"too few subjects for statistics: {people}, a test needs at least {FEWEST_SUBJECTS}; tables are "
            "complete"
        )
    measured = {field.name: getattr(evaluation, field.name) for field in fields(Evaluation)}
    return Comparison(
        **measured | {"warnings": (*of_primary, *evaluation.warnings, *warnings)},
        reference=reference,
        subjects=subjects,
        scores=scores,
        outcomes=leaderboard.outcomes(scores, statistics, primary),
        statistics=statistics,
        anova=anova_table(cases, methods),
        agreement=agreement_table(cases),
        contrast_agreement=contrast_agreement_table(cases, methods),
        made_by=origin,
    )


def _without_primary(labels: Mapping[int, str], scores: pd.DataFrame, primary: str) -> list[str]:
    """Warn that the primary measure has no value in some labels; in none, refuse one that was named."""
    there = set(scores.loc[scores["measure"] == primary, "label"])
    lacking = [name for label, name in labels.items() if label not in there]
    if not there and primary != leaderboard.PRIMARY:
        measured = [name for name in leaderboard.SCORES if name in set(scores["measure"])]
        raise UserError(
            f"--primary {primary}: expected a measure that has a value in some case, found none "
            f"({leaderboard.SCORES[primary].meaning}): name one of {', '.join(measured)}"
        )
    told = f"the primary measure, {primary}, has no value of {examples(lacking)}: it answers nothing there"
    return [told] if lacking else []


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
    """Return how the areas of two contrasts of a subject agree, a row per method, label, measure and pair.

    Of the pairs that some subject has: where names give each person a contrast, there are thousands more.
    """
    rows = []
    for (label, table), area in product(with_reference(cases).groupby("label"), AREAS):
        wide = table.pivot(index=["method", "subject", "session"], columns="contrast", values=area)
        contrasts = sorted(name for name in wide.columns if name)
        there = wide.notna().astype(int)
        together = there.T @ there
        shared = [pair for pair in combinations(contrasts, 2) if together.loc[pair]]
        for method, (first, second) in product([*methods, REFERENCE], shared):
            pairs = wide.loc[method][[first, second]].dropna()
            subjects = pairs.index.get_level_values("subject")
            limits = paired_statistics.limits_of_agreement(pairs[second] - pairs[first], subjects)
            line = paired_statistics.fitted_line(pairs[first], pairs[second])
            who = (method, label, area, first, second, subjects.nunique())
            rows.append((*who, limits.bias, limits.low, limits.high, *line))
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS))


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Write all tables."""
    write_evaluation(comparison, output, dict(comparison.made_by))
    write_csv(output / "leaderboard.csv", leaderboard.wide_leaderboard(comparison.scores, comparison.methods))
    for name in ("subjects", "winners", "statistics"):
        write_csv(output / f"{name}.csv", getattr(comparison, name))
    write_json(output / TESTS, _statistics(comparison))
    write_json(output / "summary.json", _summary(comparison))


def _statistics(comparison: Comparison) -> dict[str, Any]:
    return {
        "made_by": dict(comparison.made_by),
        "how": {
            "unit": "subject: means over a subject's cases",
            "test": "two-sided Wilcoxon signed-rank test, paired; primary and headline measures corrected "
            "together over measures, labels and pairs of methods, each exploratory one over its pairs",
            "interval": f"95 %: Student's t; from {BOOTSTRAP_FROM} subjects on bootstrap, BCa, {RESAMPLES} "
            "resamples; of a median, order statistics",
            "holds": f"a primary or headline measure with corrected p < {SIGNIFICANT} and an interval "
            "without 0",
        },
        "columns": {"pairs": leaderboard.STATISTICS_COLUMNS, "anova": ANOVA_COLUMNS},
        "pairs": records(comparison.statistics),
        **{name: records(getattr(comparison, name)) for name in ("anova", "agreement", "contrast_agreement")},
    }


def _summary(comparison: Comparison) -> dict[str, Any]:
    return {
        "made_by": dict(comparison.made_by),
        "num_cases": int(comparison.cases["case"].nunique()),
        "num_subjects": int(comparison.cases["subject"].nunique()),
        "contrasts": sorted(comparison.cases["contrast"].unique()),
        "labels": {str(value): name for value, name in comparison.labels.items()},
        "files": dict(comparison.method_notes),
        "warnings": list(comparison.warnings),
        "failed": dict(comparison.failed),
        **{name: records(getattr(comparison, name)) for name in ("missing", "winners", "scores")},
    }
