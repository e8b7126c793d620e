"""Two releases compared: statistics of contrasts and levels, held against limits; normative tables updated.

No published limit exists. The defaults are a choice: measurements.md says what they catch and what they let
pass.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.comparison.paired_statistics import (
    FEWEST_SUBJECTS,
    NO_INTERVAL,
    DemingLine,
    Floats,
    Interval,
    confidence_interval,
    deming_line,
    limits_of_agreement,
    student_t,
)
from nnunet_softseg.evaluation.releases.areas import KEYS, NO_LEVEL, ReleaseAreas, level_number, names_of
from nnunet_softseg.evaluation.tables import read_table, records
from nnunet_softseg.io.results import load_json
from nnunet_softseg.metrics.morphometry.levels import LevelKind

BIAS_PERCENT = 1.0
CONTRAST_BIAS_PERCENT = 2.5
"""Two trainings of one model on a phantom differed by up to 1.7 % in single contrasts. Refuted by releases
that differ by more there, and by less over all contrasts, and which nobody would call another measure."""
DRIFT_COLUMNS = {
    "contrast": "empty if the names or tables tell none",
    "level": "vertebral level: 1-7 are C1-C7, 8-19 T1-T12, 20-24 L1-L5; spinal level: 1-8 are C1-C8, 9-20 "
    "T1-T12; empty without levels",
    "n": "subjects",
    "bias_mm2": "mean over subjects of new - old, mm2",
    "bias_low_mm2": "95 % interval of the bias over subjects: bootstrap (BCa), Student's t below 30 subjects",
    "bias_high_mm2": "its upper end",
    "loa_low_mm2": "95 % limits of agreement, bias - 1.96 SD of the differences, mm2",
    "loa_high_mm2": "bias + 1.96 SD",
    "mean_ratio": "mean over subjects of new / old",
    "sd_ratio": "SD over subjects of the new areas / SD of the old: a spread that shrinks spoils z-scores; "
    "of all contrasts, apart from what contrasts differ by",
    "deming_slope": "of the line new = slope old + intercept, errors in both, through the same areas",
    "deming_intercept_mm2": "of the same line, mm2",
}
"""The columns of drift.csv."""
ALL_CONTRASTS = "all"
_MOST_SHOWN = 10
_OF_LINE = ["deming_slope", "deming_intercept_mm2", "slope_se", "intercept_se_mm2", "covariance_mm2"]
"""The columns that hold a `DemingLine`."""
_SPREADS = ("sd", "std", "se", "sem")
_AREAS = re.compile(r"(?P<stem>.+)_mm2(?P<mean>_mean|_std|)")
"""Columns of areas; `csa --summary` has mean and STD behind the unit."""


@dataclass(frozen=True)
class Limits:
    """Each is broken where the whole 95 % interval lies beyond it; None: not looked at.

    Attributes:
        bias_percent: of the mean difference new - old, in percent of the old mean area; where there are
            several contrasts, of the mean over all of them.
        contrast_bias_percent: of the same of each contrast, where there are several; at least bias_percent.
        bias_mm2: of the same in mm2, of each contrast and of all.
        slope: of |Deming slope - 1|: how much more large areas change than small ones.
        contrast_std_mm2: of the growth of the STD of a subject's area over contrasts, mm2.
        lost_areas: how many areas of the old release the new one may fail to find.
    """

    bias_percent: float | None = BIAS_PERCENT
    contrast_bias_percent: float | None = CONTRAST_BIAS_PERCENT
    bias_mm2: float | None = None
    slope: float | None = None
    contrast_std_mm2: float | None = None
    lost_areas: int | None = 0

    def of_bias(self, *, one_of_several: bool) -> tuple[str, float | None]:
        """Return name and value of the limit of a bias in percent: of one contrast of several, or of all."""
        if not one_of_several:
            return "bias_percent", self.bias_percent
        limit = self.contrast_bias_percent
        return "contrast_bias_percent", None if limit is None else max(limit, self.bias_percent or 0)

    def broken(self, row: Mapping[str, Any], *, one_of_several: bool = False) -> list[str]:
        """Return the names of the limits that a row of the statistics breaks.

        Args:
            row: of a contrast and level, or of a level over all contrasts.
            one_of_several: whether it is of one contrast of several.
        """
        name, limit = self.of_bias(one_of_several=one_of_several)
        rest = ("bias_mm2", "slope", "contrast_std_mm2")
        limits = {name: ("bias_percent", limit)} | {each: (each, getattr(self, each)) for each in rest}
        return [each for each, (measure, limit) in limits.items() if _is_beyond(limit, measure, row)]


def _is_beyond(limit: float | None, measure: str, row: Mapping[str, Any]) -> bool:
    centre = 1.0 if measure == "slope" else 0.0
    low, high = (row.get(f"{measure}_{end}", math.nan) - centre for end in ("low", "high"))
    one_sided = measure == "contrast_std_mm2"  # a smaller spread is no fault
    return limit is not None and bool(low > limit or (high < -limit and not one_sided))


def read_limits(file: Path) -> Limits:
    """Return limits from a JSON file with some of the names of `Limits`; null switches one off.

    Raises:
        UserError: if it cannot be read, a name is unknown, or a value is no number of 0 or more.
    """
    content = load_json(file)
    known = [field.name for field in dataclasses.fields(Limits)]
    if not isinstance(content, dict):
        raise UserError(
            f'{file}: expected an object such as {{"bias_percent": 1.0}}, found {content!r}: name the limits'
        )
    if found := sorted(set(content) - set(known)):
        raise UserError(
            f"{file}: expected limits named {', '.join(known)}, found {', '.join(found)}: rename or remove it"
        )
    for name, value in content.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value < math.inf):
            raise UserError(f"{file}: {name}: expected a number of 0 or more, or null, found {value!r}")
    return Limits(**content)


@dataclass(frozen=True)
class DriftReport:
    """Two releases compared on one set of people.

    Attributes:
        old: the old release, folder of maps or CSV.
        new: the new one.
        areas: what was compared.
        limits: what counts as drift.
        limits_file: where they come from; None: the defaults.
        trained_on: release -> subjects that it was trained on.
        manifest_files: files of the frozen set that were verified; None: no manifest was given.
        notes: warnings beside those of the areas.
    """

    old: Path
    new: Path
    areas: ReleaseAreas
    limits: Limits
    limits_file: Path | None = None
    trained_on: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    manifest_files: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def pairs(self) -> pd.DataFrame:
        """The areas of both releases; see `ReleaseAreas`."""
        return self.areas.pairs

    @cached_property
    def _several(self) -> pd.DataFrame:
        """The pairs where there are several contrasts; none where there is one."""
        return self.pairs if self.pairs["contrast"].nunique() > 1 else self.pairs.iloc[:0]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per contrast and level: `DRIFT_COLUMNS` and more, the limit of the bias, and those broken."""
        return self._judged(statistics_table(self.pairs), one_of_several=len(self._several) > 0)

    @cached_property
    def pooled(self) -> pd.DataFrame:
        """The same of all contrasts together, a row per level; none where there is one contrast."""
        return self._judged(statistics_table(self._several, pooled=True))

    @cached_property
    def spread(self) -> pd.DataFrame:
        """STD of a subject's area over contrasts, mm2, a row per level, and `beyond`; none likewise."""
        return self._judged(spread_over_contrasts(self._several)).drop(columns="limit_percent")

    @cached_property
    def worst(self) -> pd.DataFrame:
        """The ten areas that changed most: `KEYS`, old, new, difference_mm2, difference_percent."""
        difference = self.pairs["new"] - self.pairs["old"]
        percent = 100 * difference / self.pairs["old"]
        table = self.pairs.assign(difference_mm2=difference, difference_percent=percent)
        order = difference.abs().sort_values(ascending=False, kind="stable").index[:_MOST_SHOWN]
        columns = [*KEYS, "old", "new", "difference_mm2", "difference_percent"]
        return _with_levels(table.loc[order, columns].reset_index(drop=True))

    @property
    def judged(self) -> pd.DataFrame:
        """All rows of the statistics, those of all contrasts together last."""
        return pd.concat([self.table, self.pooled], ignore_index=True) if len(self.pooled) else self.table

    def _judged(self, table: pd.DataFrame, *, one_of_several: bool = False) -> pd.DataFrame:
        rows = table.to_dict("records")
        _, limit = self.limits.of_bias(one_of_several=one_of_several)
        return table.assign(
            beyond=[self.limits.broken(row, one_of_several=one_of_several) for row in rows],
            limit_percent=np.nan if limit is None else limit,
        )

    @property
    def broken(self) -> list[str]:
        """Which limits are broken where, in words."""
        found = [
            f"{name} of {place or 'all'}"
            for table in (self.judged, self.spread)
            for names, place in zip(table["beyond"], names_of(table, self.areas.kind), strict=True)
            for name in names
        ]
        allowed = self.limits.lost_areas
        if allowed is not None and len(self.areas.lost) > allowed:
            names = names_of(self.areas.lost, self.areas.kind)
            found.append(f"{len(names)} areas lost ({examples(names)})")
        return found

    @property
    def drift(self) -> bool:
        """Whether any limit is broken."""
        return bool(self.broken)

    @property
    def verdict(self) -> str:
        """The limits that are broken, or that none is, in words."""
        if not self.drift:
            return f"no limit is broken in {len(self.judged)} rows of contrast and level"
        return f"beyond the limit: {examples(self.broken, 6)}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may make the verdict worth less, the gravest first."""
        warnings = [
            f"{release} WAS TRAINED ON {len(people)} of these subjects: {examples(people)}; its areas of "
            "them say little about new people: freeze a set that no release has seen"
            for release, people in self.trained_on.items()
        ]
        warnings += self.notes
        fewest = int(self.table["n"].min())
        if fewest < FEWEST_SUBJECTS:
            warnings.append(
                f"{fewest} subjects only in some contrast or level: the interval of the bias is wide, and a "
                f"drift may go unseen; compare {FEWEST_SUBJECTS} or more"
            )
        return (*warnings, *self.areas.warnings)

    def as_text(self) -> str:
        """Return statistics and verdict for a terminal."""
        shown = self.judged[[*DRIFT_COLUMNS]].to_string(
            index=False, float_format=lambda value: f"{value:.4g}", na_rep=""
        )
        return f"{shown}\n\n{'DRIFT' if self.drift else 'no drift'}: {self.verdict}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        tables = {"rows": self.table, "over_contrasts": self.pooled, "std_over_contrasts": self.spread}
        return {
            "drift": self.drift,
            "beyond_limits": self.broken,
            "limits": dataclasses.asdict(self.limits),
            "limits_note": "no published limit exists; broken where the whole 95 % interval lies beyond it",
            "num_subjects": int(self.pairs["subject"].nunique()),
            "num_areas": len(self.pairs),
            "columns": dict(DRIFT_COLUMNS),
            **{name: records(table) for name, table in tables.items()},
            "worst": records(self.worst),
            "lost": records(self.areas.lost),
            "trained_on": dict(self.trained_on),
            "manifest_files": self.manifest_files,
            "warnings": list(self.warnings),
        }


