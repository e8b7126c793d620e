"""Surface distances against brute force, SimpleITK and the geometry of spheres."""

import itertools
import math

import numpy as np
import pytest
import SimpleITK
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter

from nnunet_softseg.metrics.overlap import SurfaceDistances, surface_distances

# sizes of voxels of spinal cord images, in mm
LENGTHS = st.sampled_from([0.5, 0.8, 0.9, 1.0, 3.0, 5.0])
SPACINGS = st.tuples(LENGTHS, LENGTHS, LENGTHS)
SHAPE = (7, 6, 5)


def random_shape(seed: int, smoothness: float, share: float) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).random(SHAPE), smoothness)
    return field > np.quantile(field, 1 - share)


# a few voxels anywhere, or shapes with an inside, up to nearly the whole image
MASKS = hnp.arrays(np.bool_, SHAPE, elements=st.booleans(), fill=st.just(False)) | st.builds(
    random_shape, st.integers(0, 2**32 - 1), st.floats(0, 2), st.floats(0.05, 0.95)
)


def surface_points_mm(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Boundary voxels one by one: any of the six neighbours outside of the mask or of the image."""
    voxels = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
    boundary = [
        voxel
        for voxel in sorted(voxels)
        if any(tuple(a + b for a, b in zip(voxel, step, strict=True)) not in voxels for step in steps)
    ]
    return np.array(boundary) * np.array(spacing_mm)


def brute_force_mm(
    a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Every distance between two surface voxels, and the smallest in each row and column."""
    difference = surface_points_mm(a, spacing_mm)[:, None] - surface_points_mm(b, spacing_mm)[None]
    distance = np.sqrt((difference**2).sum(axis=-1))
    return distance.min(axis=1), distance.min(axis=0)


def percentile_95(values: np.ndarray) -> float:
    """Linear between the two order statistics around 0.95 (n - 1)."""
    ordered, place = sorted(values), 0.95 * (len(values) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[math.ceil(place)] - ordered[low])


def sphere(
    centre_mm: tuple[float, ...], radius_mm: float, spacing_mm: tuple[float, ...], size_mm: float = 40
) -> np.ndarray:
    axes = [np.arange(0, size_mm, length) for length in spacing_mm]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return (x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2 <= radius_mm**2


@given(MASKS, MASKS, SPACINGS, st.floats(0, 6))
def test_as_brute_force(
    a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...], tolerance_mm: float
) -> None:
    assume(a.any() and b.any())
    found = surface_distances(a, b, spacing_mm)
    forward, back = brute_force_mm(a, b, spacing_mm)
    both = np.concatenate([forward, back])
    assume(np.abs(both - tolerance_mm).min() > 1e-5)  # at the tolerance itself: a test of its own below
    np.testing.assert_allclose(np.sort(found.to_reference_mm), np.sort(forward), atol=1e-9)
    np.testing.assert_allclose(np.sort(found.to_prediction_mm), np.sort(back), atol=1e-9)
    assert found.asd_mm() == pytest.approx(both.sum() / len(both), abs=1e-9)
    assert found.hd95_mm() == pytest.approx(max(percentile_95(forward), percentile_95(back)), abs=1e-9)
    assert found.surface_dice(tolerance_mm) == pytest.approx((both <= tolerance_mm).sum() / len(both))


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 3.0), (0.9, 0.9, 5.0), (0.8, 0.8, 0.8), (3.0, 0.5, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_as_simpleitk_on_random_shapes(spacing_mm: tuple[float, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    fields = [gaussian_filter(random.random((30, 28, 14)), 3) for _ in range(2)]
    a, b = (field > np.quantile(field, 0.8) for field in fields)
    found = surface_distances(a, b, spacing_mm)
    forward, back = simpleitk_mm(a, b, spacing_mm), simpleitk_mm(b, a, spacing_mm)
    # its distance maps are float32
    assert found.asd_mm() == pytest.approx(np.concatenate([forward, back]).mean(), abs=1e-4)
    assert found.hd95_mm() == pytest.approx(max(percentile_95(forward), percentile_95(back)), abs=1e-4)
    both = np.concatenate([forward, back])
    assert found.surface_dice(1.03) == pytest.approx((both <= 1.03).mean(), abs=1e-9)


def simpleitk_mm(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """From the contour of one mask to that of the other, with room around: its contours stop at the edge."""
    contours = []
    for mask in (a, b):
        image = SimpleITK.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing(spacing_mm[::-1])
        contours.append(SimpleITK.LabelContour(image, fullyConnected=False))
    distance = SimpleITK.SignedMaurerDistanceMap(contours[1], squaredDistance=False, useImageSpacing=True)
    values = np.abs(SimpleITK.GetArrayFromImage(distance))
    return values[SimpleITK.GetArrayFromImage(contours[0]) > 0]


@pytest.mark.parametrize(
    ("spacing_mm", "centre_mm", "radii_mm"),
    [
        ((1.0, 1.0, 1.0), (20.2, 19.9, 20.0), (8.0, 12.0)),
        ((0.5, 0.5, 1.5), (20.2, 19.9, 20.0), (8.0, 12.0)),
        # thick slices, poles on the centres of slices: else the mask itself ends up to a slice too early
        ((0.5, 0.5, 3.0), (20.0, 20.0, 21.0), (9.0, 15.0)),
        ((0.5, 3.0, 0.5), (20.0, 21.0, 20.0), (6.0, 15.0)),
        ((0.9, 0.9, 5.0), (19.8, 19.8, 20.0), (10.0, 15.0)),
    ],
)
def test_two_spheres_around_one_point(
    spacing_mm: tuple[float, ...], centre_mm: tuple[float, ...], radii_mm: tuple[float, ...]
) -> None:
    small, large = (sphere(centre_mm, radius, spacing_mm) for radius in radii_mm)
    found = surface_distances(small, large, spacing_mm)
    gap_mm, voxel_mm = radii_mm[1] - radii_mm[0], max(spacing_mm)
    assert found.asd_mm() == pytest.approx(gap_mm, abs=voxel_mm / 2)
    assert found.hd95_mm() == pytest.approx(gap_mm, abs=voxel_mm / 2)
    assert found.surface_dice(gap_mm - voxel_mm) == 0
    assert found.surface_dice(gap_mm + voxel_mm / 2) == 1


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 0.5, 1.5), (0.5, 0.5, 3.0)])
@pytest.mark.parametrize("shift_mm", [2.0, 4.0])
def test_two_spheres_side_by_side(spacing_mm: tuple[float, ...], shift_mm: float) -> None:
    radius_mm = 12.0
    a = sphere((18.0, 20.0, 20.0), radius_mm, spacing_mm)
    b = sphere((18.0 + shift_mm, 20.0, 20.0), radius_mm, spacing_mm)
    found = surface_distances(a, b, spacing_mm)
    # area of a sphere is uniform in the cosine of the angle to the shift
    cosine = (np.arange(20_000) + 0.5) / 10_000 - 1
    exact_mm = np.abs(np.sqrt(radius_mm**2 + shift_mm**2 + 2 * radius_mm * shift_mm * cosine) - radius_mm)
    half_a_voxel_mm = max(spacing_mm) / 2
    assert found.asd_mm() == pytest.approx(exact_mm.mean(), abs=half_a_voxel_mm)
    assert found.hd95_mm() == pytest.approx(percentile_95(exact_mm), abs=half_a_voxel_mm)
    for tolerance_mm in np.linspace(0, shift_mm, 9):
        # each of the two surfaces is up to half a voxel off
        low, high = ((exact_mm <= tolerance_mm + sign * 2 * half_a_voxel_mm).mean() for sign in (-1, 1))
        assert low <= found.surface_dice(tolerance_mm) <= high


def test_a_running_minimum_that_is_never_reset_would_hide_it_all() -> None:
    """The fault of a published tool, on two spheres 2 mm apart: its mean is 300 times too small."""
    spacing_mm = (1.0, 1.0, 1.0)
    a, b = (sphere((12.0, 12.0, height_mm), 8.0, spacing_mm, size_mm=26) for height_mm in (12.0, 14.0))
    never_reset = [np.minimum.accumulate(direction) for direction in brute_force_mm(a, b, spacing_mm)]
    assert 0.002 <= np.concatenate(never_reset).mean() <= 0.004
    assert 0.71 <= surface_distances(a, b, spacing_mm).asd_mm() <= 1.00


def test_by_hand_at_the_edge_of_the_image() -> None:
    full, middle = np.ones((3, 3, 3), dtype=bool), np.zeros((3, 3, 3), dtype=bool)
    middle[1, 1, 1] = True
    found = surface_distances(full, middle, (1.0, 1.0, 2.0))
    # all but the centre of the full image are surface; from the middle, the nearest is a face 1 mm away
    assert found.to_prediction_mm.tolist() == [1.0]
    assert len(found.to_reference_mm) == 26
    assert found.to_reference_mm.max() == pytest.approx(math.sqrt(1 + 1 + 4))
    assert found.hd95_mm() == pytest.approx(math.sqrt(6))


@pytest.mark.parametrize("axis", range(3))
def test_across_an_image_of_a_plane_there_is_no_surface(axis: int) -> None:
    """Discs of 10 and 7 pixels: between their outlines lie 3, and not 0 between the voxels inside both."""
    x, y = np.mgrid[:25, :25] - 12
    discs = [np.hypot(x, y) <= radius for radius in (10, 7)]
    flat = surface_distances(*discs, (1.0, 1.0))
    assert flat.asd_mm() == pytest.approx(3, abs=0.2)
    spacing_mm = np.insert([1.0, 1.0], axis, 5.0).tolist()
    with_an_axis = surface_distances(*(np.expand_dims(disc, axis) for disc in discs), spacing_mm)
    for name in ("to_reference_mm", "to_prediction_mm"):
        np.testing.assert_array_equal(getattr(with_an_axis, name), getattr(flat, name))
    # of one slice within a volume every voxel is at the surface
    slices = [np.pad(np.expand_dims(disc, axis), 1) for disc in discs]
    assert len(surface_distances(*slices, spacing_mm).to_reference_mm) == discs[0].sum()


def test_a_distance_of_just_the_tolerance_is_within_it() -> None:
    a, b = np.zeros((1, 1, 12), dtype=bool), np.zeros((1, 1, 12), dtype=bool)
    a[..., 0], b[..., 10] = True, True
    for length in (0.1, float(np.float32(0.1))):  # the second as read from a NIfTI header: a hair too long
        assert surface_distances(a, b, (1.0, 1.0, length)).surface_dice(1.0) == 1
    assert surface_distances(a, b, (1.0, 1.0, 0.1001)).surface_dice(1.0) == 0


def test_hd95_is_the_worse_direction() -> None:
    """A small far island in one mask only: pooled, the many voxels of the other direction would hide it."""
    few, many = np.zeros(10), np.zeros(1000)
    few[0] = 9.0
    assert SurfaceDistances(few, many).hd95_mm() == pytest.approx(9 * 0.55)
    assert SurfaceDistances(many, few).hd95_mm() == pytest.approx(9 * 0.55)


@given(MASKS, MASKS, SPACINGS, st.permutations(range(3)), st.integers(0, 3), st.floats(0.1, 10))
def test_laws(
    a: np.ndarray,
    b: np.ndarray,
    spacing_mm: tuple[float, ...],
    order: list[int],
    padding: int,
    scale: float,
) -> None:
    assume(a.any() and b.any())

    def measures(first: np.ndarray, second: np.ndarray, *, unit: float, spacing: tuple[float, ...]) -> list:
        found = surface_distances(first, second, spacing)
        return [found.asd_mm() / unit, found.hd95_mm() / unit, found.surface_dice(1.23 * unit)]

    expected = pytest.approx(measures(a, b, unit=1, spacing=spacing_mm), abs=1e-6)
    assert measures(b, a, unit=1, spacing=spacing_mm) == expected
    assert measures(np.pad(a, padding), np.pad(b, padding), unit=1, spacing=spacing_mm) == expected
    turned = tuple(spacing_mm[axis] for axis in order)
    assert measures(a.transpose(order), b.transpose(order), unit=1, spacing=turned) == expected
    assert measures(a[::-1], b[::-1], unit=1, spacing=spacing_mm) == expected
    scaled = tuple(scale * length for length in spacing_mm)
    assert measures(a, b, unit=scale, spacing=scaled) == expected
    assert measures(a, a, unit=1, spacing=spacing_mm) == [0, 0, 1]


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 0), (0, 0)])
def test_an_empty_mask_has_no_distances(a: int, b: int) -> None:
    with pytest.raises(ValueError, match="an empty mask has no surface"):
        surface_distances(np.full((2, 2), bool(a)), np.full((2, 2), bool(b)), (1.0, 1.0))


@pytest.mark.parametrize("tolerance_mm", [-0.1, math.nan])
def test_bad_tolerance(tolerance_mm: float) -> None:
    with pytest.raises(ValueError, match="0 mm or more"):
        SurfaceDistances(np.zeros(1), np.zeros(1)).surface_dice(tolerance_mm)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "message"),
    [
        ((2, 3), (1.0, 1.0), r"one grid, got \(2, 2\) and \(2, 3\)"),
        ((2, 2), (1.0, 1.0, 1.0), r"above 0 per axis \(2\)"),
        ((2, 2), (1.0, 0.0), "above 0 per axis"),
        ((2, 2), (1.0, math.nan), "above 0 per axis"),
    ],
)
def test_bad_grids(shape: tuple[int, ...], spacing_mm: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surface_distances(np.ones((2, 2), dtype=bool), np.ones(shape, dtype=bool), spacing_mm)
