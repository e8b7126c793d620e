"""The interpolation that made a soft target is undone on a coarser image; each label has its own way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_softseg.preprocessing.image_grid import (
    WAYS,
    Way,
    chosen_way,
    on_image_grid,
    on_network_grid,
    placed,
    way_errors,
    whole_box,
)
from nnunet_softseg.preprocessing.resampling import linear_inverse, positions
from nnunet_softseg.settings import SoftSegSettings


@st.composite
def coarse_labels(draw: st.DrawFn) -> tuple[Any, tuple[int, ...]]:
    """A label of any values, and the shape of a grid that is finer than its image along any axes."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    finer = tuple(int(np.ceil(size * draw(st.floats(1, 5)))) for size in shape)
    return draw(arrays(np.float32, shape, elements=st.floats(0, 1, width=16))), finer


@given(coarse_labels())
def test_the_inverse_gives_every_label_of_a_coarser_image_back(drawn: tuple[Any, tuple[int, ...]]) -> None:
    label, finer = drawn
    target = on_network_grid(label, finer)
    came_back = placed(
        *on_image_grid(target[None], whole_box(finer), finer, label.shape, ["inverse"]), label.shape
    )
    np.testing.assert_allclose(came_back[0], label, atol=2e-5)


@given(st.integers(1, 12), st.floats(1, 5), st.integers(0, 2**16))
def test_the_inverse_is_the_least_squares_solution_and_keeps_the_sum(
    size: int, ratio: float, seed: int
) -> None:
    finer = int(np.ceil(size * ratio))
    noisy = np.random.default_rng(seed).random(finer)
    forth = np.stack(
        [np.interp(positions(size, finer, (0, finer)), np.arange(size), unit) for unit in np.eye(size)], 1
    )
    found = linear_inverse(finer, size) @ noisy
    np.testing.assert_allclose(found, np.linalg.lstsq(forth, noisy)[0], atol=1e-8)
    assert (forth @ found).sum() == pytest.approx(noisy.sum())


def test_where_a_map_holds_nothing_the_inverse_adds_nothing() -> None:
    """A spike of one fine voxel rings, by least squares, into the voxels around it."""
    spikes = np.zeros((1, 24, 24, 24), np.float32)
    spikes[0, 12, 12, [4, 20]] = 1
    found, slices = on_image_grid(spikes, whole_box((24,) * 3), (24,) * 3, (12,) * 3, ["inverse"])
    assert slices == (slice(6, 7), slice(6, 7), slice(2, 11))
    assert np.flatnonzero(found).tolist() == [0, 8]


def test_the_inverse_keeps_the_sums_of_maps_that_no_interpolation_made() -> None:
    """Balls in fractions of 1 mm, sharper than an image of 2 mm and uncertain: undone, they overshoot.

    Cut off at 0 and 1 alone, their sums would be 1.6 % too large in the mean, 4 % at most.
    """
    changes = []
    for seed in range(20):
        drawn = np.random.default_rng(seed)
        centre, radius = drawn.uniform(14.5, 16.5, 3), drawn.uniform(5, 9)
        distance = np.linalg.norm(np.moveaxis(np.indices((32,) * 3), 0, -1) - centre, axis=-1)
        certain = 1 - np.abs(drawn.normal(0, 0.05, distance.shape))
        ball = ((radius - distance + 0.5).clip(0, 1) * certain).astype(np.float32)
        found, _ = on_image_grid(ball[None], whole_box((32,) * 3), (32,) * 3, (16,) * 3, ["inverse"])
        changes.append(8 * found.sum() / ball.sum() - 1)
        assert 0 <= found.min() <= found.max() <= 1
    assert np.mean(changes) == pytest.approx(0, abs=0.01)
    assert np.max(np.abs(changes)) < 0.03


@given(
    centre=st.tuples(*[st.floats(5, 7)] * 3),
    radius=st.floats(1.5, 4),
    share=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    spacing=st.tuples(st.floats(0.6, 3), st.floats(0.5, 1), st.floats(0.5, 1)),
)
@settings(max_examples=40, deadline=None)
def test_a_small_ball_keeps_its_volume_through_another_grid(
    centre: tuple[float, ...], radius: float, share: float, spacing: tuple[float, ...]
) -> None:
    """A nodule that one to four of four radiologists marked, drawn on the image, learned at 1.5 x 0.7 mm.

    Where the samples happen to lie alone makes 3 %.
    """
    shape = tuple(round(12 / mm) for mm in spacing)
    at = np.meshgrid(*[(np.arange(size) + 0.5) * 12 / size for size in shape], indexing="ij", sparse=True)
    inside = sum((x - c) ** 2 for x, c in zip(at, centre, strict=True)) < radius**2
    label = np.asarray(inside, np.float32) * np.float32(share)
    network = (8, 17, 17)
    target = on_network_grid(label, network)
    part, slices = on_image_grid(target[None], whole_box(network), network, shape, ["inverse"])
    came_back = placed(part, slices, shape)[0]
    assert came_back.sum() == pytest.approx(label.sum(), rel=0.01, abs=1 if label.sum() < 20 else 0)
    assert on_network_grid(came_back, network).sum() == pytest.approx(target.sum(), rel=0.01, abs=1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("first", "last"), [(20, 118), (22, 118), (23, 120), (31, 92)])
