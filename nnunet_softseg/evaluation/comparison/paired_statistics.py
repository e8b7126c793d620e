"""Tests, effect sizes and intervals for paired measurements; one value per subject unless said otherwise.

Subjects are the independent units: the images of one person are not. Every function takes plain arrays and
depends on neither the order of subjects nor, up to the sign, that of the methods.
"""

import itertools
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

Floats = npt.NDArray[np.float64]
Correction = Literal["holm", "bonferroni"]
Statistic = Literal["mean", "median"]

CORRECTIONS: tuple[Correction, ...] = ("holm", "bonferroni")
FEWEST_SUBJECTS = 6
"""With fewer, the two-sided signed-rank test cannot reach p < 0.05 (of 5: 2 / 2^5 = 0.0625)."""
BOOTSTRAP_FROM = 30
"""With fewer subjects, bootstrap intervals of a mean are too narrow: see docs/measurements.md."""
SIGNIFICANT = 0.05
"""A corrected p below this, with an interval that excludes 0, lets a difference hold."""
RESAMPLES = 9999
_EXACT_UP_TO = 50
_FEWEST_FOR_JACKKNIFE = 3
"""Subjects from which leaving one out says how certain a line is."""
_TWO = 2


class Interval(NamedTuple):
    """Both ends; NaN if not known."""

    low: float
    high: float


NO_INTERVAL = Interval(np.nan, np.nan)


class SignedRank(NamedTuple):
    """The smaller sum of signed ranks, and the two-sided p value."""

    w: float
    p: float


def signed_rank_test(differences: npt.ArrayLike) -> SignedRank:
    """Return the two-sided Wilcoxon signed-rank test of paired differences.

    Zeros are dropped (Wilcoxon 1945). Up to 50 differences the distribution is exact, with ties too (scipy's
    is not, and R's `wilcox.test` does without); beyond, it is the normal one, corrected for ties and
    continuity. All differences zero: p = 1. Infinite differences count by their rank. NaN is passed over;
    both are NaN without any difference.
    """
    values = _known(differences)
    changed = values[values != 0]
    if not changed.size:
        return SignedRank(0.0, 1.0) if values.size else SignedRank(np.nan, np.nan)
    ranks = stats.rankdata(np.abs(changed))
    w = float(min(ranks[changed > 0].sum(), ranks[changed < 0].sum()))
    if changed.size <= _EXACT_UP_TO:
        return SignedRank(w, _exact_p(ranks, w))
    result = stats.wilcoxon(np.sign(changed) * ranks, method="asymptotic", correction=True)
    return SignedRank(w, float(result.pvalue))


def _exact_p(ranks: Floats, w: float) -> float:
    """Return twice the share of all choices of signs whose positive ranks add up to at most w."""
    doubled = np.rint(2 * ranks).astype(int)  # ties have half ranks
    ways = np.zeros(doubled.sum() + 1)  # 2^50 choices are counted exactly in float64
    ways[0] = 1
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    return min(1.0, float(2 * ways[: round(2 * w) + 1].sum() / 2.0**ranks.size))


def rank_biserial(differences: npt.ArrayLike) -> float:
    """Return the matched-pairs rank-biserial correlation (W+ - W-) / (W+ + W-), in [-1, 1]; 0 if all are 0.

    Source: Kerby 2014, the simple difference formula.
    """
    values = _known(differences)
    changed = values[values != 0]
    if not changed.size:
        return 0.0 if values.size else np.nan
    sizes = stats.rankdata(np.abs(changed))
    return float((np.sign(changed) * sizes).sum() / sizes.sum())


def cohens_dz(differences: npt.ArrayLike) -> float:
    """Return mean / standard deviation (ddof 1) of the differences; NaN for less than two, or infinite ones.

    All zero: 0. All equal but not zero: NaN, as no spread is no unit of measure.

    Source: Cohen 1988, section 2.3.5.
    """
    values = _known(differences)
    if values.size < _TWO or not np.isfinite(values).all():
        return np.nan
    if not values.any():
        return 0.0
    deviation = values.std(ddof=1)
    return float(values.mean() / deviation) if _is_spread(values, deviation) else np.nan


