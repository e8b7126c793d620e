"""Fractions of voxels on a finer grid: the surface that explains them, as seen by smaller voxels.

A soft label of partial volume holds the fraction of each voxel that lies inside a surface; linear
interpolation smears it over two voxels and more. Here fractions give a signed distance to the surface, in
voxels: those of a flat surface, blurred by a Gaussian of sigma s, are Phi(distance / s). A smaller voxel
holds the fraction of its box inside a flat surface at its distance. Where the given voxels would then hold
another fraction, the distance is moved by the difference, and the sums of small neighbourhoods are restored.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import ndtri

from nnunet_softseg.preprocessing.resampling import (
    Extent,
    area_means,
    linear_weights,
    nearest,
    resample_part,
)

_BLUR = 0.7
"""Sigma, in voxels, of the blur that turns fractions into distances; 0.5 to 1 measure alike."""
_FARTHEST = 2.0
"""Distances end here, in voxels: a blurred fraction says nothing of what is farther."""
_NEAR, _WIDE = 1.0, 2.0
"""Sigmas, in voxels, of the neighbourhoods whose sums are restored, the near ones first. Voxel by voxel, the
noise of a network would become blocks."""
_LEAST_SURFACE = 0.02
"""Where less of a voxel is surface than this, little of its sum can be restored."""
_FAINT = 0.05
"""Less than this away from the surface is residue of a network, on both sides of it: it is left out."""
_TOLERANCE = 0.01
"""A component whose sum would change by more than this share is interpolated linearly."""
_BLOCK, _MARGIN = 64, 8
"""Voxels along an axis worked on at a time, and those read around them."""

Floats = npt.NDArray[np.float32]
Matrices = Sequence[npt.NDArray[np.floating[Any]]]
Shapes = tuple[Sequence[int], Sequence[int]]


def overlapping_extent(source_size: int, target_size: int, extent: Extent) -> Extent:
    """Return which voxels of the target, (start, stop), overlap the source's voxels (start, stop)."""
    return extent[0] * target_size // source_size, -(-extent[1] * target_size // source_size)


def resample_fractions(
    part: npt.NDArray[np.floating[Any]],
    starts: Sequence[int],
    source_shape: Sequence[int],
    target_shape: Sequence[int],
    box: Sequence[Extent],
) -> Floats:
    """Return the fractions, in [0, 1], of a box of the target grid; arguments as `resample_part` has them.

    Along axes on which the target is coarser, its voxels average. A component (26 neighbours) that no surface
    explains, as it is thinner than a voxel or nowhere near 1, is interpolated linearly. The part holds all
    that is not 0 in the source, and a ring of zeros where the source goes on.
    """
    shapes, values = (source_shape, target_shape), np.asarray(part, dtype=np.float32)
    resampled = _in_blocks(values, starts, shapes, box)
    unexplained = _unexplained(values, resampled, starts, shapes, box)
    if unexplained.any():
        resampled = _in_blocks(np.where(unexplained, 0, values), starts, shapes, box)
        rest = np.where(unexplained, values, 0)
        resampled += resample_part(rest, starts, *shapes, box, order=1).astype(np.float32)
    return resampled.clip(0, 1)


def _means(starts: Sequence[int], size: Sequence[int], shapes: Shapes, box: Sequence[Extent]) -> Matrices:
    """Return per axis the matrix (voxel of the box, voxel of the part) that averages, as they overlap."""
    return [
        area_means(source, target, source / target)[first:last, start : start + length].astype(np.float32)
        for start, length, source, target, (first, last) in zip(starts, size, *shapes, box, strict=True)
    ]


def _multiplied(matrices: Matrices, values: Floats) -> Floats:
    """Return the values with a matrix applied along each axis."""
    for matrix in matrices:  # the first axis becomes the last each time
        values = np.tensordot(values, matrix, axes=(0, 1))
    return values


def _in_blocks(values: Floats, starts: Sequence[int], shapes: Shapes, box: Sequence[Extent]) -> Floats:
    """Return the fractions of a box of the target, from the surface in one block after the other."""
    result = np.zeros([stop - start for start, stop in box], np.float32)
    for block in _blocks(shapes, box):
        read = []
        for start, length, source, target, extent in zip(starts, values.shape, *shapes, block, strict=True):
            first, last = overlapping_extent(target, source, extent)
            read.append((max(first - _MARGIN, start), min(last + _MARGIN, start + length)))
        around = tuple(slice(a - start, b - start) for (a, b), start in zip(read, starts, strict=True))
        if values[around].any():
            into = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(block, box, strict=True))
            result[into] = _from_surface(values[around], [a for a, _ in read], shapes, block)
    return result