def test_the_ends_of_a_cord_between_thick_slices_change_no_other_slice(
    way: Way, first: int, last: int
) -> None:
    """A cord of 1 mm voxels, on an image of 5 mm slices: each slice within it shows its area."""
    z, y, x = np.indices((140, 24, 24)) - np.array([0, 11.5, 11.5])[:, None, None, None]
    disc = (5.5 - np.hypot(y, x)).clip(0, 1)
    cord = np.asarray(disc * ((z >= first) & (z < last)), np.float32)
    network, image = cord.shape, (28, 24, 24)
    found = placed(*on_image_grid(cord[None], whole_box(network), network, image, [way]), image)[0]
    within = found[(first + 14) // 5 : (last - 10) // 5].sum(axis=(1, 2))
    assert len(within) > 4
    np.testing.assert_allclose(within, disc[0].sum(), rtol=0.01)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_lost_between_slices_makes_no_other_structure(way: Way) -> None:
    """A lesion of 2 mm between slices of 5 mm, and a doubt of 0.3 elsewhere, which stays one."""
    z, y, x = np.indices((60, 40, 40))
    lesion = np.asarray(((z == 19) | (z == 20)) & (np.hypot(y - 12, x - 12) < 4), np.float32)
    doubt = 0.3 * np.asarray(np.hypot(np.hypot(z - 42, y - 28), x - 28) < 4, np.float32)
    network, image = lesion.shape, (12, 40, 40)
    part, slices = on_image_grid((lesion + doubt)[None], whole_box(network), network, image, [way])
    found = placed(part, slices, image)[0]
    assert 0.25 < found[:, 20:, 20:].max() < 0.4


def test_small_structures_on_coarse_images_take_the_inverse_long_ones_do_not() -> None:
    """A ball of 6 mm in voxels of 2 mm is smeared at 1 mm; a cord in slices of 5 mm is the same in each."""
    z, y, x = np.indices((40, 40, 40)) - 19.5
    ball = np.asarray(np.sqrt(z**2 + y**2 + x**2) < 3, np.float32)
    ball = ball.reshape(20, 2, 20, 2, 20, 2).mean((1, 3, 5))
    cord = np.asarray(np.hypot(y, x) < 5, np.float32)[::5]
    for label, finer, way in ((ball, (40,) * 3, "inverse"), (cord, (40,) * 3, "linear")):
        target = on_network_grid(label, finer)
        assert chosen_way([way_errors(label, target)], SoftSegSettings()) == way


def test_a_label_may_need_fractions_in_one_image_and_the_inverse_in_another() -> None:
    """A ball of 7 mm, learned at 1 mm: images of 0.5 mm say nothing of the inverse, of 2 mm of fractions."""
    z, y, x = (np.indices((200,) * 3, np.float32) - 99.5) / 10
    lattice = np.asarray(z**2 + y**2 + x**2 < 3.5**2, np.float32)  # voxels of 0.1 mm
    finer = lattice.reshape(40, 5, 40, 5, 40, 5).mean((1, 3, 5))
    coarser = lattice.reshape(10, 20, 10, 20, 10, 20).mean((1, 3, 5))
    errors = [way_errors(label, on_network_grid(label, (20,) * 3)) for label in (finer, coarser)]
    assert chosen_way(errors[:1], SoftSegSettings()) == "fractions"
    assert chosen_way(errors[1:], SoftSegSettings()) == "inverse"
    assert chosen_way([*errors, *errors[1:] * 9], SoftSegSettings()) == "fractions and inverse"


def test_each_label_comes_back_its_own_way() -> None:
    maps = np.zeros((3, 16, 16, 16), np.float32)
    maps[0, 4:8, 4:8, 4:8] = maps[1, 9:13, 5:9, 5:9] = 1
    shapes = (16,) * 3, (8, 24, 16)
    ways: list[Way] = ["fractions and inverse", "fractions", "linear"]
    together = placed(*on_image_grid(maps, whole_box(shapes[0]), *shapes, ways), shapes[1])
    for label, way in enumerate(ways):
        alone = placed(*on_image_grid(maps[[label]], whole_box(shapes[0]), *shapes, [way]), shapes[1])
        np.testing.assert_array_equal(together[[label]], alone)