def confidence_interval(values: npt.ArrayLike, *, statistic: Statistic = "mean", seed: int = 0) -> Interval:
    """Return the 95 % confidence interval of the mean or median over subjects.

    Of the mean: Student's t; from `BOOTSTRAP_FROM` subjects on the bias-corrected and accelerated bootstrap
    (BCa), which follows skewed values. Of the median: the order statistics that the sign test does not
    reject. The same values (one per subject; NaN is passed over) give the same interval, in whatever order.
    NaN for fewer than `FEWEST_SUBJECTS`, or a mean of infinite values.

    Source: Student 1908, Efron 1987; Thompson 1936 for the median.
    """
    known = np.sort(_known(values))
    if known.size < FEWEST_SUBJECTS or (statistic == "mean" and not np.isfinite(known).all()):
        return NO_INTERVAL
    if known[0] == known[-1] or not _is_spread(known, float(known[-1] - known[0])):
        return Interval(float(known[0]), float(known[0]))
    # Mirrored values must give the mirrored interval: a before b tells the same as b before a.
    mirrored = -known[::-1]
    flip = tuple(known) > tuple(mirrored)
    ordered = mirrored if flip else known
    if statistic == "median":
        interval = _of_median(ordered)
    else:
        interval = student_t(ordered) if known.size < BOOTSTRAP_FROM else bca(ordered, seed)
    return Interval(-interval.high, -interval.low) if flip else interval


def student_t(values: Floats) -> Interval:
    """Return the 95 % t interval of the mean of two values or more."""
    half = special.stdtrit(values.size - 1, 0.975) * values.std(ddof=1) / np.sqrt(values.size)
    return Interval(float(values.mean() - half), float(values.mean() + half))


def bca(values: Floats, seed: int) -> Interval:
    """Return the 95 % bootstrap interval, bias-corrected and accelerated, of the mean of differing values."""
    how = {"n_resamples": RESAMPLES, "confidence_level": 0.95, "method": "BCa"}
    result = stats.bootstrap((values,), np.mean, random_state=np.random.default_rng(seed), **how)
    return Interval(*(float(end) for end in result.confidence_interval))


def _of_median(ascending: Floats) -> Interval:
    place = int(stats.binom.ppf(0.025, ascending.size, 0.5))
    return Interval(float(ascending[place - 1]), float(ascending[-place]))


def smallest_p(num_subjects: int, num_tests: int = 1) -> float:
    """Return the smallest corrected p value that a two-sided signed-rank test can reach."""
    return min(1.0, num_tests * 2.0 ** (1 - num_subjects))


def subjects_needed(num_tests: int) -> int:
    """Return the fewest subjects with which so many tests can reach p < 0.05 after correction."""
    return next(n for n in itertools.count(FEWEST_SUBJECTS) if smallest_p(n, num_tests) < SIGNIFICANT)


