"""The reliability curve and what is read from it: by hand, by a slow second way, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_softseg.metrics.calibration import IsotonicMap, ReliabilityCurve, ValueTable, reliability_curve

SPACING_MM = (1.0, 1.0, 1.0)
VALUES = st.floats(0, 1, width=32, allow_subnormal=False)
MAPS = hnp.arrays(np.float32, (4, 3, 5), elements=VALUES, fill=st.just(0.0))


def curve_of(prediction: list[float], reference: list[float], bins: int = 10) -> ReliabilityCurve:
    """All voxels of a row: none is further than the margin from the object."""
    row, other = np.array([prediction]), np.array([reference])
    return reliability_curve(row, other, (1.0, 1.0), margin_mm=row.size, bins=bins)


def test_by_hand() -> None:
    curve = curve_of([0.0, 0.2, 0.3, 0.5, 0.9, 1.0], [0.0, 0.0, 0.4, 0.8, 1.0, 0.7], bins=4)
    # bins [0, .25), [.25, .5), [.5, .75), [.75, 1]
    assert curve.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.count.tolist() == [[2, 1, 1, 2], [0, 0, 0, 0]]
    assert curve.prediction_sum[0] == pytest.approx([0.2, 0.3, 0.5, 1.9])
    assert curve.reference_sum[0] == pytest.approx([0.0, 0.4, 0.8, 1.7])
    assert curve.mean_prediction == pytest.approx([0.1, 0.3, 0.5, 0.95])
    assert curve.mean_reference == pytest.approx([0.0, 0.4, 0.8, 0.85])
    # 2/6 * 0.1 + 1/6 * 0.1 + 1/6 * 0.3 + 2/6 * 0.1
    assert curve.expected_calibration_error == pytest.approx(0.8 / 6)
    assert curve.brier_score == pytest.approx((0.04 + 0.01 + 0.09 + 0.01 + 0.09) / 6)


def test_an_empty_bin_is_nan_not_zero() -> None:
    curve = curve_of([0.1, 0.9], [0.0, 1.0], bins=3)
    assert curve.mean_prediction == pytest.approx([0.1, math.nan, 0.9], nan_ok=True)
    assert curve.mean_reference == pytest.approx([0.0, math.nan, 1.0], nan_ok=True)


@given(MAPS, MAPS, st.integers(1, 12))
def test_as_one_voxel_after_the_other(prediction: np.ndarray, reference: np.ndarray, bins: int) -> None:
    curve = reliability_curve(prediction, reference, SPACING_MM, margin_mm=9, bins=bins)
    is_near = (reference > 0).any()  # then all are, within 9 mm
    sums = np.zeros((4, 2, bins))
    for p, y in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        place = max(place for place in range(bins) if p >= np.linspace(0, 1, bins + 1)[place])
        if is_near or p > 0:
            sums[:, 0 if is_near else 1, place] += 1, p, y, (p - y) ** 2
    for found, expected in zip(
        (curve.count, curve.prediction_sum, curve.reference_sum, curve.squared_error_sum), sums, strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_simulated_outcomes(power: int) -> None:
    """Outcomes with the frequency p^power: calibrated for 1, and by p - p^power too bold for the others."""
    random = np.random.default_rng(0)
    p = random.random(200_000)
    outcomes = (random.random(p.size) < p**power).astype(float)
    curve = curve_of(p.tolist(), outcomes.tolist(), bins=20)
    bold = 1 / 2 - 1 / (power + 1)  # the integral of p - p^power
    # three standard errors of 20 bins of 10 000 voxels each: 3 * 0.5 / 100
    assert curve.expected_calibration_error == pytest.approx(bold, abs=0.015)
    # E (p - o)^2 = E (p - q)^2 + E q (1 - q) with q = p^power
    n = power
    squared = 1 / 3 - 2 / (n + 2) + 1 / (2 * n + 1)
    spread = 1 / (n + 1) - 1 / (2 * n + 1)
    assert curve.brier_score == pytest.approx(squared + spread, abs=3 / math.sqrt(p.size))


@given(MAPS, MAPS)
def test_the_score_is_the_expected_one_less_what_no_prediction_can_change(
    p: np.ndarray, y: np.ndarray
) -> None:
    """Against outcomes that are 1 with frequency y."""
    wide, soft = p.astype(float), y.astype(float)
    expected = soft * (wide - 1) ** 2 + (1 - soft) * wide**2
    curve = reliability_curve(p, y, SPACING_MM, margin_mm=9)
    if curve.count[0].sum():
        assert curve.brier_score == pytest.approx((expected - soft * (1 - soft)).mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("spacing_mm", "margin_mm", "near"),
    [
        ((1.0, 1.0, 1.0), 3.0, 7 * 7 * 7),
        ((0.5, 1.0, 5.0), 3.0, 13 * 7 * 1),
        ((1.0, 1.0, 1.0), 0.0, 1),
        ((1.0, 1.0, 1.0), 0.99, 1),
        ((0.1, 1.0, 1.0), 0.3, 7),  # 0.3 / 0.1 is 2.9999999999999996
        ((1.0, 1.0, 1.0), 1000.0, 21**3),
    ],
)
def test_which_voxels_count(spacing_mm: tuple[float, ...], margin_mm: float, near: int) -> None:
    prediction, reference = np.zeros((21, 21, 21)), np.zeros((21, 21, 21))
    reference[10, 10, 10] = prediction[10, 10, 10] = 0.7
    prediction[20, 0, 0] = 0.01
    curve = reliability_curve(prediction, reference, spacing_mm, margin_mm=margin_mm)
    assert curve.count.sum(axis=1).tolist() == [near, 0 if near == 21**3 else 1]


def test_every_false_voxel_counts_and_dilutes_nothing() -> None:
    reference, prediction = np.zeros((40, 40)), np.zeros((40, 40))
    reference[5:8, 5:8] = prediction[5:8, 5:8] = 1
    prediction[5, 5] = 0.8  # 81 voxels within 3 mm of the reference
    for row, value in {20: 0.3, 25: 0.3, 30: 0.9}.items():
        before = reliability_curve(prediction, reference, (1.0, 1.0))
        prediction[row, 30] = value
        after = reliability_curve(prediction, reference, (1.0, 1.0))
        assert after.num_voxels.sum() == before.num_voxels.sum() + 1
        assert after.brier_score - before.brier_score == pytest.approx(value**2 / 81)
        rise = after.expected_calibration_error - before.expected_calibration_error
        assert rise == pytest.approx(value / 81)
    # in bin [0.9, 1]: eight right voxels of 1 and the false one of 0.9
    assert after.mean_reference[-1] == pytest.approx(8 / 9)


@given(st.lists(st.tuples(MAPS, MAPS), min_size=1, max_size=4), st.randoms())
def test_curves_of_cases_add_up_to_that_of_the_cohort(cases: list, random: object) -> None:
    curves = [reliability_curve(p, y, SPACING_MM, margin_mm=9) for p, y in cases]
    random.shuffle(curves)  # type: ignore[attr-defined]
    total = sum(curves, start=ReliabilityCurve.empty())
    # the cases with a reference, side by side in one image, all near; and what is predicted in the others
    near = [pair for pair in cases if (pair[1] > 0).any()]
    false = sum(float(p[p > 0].sum(dtype=float)) for p, y in cases if not (y > 0).any())
    assert total.prediction_sum[1].sum() == pytest.approx(false)
    if not near:
        assert total.count[0].sum() == 0
        assert math.isnan(total.brier_score)
        assert math.isnan(total.expected_calibration_error)
        return
    together = [np.concatenate(maps) for maps in zip(*near, strict=True)]
    expected = reliability_curve(*together, SPACING_MM, margin_mm=99)
    np.testing.assert_array_equal(total.count[0], expected.count[0])
    np.testing.assert_allclose(total.prediction_sum[0], expected.prediction_sum[0], atol=1e-9)
    np.testing.assert_allclose(total.reference_sum[0], expected.reference_sum[0], atol=1e-9)
    ece = expected.expected_calibration_error + false / expected.count[0].sum()
    assert total.expected_calibration_error == pytest.approx(ece, abs=1e-9)


@given(MAPS, MAPS, st.permutations(range(3)))
def test_laws(prediction: np.ndarray, reference: np.ndarray, order: list[int]) -> None:
    spacing_mm = (0.5, 1.0, 3.0)
    # with room for the margin, more room changes nothing
    p, y = (np.pad(whole, ((6, 6), (3, 3), (1, 1))) for whole in (prediction, reference))
    curve = reliability_curve(p, y, spacing_mm)
    wider = reliability_curve(np.pad(p, 2), np.pad(y, 2), spacing_mm)
    turned = reliability_curve(
        p.transpose(order), y.transpose(order), tuple(spacing_mm[axis] for axis in order)
    )
    for other in (wider, turned):
        np.testing.assert_array_equal(other.count, curve.count)
        np.testing.assert_allclose(other.prediction_sum, curve.prediction_sum, atol=1e-9)
        np.testing.assert_allclose(other.squared_error_sum, curve.squared_error_sum, atol=1e-9)
    if curve.count[0].sum() and not curve.count[1].sum():
        # Jensen: a mean error is no larger than the root of the mean squared error
        assert 0 <= curve.expected_calibration_error**2 <= curve.brier_score + 1e-12 <= 1 + 1e-9
    within = curve.num_voxels > 0
    assert (curve.mean_prediction[within] >= curve.edges[:-1][within] - 1e-9).all()
    assert (curve.mean_prediction[within] <= curve.edges[1:][within] + 1e-9).all()


@given(MAPS)
def test_a_map_is_calibrated_to_itself(soft: np.ndarray) -> None:
    curve = reliability_curve(soft, soft, SPACING_MM)
    if soft.any():
        assert curve.expected_calibration_error == 0
        assert curve.brier_score == 0


def test_nothing_anywhere() -> None:
    curve = reliability_curve(np.zeros((3, 3)), np.zeros((3, 3)), (1.0, 1.0))
    assert curve.num_voxels.tolist() == [0] * 10
    assert math.isnan(curve.brier_score)
    assert np.isnan(curve.mean_reference).all()


def test_bad_arguments() -> None:
    one, two = np.zeros((2, 2)), np.zeros((2, 3))
    with pytest.raises(ValueError, match="one grid"):
        reliability_curve(one, two, (1.0, 1.0))
    with pytest.raises(ValueError, match="got 0 and 3"):
        reliability_curve(one, one, (1.0, 1.0), bins=0)
    with pytest.raises(ValueError, match="got 10 and -1"):
        reliability_curve(one, one, (1.0, 1.0), margin_mm=-1)
    with pytest.raises(ValueError, match="4 and 5 bins"):
        ReliabilityCurve.empty(4) + ReliabilityCurve.empty(5)


# Calibration by isotonic regression


def table_of(prediction: np.ndarray, reference: np.ndarray) -> ValueTable:
    return ValueTable.of(prediction, reference, SPACING_MM)


@given(MAPS, MAPS)
def test_the_table_holds_the_same_voxels_as_the_curve(p: np.ndarray, y: np.ndarray) -> None:
    found, expected = table_of(p, y).curve(), reliability_curve(p, y, SPACING_MM)
    np.testing.assert_array_equal(found.count, expected.count)
    for name in ("prediction_sum", "reference_sum", "squared_error_sum"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-9)


@given(MAPS, st.lists(st.floats(0, 1), min_size=1))
def test_a_map_that_is_calibrated_stays_as_it_is(soft: np.ndarray, values: list[float]) -> None:
    found = table_of(soft, soft).isotonic_map()
    np.testing.assert_allclose(found(np.array(values)), values, atol=1e-12)


@pytest.mark.parametrize(
    "g", [lambda p: p**2, np.sqrt, lambda p: 0.8 * p, lambda p: np.maximum(0, 2 * p - 1)]
)
def test_a_monotone_distortion_is_recovered(g: object) -> None:
    p = np.random.default_rng(0).random((60, 60, 10))
    p[:2] = 1
    found = table_of(p, g(p)).isotonic_map()  # type: ignore[operator]
    values = np.linspace(0.02, 1, 99)
    np.testing.assert_allclose(found(values), g(values), atol=2e-3)  # type: ignore[operator]


@given(MAPS, MAPS)
def test_the_fit_is_isotonic_regression(p: np.ndarray, y: np.ndarray) -> None:
    """By its min-max formula (Robertson et al. 1988), over the voxels above 0: largest mean from below."""
    wide, soft = p.astype(float), y.astype(float)
    counted = wide > 0  # all near the reference, or false
    place = np.floor(wide * 500) + (wide == 1)
    bins = np.unique(place[counted])
    weight, predicted, expected = (
        np.array([values[counted & (place == each)].sum() for each in bins])
        for values in (np.ones_like(wide), wide, soft)
    )
    values = predicted / weight
    assume(values.size)
    found = table_of(p, y).isotonic_map()(values)
    for at in range(len(bins)):
        least = [
            min(
                expected[first:last].sum() / weight[first:last].sum() for last in range(at + 1, len(bins) + 1)
            )
            for first in range(at + 1)
        ]
        assert found[at] == pytest.approx(max(least), abs=1e-9)


@given(MAPS, MAPS)
def test_laws_of_the_map(p: np.ndarray, y: np.ndarray) -> None:
    table = table_of(p, y)
    found = table.isotonic_map()
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    mapped = found(values)
    assert mapped.dtype == np.float32
    assert mapped[0] == 0
    assert (np.diff(mapped) >= 0).all()
    assert mapped.max() <= 1
    # Of all monotone maps it has the smallest squared error on these voxels, so no larger than none.
    before, after = table.curve().squared_error_sum.sum(), table.curve(found).squared_error_sum.sum()
    assert after <= before + 1e-9


def test_mapped_sums_are_those_of_mapped_voxels() -> None:
    rng = np.random.default_rng(0)
    y = rng.random((20, 20, 20)) * (rng.random((20, 20, 20)) < 0.1)
    p = np.clip(y + rng.normal(0, 0.1, y.shape), 0, 1)
    mapping = IsotonicMap((0.0, 0.3, 1.0), (0.0, 0.1, 0.9))
    found, expected = table_of(p, y).curve(mapping), reliability_curve(mapping(p), y, SPACING_MM)
    assert found.brier_score == pytest.approx(expected.brier_score, rel=1e-3)
    assert found.expected_calibration_error == pytest.approx(expected.expected_calibration_error, abs=2e-3)


def test_values_beyond_those_of_the_fit_move_as_the_largest_of_them() -> None:
    p, y = np.full((4, 4, 4), 0.5), np.full((4, 4, 4), 0.4)
    found = table_of(p, y).isotonic_map()
    np.testing.assert_allclose(found(np.array([0.25, 0.5, 0.75, 1.0])), [0.2, 0.4, 0.65, 0.9], atol=1e-6)
    nothing = table_of(np.zeros_like(p), y).isotonic_map()
    assert (nothing.x, nothing.y) == ((0, 1), (0, 1))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((0, 0.5), (0, 0.5)),
        ((0, 0.5, 0.4, 1), (0, 0.1, 0.2, 0.3)),
        ((0, 0.5, 1), (0, 0.5, 0.4)),
        ((0, 1), (0.1, 1)),
        ((0, 1), (0, 1.1)),
        ((0, 0.5, 1), (0, 1)),
    ],
)
def test_other_knots_are_no_map(x: tuple[float, ...], y: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected knots from"):
        IsotonicMap(x, y)