# Statistics


def statistics_table(pairs: pd.DataFrame, *, pooled: bool = False) -> pd.DataFrame:
    """Return the columns `DRIFT_COLUMNS` and more, a row per contrast and level in the order of both.

    `pooled`: all contrasts together, `ALL_CONTRASTS`, a row per level. More: mean_old_mm2,
    geometric_mean_ratio, bias_percent of the old mean with its interval, slope_low and slope_high (95 %), and
    of the Deming line slope_se, intercept_se_mm2, covariance_mm2.
    """
    contrasts = pd.Series(ALL_CONTRASTS, pairs.index) if pooled else pairs["contrast"]
    groups = pairs.groupby([contrasts, "level"], sort=True)
    found = [{"contrast": contrast, "level": int(level), **_row(rows)} for (contrast, level), rows in groups]
    return _with_levels(pd.DataFrame(found, columns=None if found else [*DRIFT_COLUMNS]))


def _row(rows: pd.DataFrame) -> dict[str, Any]:
    old, new = (rows[name].to_numpy(dtype=np.float64) for name in ("old", "new"))
    subjects = rows["subject"].to_numpy()
    means = _subject_means(rows)
    spread, line = means.std(ddof=1), deming_line(means["old"], means["new"], means.index)
    agreement, number = limits_of_agreement(new - old, subjects), len(np.unique(subjects))
    half = line.slope_se * float(special.stdtrit(max(len(means) - 2, 1), 0.975))  # Linnet 1993
    people = pd.DataFrame({"change": new - old, "old": old, "ratio": new / old, "log": np.log(new / old)})
    people = people.groupby(subjects).mean()
    mean_old, ratio, log_ratio = map(float, people[["old", "ratio", "log"]].mean())
    interval = _interval(people["change"].to_numpy(dtype=np.float64))
    bias = {"bias_mm2": agreement.bias, "bias_mm2_low": interval.low, "bias_mm2_high": interval.high}
    return {
        "n": number,
        "bias_low_mm2": interval.low,
        "bias_high_mm2": interval.high,
        "loa_low_mm2": agreement.low,
        "loa_high_mm2": agreement.high,
        "mean_ratio": ratio,
        "geometric_mean_ratio": math.exp(log_ratio),
        "sd_ratio": float(spread["new"] / spread["old"]) if spread["old"] > 0 else np.nan,
        "mean_old_mm2": mean_old,
        "deming_intercept_mm2": line.intercept,
        **bias,
        **{name.replace("mm2", "percent"): 100 * value / mean_old for name, value in bias.items()},
        "deming_slope": line.slope,
        "slope_low": line.slope - half,
        "slope_high": line.slope + half,
        "slope_se": line.slope_se,
        "intercept_se_mm2": line.intercept_se,
        "covariance_mm2": line.covariance,
    }


