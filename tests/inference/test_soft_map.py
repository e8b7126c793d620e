"""Zero means zero, and nothing else changes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import map_coordinates

from nnunet_softseg.inference.export import resample_soft_map
from nnunet_softseg.preprocessing.image_grid import on_image_grid, placed
from nnunet_softseg.preprocessing.output_scale import keep_supported

CORE, SUPPORT = 0.5, 0.05


def cord(shape: tuple[int, int, int] = (12, 30, 30), radius: float = 5.3) -> np.ndarray:
    """A straight cord with a linear edge two voxels wide."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    distance = np.hypot(y - 14.6, x - 15.2)
    return np.broadcast_to(np.clip((radius - distance) / 2 + 0.5, 0, 1).astype(np.float32), shape).copy()


def test_residue_goes_and_the_boundary_stays() -> None:
    clean = cord((12, 60, 60))
    rng = np.random.default_rng(0)
    residue = rng.uniform(0, 0.04, clean.shape).astype(np.float32)
    far = np.hypot(*(np.mgrid[:60, :60] - np.array([14.6, 15.2])[:, None, None])) > 8
    noisy = np.where(far[None], residue, clean)
    assert noisy.sum() > 1.5 * clean.sum()  # the residue weighs more than half a cord
    kept = keep_supported(noisy, CORE, SUPPORT)
    np.testing.assert_array_equal(kept, clean)


def test_partial_volume_below_the_threshold_survives_next_to_the_cord() -> None:
    soft = np.zeros((3, 9, 9), np.float32)
    soft[:, 3:6, 3:6] = 1
    soft[:, 2, 3:6] = 0.013
    np.testing.assert_array_equal(keep_supported(soft, CORE, SUPPORT), soft)


@pytest.mark.parametrize("peak", [0.49, CORE])
def test_a_blob_without_a_core_is_background(peak: float) -> None:
    """A component stays that exceeds the core threshold somewhere: to reach it is not enough."""
    soft = cord()
    soft[:, 1:4, 1:4] = peak
    np.testing.assert_array_equal(keep_supported(soft, CORE, SUPPORT), cord())


def test_two_cores_both_stay() -> None:
    soft = np.zeros((1, 5, 20), np.float32)
    soft[0, 2, 2], soft[0, 2, 3], soft[0, 2, 15] = 0.9, 0.2, 0.6
    np.testing.assert_array_equal(keep_supported(soft, CORE, SUPPORT), soft)


def test_empty_stays_empty() -> None:
    assert not keep_supported(np.full((4, 4, 4), 0.04, np.float32), CORE, SUPPORT).any()
    assert not keep_supported(np.full((4, 4, 4), 0.4, np.float32), CORE, SUPPORT).any()


maps = hnp.arrays(np.float32, (4, 6, 5), elements=st.floats(0, 1, width=32))


@given(maps)
def test_values_are_kept_or_zero_and_twice_is_once(soft: np.ndarray) -> None:
    kept = keep_supported(soft, CORE, SUPPORT)
    assert ((kept == soft) | (kept == 0)).all()
    assert (kept[soft > CORE] == soft[soft > CORE]).all()
    np.testing.assert_array_equal(keep_supported(kept, CORE, SUPPORT), kept)


