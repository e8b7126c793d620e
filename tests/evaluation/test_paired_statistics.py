"""Tests and intervals: against published examples, independent implementations and brute force."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nnunet_softseg.evaluation.comparison.paired_statistics import (
    Statistic,
    bca,
    cohens_dz,
    confidence_interval,
    corrected,
    fitted_line,
    limits_of_agreement,
    rank_biserial,
    repeated_measures_anova,
    signed_rank_test,
    smallest_p,
)

# Hollander & Wolfe 1973, p. 29: Hamilton depression scale of nine patients; the example of R's ?wilcox.test
# (V = 40).
BEFORE = (1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30)
AFTER = (0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29)
# Darwin 1876: heights of 15 pairs of maize plants, crossed minus self-fertilised; the example of scipy's
# wilcoxon.
MAIZE = (6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75)
# Field, Discovering Statistics, chapter on repeated-measures designs: seconds until eight celebrities retch
# at a stick insect, a kangaroo's testicle, a fish's eye, a witchetty grub. F(3, 21) = 3.79, p = .026, epsilon
# = .533, corrected F(1.60, 11.19), p = .063.
BUSHTUCKER = (
    (8, 7, 1, 6),
    (9, 5, 2, 5),
    (6, 2, 3, 8),
    (5, 3, 1, 9),
    (8, 4, 5, 8),
    (7, 5, 6, 7),
    (10, 2, 7, 2),
    (12, 6, 8, 1),
)
# Bland & Altman, Lancet 1986: peak expiratory flow of 17 people, first readings, l/min.
WRIGHT = (494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427)
MINI = (512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451)

CENTRES: tuple[Statistic, ...] = ("mean", "median")

differences = st.lists(
    st.floats(-100, 100).map(lambda value: round(value, 2)), min_size=6, max_size=12
).filter(lambda values: np.ptp(values) > 0)


def test_signed_rank_test_gives_the_published_values() -> None:
    depression = signed_rank_test(np.subtract(BEFORE, AFTER))
    assert depression.w == 45 - 40  # R reports the larger sum, V = 40, of 45
    assert depression.p == pytest.approx(2 * 0.01953125)  # R's one-sided p value
    maize = signed_rank_test(MAIZE)
    assert (maize.w, maize.p) == (24, pytest.approx(0.041259765625))


def brute_force_p(values: list[float]) -> float:
    """The two-sided p value by trying all signs."""
    changed = np.array([value for value in values if value])
    ranks = stats.rankdata(np.abs(changed))
    observed = abs((np.sign(changed) * ranks).sum())
    sums = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    return float(np.mean([total >= observed - 1e-9 for total in sums]))


@pytest.mark.parametrize(
    "values",
    [
        (15, -7, 5, 20, 0, -9, 17, -12, 5, -10),  # a zero and a tie; Wikipedia's example, W = 9
        (1, 1, 1, 1, 1, 1),
        (0, 0, 0, 3, -1, 2, 2),
        (2.5, -2.5, 2.5, 1, 4, 7, 9, -3),
    ],
)
def test_signed_rank_test_with_ties_and_zeros_is_exact_for_few(values: tuple[float, ...]) -> None:
    assert signed_rank_test(values).p == pytest.approx(brute_force_p(list(values)))


@given(
    st.integers(2, 14).flatmap(
        lambda size: st.permutations([place * (-1) ** place for place in range(1, size)])
    )
)
def test_signed_rank_test_without_ties_is_that_of_scipy(values: list[int]) -> None:
    expected = stats.wilcoxon(values, method="exact")
    assert signed_rank_test(values) == pytest.approx((expected.statistic, expected.pvalue))


def test_signed_rank_test_of_many_with_ties_is_the_normal_one_of_r() -> None:
    # wilcox.test of R: z = (|V - n (n + 1) / 4| - 0.5) / sqrt(n (n + 1) (2 n + 1) / 24 - sum(t^3 - t) / 48)
    values = np.repeat([1.0, 2, -2, 3, 4, -5], 10)
    ranks = stats.rankdata(np.abs(values))
    above, ties = ranks[values > 0].sum(), np.array([10, 20, 10, 10, 10])
    z = (abs(above - 60 * 61 / 4) - 0.5) / math.sqrt(60 * 61 * 121 / 24 - (ties**3 - ties).sum() / 48)
    assert signed_rank_test(values).p == pytest.approx(2 * stats.norm.sf(z))


def test_equal_methods_do_not_differ() -> None:
    zeros = np.zeros(12)
    assert signed_rank_test(zeros) == (0, 1)
    assert (rank_biserial(zeros), cohens_dz(zeros)) == (0, 0)
    assert confidence_interval(zeros) == (0, 0)


def test_no_pairs_have_no_test() -> None:
    nothing = [math.nan, math.nan]
    assert np.isnan(signed_rank_test(nothing)).all()
    assert math.isnan(rank_biserial([]))
    assert math.isnan(cohens_dz([1.0]))


def test_an_infinite_difference_counts_by_its_rank() -> None:
    finite = [1.0, 2.0, 3.0, -4.0, 5.0, 6.0, 1000.0]
    infinite = [*finite[:-1], math.inf]
    assert signed_rank_test(infinite) == signed_rank_test(finite)
    assert rank_biserial(infinite) == rank_biserial(finite)
    assert math.isnan(cohens_dz(infinite))


@given(differences)
def test_order_and_direction_change_only_signs(values: list[float]) -> None:
    mirrored = [-value for value in reversed(values)]
    assert signed_rank_test(mirrored) == signed_rank_test(values)
    assert rank_biserial(mirrored) == pytest.approx(-rank_biserial(values))
    assert cohens_dz(mirrored) == pytest.approx(-cohens_dz(values), nan_ok=True)
    for statistic in CENTRES:
        low, high = confidence_interval(values, statistic=statistic)
        assert confidence_interval(mirrored, statistic=statistic) == (-high, -low)
        assert low <= high


def test_rank_biserial_is_the_share_of_ranks_for_less_those_against() -> None:
    assert rank_biserial(np.subtract(BEFORE, AFTER)) == pytest.approx((40 - 5) / 45)


def test_cohens_dz_is_the_t_statistic_by_the_root_of_n() -> None:
    t = stats.ttest_rel(BEFORE, AFTER).statistic
    assert cohens_dz(np.subtract(BEFORE, AFTER)) == pytest.approx(t / math.sqrt(9))


def test_five_subjects_cannot_reach_significance_and_six_can() -> None:
    for subjects in (3, 5, 6, 9):
        assert smallest_p(subjects) == signed_rank_test(np.arange(1, subjects + 1)).p
    assert smallest_p(5) > 0.05 > smallest_p(6)
    assert smallest_p(6, num_tests=3) > 0.05


# Intervals


def test_of_few_subjects_the_interval_is_that_of_t() -> None:
    # Student 1908, Cushny and Peebles' data: additional sleep of ten patients, laevo - dextro hyoscyamine
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert confidence_interval(sleep) == pytest.approx((0.7001142, 2.4598858))  # R: t.test(..., paired)


def test_of_many_subjects_the_interval_follows_the_skew() -> None:
    values = np.random.default_rng(1).exponential(1, 60)
    low, high = confidence_interval(values)
    assert (low, high) == pytest.approx(bca(np.sort(values), 0), abs=0.01)  # other draws
    assert high - values.mean() > 1.1 * (values.mean() - low)


def test_the_interval_of_many_normal_values_is_close_to_that_of_t() -> None:
    values = np.random.default_rng(1).normal(3, 2, 200)
    t = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    # 10,000 draws place an end of the interval within about 2 % of its half width
    assert confidence_interval(values) == pytest.approx(t, abs=0.04 * (t[1] - t[0]))


@pytest.mark.parametrize("size", [6, 12, 18])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(size: int) -> None:
    draws = np.random.default_rng(2).normal(1, 1, (1000, size))
    held = np.mean([low <= 1 <= high for low, high in map(confidence_interval, draws)])
    assert held == pytest.approx(0.95, abs=0.025)  # over three standard errors; BCa has 0.86 to 0.92


def test_too_few_subjects_have_no_interval() -> None:
    assert np.isnan(confidence_interval([1, 2, 3, 4, 5])).all()
    assert np.isfinite(confidence_interval([1, 2, 3, 4, 5, 6])).all()


def test_a_mean_with_infinity_has_no_interval_and_its_median_has() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf]
    assert np.isnan(confidence_interval(values)).all()
    # P(fewer than one of seven on one side) = 2 / 2^7 = 1.6 %, fewer than two: 12.5 %
    assert confidence_interval(values, statistic="median") == (1, math.inf)
    # of nine: fewer than two, 2 (1 + 9) / 2^9 = 3.9 %
    assert confidence_interval(range(9), statistic="median") == (1, 7)


# Corrections


@settings(max_examples=10)  # statsmodels collects garbage at each call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from(["holm", "bonferroni"]))
def test_corrections_are_those_of_statsmodels(p_values: list[float], correction: str) -> None:
    from statsmodels.stats.multitest import multipletests

    expected = multipletests(p_values, method=correction)[1]
    assert corrected(p_values, correction) == pytest.approx(expected)  # type: ignore[arg-type]


def test_holm_by_hand_and_a_missing_test_does_not_count() -> None:
    assert corrected([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert corrected([0.01, 0.04, 0.03], "bonferroni") == pytest.approx([0.03, 0.12, 0.09])


# Analysis of variance


def test_anova_gives_the_published_values() -> None:
    result = repeated_measures_anova(BUSHTUCKER)
    assert (result.df_contrasts, result.df_error) == (3, 21)
    assert result.f == pytest.approx(3.79, abs=0.005)
    assert result.p == pytest.approx(0.026, abs=0.0005)
    assert result.epsilon == pytest.approx(0.533, abs=0.0005)
    assert result.p_corrected == pytest.approx(0.063, abs=0.0005)
    assert result.partial_eta_squared == pytest.approx(
        83.125 / (83.125 + 153.375), abs=1e-6
    )  # Field's sums of squares


def test_anova_of_two_contrasts_is_the_paired_t_test() -> None:
    result = repeated_measures_anova(np.column_stack([BEFORE, AFTER]))
    t = stats.ttest_rel(BEFORE, AFTER)
    assert result.f == pytest.approx(t.statistic**2)
    assert result.p_corrected == pytest.approx(t.pvalue)
    assert result.epsilon == pytest.approx(1)


@settings(max_examples=15)
@given(st.permutations(range(8)), st.permutations(range(4)))
def test_anova_does_not_depend_on_order(subjects: list[int], contrasts: list[int]) -> None:
    table = np.array(BUSHTUCKER)[subjects][:, contrasts]
    result, expected = repeated_measures_anova(table), repeated_measures_anova(BUSHTUCKER)
    assert (result.f, result.epsilon) == pytest.approx((expected.f, expected.epsilon))


@pytest.mark.parametrize(
    "table", [np.ones((5, 3)), [[1, 2, 3], [2, 3, 4]], [[1, 2, 3]], [[1], [2]], np.empty((0, 0))]
)
def test_anova_without_anything_to_test_against_has_no_value(table: npt.ArrayLike) -> None:
    assert math.isnan(repeated_measures_anova(table).f)


# Agreement


def test_limits_of_agreement_are_the_published_ones() -> None:
    limits = limits_of_agreement(
        np.subtract(WRIGHT, MINI), np.arange(17), factor=2
    )  # the paper takes 2, not 1.96
    # the paper goes on with rounded numbers: -2.1 and 38.8
    assert limits.bias == pytest.approx(-2.1, abs=0.05)
    assert limits.sd == pytest.approx(38.8, abs=0.05)
    assert (limits.low, limits.high) == pytest.approx((-79.7, 75.5), abs=0.15)
    assert limits.bias_interval == pytest.approx((-22.0, 17.8), abs=0.1)
    assert limits.low_interval == pytest.approx((-114.3, -45.1), abs=0.2)
    assert limits.high_interval == pytest.approx((40.9, 110.1), abs=0.2)


def test_limits_with_several_per_subject_are_those_of_a_mixed_model() -> None:
    from statsmodels.regression.mixed_linear_model import MixedLM

    rng = np.random.default_rng(3)
    subjects = np.repeat(np.arange(30), 4)
    values = 1.5 + rng.normal(0, 2, 30)[subjects] + rng.normal(0, 1, subjects.size)
    limits = limits_of_agreement(values, subjects)
    # of balanced data, restricted maximum likelihood is the analysis of variance
    table = pd.DataFrame({"value": values, "subject": subjects})
    model = MixedLM.from_formula("value ~ 1", table, groups="subject").fit(reml=True)
    total = math.sqrt(float(model.cov_re.iloc[0, 0]) + model.scale)
    assert limits.sd == pytest.approx(total, rel=1e-3)  # the tolerance of its optimiser
    assert limits.bias == pytest.approx(values.mean())
    assert limits.bias_interval.low < limits.bias < limits.bias_interval.high
    assert limits.low_interval.low < limits.low < limits.low_interval.high


def test_the_intervals_of_limits_hold_the_true_ones_as_often_as_they_say() -> None:
    random, held = np.random.default_rng(5), []
    subjects = np.repeat(np.arange(8), 4)
    true = 1.96 * math.sqrt(2**2 + 1)
    for _ in range(1000):
        limits = limits_of_agreement(random.normal(0, 2, 8)[subjects] + random.normal(0, 1, 32), subjects)
        intervals = (limits.bias_interval, limits.low_interval, limits.high_interval)
        held.append([low <= at <= high for (low, high), at in zip(intervals, (0, -true, true), strict=True)])
    assert np.mean(held, axis=0) == pytest.approx([0.95] * 3, abs=0.025)


def test_images_of_one_subject_are_not_taken_for_independent_ones() -> None:
    subjects = np.repeat(np.arange(8), 6)
    values = np.random.default_rng(4).normal(0, 1, 8)[subjects]  # six times the same
    repeated = limits_of_agreement(values, subjects).bias_interval
    naive = limits_of_agreement(values, np.arange(48)).bias_interval
    assert repeated.high - repeated.low > 1.8 * (naive.high - naive.low)  # about sqrt(6) times


def test_a_person_with_many_images_counts_once() -> None:
    """Twelve people, one of whom has nine images: their interval of the bias holds the true one, 0."""
    random, held = np.random.default_rng(8), []
    subjects = np.repeat(np.arange(13), [1] * 12 + [9])
    for _ in range(600):
        values = random.normal(0, 2, 13)[subjects] + random.normal(0, 0.5, subjects.size)
        limits = limits_of_agreement(values, subjects)
        means = pd.Series(values).groupby(subjects).mean()
        assert limits.bias == pytest.approx(means.mean())
        held.append(limits.bias_interval.low <= 0 <= limits.bias_interval.high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)  # 0.78 around the mean of all images


def test_limits_of_few_say_what_they_can() -> None:
    assert math.isnan(limits_of_agreement([], []).bias)
    single = limits_of_agreement([2.0], ["a"])
    assert single.bias == 2
    assert math.isnan(single.sd)
    two = limits_of_agreement([1.0, 3.0, math.nan], ["a", "b", "c"])
    assert (two.bias, two.sd) == pytest.approx((2, math.sqrt(2)))


def test_fitted_line() -> None:
    assert fitted_line([1, 2, 4], [3, 5, 9]) == pytest.approx((2, 1, 1))
    assert np.isnan(fitted_line([1, 1, 1], [3, 5, 9])).all()
    assert np.isnan(fitted_line([1, 2, math.nan], [3, 5, 9])).all()
