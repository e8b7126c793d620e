"""Shifts and rotations that are known, found again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sliced_masks import DIRECTIONS, ellipses, rectangles, stored

from nnunet_softseg.labels.contrasts.alignment import (
    Motion,
    PiecewiseLinear,
    centres_of_mass,
    measure,
    reference_of,
    smoothed,
    with_cord_of_all,
)
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Floats, Volume, upright

SLICES = 9
SHAPE = (24, 22, SLICES)
STILL = np.tile((8, 9), (SLICES, 1))
steps = arrays(np.int64, (SLICES, 2), elements=st.integers(-5, 5))


def motion_between(reference: Volume, moving: Volume, **how: object) -> Motion:
    motion = measure(reference_of(upright(reference)), upright(moving), GroundTruthSettings(**how))  # type: ignore[arg-type]
    assert motion is not None
    return motion


@pytest.mark.parametrize("directions", DIRECTIONS)
@settings(max_examples=20)
@given(shift=steps, cord=arrays(np.int64, (SLICES, 2), elements=st.integers(-2, 2)))
def test_any_shift_of_whole_voxels_is_recovered_exactly_in_every_slice(
    directions: str, shift: np.ndarray, cord: np.ndarray
) -> None:
    voxel_mm = (0.5, 0.8, 3.0)
    reference = stored(rectangles(SHAPE, STILL + cord), directions, voxel_mm)
    moving = stored(rectangles(SHAPE, STILL + cord + shift), directions, voxel_mm)
    motion = motion_between(reference, moving)
    np.testing.assert_array_equal(motion.measured, np.arange(SLICES))
    np.testing.assert_allclose(motion.steps, shift * voxel_mm[:2], atol=1e-9)


@pytest.mark.parametrize("directions", DIRECTIONS)
@settings(max_examples=5)
@given(shift=arrays(np.float64, (SLICES, 2), elements=st.floats(-2, 2)))
def test_a_shift_of_parts_of_voxels_is_recovered_to_a_hundredth(directions: str, shift: np.ndarray) -> None:
    pixels = (np.arange(26) * 0.8 - 10, np.arange(24) * 0.8 - 9.3)
    cord = np.stack([np.linspace(-0.6, 0.7, SLICES), np.linspace(1.0, -0.4, SLICES)], axis=1)
    reference, moving = (
        stored(ellipses(pixels, centres), directions, (0.8, 0.8, 1.0)) for centres in (cord, cord + shift)
    )
    motion = motion_between(reference, moving)
    assert np.abs(motion.steps - shift).max() < 0.01 * 0.8


def test_binary_masks_lose_little_of_the_shift_to_their_voxels() -> None:
    rng = np.random.default_rng(3)
    pixels = (np.arange(26) * 0.8 - 10, np.arange(24) * 0.8 - 9.3)
    shift = rng.uniform(-2, 2, (60, 2))
    reference, moving = (
        stored((ellipses(pixels, centres) > 0.5).astype(np.float32), "RAS", (0.8, 0.8, 1.0))
        for centres in (np.zeros((60, 2)), shift)
    )
    error = motion_between(reference, moving).steps - shift
    assert np.sqrt(np.mean(error**2)) < 0.1 * 0.8


def test_shifts_of_thick_slices_are_those_of_the_slices_and_no_mixture() -> None:
    """A mask interpolated to thin slices would mix neighbours: here each jumps by some mm."""
    pixels = (np.arange(40) * 0.5 - 10, np.arange(40) * 0.5 - 10)
    thin, thick = np.arange(50) * 0.5, np.arange(5) * 4.0 + 3.1

    def cord(z: Floats) -> Floats:
        return np.stack([0.5 * np.sin(z / 20), 0.25 * z - 6], axis=1)

    shift = np.random.default_rng(1).uniform(-2, 2, (thick.size, 2))
    reference = stored(ellipses(pixels, cord(thin), (3.0, 2.2)), "LPS", (0.5, 0.5, 0.5))
    moving = ellipses(pixels, cord(thick) + shift, (3.0, 2.2))
    placed = stored(moving, "LPS", (0.5, 0.5, 4.0), (0.0, 0.0, thick[0]))
    assert np.abs(motion_between(reference, placed).steps - shift).max() < 0.01


@pytest.mark.parametrize("directions", DIRECTIONS)
@settings(max_examples=25)
@given(
    shift=arrays(np.float64, (SLICES, 2), elements=st.floats(-8, 8)),
    angle=arrays(np.float64, (SLICES, 1), elements=st.floats(-0.7, 0.7)),
    points=arrays(np.float64, (3, 12), elements=st.floats(-60, 60)),
)
def test_back_is_the_exact_inverse_and_no_point_leaves_its_slice(
    directions: str, shift: np.ndarray, angle: np.ndarray, points: np.ndarray
) -> None:
    mask = stored(rectangles(SHAPE, STILL), directions, (0.9, 0.9, 2.0))
    base = motion_between(mask, mask)
    numbers = np.arange(SLICES, dtype=float)
    motion = Motion(
        base.slices,
        PiecewiseLinear(numbers, shift),
        PiecewiseLinear(numbers, angle),
        base.cord,
        base.measured,
        base.steps,
    )
    there = motion.to_contrast(points)
    np.testing.assert_allclose(base.slices.number(there), base.slices.number(points), atol=1e-9)
    np.testing.assert_allclose(motion.to_reference(there), points, atol=1e-9)
    np.testing.assert_allclose(motion.to_contrast(motion.to_reference(points)), points, atol=1e-9)


def test_a_contrast_oblique_to_the_reference_that_has_not_moved_has_no_shift() -> None:
    """A straight tilted cord, cut by two sets of planes: the centres lie on one line."""
    pixels = (np.arange(60) * 0.4 - 12, np.arange(60) * 0.4 - 12)
    height = np.arange(40) - 20.0
    lean = np.array([0.1, 0.25])
    reference = stored(
        ellipses(pixels, height[:, None] * lean, (3.0, 3.0)), "RAS", (0.4, 0.4, 1.0), (-12, -12, -20)
    )
    oblique = DIRECTIONS["oblique"]
    across = np.linalg.inv(oblique) @ np.array([*lean, 1.0])
    tipped = stored(
        ellipses(pixels, height[::4, None] * (across[:2] / across[2]), (3.0, 3.0)),
        "oblique",
        (0.4, 0.4, 4.0),
        (-12, -12, -20),
    )
    assert np.abs(motion_between(reference, tipped).steps).max() < 0.01


def test_beyond_the_reference_the_nearest_shift_is_carried_on() -> None:
    short, long = rectangles(SHAPE, STILL), rectangles(SHAPE, STILL + np.array([2, -1]))
    short[:, :, :3] = 0
    short[:, :, 7:] = 0
    long = np.roll(long, 1, axis=0) * (np.arange(SLICES) == 3) + long * (np.arange(SLICES) != 3)
    motion = motion_between(stored(short), stored(long))
    np.testing.assert_array_equal(motion.measured, (3, 4, 5, 6))
    np.testing.assert_allclose(
        motion.shift.at(np.array([-4.0, 0.0, 3.0, 3.5, 4.0, 8.0, 20.0])),
        [[3, 3, 3, 2.5, 2, 2, 2], [-1, -1, -1, -1, -1, -1, -1]],
    )


def test_where_the_reference_has_a_gap_nothing_is_measured() -> None:
    gap = rectangles(SHAPE, STILL)
    gap[:, :, 3:5] = 0
    motion = motion_between(stored(gap), stored(rectangles(SHAPE, STILL + np.array([1, 2]))))
    np.testing.assert_array_equal(motion.measured, (0, 1, 2, 5, 6, 7, 8))
    np.testing.assert_allclose(motion.steps, np.tile((1, 2), (7, 1)))


def test_where_the_reference_ends_its_cord_is_the_mean_of_the_others_moved_back() -> None:
    """The reference ends at 2.5 and 5.5; two contrasts go on to 0 and 8, one of them to 8 alone."""
    short, long, up = (rectangles(SHAPE, STILL + np.array(step)) for step in ((0, 0), (3, 1), (0, -2)))
    short[:, :, :3] = short[:, :, 6:] = 0
    up[:, :, :3] = 0
    up[:, :, 6:] = np.roll(up[:, :, 6:], 4, axis=0)
    reference = reference_of(stored(short))
    motions = [motion_between(stored(short), stored(mask)) for mask in (long, up)]
    whole = with_cord_of_all(reference, motions)
    numbers = reference.slices.number(whole.cord)
    np.testing.assert_allclose(numbers, [0, 1, 2, 2.5, 3, 4, 5, 5.5, 6, 7, 8], atol=1e-9)
    at = reference.slices.grid.to_index(whole.cord)[:2].T - centres_of_mass(stored(short)).index[:2, :1].T
    # Above, one contrast has not moved and the other has by 4.
    np.testing.assert_allclose(at, [[0, 0]] * 8 + [[2, 0]] * 3, atol=1e-9)


def test_no_slice_in_common_is_no_motion() -> None:
    below, above = rectangles(SHAPE, STILL), rectangles(SHAPE, STILL)
    below[:, :, 4:] = 0
    above[:, :, :4] = 0
    found = measure(reference_of(stored(below)), stored(above), GroundTruthSettings())
    assert found is None


def test_a_reference_of_one_slice_is_enough() -> None:
    mask = rectangles((24, 22, 1), STILL[:1])
    moved = rectangles((24, 22, 1), STILL[:1] + np.array([3, 1]))
    motion = motion_between(
        stored(mask, voxel_mm=(1, 1, 5)), stored(moved, voxel_mm=(1, 1, 4), first_mm=(0, 0, 1))
    )
    np.testing.assert_allclose(motion.steps, [[3, 1]], atol=1e-9)


@given(
    slope=st.floats(-1, 1),
    start=st.floats(-5, 5),
    sigma=st.floats(0.5, 30),
    gaps=arrays(np.float64, 12, elements=st.floats(0.5, 5)),
)
def test_smoothing_leaves_a_steady_drift_alone_even_at_the_ends(
    slope: float, start: float, sigma: float, gaps: np.ndarray
) -> None:
    height = np.cumsum(gaps)
    drift = np.stack([start + slope * height, np.full(12, start)], axis=1)
    np.testing.assert_allclose(smoothed(height, drift, sigma), drift, atol=1e-6)


def test_smoothing_takes_noise_away_and_none_is_none() -> None:
    noise = np.random.default_rng(0).normal(size=(400, 1))
    height = np.arange(400) * 0.8
    # The mean over a Gaussian window leaves 1 / (2 sqrt(pi) sigma / step) of the variance.
    assert smoothed(height, noise, 4.0).var() == pytest.approx(0.8 / (2 * np.sqrt(np.pi) * 4.0), rel=0.3)
    np.testing.assert_array_equal(smoothed(height, noise, 0.0), noise)


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("degrees", [-35.0, -10.0, 4.0, 38.0])
def test_a_rotation_is_recovered(directions: str, degrees: float) -> None:
    pixels = (np.arange(40) * 0.5 - 10, np.arange(44) * 0.5 - 11)
    first, still = np.radians(20.0), np.zeros((5, 2))
    reference, moving = (
        stored(ellipses(pixels, still, angle=angle), directions, (0.5, 0.5, 2.0))
        for angle in (first, first + np.radians(degrees))
    )
    motion = motion_between(reference, moving, rotation=True)
    assert motion.rotation is not None
    np.testing.assert_allclose(np.degrees(motion.rotation.values), degrees, atol=0.5)


@pytest.mark.parametrize("degrees", [89.0, 95.0])
def test_an_axis_has_no_sign(degrees: float) -> None:
    """The reference at 89 degrees, the other at 89 + 12 = 101, which is -79."""
    pixels = (np.arange(44) * 0.5 - 11, np.arange(44) * 0.5 - 11)
    reference, moving = (
        stored(ellipses(pixels, np.zeros((3, 2)), angle=np.radians(angle)), "RAS", (0.5, 0.5, 2.0))
        for angle in (degrees, degrees + 12)
    )
    motion = motion_between(reference, moving, rotation=True)
    assert motion.rotation is not None
    np.testing.assert_allclose(np.degrees(motion.rotation.values), 12, atol=0.5)


@pytest.mark.parametrize(
    ("radii_mm", "degrees", "why"),
    [((5.0, 4.1), 15.0, "ratio of variances 1.49"), ((6.0, 4.0), 45.0, "beyond 40 degrees")],
)
def test_what_is_round_or_turned_too_far_has_no_rotation(
    radii_mm: tuple[float, float], degrees: float, why: str
) -> None:
    pixels = (np.arange(44) * 0.5 - 11, np.arange(44) * 0.5 - 11)
    reference, moving = (
        stored(ellipses(pixels, np.zeros((3, 2)), radii_mm, np.radians(angle)), "RAS", (0.5, 0.5, 2.0))
        for angle in (0.0, degrees)
    )
    assert motion_between(reference, moving, rotation=True).rotation is None, why


def test_centres_weigh_voxels_by_their_value_and_pass_over_faint_slices() -> None:
    mask = np.zeros((5, 4, 3), np.float32)
    mask[1, 1, 0], mask[2, 1, 0] = 1.0, 0.5
    mask[3, 3, 1] = 0.5  # not above 0.5
    mask[4, 0, 2] = 0.6
    centres = centres_of_mass(stored(mask, "RAS", (2.0, 1.0, 3.0)))
    np.testing.assert_array_equal(centres.slices, (0, 2))
    np.testing.assert_allclose(centres.world, [[8 / 3, 8], [1, 0], [0, 6]], rtol=1e-6)