@given(maps, st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9)))
@settings(max_examples=40)
def test_resampling_is_linear_interpolation_along_every_axis(
    soft: np.ndarray, shape: tuple[int, int, int]
) -> None:
    """Against scipy, on the grid of half-pixel centres with a clamped edge."""
    thresholds = {"core_threshold": CORE, "support_threshold": SUPPORT}
    found = resample_soft_map(soft[None], shape, (5, 1, 1), (1, 1, 1), **thresholds)[0]
    grid = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(shape, soft.shape, strict=True)]
    cleaned = keep_supported(soft, CORE, SUPPORT).astype(np.float64)
    expected = map_coordinates(cleaned, np.meshgrid(*grid, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1


def test_thick_slices_are_interpolated_not_repeated() -> None:
    soft = np.zeros((1, 2, 3, 3), np.float32)
    soft[0, 0] = 1.0
    soft[0, 1] = 0.2
    up = resample_soft_map(torch.from_numpy(soft), (10, 3, 3), (5, 1, 1), (1, 1, 1))[0, :, 1, 1]
    # centres of ten slices of 1 mm between two of 5 mm at 2 and 7: value falls linearly from 1.0 to 0.2
    expected = np.clip(1.0 - 0.8 * (np.arange(10) - 2) / 5, 0.2, 1.0)
    np.testing.assert_allclose(up, expected, atol=1e-6)


def test_to_the_fine_grid_and_back_is_the_identity_at_the_old_centres() -> None:
    soft = cord((4, 30, 30))
    fine = resample_soft_map(soft[None], (20, 30, 30), (5, 1, 1), (1, 1, 1))
    back = resample_soft_map(fine, (4, 30, 30), (1, 1, 1), (5, 1, 1))
    np.testing.assert_allclose(back[0], soft, atol=1e-6)


def test_volume_is_kept() -> None:
    soft = cord((10, 30, 30))
    up = resample_soft_map(soft[None], (10, 51, 47), (1, 1, 1), (1, 30 / 51, 30 / 47))[0]
    ratio = up.sum() * (30 / 51) * (30 / 47) / soft.sum()
    assert ratio == pytest.approx(1, abs=0.005)


grids = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24))


@given(grids, grids, st.data())
@settings(max_examples=150)
def test_a_box_reaches_the_image_as_the_whole_case_would(
    network_shape: tuple[int, ...], image_shape: tuple[int, ...], draw: st.DataObject
) -> None:
    """Against scipy on the whole case, where the map is 0 outside of the box; the box may stick out."""
    rng = np.random.default_rng(draw.draw(st.integers(0, 99)))
    starts = [draw.draw(st.integers(-3, size - 1)) for size in network_shape]
    box = tuple(
        (start, draw.draw(st.integers(start + 1, size + 4)))
        for start, size in zip(starts, network_shape, strict=True)
    )
    soft = rng.uniform(0, 1, (2, *(stop - start for start, stop in box))).astype(np.float32)
    soft[rng.uniform(size=soft.shape) < draw.draw(st.sampled_from([0, 0.5, 0.98, 1]))] = 0
    whole = np.zeros((2, *network_shape))
    for index in np.ndindex(soft.shape[1:]):
        at = tuple(i + start for i, (start, _) in zip(index, box, strict=True))
        if all(0 <= i < size for i, size in zip(at, network_shape, strict=True)):
            whole[(slice(None), *at)] = soft[(slice(None), *index)]
    lines = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(image_shape, network_shape, strict=True)]
    points = np.meshgrid(*lines, indexing="ij")
    expected = [map_coordinates(label, points, order=1, mode="nearest") for label in whole]
    part, slices = on_image_grid(soft, box, network_shape, image_shape)
    assert part.dtype == np.float32
    np.testing.assert_allclose(placed(part, slices, image_shape), expected, atol=2e-7)


def test_only_what_is_reached_is_worked_on() -> None:
    soft = np.zeros((1, 40, 20, 20), np.float32)
    soft[0, :, 8:12, 9:11] = 1
    box = ((0, 40), (90, 110), (100, 120))
    part, slices = on_image_grid(soft, box, (40, 200, 200), (40, 400, 400))
    # voxels 98 to 101 of 200 are 196 to 203 of 400, and one neighbour of 0 on each side is reached half-way
    assert slices == (slice(0, 40), slice(195, 205), slice(217, 223))
    assert part.shape == (1, 40, 10, 6)
    assert part.max() == 1
    nothing, nowhere = on_image_grid(np.zeros_like(soft), box, (40, 200, 200), (40, 400, 400))
    assert nothing.size == 0
    assert not placed(nothing, nowhere, (40, 400, 400)).any()
