"""Fractions of voxels come back from a coarser grid; what no surface explains comes back linearly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_softseg.preprocessing import image_grid
from nnunet_softseg.preprocessing.image_grid import (
    WAY_KEY,
    Way,
    chosen_way,
    known_ways,
    on_image_grid,
    on_network_grid,
    placed,
    way_errors,
)
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

EXTENT_MM = 20.0
STEP_MM = 0.1
"""Of the lattice on which a shape is drawn, its border to within a step; all voxels are blocks of it."""
NETWORK = (20, 20, 20)
"""Voxels of 1 mm."""


def signed_distance_mm(shape: str) -> Any:
    """Depth below the surface at the lattice's points, in mm, (z, y, x)."""
    axis = (np.arange(round(EXTENT_MM / STEP_MM), dtype=np.float32) + 0.5) * STEP_MM
    z, y, x = np.meshgrid(axis - 9.7, axis - 10.2, axis - 10.4, indexing="ij", sparse=True)
    if shape == "ball":
        return 5.3 - np.sqrt(x**2 + y**2 + z**2)
    if shape == "ellipsoid":  # to first order
        radius = np.sqrt((x / 7) ** 2 + (y / 4) ** 2 + (z / 6) ** 2)
        slope = np.sqrt((x / 49) ** 2 + (y / 16) ** 2 + (z / 36) ** 2)
        return (1 - radius) * radius / np.maximum(slope, 1e-6)
    tilt = np.radians(25)  # a cylinder, as a cord
    return 4.2 - np.sqrt((x * np.cos(tilt) - z * np.sin(tilt)) ** 2 + y**2)


def exact(shape: str, spacing_mm: Sequence[float]) -> Any:
    """The fraction of each voxel inside a shape, by the lattice's points in it."""
    inside = np.clip(0.5 + signed_distance_mm(shape) / STEP_MM, 0, 1)
    points = [round(size / STEP_MM) for size in spacing_mm]
    blocks = [
        part for size, number in zip(inside.shape, points, strict=True) for part in (size // number, number)
    ]
    return inside.reshape(blocks).mean(axis=(1, 3, 5)).astype(np.float32)


def there_and_back(label: Any, way: Way, network: Sequence[int] = NETWORK) -> Any:
    target = on_network_grid(label, network)
    return back(target, label.shape, way)


def back(target: Any, image_shape: Sequence[int], way: Way) -> Any:
    whole = tuple((0, size) for size in target.shape)
    return placed(*on_image_grid(target[None], whole, target.shape, image_shape, [way]), image_shape)[0]


def boundary_mae(found: Any, label: Any) -> float:
    return float(np.abs(found - label)[(label > 0) & (label < 1)].mean())


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        ("ball", (0.5, 0.5, 0.5)),
        ("ball", (0.8, 0.8, 0.8)),
        ("ellipsoid", (0.5, 0.5, 0.5)),
        ("ellipsoid", (1, 0.5, 0.8)),
        ("cylinder", (0.8, 0.8, 0.8)),
        ("cylinder", (2.5, 0.5, 0.5)),  # thick slices, as of cords: the poles of a ball are lost between them
    ],
)
def test_exact_fractions_come_back(shape: str, spacing_mm: Any) -> None:
    label = exact(shape, spacing_mm)
    linear, found = (there_and_back(label, way) for way in ("linear", "fractions"))
    assert boundary_mae(found, label) < 0.06
    assert boundary_mae(found, label) < boundary_mae(linear, label) / 2
    assert found.sum() == pytest.approx(label.sum(), rel=0.01)
    assert found.max() == pytest.approx(1, abs=0.02)
    partial = ((found > 0) & (found < 1)).sum() / ((label > 0) & (label < 1)).sum()
    assert 0.6 < partial < 1.4  # linearly 2 and more


@pytest.mark.parametrize("shape", ["ball", "cylinder"])
def test_sums_of_the_coarse_voxels_are_restored(shape: str) -> None:
    given = exact(shape, (1, 1, 1))
    found = back(given, (40, 40, 40), "fractions").reshape(20, 2, 20, 2, 20, 2).mean(axis=(1, 3, 5))
    assert boundary_mae(found, given) < 0.02
    neighbourhoods = (ndimage.uniform_filter(array, 3)[2:-2:3, 2:-2:3, 2:-2:3] for array in (found, given))
    np.testing.assert_allclose(*neighbourhoods, atol=0.01)
    assert found.sum() == pytest.approx(given.sum(), rel=0.005)