def corrected(p_values: npt.ArrayLike, correction: Correction = "holm") -> Floats:
    """Return p values corrected for how many there are; NaN stays NaN and does not count.

    Source: Holm 1979; Bonferroni by Dunn 1961. `multipletests` of statsmodels gives the same, but collects
    garbage at each of some 80 calls: 0.3 s each.
    """
    values = np.asarray(p_values, dtype=np.float64)
    result = np.full(values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    ascending = tested[np.argsort(values[tested], kind="stable")]
    factors = tested.size - np.arange(tested.size) if correction == "holm" else tested.size
    raised = values[ascending] * factors
    result[ascending] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return result


@dataclass(frozen=True)
class RepeatedMeasures:
    """Analysis of variance of repeated measures, one factor of k levels, n subjects.

    The degrees of freedom are k - 1 and (k - 1) (n - 1); epsilon is Greenhouse-Geisser's, 1 for perfect
    sphericity, at least 1 / (k - 1); `p_corrected` has both degrees of freedom times epsilon.
    """

    f: float = np.nan
    df_contrasts: float = np.nan
    df_error: float = np.nan
    p: float = np.nan
    epsilon: float = np.nan
    p_corrected: float = np.nan
    partial_eta_squared: float = np.nan


def repeated_measures_anova(table: npt.ArrayLike) -> RepeatedMeasures:
    """Return whether the mean depends on the column of a complete table (subjects, levels of the factor).

    NaN throughout for fewer than two rows or columns, or without any residual variance.

    Source: Greenhouse & Geisser 1959.
    """
    values = np.asarray(table, dtype=np.float64)
    if min(values.shape) < _TWO or not np.isfinite(values).all():
        return RepeatedMeasures()
    if not _is_spread(values, float(np.abs(_doubly_centred(values)).max())):
        return RepeatedMeasures()
    from statsmodels.stats.anova import AnovaRM

    rows, columns = np.indices(values.shape)
    long = pd.DataFrame({"value": values.ravel(), "subject": rows.ravel(), "level": columns.ravel()})
    result = AnovaRM(long, "value", "subject", within=["level"]).fit().anova_table.iloc[0]
    f, df_contrasts, df_error, p = map(float, result[["F Value", "Num DF", "Den DF", "Pr > F"]])
    epsilon = _greenhouse_geisser(values)
    p_corrected = float(stats.f.sf(f, epsilon * df_contrasts, epsilon * df_error))
    partial_eta_squared = f * df_contrasts / (f * df_contrasts + df_error)
    return RepeatedMeasures(f, df_contrasts, df_error, p, epsilon, p_corrected, partial_eta_squared)


def _greenhouse_geisser(values: Floats) -> float:
    """Return tr(C)^2 / ((k - 1) tr(C C)), C the covariance of the columns with rows and columns centred."""
    centred = _doubly_centred(np.cov(values, rowvar=False))
    return float(np.trace(centred) ** 2 / ((len(centred) - 1) * (centred**2).sum()))


def _doubly_centred(values: Floats) -> Floats:
    centred: Floats = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return centred


@dataclass(frozen=True)
class LimitsOfAgreement:
    """Bland-Altman statistics of differences, with 95 % intervals.

    `sd` with several differences per subject: of the variance between and within subjects together. The
    limits `low` and `high` are bias -+ 1.96 sd.
    """

    bias: float = np.nan
    sd: float = np.nan
    low: float = np.nan
    high: float = np.nan
    bias_interval: Interval = NO_INTERVAL
    low_interval: Interval = NO_INTERVAL
    high_interval: Interval = NO_INTERVAL


def limits_of_agreement(
    differences: npt.ArrayLike, subjects: npt.ArrayLike, *, factor: float = 1.96
) -> LimitsOfAgreement:
    """Return bias and limits of agreement.

    One difference per subject: t intervals, with the variance of a limit as 3 s^2 / n (Bland & Altman 1986).
    Several: the variance components of a one-way analysis of variance (Bland & Altman 2007, section 3), a t
    interval of the bias over subject means, and intervals of the limits by variance estimates recovery
    (Zou 2013, section 3). The bias is the mean of subject means: a person counts once, with however many
    images, else the bias may lie outside of its interval.

    Args:
        differences: (n,); NaN is passed over. One subject gives a bias only.
        subjects: (n,) whose they are.
        factor: standard deviations from the bias to a limit.
    """
    values = np.asarray(differences, dtype=np.float64)
    known = np.isfinite(values)
    _, owners = np.unique(np.asarray(subjects)[known], return_inverse=True)
    values = values[known]
    if not values.size:
        return LimitsOfAgreement()
    counts = np.bincount(owners)
    means = np.bincount(owners, values) / counts
    bias, subjects_there, replicates = float(means.mean()), counts.size, values.size - counts.size
    if subjects_there < _TWO:
        return LimitsOfAgreement(bias=bias)
    within = float(((values - means[owners]) ** 2).sum() / replicates) if replicates else 0.0
    between = float((counts * (means - values.mean()) ** 2).sum() / (subjects_there - 1))
    typical = (values.size - (counts**2).sum() / values.size) / (subjects_there - 1)
    sd = float(np.sqrt(max((between - within) / typical, 0.0) + within))
    low, high = bias - factor * sd, bias + factor * sd
    half = student_t(means)
    of_bias = (half.high - half.low) / 2
    if replicates:
        share = 1 - float((1 / counts).mean())
        shorter, longer = _spread_of_sd(
            sd, float(means.var(ddof=1)), share * within, subjects_there, replicates
        )
        inner, outer = np.hypot(of_bias, factor * shorter), np.hypot(of_bias, factor * longer)
    else:
        inner = outer = of_bias * np.sqrt(3)
    ends = ((bias, of_bias, of_bias), (low, outer, inner), (high, inner, outer))
    intervals = [Interval(float(centre - down), float(centre + up)) for centre, down, up in ends]
    return LimitsOfAgreement(bias, sd, low, high, *intervals)


def _spread_of_sd(
    sd: float, between: float, within: float, subjects: int, replicates: int
) -> tuple[float, float]:
    """Return how far below and above a standard deviation its 95 % interval ends.

    From the two parts of the variance, each with its own chi-squared interval.
    """
    parts = ((between, subjects - 1), (within, replicates))
    below, above = (
        np.sqrt(sum((part * (freedom / special.chdtri(freedom, tail) - 1)) ** 2 for part, freedom in parts))
        for tail in (0.025, 0.975)
    )
    return float(sd - np.sqrt(max(sd**2 - below, 0.0))), float(np.sqrt(sd**2 + above) - sd)


class Line(NamedTuple):
    """The least-squares line y = slope x + intercept, and Pearson's r; NaN where x has no spread."""

    slope: float
    intercept: float
    r: float


def fitted_line(x: npt.ArrayLike, y: npt.ArrayLike) -> Line:
    """Return the line through pairs of values; NaN for fewer than three, or without spread."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    if first.size <= _TWO or not _is_spread(first, float(np.ptp(first))):
        return Line(np.nan, np.nan, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # r of a constant y
        fit = stats.linregress(first, second)
    return Line(float(fit.slope), float(fit.intercept), float(fit.rvalue))


class DemingLine(NamedTuple):
    """y = slope x + intercept, with standard errors and covariance of the two; NaN if not known."""

    slope: float = np.nan
    intercept: float = np.nan
    slope_se: float = np.nan
    intercept_se: float = np.nan
    covariance: float = np.nan

    def at(self, x: Floats) -> Floats:
        """Return the line's value at each x."""
        return self.slope * x + self.intercept

    def se_at(self, x: Floats) -> Floats:
        """Return the standard error of the line's value at each x."""
        variance = self.intercept_se**2 + 2 * x * self.covariance + x**2 * self.slope_se**2
        return np.sqrt(np.maximum(variance, 0.0))


def deming_line(x: npt.ArrayLike, y: npt.ArrayLike, subjects: npt.ArrayLike) -> DemingLine:
    """Return the line that is nearest to all points across itself: errors of x and y have one variance.

    Unlike least squares it does not take the errors of x for a slope below 1, and exchanging x and y gives
    the inverse line. Standard errors by leaving out one subject at a time (jackknife).

    Args:
        x: (n,) first measurement.
        y: (n,) second measurement of the same, same unit.
        subjects: (n,) whose they are; one may have several.

    Returns:
        NaN for fewer than two points, or values of which neither follows the other.

    Source: Deming 1943; Linnet 1993, Clin Chem 39:424, for the jackknife.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    names, owners = np.unique(np.asarray(subjects), return_inverse=True)
    slope, intercept = _nearest_line(first, second)
    if names.size < _FEWEST_FOR_JACKKNIFE or np.isnan(slope):
        return DemingLine(slope, intercept)
    without = [
        _nearest_line(first[owners != left_out], second[owners != left_out]) for left_out in range(names.size)
    ]
    covariance = np.cov(np.array(without), rowvar=False, ddof=0) * (names.size - 1)
    errors = np.sqrt(np.diag(covariance))
    return DemingLine(slope, intercept, float(errors[0]), float(errors[1]), float(covariance[0, 1]))


def _nearest_line(x: Floats, y: Floats) -> tuple[float, float]:
    if x.size <= 1:
        return np.nan, np.nan
    from_mean_x, from_mean_y = x - x.mean(), y - y.mean()
    together = float(from_mean_x @ from_mean_y)
    rounding = 1e-12 * float(np.abs(x).max() * np.abs(y).max()) * x.size
    if abs(together) <= rounding:
        return np.nan, np.nan
    apart = float(from_mean_y @ from_mean_y - from_mean_x @ from_mean_x)
    slope = (apart + float(np.hypot(apart, 2 * together))) / (2 * together)
    return slope, float(y.mean() - slope * x.mean())


def _known(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]


def _is_spread(values: Floats, spread: float) -> bool:
    """Say whether a spread is more than the rounding of the values."""
    return bool(spread > np.abs(values[np.isfinite(values)]).max(initial=0.0) * 1e-12)
