"""Where the cord runs: the best path, the boxes along it, the coarse pass over the whole image."""

import dataclasses
import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from grid_plans import configuration, plans
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import minimum_filter1d

from nnunet_softseg.inference import recentring as localiser
from nnunet_softseg.inference.network_image import NetworkImage
from nnunet_softseg.inference.recentring import (
    Grid,
    Placement,
    WholeImage,
    best_path,
    candidates,
    coarse_stride,
    place,
    refined,
    ring_contrast,
)
from nnunet_softseg.preprocessing.center_crop import network_box

ONE = np.ones(1, np.float32)


def grid(patch: tuple[int, int, int] = (32, 20, 16), si_axis: int = 0, radius: float = 3.0) -> Grid:
    return Grid(si_axis, (1.0, 1.0, 1.0), patch, (4, 4, 4), radius)


class ArrayImage:
    """A whole case in memory, cut and averaged by plain numpy."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape = values.shape

    def extract(self, box: Any) -> np.ndarray:
        padded = np.pad(self.values, 200)
        return padded[tuple(slice(a + 200, b + 200) for a, b in box)][None]

    def own_slices(self, box: Any, axis: int) -> np.ndarray:
        return self.extract(box)

    def slice_positions(self, axis: int) -> np.ndarray:
        return np.arange(self.shape[axis])

    def interpolated(self, own_slices: np.ndarray, axis: int) -> np.ndarray:
        return own_slices

    def coarse(self, stride: Any, part: Any) -> np.ndarray:
        values = self.values
        for axis, step in enumerate(stride):
            starts = np.arange(0, values.shape[axis], step)
            counts = np.diff(np.append(starts, values.shape[axis]))
            shape = [-1 if other == axis else 1 for other in range(values.ndim)]
            values = np.add.reduceat(values, starts, axis=axis) / counts.reshape(shape)
        return values[tuple(part)].astype(np.float32)[None]


def tube(shape: tuple[int, int, int], centres: np.ndarray, radius: float = 3.0) -> np.ndarray:
    """A tube of radius 3 along the first axis, its edge one voxel wide."""
    y, x = np.meshgrid(*(np.arange(size) for size in shape[1:]), indexing="ij")
    away = np.hypot(y - centres[:, 0, None, None], x - centres[:, 1, None, None])
    return np.clip(radius + 0.5 - away, 0, 1).astype(np.float32)


def line(slices: int, start: tuple[float, float], slope: tuple[float, float]) -> np.ndarray:
    return np.array(start) + np.arange(slices)[:, None] * np.array(slope)


def locate(*arguments: Any) -> Placement:
    return next(candidates(*arguments)).placement


def as_is(image: np.ndarray) -> np.ndarray:
    return image[:1].copy()


@settings(max_examples=30)
@given(arrays(np.float64, (4, 2, 3), elements=st.floats(0, 1)), st.sampled_from([0.5, 1.0]))
def test_no_other_path_is_better(wanted: np.ndarray, step_mm: float) -> None:
    """All paths that move at most one voxel a slice, counted out."""

    def value(path: Any) -> float:
        moves = np.diff(np.array(path), axis=0)
        if (np.abs(moves) > 1).any():
            return -np.inf
        sum_of_wanted = sum(wanted[(z, *at)] for z, at in enumerate(path))
        return float(sum_of_wanted - 0.02 * np.linalg.norm(moves, axis=1).sum())

    places = list(itertools.product(range(2), range(3)))
    best = max(value(path) for path in itertools.product(places, repeat=4))
    found = best_path(wanted, step_mm, (1.0, 1.0))
    assert value([tuple(at) for at in found]) == pytest.approx(best, abs=1e-9)


def test_a_path_that_leans_by_45_degrees_is_followed_and_a_steeper_one_is_not() -> None:
    for slope, followed in ((1.0, True), (2.0, False)):
        centres = line(12, (10.0, 5.0), (0.0, slope))
        path = best_path(tube((12, 20, 40), centres, radius=1).astype(float), 1.0, (1.0, 1.0))
        assert bool(np.abs(path - centres).max() < 1.5) is followed


def test_a_disc_of_the_right_size_is_likelier_than_a_spot_or_a_plain() -> None:
    plain = np.zeros((9, 60, 60))
    plain[:, :, :] = 1.0
    disc, spot, wide = (tube((9, 60, 60), line(9, (30, 30), (0, 0)), r).astype(float) for r in (4, 1, 20))
    at = {name: ring_contrast(image, 4.0)[4, 30, 30] for name, image in
          {"disc": disc, "spot": spot, "wide": wide, "plain": plain}.items()}  # fmt: skip
    assert at["disc"] > 2 * max(at["spot"], at["wide"])
    assert at["plain"] == pytest.approx(0, abs=1e-9)


def test_what_goes_on_to_one_side_is_no_disc_however_bright() -> None:
    """A strip as wide as the disc, and the edge of a plain: nowhere along them anything looks like one."""
    disc, strip, edge = np.zeros((3, 9, 60, 60))
    disc[:] = 0.5 * tube((9, 60, 60), line(9, (30, 30), (0, 0)), 4)
    strip[:, :, 26:35] = 1.0
    edge[:, :, 30:] = 1.0
    in_the_middle = ring_contrast(disc, 4.0)[4, 30, 30]
    assert in_the_middle > 0.3
    for other in (strip, edge):
        assert ring_contrast(other, 4.0)[:, 10:-10].max() < 0.05 * in_the_middle


@settings(max_examples=60)
@given(
    st.integers(4, 60), st.integers(10, 70), st.integers(10, 70), st.floats(-1, 1), st.floats(-1, 1),
    st.floats(0, 1), st.floats(0, 1), st.sampled_from([0, 1, 2]),
)  # fmt: skip
def test_the_patch_follows_the_path(
    slices: int,
    rows: int,
    columns: int,
    slope_0: float,
    slope_1: float,
    at_0: float,
    at_1: float,
    si_axis: int,
) -> None:
    sizes = np.array([rows, columns])
    centres = np.clip(line(slices, (at_0 * rows, at_1 * columns), (slope_0, slope_1)), 0, sizes - 1)
    in_plane, shape, made = of_plane(si_axis, sizes, slices)
    placement = place(centres, shape, made)
    patch = np.array([made.patch_size[axis] for axis in in_plane])
    starts = placement.centres - (patch - 1) / 2
    assert placement.box[si_axis] == (0, slices)
    larger = sizes > patch
    # inside the case, where that is larger; around its middle, where not
    assert (starts >= 0)[:, larger].all()
    assert (starts + patch <= sizes)[:, larger].all()
    assert (starts == (sizes - patch) // 2)[:, ~larger].all()
    # the path keeps to the middle of the patch, or the patch could not be moved further
    free = larger & (starts > 0) & (starts < sizes - patch)
    away = np.abs(centres - starts - (patch - 1) / 2)
    assert (away <= np.where(np.ptp(centres, axis=0) <= patch / 4, patch / 8 + 0.5, 1e-9) + 1e-9)[
        free & placement.is_straight
    ].all()
    if not placement.is_straight:
        assert (away[free] < 1e-9).all()
    for column, axis in enumerate(in_plane):
        first, last = placement.box[axis]
        assert first <= starts[:, column].min()
        assert starts[:, column].max() + patch[column] <= last
        # the corners of a patch that leans to both sides reach farther, not a voxel more than that
        leaning = np.abs(placement.stretches[:, column]).sum(1).max() * patch.max()
        room = 0 if placement.is_straight else 2 + leaning
        assert last - first - patch[column] - np.ptp(starts[:, column]) <= room


def of_plane(si_axis: int, sizes: np.ndarray, slices: int) -> tuple[list[int], list[int], Grid]:
    """Axes of the plane, shape of the case and the model's grid, S-I along any axis."""
    in_plane = [axis for axis in range(3) if axis != si_axis]
    shape, patch = [slices] * 3, [32] * 3
    for axis, size, length in zip(in_plane, sizes, (20, 16), strict=True):
        shape[axis], patch[axis] = int(size), length
    return in_plane, shape, Grid(si_axis, (1.0, 1.0, 1.0), tuple(patch), (4, 4, 4), 3.0)


