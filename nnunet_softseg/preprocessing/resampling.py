"""Resampling of a part of an image to a part of another grid, with the values of the whole image.

Voxel k of the target lies at (k + 0.5) * source / target - 0.5 of the source; beyond an edge its value goes
on: so skimage.transform.resize places voxels, and nnU-Net with it. Interpolation is separable: matrices along
one axis after the other, which scipy makes by interpolating unit vectors.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

REACH = {1: 0, 3: 16}
"""How many voxels beyond its two neighbours a sample reads, per order. A cubic spline has no end: the weight
of a voxel falls by 2 - sqrt(3) = 0.27 with each step, 16 steps on to 7e-10, less than float32 resolves."""
_BLOCK = 64
"""Samples that share a matrix: longer ones hold mostly zeros."""

Extent = tuple[int, int]
Floats = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]


ANISOTROPIC = 3.0
"""Of voxels: the largest spacing over the smallest, above which nnU-Net treats one axis as slices."""


def new_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Return the shape of an image on a grid of another spacing, over about the same field of view."""
    sizes = zip(spacing, target, shape, strict=True)
    return tuple(round(own / wanted * size) for own, wanted, size in sizes)


def thick_axis(
    spacing: Sequence[float], target: Sequence[float], *, force: bool | None, threshold: float = ANISOTROPIC
) -> int | None:
    """Return the axis along which nnU-Net takes the nearest slice instead of a spline; None: there is none.

    Args:
        spacing: of the image.
        target: of the grid.
        force: always or never; None: where voxels of the image, or else of the grid, are anisotropic.
        threshold: above which they are.
    """
    looked_at = [spacing] if force else [spacing, target] if force is None else []
    for lengths in looked_at:
        if force or max(lengths) / min(lengths) > threshold:
            widest = [axis for axis, length in enumerate(lengths) if max(lengths) / length == 1]
            # Of two wide axes, or three, none is that of the slices.
            return widest[0] if len(widest) == 1 else None
    return None


def positions(source_size: int, target_size: int, extent: Extent) -> Float64:
    """Return where the target's voxels (start, stop) lie, in voxels of the source."""
    return (np.arange(*extent, dtype=np.float64) + 0.5) * (source_size / target_size) - 0.5


def source_extent(source_size: int, target_size: int, extent: Extent, order: int) -> Extent:
    """Return which voxels of the source, (start, stop), decide the target's voxels (start, stop)."""
    if source_size == target_size:
        return extent
    first, last = positions(source_size, target_size, extent)[[0, -1]]
    start = int(np.clip(np.floor(first) - REACH[order], 0, source_size - 1))
    stop = int(np.clip(np.floor(last) + 2 + REACH[order], 1, source_size))
    return start, stop


def reached_extent(source_size: int, target_size: int, extent: Extent) -> Extent:
    """Return which voxels of the target, (start, stop), a linear interpolation of source voxels reaches."""
    at = positions(source_size, target_size, (0, target_size))
    start = 0 if extent[0] == 0 else int(np.searchsorted(at, extent[0] - 1, side="right"))
    stop = target_size if extent[1] == source_size else int(np.searchsorted(at, extent[1], side="left"))
    return start, max(start, stop)


def overlapping_extent(source_size: int, target_size: int, extent: Extent) -> Extent:
    """Return which voxels of the target, (start, stop), overlap the source's voxels (start, stop)."""
    return extent[0] * target_size // source_size, -(-extent[1] * target_size // source_size)


def nearest(source_size: int, target_size: int, extent: Extent) -> npt.NDArray[np.int64]:
    """Return the voxel of the source nearest to each of the target's voxels (start, stop)."""
    rounded = np.floor(positions(source_size, target_size, extent) + 0.5).astype(np.int64)
    return np.clip(rounded, 0, source_size - 1)


