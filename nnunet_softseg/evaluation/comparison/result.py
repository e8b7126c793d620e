"""What a comparison found: tables and words, all that a report needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_softseg.evaluation.measuring import REFERENCE


@dataclass(frozen=True)
class Comparison:
    """Methods against one reference on the cases that all of them have.

    Every table is tidy and has a plain RangeIndex. Rows are sorted: methods in the order of `methods`, then
    label, case (or subject, contrast). Units stand in the names of columns; "hard" is of maps > 0.5. A
    `measure` is a key of `scores.SCORES`, which says of each title, unit and direction.

    Attributes:
        methods: names in the order given; any text, also `<script>`.
        labels: value -> name of each label compared, `{1: "cord"}`.
        reference: the folder (or file) of the references.
        cases: a row per method, case and label; columns are those of `evaluation.columns.CASE_COLUMNS`.
            Paths (prediction, reference, image, levels) are text, "" if there is none; so are session and
            contrast. asd_mm and hd95_mm of an empty prediction are inf; NaN says that there is no value.
        slices: a row per method (and `REFERENCE`), case, label and slice of the reference's extent; columns
            are those of `evaluation.columns.SLICE_COLUMNS`. level is Int64 with NA, in_region is bool.
        subjects: the unit of the statistics: a row per method (and `REFERENCE`), subject and label.
            Columns: method, subject, label, num_cases, the mean over the subject's cases of every measure
            of single cases, std_csa_mm2 and std_csa_hard_mm2 (STD, ddof 1, over contrasts; NaN unless the
            subject has all contrasts in all methods), csa_mm2, csa_hard_mm2. The reference has areas and
            their STD only.
        scores: the leaderboard in long form, a row per label, measure and method. Columns: label, measure,
            method, num_subjects, num_cases, mean, sd (ddof 1) and median of subject means, ci_low, ci_high
            (95 %, bootstrap over subjects, of the mean; NaN if too few), rank (1 is best; ties share the
            smaller).
        winners: a row per label and measure. Columns: label, measure, winner ("" for a tie), runner_up,
            difference (winner - runner-up, mean of subject means, or median: see statistics), ci_low,
            ci_high, p_corrected, holds (bool), verdict (in words).
        statistics: a row per label, measure and pair of methods, in the order of `methods`; columns are
            those of `leaderboard.STATISTICS_COLUMNS`.
        anova: does area depend on contrast, within one method; a row per method (and `REFERENCE`), label
            and measure (csa_mm2, csa_hard_mm2). Columns: method, label, measure, num_subjects,
            num_contrasts, f, df_contrasts, df_error, p, epsilon (Greenhouse-Geisser), p_corrected,
            partial_eta_squared, note.
        agreement: Bland-Altman of prediction against reference; a row per method, label, measure (csa_mm2,
            csa_hard_mm2) and contrast, and one with contrast "" for all together. Columns: method, label,
            measure, contrast, num_subjects, num_cases, bias, sd, loa_low, loa_high, bias_ci_low,
            bias_ci_high, loa_low_ci_low, loa_low_ci_high, loa_high_ci_low, loa_high_ci_high, note.
        contrast_agreement: areas of one contrast against another of the same subject; a row per method (and
            `REFERENCE`), label, measure (csa_mm2, csa_hard_mm2) and pair of contrasts. Columns: method,
            label, measure, contrast_x, contrast_y, num_subjects, bias (y - x), loa_low, loa_high, slope,
            intercept (of the least-squares line), r (Pearson).
        reliability: sums over all cases; a row per method, label and bin; columns are those of
            `evaluation.columns.RELIABILITY_COLUMNS`.
        missing: a row per case and method that lacks it. Columns: case, method, reason. Such cases are in
            no other table.
        method_notes: method -> one line on which files were used.
        warnings: in words, the gravest first.
        made_by: version, command and every parameter, as JSON can hold them.
    """

    methods: tuple[str, ...]
    labels: Mapping[int, str]
    reference: Path
    cases: pd.DataFrame
    slices: pd.DataFrame
    subjects: pd.DataFrame
    scores: pd.DataFrame
    winners: pd.DataFrame
    statistics: pd.DataFrame
    anova: pd.DataFrame
    agreement: pd.DataFrame
    contrast_agreement: pd.DataFrame
    reliability: pd.DataFrame
    missing: pd.DataFrame
    method_notes: Mapping[str, str]
    warnings: tuple[str, ...]
    made_by: Mapping[str, Any]

    def areas(self, method: str, *, label: int, measure: str = "csa_mm2") -> pd.DataFrame:
        """Return the areas of one method, a row per (subject, session), a column per contrast; NaN if none.

        Args:
            method: of `methods`, or `REFERENCE`.
            label: of `labels`.
            measure: "csa_mm2" or "csa_hard_mm2".
        """
        rows = self.cases[self.cases["label"] == label]
        column = measure
        if method == REFERENCE:
            rows, column = rows[rows["method"] == self.methods[0]], f"reference_{measure}"
        else:
            rows = rows[rows["method"] == method]
        return rows.pivot(index=["subject", "session"], columns="contrast", values=column)

    def as_text(self) -> str:
        """Return what a terminal shows: files, mean and sd over subjects, whether differences hold."""
        lines = [f"{method}: {note}" for method, note in self.method_notes.items()]
        for label, name in self.labels.items():
            scores = self.scores[self.scores["label"] == label]
            rows = {
                measure: {row.method: f"{row.mean:.4g} +- {row.sd:.2g}" for row in table.itertuples()}
                for measure, table in scores.groupby("measure", sort=False)
            }
            table = pd.DataFrame.from_dict(rows, orient="index", columns=list(self.methods)).fillna("")
            decided = self.winners[self.winners["label"] == label].set_index("measure")
            table = table.assign(best=decided["winner"], difference=decided["verdict"])
            lines += ["", f"{name}: mean and standard deviation over subjects", table.to_string()]
        return "\n".join(lines)