def _subject_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return old and new of each subject, by the sum of a subject's and a contrast's part that fits best.

    Contrasts that lie apart, or sessions, would count as a spread between people. With all contrasts it is a
    subject's mean; of contrasts that no subjects link, nothing is known.

    Source: least squares of a two-way layout with empty cells, the subjects eliminated.
    """
    means = rows.groupby(["subject", "contrast"])[["old", "new"]].mean()
    wide = {name: means[name].unstack("contrast") for name in ("old", "new")}
    there = wide["old"].notna().to_numpy(np.float64)
    number = there.sum(axis=1)
    linked = np.diag(there.sum(axis=0)) - there.T @ (there / number[:, None])
    if np.linalg.matrix_rank(linked) < len(linked) - 1:
        return pd.DataFrame({"old": [], "new": []}, dtype=np.float64)
    parts = {}
    for name, table in wide.items():
        values = table.fillna(0.0).to_numpy()
        of_subjects = values.sum(axis=1)
        of_contrasts = np.linalg.pinv(linked) @ (values.sum(axis=0) - there.T @ (of_subjects / number))
        parts[name] = (of_subjects - there @ of_contrasts) / number
    return pd.DataFrame(parts, index=wide["old"].index)


def _interval(per_subject: Floats) -> Interval:
    """Return the interval of the mean; of two subjects or more: a wide interval lets no small drift count."""
    if per_subject.size >= FEWEST_SUBJECTS:
        return confidence_interval(per_subject)
    return student_t(per_subject) if per_subject.size > 1 else NO_INTERVAL


def spread_over_contrasts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the STD of a subject's area over contrasts, old and new, means over subjects; a row per level.

    Of subjects with all contrasts. `contrast_std_mm2` is the mean of new - old, with its 95 % interval.
    """
    rows = []
    for level, of_level in pairs.groupby("level", sort=True):
        std = {}
        for release in ("old", "new"):
            wide = of_level.pivot(index=["subject", "session"], columns="contrast", values=release).dropna()
            std[release] = wide.std(axis=1, ddof=1).groupby("subject").mean()
        grown = (std["new"] - std["old"]).to_numpy(dtype=np.float64)
        mean = float(grown.mean()) if grown.size else np.nan
        numbers = (std["old"].mean(), std["new"].mean(), mean, *_interval(grown))
        rows.append((level, grown.size, *numbers))
    spread = [f"contrast_std_mm2{end}" for end in ("", "_low", "_high")]
    return _with_levels(pd.DataFrame(rows, columns=["level", "n", "std_old_mm2", "std_new_mm2", *spread]))