def cylinder(
    shape: tuple[int, int, int], centres: np.ndarray, slope: tuple[float, float], spacing: tuple[float, float]
) -> np.ndarray:
    """A tube of radius 3 across its own axis, which leans by a slope; its edge is 1 wide. All in mm."""
    y, x = np.meshgrid(
        *(np.arange(size) * mm for size, mm in zip(shape[1:], spacing, strict=True)), indexing="ij"
    )
    away = np.stack([y - centres[:, 0, None, None], x - centres[:, 1, None, None]])
    along = away[0] * slope[0] + away[1] * slope[1]
    to_axis = np.sqrt(np.square(away).sum(0) - along**2 / (1 + np.square(slope).sum()))
    return np.clip(3.5 - to_axis, 0, 1).astype(np.float32)


@pytest.mark.parametrize("si_axis", [0, 1, 2])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5)])
def test_a_leaning_tube_stands_upright_and_round_and_goes_back_where_it_was(
    si_axis: int, spacing: tuple[float, float]
) -> None:
    """Cut across, a cylinder is a disc of the same radius, whichever way it leans."""
    slope = (0.57, -0.31)
    longer = np.sqrt(1 + np.square(slope).sum())
    centres = line(60, (14.3, 60.8), slope)
    counts = np.array([70, 74]) / spacing
    values = cylinder((60, int(counts[0]), int(counts[1])), centres, slope, spacing)
    image = ArrayImage(np.moveaxis(values, 0, si_axis))
    in_plane, _, made = of_plane(si_axis, counts, 60)
    mm = np.insert(np.array(spacing), si_axis, 1.0)
    made = dataclasses.replace(made, spacing_mm=tuple(mm))
    placement = place(centres / spacing, image.shape, made)
    assert not placement.is_straight
    assert placement.as_json()["steepest_deg"] == pytest.approx(np.degrees(np.arccos(1 / longer)), abs=0.06)
    seen = np.moveaxis(placement.patch(image)[0], si_axis, 0)
    assert seen.shape == (60, 20, 16)
    y, x = np.meshgrid((np.arange(20) - 9.5) * spacing[0], (np.arange(16) - 7.5) * spacing[1], indexing="ij")
    areas = seen.sum((1, 2))
    radii = np.linspace(2.5, 3.5, 1001)  # an edge 1 mm wide is a mean of discs
    expected = np.pi * np.mean(radii**2)
    np.testing.assert_allclose(areas * np.prod(spacing), expected, rtol=0.01)
    moments = np.array([(seen * part).sum((1, 2)) / areas for part in (y, x, y * y, x * x, x * y)])
    # centre of mass, and as wide as it is long: an edge drawn by distance is off by less than this
    np.testing.assert_allclose(moments[:2], 0, atol=0.05)
    np.testing.assert_allclose(moments[2:4], np.mean(radii**4) / 4 / np.mean(radii**2), rtol=0.04)
    np.testing.assert_allclose(moments[4], 0, atol=0.05)
    back = placement.put_back(np.moveaxis(seen, 0, si_axis)[None])
    whole = np.zeros(image.shape)
    whole[tuple(slice(*extent) for extent in placement.box)] = back[0]
    along = tuple(in_plane)
    np.testing.assert_allclose(whole.sum(along), areas * longer, rtol=0.012)
    assert whole.sum() == pytest.approx(areas.sum() * longer, rel=1e-3)  # linear: nothing is lost
    np.testing.assert_allclose(whole.sum(along), values.sum((1, 2)), rtol=0.012)
    assert np.abs(whole - image.values).max() < 0.3  # and an edge is blurred over less than a voxel


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("thickness", [5.0, 0.8])
def test_between_slices_a_leaning_tube_is_interpolated_along_itself(thickness: float, separate: bool) -> None:
    """From slice to slice of 5 mm it moves by almost its radius: a mean of two is no tube."""
    slope, slices = (0.57, -0.31), round(60 / thickness)
    heights = (np.arange(slices) + 0.5) * thickness - 0.5  # in mm, where the network's slices have theirs
    at = np.array([14.3, 60.8]) + heights[:, None] * slope
    data = cylinder((slices, 70, 74), at, slope, (1.0, 1.0))
    data[:, [0, -1], [0, -1]] = 1e-6  # or nnU-Net would cut the zeros off
    manager = configuration((1.0, 1.0, 1.0), force_separate_z=separate, scheme="NoNormalization")
    image = NetworkImage.from_array(data[None], {"spacing": [thickness, 1.0, 1.0]}, plans(), manager)
    assert image.shape == (60, 70, 74)
    made = of_plane(0, np.array([70, 74]), 60)[2]
    placement = place(line(60, (14.3, 60.8), slope), image.shape, made)
    seen = placement.patch(image)[0]
    y, x = np.meshgrid(np.arange(20) - 9.5, np.arange(16) - 7.5, indexing="ij")
    disc = np.clip(3.5 - np.hypot(y, x), 0, 1)
    assert np.abs(seen - disc).max() < 0.25  # an edge, a fraction of a voxel off
    area = np.pi * (3.0**2 + 1 / 12)  # the mean of discs of 2.5 to 3.5
    np.testing.assert_allclose(seen.sum((1, 2)), area, rtol=0.01)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([0, 1, 2]))