@given(spacing=st.sampled_from([(20, 20, 20), (20, 10, 4), (7, 20, 20), (3, 5, 20)]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_an_image_that_is_nowhere_finer_is_left_to_the_linear_way(spacing: Any, seed: int) -> None:
    soft = np.random.default_rng(seed).random(NETWORK, dtype=np.float32)
    np.testing.assert_array_equal(back(soft, spacing, "fractions"), back(soft, spacing, "linear"))
    np.testing.assert_array_equal(back(soft, NETWORK, "fractions"), soft)


def test_a_thin_tube_goes_the_linear_way() -> None:
    tube, image = np.zeros(NETWORK, np.float32), (20, 40, 40)
    tube[3:17, 2, 1], tube[3:17, 2, 2] = 0.3, 0.1
    linear = back(tube, image, "linear")
    np.testing.assert_array_equal(back(tube, image, "fractions"), linear)
    beside_a_ball = back(tube + exact("ball", (1, 1, 1)), image, "fractions")
    np.testing.assert_allclose(beside_a_ball[:, :8], linear[:, :8], atol=1e-6)
    ball = back(exact("ball", (1, 1, 1)), image, "fractions")
    np.testing.assert_allclose(beside_a_ball[:, 8:], ball[:, 8:], atol=1e-6)


def test_a_plateau_stays_where_it_is() -> None:
    """Half of the raters: no surface makes 0.5 of 2 x 2 x 2 voxels throughout."""
    half = exact("ball", (1, 1, 1)) / 2
    assert back(half, (40, 40, 40), "fractions")[16:22, 18:24, 18:24] == pytest.approx(0.5, abs=0.02)


sizes = st.tuples(*[st.integers(1, 12)] * 3)


@given(network=sizes, image=sizes, share=st.sampled_from([0.02, 0.3, 1.0]), seed=st.integers(0, 999))
@example(network=(10, 10, 11), image=(5, 12, 11), share=0.3, seed=999)
@settings(max_examples=80, deadline=None)
def test_any_map_stays_in_range_near_its_support_and_keeps_its_sum(
    network: Any, image: Any, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    soft = np.where(rng.random(network) < share, rng.random(network), 0).astype(np.float32)
    found, linear = back(soft, image, "fractions"), back(soft, image, "linear")
    assert found.min() >= 0
    assert found.max() <= 1
    # A voxel of the image overlaps these of the network's grid; linear interpolation reads one more.
    first = (np.arange(n) * old // n for n, old in zip(image, network, strict=True))
    last = ((np.arange(1, n + 1) * old - 1) // n for n, old in zip(image, network, strict=True))
    near = [
        [max(a - 1, 0), b + 2] for pair in zip(first, last, strict=True) for a, b in zip(*pair, strict=True)
    ]
    extents = np.split(np.array(near), np.cumsum(image)[:-1])
    for index in np.argwhere(found > 0)[:50]:
        around = tuple(slice(*extent[at]) for extent, at in zip(extents, index, strict=True))
        assert soft[around].any()
    if soft.sum() >= 20:
        expected = soft.mean(dtype=np.float64)
        as_now = abs(linear.mean(dtype=np.float64) - expected)
        # Noise, of which no surface exists: a piece off by over 1 % goes linear, and pieces touch.
        assert abs(found.mean(dtype=np.float64) - expected) <= 0.02 * expected + as_now + 1e-6


def test_a_box_comes_back_as_the_whole_case() -> None:
    """The box sticks out of the case, as a patch around the centre may."""
    soft = exact("cylinder", (1, 1, 1))
    soft[:, :, :3] = 0
    box = ((0, 20), (-2, 22), (3, 20))
    part = np.pad(soft[:, :, 3:], [(0, 0), (2, 2), (0, 0)])[None]
    image = (25, 25, 25)
    found = placed(*on_image_grid(part, box, NETWORK, image, ["fractions"]), image)[0]
    np.testing.assert_array_equal(found, back(soft, image, "fractions"))


def test_blocks_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = exact("cylinder", (1, 1, 1))
    at_once = back(soft, (40, 40, 40), "fractions")
    monkeypatch.setattr(image_grid, "_BLOCK", 7)
    np.testing.assert_allclose(back(soft, (40, 40, 40), "fractions"), at_once, atol=0.01)


# The choice


def raters() -> Any:
    """The mean of four raters, whose outlines lie 1 mm apart: plateaus at a quarter, a half, three."""
    depth = signed_distance_mm("ball")[2::5, 2::5, 2::5]
    return np.mean([depth > -shift for shift in (-1.5, -0.5, 0.5, 1.5)], axis=0).astype(np.float32)


@pytest.mark.parametrize(
    ("label", "way"),
    [
        (lambda: exact("ball", (0.5, 0.5, 0.5)), "fractions"),
        (raters, "linear"),
        (lambda: raters() / 4, "linear"),
    ],
)
def test_training_labels_say_which_way(label: Any, way: Way) -> None:
    fine = label()
    target = on_network_grid(fine, NETWORK)
    assert chosen_way([None, way_errors(fine, target)], SoftSegSettings()) == way
    for asked in ("linear", "fractions"):
        assert chosen_way([way_errors(fine, target)], SoftSegSettings(to_image_grid=asked)) == asked


@pytest.mark.parametrize(
    ("label", "way"), [(lambda: exact("ball", (0.5,) * 3), "fractions"), (raters, "linear")]
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_few_annotated_planes_say_which_way(label: Any, way: Way, axis: int) -> None:
    whole = label()
    planes = np.moveaxis(np.full_like(whole, np.nan), axis, 0)  # a view: what is written lands in `few`
    few = np.moveaxis(planes, 0, axis)
    middle = whole.shape[axis] // 2
    for place in (middle - 3, middle, middle + 4):
        planes[place] = np.moveaxis(whole, axis, 0)[place]
    target = on_network_grid(few, NETWORK)
    assert chosen_way([way_errors(few, target)], SoftSegSettings()) == way


def test_in_doubt_the_linear_way() -> None:
    ball = exact("ball", (1, 1, 1))
    assert way_errors(ball, ball) is None  # the network's own grid says nothing
    assert way_errors(np.zeros_like(ball), ball[::2]) is None
    unknown = exact("ball", (0.5, 0.5, 0.5))
    unknown[20, 20, 20] = unknown[5, 5, 5] = np.nan
    unknown[30:] = unknown[:, 30:] = unknown[:, :, 30:] = np.nan  # no plane is known altogether
    assert way_errors(unknown, ball) is None
    assert chosen_way([None, None], SoftSegSettings()) == "linear"
    assert known_ways({PLANS_KEY: {}}, ["cord"]) == ["linear"]  # a model of an earlier version
    assert known_ways({PLANS_KEY: {WAY_KEY: {"a": "fractions"}}}, ["b", "a"]) == ["linear", "fractions"]
