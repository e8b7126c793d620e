"""Which voxels of one grid decide those of another, counted out by interpolating single voxels."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_softseg.preprocessing.resampling import (
    linear_weights,
    nearest,
    reached_extent,
    source_extent,
)

sizes = st.integers(1, 40)


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int, tuple[int, int]]:
    """Sizes of source and target, and some voxels of the target."""
    source, target = draw(sizes), draw(sizes)
    start = draw(st.integers(0, target - 1))
    return source, target, (start, draw(st.integers(start + 1, target)))


def single_voxels(source: int, target: int) -> Any:
    """(target, source): what each voxel of the target takes of each of the source, linearly."""
    at = (np.arange(target) + 0.5) * source / target - 0.5
    return np.stack(
        [ndimage.map_coordinates(unit, at[None], order=1, mode="nearest") for unit in np.eye(source)], axis=1
    )


@given(grids())
def test_what_is_read_is_what_decides(grid: tuple[int, int, tuple[int, int]]) -> None:
    source, target, extent = grid
    weights = single_voxels(source, target)[slice(*extent)]
    taken = np.flatnonzero((weights > 1e-9).any(axis=0))
    start, stop = source_extent(source, target, extent, 1)
    assert start <= taken[0]
    assert stop > taken[-1]
    # One more on the far side where a sample hits a voxel, or lies beyond the last one's middle.
    assert stop - start <= taken[-1] - taken[0] + 1 + 2 * (source != target)
    found = linear_weights(source, target, (start, stop), extent)
    np.testing.assert_allclose(found, weights[:, start:stop], atol=1e-12)


def test_a_spline_reads_sixteen_voxels_more_on_each_side() -> None:
    # Voxel 100 of the target lies at 50 - 1/4, between 49 and 50.
    assert source_extent(100, 200, (100, 101), 1) == (49, 51)
    assert source_extent(100, 200, (100, 101), 3) == (49 - 16, 51 + 16)
    assert source_extent(100, 200, (0, 200), 3) == (0, 100)
    assert source_extent(7, 7, (2, 4), 3) == (2, 4)


@given(grids())
def test_voxels_reach_those_of_the_target_that_take_of_them(grid: tuple[int, int, tuple[int, int]]) -> None:
    target, source, extent = grid
    taken = np.flatnonzero((single_voxels(source, target)[:, slice(*extent)] > 1e-9).any(axis=1))
    start, stop = reached_extent(source, target, extent)
    assert list(range(start, stop)) == taken.tolist()


@given(grids())
def test_the_nearest_voxel_is_the_one_whose_middle_is(grid: tuple[int, int, tuple[int, int]]) -> None:
    source, target, extent = grid
    middles = (np.arange(*extent) + 0.5) * source / target
    away = np.abs(middles[:, None] - (np.arange(source) + 0.5))
    found = nearest(source, target, extent)
    np.testing.assert_allclose(away[np.arange(len(away)), found], away.min(axis=1), atol=1e-9)
    assert nearest(2, 1, (0, 1)).tolist() == [1]  # of two that are as near, the later one