def resample_part(
    part: Floats,
    starts: Sequence[int],
    source_shape: Sequence[int],
    target_shape: Sequence[int],
    box: Sequence[Extent],
    *,
    order: int,
) -> Float64:
    """Return a box of the target grid, interpolated from the part of the source that decides it.

    The part, (*space), begins at `starts` in the source and holds at least `source_extent` along every axis;
    the box is (start, stop) per axis of the target; order 1 is linear, 3 a cubic spline, interpolating. The
    result, (*box), is that of the whole source to 1e-8 of its largest value.
    """
    result = np.asarray(part, dtype=np.float64)
    sizes = list(zip(source_shape, target_shape, strict=True))
    # The axis that loses most first: less is left for the others.
    for axis in sorted(range(part.ndim), key=lambda axis: sizes[axis][1] / sizes[axis][0]):
        result = _resampled_along(axis, result, starts[axis], sizes[axis], box[axis], order=order)
    return result


def _resampled_along(
    axis: int, part: Float64, start: int, sizes: tuple[int, int], extent: Extent, *, order: int
) -> Float64:
    """Return the array with one axis on the target's grid, in blocks, as most of a matrix is 0."""
    if sizes[0] == sizes[1]:
        return part[_along(axis, extent[0] - start, extent[1] - start)]
    shape = list(part.shape)
    shape[axis] = extent[1] - extent[0]
    result = np.empty(shape)
    for first in range(*extent, _BLOCK):
        last = min(first + _BLOCK, extent[1])
        read = source_extent(*sizes, (first, last), order)
        samples = positions(*sizes, (first, last)) - read[0]
        source = part[_along(axis, read[0] - start, read[1] - start)]
        weights = _weights(samples, read[1] - read[0], order)
        result[_along(axis, first - extent[0], last - extent[0])] = matmul_along(weights, source, axis)
    return result


def linear_weights(source_size: int, target_size: int, source: Extent, target: Extent) -> Float64:
    """Return the matrix (voxel of the target, voxel of the source) of linear interpolation, for two extents.

    Beyond the source's extent its last value goes on.
    """
    return _weights(positions(source_size, target_size, target) - source[0], source[1] - source[0], 1)


@lru_cache(maxsize=16)
def linear_inverse(source_size: int, target_size: int) -> Float64:
    """Return the matrix (voxel of the target, voxel of the source) that undoes a linear interpolation.

    A line of target voxels that was interpolated to a finer source grid comes back as it was; of any other
    source, the line whose interpolation is nearest to it, by least squares, of the same sum.
    """
    forth = linear_weights(target_size, source_size, (0, target_size), (0, source_size))
    back: Float64 = np.linalg.solve(forth.T @ forth, forth.T).astype(np.float64)
    return back


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop))


def _weights(samples: Float64, size: int, order: int) -> Float64:
    """Return the matrix (sample, voxel) that interpolates a line of voxels at the samples."""
    columns = [
        ndimage.map_coordinates(unit, samples[None], order=order, mode="nearest") for unit in np.eye(size)
    ]
    return np.stack(columns, axis=1)


def matmul_along(matrix: Float64, array: Float64, axis: int) -> Float64:
    """Return the array with the matrix applied along one axis."""
    if axis == array.ndim - 1:
        return array @ matrix.T
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    product = matrix @ array.reshape(*before, array.shape[axis], -1)
    return product.reshape(*before, len(matrix), *after)


def area_means(source_size: int, cells: int, cell_size: float) -> Float64:
    """Return the matrix (cell, voxel) that averages a line of voxels over cells of a size in voxels.

    The first cell begins where the first voxel does; the last may stick out, and averages its voxels inside.
    """
    edges = np.minimum(np.arange(cells + 1) * cell_size, source_size)
    voxels = np.arange(source_size)
    starts, stops = edges[:-1, None], edges[1:, None]
    overlap = np.clip(np.minimum(stops, voxels + 1) - np.maximum(starts, voxels), 0, None)
    means: Float64 = overlap / overlap.sum(axis=1, keepdims=True)
    return means