def _with_levels(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table for people, in which no level is an empty field."""
    return table.assign(level=table["level"].astype("Int64").replace(NO_LEVEL, pd.NA))


# A normative table, brought to the new release


def updated_table(
    file: Path, relations: pd.DataFrame, pooled: pd.DataFrame, kind: LevelKind = "vertebral"
) -> pd.DataFrame:
    """Return a table of areas as the new release would have measured them.

    Every column that ends in `_mm2`, `_mm2_mean` or `_mm2_std` is taken for areas of the old release: slope x
    area + intercept of the row's contrast and level; one with `sd`, `std`, `se` or `sem` as a word of its
    name for a spread: slope x spread. Added are `<column>_se_mm2` (without the `_mm2` of the
    column), the standard error that the line brings (of the line alone, not of the table), and the line:
    deming_slope, deming_slope_se, deming_intercept_mm2, deming_intercept_se_mm2.

    Args:
        file: CSV with level, perhaps contrast, and areas; other columns stay as they are.
        relations: of `statistics_table`.
        pooled: the same of all contrasts together, for a table without contrasts.
        kind: how the table names levels.

    Raises:
        UserError: if it cannot be read, has no area, a level or contrast that was not compared, or a column
            of its own where a standard error is to be added.
    """
    table = read_table(file, "a CSV of areas", dtype={"level": str, "contrast": str})
    areas = _errors_of_areas(table)
    if "deming_slope" in table:  # an earlier update of it
        table = table[
            [name for name in table if name not in areas.values() and not name.startswith("deming_")]
        ]
        areas = _errors_of_areas(table)
    if own := [name for name in areas.values() if name in table]:
        raise UserError(
            f"{file}: expected no column {own[0]}, where the standard error of the new areas goes, found "
            "one: rename it"
        )
    if not areas:
        raise UserError(
            f"{file}: expected columns of areas whose names end in _mm2, found "
            f"{examples(list(map(str, table.columns)), 8)}: rename them"
        )
    for name in areas:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise UserError(f"{file}: {name}: expected numbers in mm2, found text: correct it")
    line = _line_of_rows(file, table, relations if "contrast" in table or pooled.empty else pooled, kind)
    added: dict[str, Floats] = {}
    for name, error in areas.items():
        values = table[name].to_numpy(dtype=np.float64)
        spread = any(word in _SPREADS for word in name.lower().split("_"))
        new = line.slope * values if spread else line.at(values)
        errors = np.abs(values) * line.slope_se if spread else line.se_at(values)
        added |= {name: new, error: errors}
    kept = {"deming_slope": line.slope, "deming_slope_se": line.slope_se}
    kept |= {"deming_intercept_mm2": line.intercept, "deming_intercept_se_mm2": line.intercept_se}
    return table.assign(**added, **kept)


def _errors_of_areas(table: pd.DataFrame) -> dict[str, str]:
    """Return the columns of areas -> the names of the standard errors that an update adds to them."""
    found = {str(name): _AREAS.fullmatch(str(name)) for name in table.columns}
    return {
        name: f"{match['stem']}{match['mean']}_se_mm2"
        for name, match in found.items()
        if match and not name.startswith("deming_")
    }


def _line_of_rows(file: Path, table: pd.DataFrame, relations: pd.DataFrame, kind: LevelKind) -> DemingLine:
    """Return the line of each row's contrast and level, as arrays."""
    blank = pd.Series("", table.index)
    contrasts, levels = (table.get(name, blank).fillna("").astype(str) for name in ("contrast", "level"))
    numbers = np.array([level_number(file, text, kind) for text in levels], dtype=int)
    keys = pd.DataFrame({"contrast": contrasts, "level": numbers})
    known = relations.assign(level=relations["level"].fillna(NO_LEVEL).astype(int))
    known = known if "contrast" in table else known.assign(contrast="")
    lines = keys.merge(known, how="left", on=["contrast", "level"])
    lacking = keys[lines["deming_slope"].isna().to_numpy()]
    if len(lacking):
        places = sorted(
            {f"{contrast} {level}".strip() for contrast, level in lacking.itertuples(index=False)}
        )
        pooled = bool(relations["contrast"].eq(ALL_CONTRASTS).all())
        raise UserError(
            f"{file}: expected levels and contrasts that were compared, found {examples(places)} beside "
            "them: compare these too, or leave their rows out"
            + ", or name the contrast of each row: no people link all contrasts"
            * pooled
        )
    return DemingLine(*lines[_OF_LINE].to_numpy(dtype=np.float64).T)