def _blocks(shapes: Shapes, box: Sequence[Extent]) -> Iterator[tuple[Extent, ...]]:
    """Yield boxes that together are the box, each of at most so many voxels of the source along an axis."""
    steps = [max(1, _BLOCK * target // source) for source, target in zip(*shapes, strict=True)]
    return product(
        *(
            [(at, min(at + step, stop)) for at in range(start, stop, step)]
            for step, (start, stop) in zip(steps, box, strict=True)
        )
    )


def _from_surface(values: Floats, starts: Sequence[int], shapes: Shapes, box: Sequence[Extent]) -> Floats:
    """Return the fractions of a box of the target by a surface that is found in the values around it."""
    # Parts of the target's voxels, none larger than a voxel of the source: of all that overlap the values.
    numbers = [-(-source // target) for source, target in zip(*shapes, strict=True)]
    fine = [target * number for target, number in zip(shapes[1], numbers, strict=True)]
    ends = [(start, start + size) for start, size in zip(starts, values.shape, strict=True)]
    grids = list(zip(*shapes, ends, strict=True))
    covered = [overlapping_extent(*grid) for grid in grids]
    parts = [(a * number, b * number) for (a, b), number in zip(covered, numbers, strict=True)]
    to_parts = [
        linear_weights(source, size, extent, wanted).astype(np.float32)
        for source, size, extent, wanted in zip(shapes[0], fine, ends, parts, strict=True)
    ]
    size = [stop - start for start, stop in parts]
    to_voxels = _means([a for a, _ in parts], size, (fine, shapes[0]), ends)
    inside = _surface_fractions(values, to_parts, to_voxels)
    shape = [length for (a, b), number in zip(covered, numbers, strict=True) for length in (b - a, number)]
    of_target = inside.reshape(shape).mean(axis=tuple(range(1, 2 * values.ndim, 2)))
    mean: Floats = of_target[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, covered, strict=True))]
    return mean


def _surface_fractions(values: Floats, to_parts: Matrices, to_voxels: Matrices) -> Floats:
    """Return the fractions of the parts: matrices interpolate voxels at the parts, and average parts."""
    distance = _distance(values)
    distance += values - _multiplied(to_voxels, _cut(_multiplied(to_parts, distance)))
    inside = _cut(_multiplied(to_parts, distance))
    inside[_multiplied([matrix.T for matrix in to_voxels], values) == 0] = 0
    inside = _restored(inside, values, to_parts, to_voxels, (_NEAR, _NEAR))
    # Where no surface is near, nothing but the linear way is left: inside a plateau, and in thin structures.
    near = _blurred(_multiplied(to_voxels, inside * (1 - inside)), _NEAR) / _LEAST_SURFACE
    missing = values - _multiplied(to_voxels, inside)
    missing[np.abs(missing) < _FAINT] = 0
    inside = (inside + _multiplied(to_parts, missing * (1 - near).clip(0))).clip(0, 1)
    return _restored(inside, values, to_parts, to_voxels, (_WIDE, _WIDE))


def _restored(
    inside: Floats, values: Floats, to_parts: Matrices, to_voxels: Matrices, sigmas: Sequence[float]
) -> Floats:
    """Return the fractions of the parts with the sums of neighbourhoods, of sigmas in voxels, restored."""
    for sigma in sigmas:
        surface = inside * (1 - inside)
        present = _blurred(_multiplied(to_voxels, surface), sigma).clip(_LEAST_SURFACE)
        missing = _blurred(values - _multiplied(to_voxels, inside), sigma) / present
        inside = (inside + _multiplied(to_parts, missing) * surface).clip(0, 1)
    return inside


def _blurred(values: Floats, sigma: float) -> Floats:
    """Return the values blurred by a Gaussian, in voxels; beyond an edge its values go on."""
    blurred: Floats = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3)
    return blurred


def _distance(fractions: Floats) -> Floats:
    """Return signed distances to the surface, in voxels, above 0 inside."""
    blurred = _blurred(fractions, _BLUR)
    sigma = np.sqrt(_BLUR**2 + 1 / 12)  # that of the blur and of a voxel's box
    with np.errstate(divide="ignore"):  # beyond the blur's reach, 0 and 1: infinitely far
        distance: Floats = (sigma * ndtri(blurred.clip(0, 1))).clip(-_FARTHEST, _FARTHEST)
    return distance.astype(np.float32)


def _cut(distance: Floats) -> Floats:
    """Return the fraction of each box inside a flat surface at its distance.

    A box is as wide, along the normal, as one of the same variance: that is the root of the sum of squares of
    the distance's changes from one box to the next.
    """
    squares = np.full_like(distance, 1e-12)
    for axis in range(distance.ndim):
        if distance.shape[axis] > 1:
            squares += np.gradient(distance, axis=axis) ** 2
    fraction: Floats = (0.5 + distance / np.sqrt(squares)).clip(0, 1)
    return fraction


def _unexplained(
    values: Floats, resampled: Floats, starts: Sequence[int], shapes: Shapes, box: Sequence[Extent]
) -> npt.NDArray[np.bool_]:
    """Return the voxels of the components whose sum has changed."""
    components, count = ndimage.label(values > 0, structure=np.ones((3,) * values.ndim))
    before = np.bincount(components.ravel(), values.ravel(), count + 1)
    spread = np.where(components > 0, components, ndimage.grey_dilation(components, size=3))
    at = [
        np.clip(nearest(source, target, extent) - start, 0, size - 1)
        for source, target, extent, start, size in zip(*shapes, box, starts, values.shape, strict=True)
    ]
    after = np.bincount(spread[np.ix_(*at)].ravel(), resampled.ravel(), count + 1)
    voxels = float(np.prod(shapes[0]) / np.prod(shapes[1]))
    changed = np.abs(after * voxels - before) > _TOLERANCE * before
    changed[0] = False
    unexplained: npt.NDArray[np.bool_] = changed[components]
    return unexplained