def test_whole_shifts_change_no_value(seed: int, si_axis: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.array([40, 36])
    shape = of_plane(si_axis, sizes, 12)[1]
    starts = rng.integers(0, [20, 20], (12, 2)).astype(float)
    placement = Placement(starts + np.array([9.5, 7.5]), np.tile(np.eye(2), (12, 1, 1)), (20, 16), si_axis)
    image = ArrayImage(rng.random(shape).astype(np.float32))
    seen = np.moveaxis(placement.patch(image)[0], si_axis, 0)
    planes = np.moveaxis(image.values, si_axis, 0)
    for z, (a, b) in enumerate(starts.astype(int)):
        np.testing.assert_allclose(seen[z], planes[z, a : a + 20, b : b + 16], atol=1e-5)
    back = placement.put_back(placement.patch(image))[0]
    coverage = placement.coverage()
    assert coverage.sum() == 12 * 20 * 16
    part = image.values[tuple(slice(*extent) for extent in placement.box)]
    np.testing.assert_allclose(back, np.where(coverage, part, 0), atol=1e-5)


@given(st.integers(5, 90), st.integers(20, 60), st.integers(20, 60))
def test_a_cord_in_the_middle_gets_the_box_of_the_fixed_patch(slices: int, rows: int, columns: int) -> None:
    made, shape = grid((32, 20, 16)), (slices, rows, columns)
    # the middle of what the patch covers, as the fixed patch is rounded
    middle = [(start + stop - 1) / 2 for start, stop in network_box(shape, made.patch_size, 0)[1:]]
    placement = place(np.tile(middle, (slices, 1)), shape, made)
    assert placement.is_straight
    assert placement.box == network_box(shape, made.patch_size, 0)


@pytest.mark.parametrize("slices", [40, 41, 96])
@pytest.mark.parametrize("window_voxels", [10**9, 32 * 40 * 44])
def test_the_response_is_that_of_every_place_whatever_the_windows(
    slices: int, window_voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localiser, "WINDOW_VOXELS", window_voxels)
    sizes = []

    def half(image: np.ndarray) -> np.ndarray:
        sizes.append(tuple(image.shape[1:]))
        return image[:1] / 2

    image = np.random.default_rng(0).random((1, slices, 37, 43), dtype=np.float32)
    response = localiser.coarse_response(image, half, np.array([0.5], np.float32), grid())
    np.testing.assert_allclose(response, image[0], atol=1e-6)
    assert all(size % 4 == 0 for shape in sizes for size in shape)  # what the network can halve twice
    assert len(sizes) == (1 if window_voxels == 10**9 or slices <= 32 else len(sizes))
    assert max(np.prod(shape) for shape in sizes) <= max(window_voxels, 32 * 40 * 44)
    if window_voxels < 10**9:
        assert len(sizes) > 1


def test_an_image_within_one_stride_leaves_two_voxels_to_the_lowest_stage() -> None:
    """A norm over a single voxel is 0 for any input, and torch refuses it."""
    seen = []

    def forward(image: np.ndarray) -> np.ndarray:
        seen.append(tuple(image.shape[1:]))
        return image[:1]

    image = np.ones((1, 4, 3, 4), np.float32)
    response = localiser.coarse_response(image, forward, np.array([1.0], np.float32), grid())
    assert seen == [(8, 4, 4)]  # strides of 4
    np.testing.assert_array_equal(response, image[0])


@pytest.mark.parametrize("si_axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("start", "slope"),
    [((15, 70), (0, 0)), ((60, 20), (0, 0)), ((12, 16), (0.58, 0.0)), ((70, 60), (-0.3, -0.4))],
)
def test_a_tube_is_found_wherever_it_runs(
    start: tuple[float, float], slope: tuple[float, float], si_axis: int
) -> None:
    centres = line(90, start, slope)
    rng = np.random.default_rng(0)
    values = np.maximum(tube((90, 84, 86), centres), 0.3 * rng.random((90, 84, 86)).astype(np.float32))
    values[20:50, 30:50, 30:60] = 1  # as bright, and no tube
    image = ArrayImage(np.moveaxis(values, 0, si_axis))
    made = of_plane(si_axis, np.array(values.shape[1:]), 90)[2]
    placement = locate(image, as_is, ONE, made)
    assert placement.is_straight is (slope == (0, 0))
    assert np.abs(placement.centres - centres).max() < 1.5


@pytest.mark.parametrize("si_axis", [0, 1, 2])
@pytest.mark.parametrize("slope", [(0.55, 0.1), (-0.5, 0.0), (0.0, 0.6), (-0.1, -0.45)])
def test_a_tube_that_only_an_upright_one_is_known_from_is_found_in_a_sheared_image(
    slope: tuple[float, float], si_axis: int
) -> None:
    """A network that answers to what stays where it is over eight slices, and a quarter to anything else."""
    centres = line(60, (34.0 - 30 * slope[0], 36.0 - 30 * slope[1]), slope)
    values = tube((60, 70, 72), centres)
    image = ArrayImage(np.moveaxis(values, 0, si_axis))
    made = of_plane(si_axis, np.array([70, 72]), 60)[2]

    def upright_only(coarse: np.ndarray) -> np.ndarray:
        lowest = minimum_filter1d(coarse[0], 8, axis=si_axis, mode="nearest")
        return np.maximum(lowest, coarse[0] / 4)[None]

    found = [*candidates(image, upright_only, ONE, made)]
    as_it_stands = [*candidates(image, upright_only, ONE, made, False)]
    assert [one.ring_contrast for one in found[: len(as_it_stands)]] == [
        one.ring_contrast for one in as_it_stands
    ]
    leaning = max(found[len(as_it_stands) :], key=lambda candidate: candidate.ring_contrast)
    assert leaning.ring_contrast > 2 * max(candidate.ring_contrast for candidate in as_it_stands)
    assert np.abs(leaning.placement.centres - centres).max() < 3


def test_a_cord_in_a_fifth_of_the_slices_is_worth_a_look_and_a_spot_is_not() -> None:
    """Sheared images are not even made where the image as it stands shows nothing."""
    passes = []

    def count(image: np.ndarray) -> np.ndarray:
        passes.append(1)
        return as_is(image)

    for slices, expected in ((18, range(1, 99)), (6, range(0, 1))):
        image = tube((90, 60, 60), line(90, (15.0, 40.0), (0.0, 0.0)))
        image[slices:] = 0
        passes.clear()
        assert len([*candidates(ArrayImage(image), count, ONE, grid())]) in expected
        assert len(passes) == (len(localiser.SHEARS) if slices > 6 else 1)


def test_of_a_wide_image_no_more_is_made_than_is_searched() -> None:
    """Coarse voxels of a large field of view: 123 MB on the network's grid, of which 6 MB are searched."""
    image = WholeImage(np.ones((1, 12, 100, 100), np.float32))
    image.shape = (12, 1600, 1600)
    peaks = []

    def measure(window: np.ndarray) -> np.ndarray:
        peaks.append(tracemalloc.get_traced_memory()[1])
        return np.zeros_like(window)

    tracemalloc.start()
    made = dataclasses.replace(grid(), spacing_mm=(5.0, 1.0, 1.0))
    assert not [*candidates(image, measure, ONE, made)]
    tracemalloc.stop()
    assert peaks[0] < 0.5 * 4 * np.prod(image.shape)


def test_windows_overlap_by_a_quarter_or_more() -> None:
    """An image of 192 x 260 x 320 mm, for a network that halves five times."""
    made = Grid(0, (1.0, 1.0, 1.0), (320, 192, 64), (32, 32, 16), 5.0)
    assert localiser._windows((160, 288, 192), made) == [
        (start, start + 32) for start in (0, 21, 43, 64, 85, 107, 128)
    ]


@given(st.integers(0, 2**31), st.sampled_from([0, 1, 2]))
@settings(max_examples=20)
def test_a_sheared_image_holds_what_was_shifted_in_and_zeros(seed: int, si_axis: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((2, 5, 7, 6)) + 1
    shifts = rng.integers(-9, 10, (5, 2))
    image = np.moveaxis(values, 1, 1 + si_axis)
    result = np.moveaxis(localiser.sheared(image, shifts, si_axis), 1 + si_axis, 1)
    far = np.pad(values, ((0, 0), (0, 0), (9, 9), (9, 9)))
    for z, (row, column) in enumerate(shifts):
        np.testing.assert_array_equal(result[:, z], far[:, z, 9 + row : 16 + row, 9 + column : 15 + column])


def test_the_next_candidates_run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    tubes = [line(30, at, (0.0, 0.1)) for at in ((12.0, 10.0), (40.0, 12.0))]
    image = np.maximum(tube((30, 60, 60), tubes[0]), 0.8 * tube((30, 60, 60), tubes[1]))
    monkeypatch.setattr(localiser, "LEAST_RING_CONTRAST", -9.0)
    found = [
        placement.centres
        for placement, _ in candidates(ArrayImage(image), as_is, ONE, grid(patch=(32, 16, 16)))
    ]
    assert len(found) == localiser.MOST_CANDIDATES + len(localiser.SHEARS) - 1
    for centres, expected in zip(found, tubes, strict=False):
        assert np.abs(centres - expected).max() < 3


@pytest.mark.parametrize("si_axis", [0, 1, 2])
def test_what_was_found_tells_better_where_a_leaning_tube_runs(si_axis: int) -> None:
    """From a path that is 1 to 2 voxels off, ragged and too steep, over slices of which some are empty."""
    slope = (0.45, -0.36)
    centres = line(60, (20.3, 50.8), slope)
    values = cylinder((60, 70, 74), centres, slope, (1.0, 1.0))
    values[:6], values[30:33], values[58:] = 0, 0, 0
    image = ArrayImage(np.moveaxis(values, 0, si_axis))
    made = of_plane(si_axis, np.array([70, 74]), 60)[2]
    rough = line(60, (17.8, 52.3), (0.53, -0.4)) + np.random.default_rng(0).uniform(-0.5, 0.5, (60, 2))
    placement = place(rough, image.shape, made)
    finer = refined(placement, placement.put_back(placement.patch(image)), image.shape, made)
    found = slice(6, 58)
    assert np.abs(placement.centres - centres)[found].max() > 2
    assert np.abs(finer.centres - centres)[found].max() < 0.3
    longer = np.linalg.det(finer.stretches)
    np.testing.assert_allclose(longer[found], np.sqrt(1 + np.square(slope).sum()), rtol=0.02)


def test_an_empty_map_tells_nothing_of_where_a_tube_runs() -> None:
    made = grid()
    placement = place(line(60, (15.0, 50.0), (0.5, -0.4)), (60, 70, 74), made)
    size = [stop - start for start, stop in placement.box]
    assert refined(placement, np.zeros((1, *size), np.float32), (60, 70, 74), made) is placement


def test_in_a_huge_image_the_middle_is_searched_in_windows_of_bounded_size() -> None:
    shape = (40, 420, 500)
    centres = line(40, (150.0, 340.0), (0.1, -0.1))
    seen: list[int] = []

    def forward(image: np.ndarray) -> np.ndarray:
        seen.append(image[0].size)
        return as_is(image)

    placement = locate(ArrayImage(tube(shape, centres)), forward, ONE, grid())
    assert np.abs(placement.centres - centres).max() <= 2.5  # straight enough for one box in the middle
    assert max(seen) <= 1.05 * localiser.WINDOW_VOXELS


def test_thick_slices_are_all_looked_at() -> None:
    assert coarse_stride(grid()) == (2, 1, 1)
    assert coarse_stride(Grid(0, (3.0, 1.0, 1.0), (8, 8, 8), (4, 4, 4), 3.0)) == (1, 1, 1)
