"""Measures against raters who disagree: by hand, by a numerical integral, and by laws."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import norm

from nnunet_softseg.metrics.calibration import reliability_curve
from nnunet_softseg.metrics.several_raters import calibration_error_per_rater, threshold_dice, volume_crps

SPACING_MM = (1.0, 1.0, 1.0)
VOLUMES = st.floats(1, 1e4)


def raters_of(lengths: list[int]) -> list[np.ndarray]:
    """Each marks the first voxels of a row."""
    return [(np.arange(12) < length).astype(np.float32).reshape(1, 1, 12) for length in lengths]


def test_threshold_dice_by_hand() -> None:
    share = np.mean(raters_of([2, 4, 6, 8]), axis=0)
    assert threshold_dice(share, share) == 1
    above = [8, 8, 6, 6, 4, 4, 4, 2, 2]  # voxels of the share above 0.1 to 0.9: its steps are 0.25, 0.5, 0.75
    by_hand = np.mean([2 * min(4, voxels) / (4 + voxels) for voxels in above])
    assert threshold_dice(raters_of([4])[0], share) == pytest.approx(by_hand)


def test_thresholds_above_which_both_are_empty_say_nothing() -> None:
    faint = 0.25 * raters_of([3])[0]
    assert threshold_dice(faint, faint) == 1
    assert threshold_dice(np.zeros_like(faint), faint) == 0
    assert math.isnan(threshold_dice(np.zeros_like(faint), np.zeros_like(faint)))


def test_calibration_error_is_the_mean_over_raters_on_the_same_voxels() -> None:
    masks = raters_of([0, 4])
    prediction = np.full((1, 1, 12), 0.5, dtype=np.float32)
    prediction[..., 7:] = 0  # all that count lie within 3 mm of what the second rater marked
    # 7 of 7 voxels: |0.5 - 0| against the rater who saw nothing, |0.5 - 4/7| against the other
    expected = (0.5 + abs(0.5 - 4 / 7)) / 2
    assert calibration_error_per_rater(prediction, masks, SPACING_MM) == pytest.approx(expected)


def test_of_one_rater_it_is_the_calibration_error() -> None:
    (mask,) = raters_of([5])
    prediction = np.linspace(1, 0, 12, dtype=np.float32).reshape(1, 1, 12)
    curve = reliability_curve(prediction, mask, SPACING_MM)
    assert calibration_error_per_rater(prediction, [mask], SPACING_MM) == pytest.approx(
        curve.expected_calibration_error
    )


@given(st.floats(-4, 4), st.lists(VOLUMES, min_size=2, max_size=6))
def test_crps_is_the_integral_of_its_definition(place: float, raters: list[float]) -> None:
    mean, spread = float(np.mean(raters)), float(np.std(raters, ddof=1))
    assume(spread > 1e-6 * mean)
    below, above = np.linspace(-9, place, 4001), np.linspace(place, 9, 4001)  # in standard deviations
    integral = np.trapezoid(norm.cdf(below) ** 2, below) + np.trapezoid(norm.sf(above) ** 2, above)
    assert volume_crps(mean + place * spread, raters) == pytest.approx(spread * integral, rel=1e-4)


def test_raters_who_agree_leave_the_absolute_error() -> None:
    assert volume_crps(130.0, [100.0, 100.0, 100.0]) == pytest.approx(30)
    assert volume_crps(130.0, [100.0]) == pytest.approx(30)
    with pytest.raises(ValueError, match="expected one or more"):
        volume_crps(130.0, [])


@given(st.lists(VOLUMES, min_size=2, max_size=6))
def test_no_volume_is_better_than_the_mean_of_the_raters(raters: list[float]) -> None:
    at_mean = volume_crps(float(np.mean(raters)), raters)
    assert at_mean <= volume_crps(float(np.mean(raters)) * 1.1, raters) + 1e-9
    assert at_mean <= volume_crps(float(np.mean(raters)) * 0.9, raters) + 1e-9
