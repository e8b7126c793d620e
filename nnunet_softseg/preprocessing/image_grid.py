"""Soft labels from the image's grid to the network's, and soft maps back.

A label is averaged along axes on which the network's grid is coarser, and interpolated linearly along the
others. Back, linear interpolation is right for any label, and smears a boundary over two voxels of the
coarser grid. Where the softness of a label is partial volume, `fractions` keeps it as sharp on a finer image
as it was. On a coarser one `inverse` undoes the interpolation that made the soft target. Which of these a
label needs, the training labels say: each goes to the network's grid and back in all ways. With the inverse,
the soft target of what comes back has the sum of what the network said.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import ndtri

from nnunet_softseg.io.geometry import bounding_box
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box
from nnunet_softseg.preprocessing.resampling import (
    Extent,
    area_means,
    linear_inverse,
    linear_weights,
    matmul_along,
    nearest,
    overlapping_extent,
    reached_extent,
    resample_part,
    source_extent,
)
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

KNOWN = 0.5
"""A voxel counts as known if at least this share of what it is interpolated from is."""
WAY_KEY = "to_image_grid"
"""Of the way of each label, by its name, among our entries of the plans."""
_MUCH_CLOSER = 0.8
"""Fractions are chosen if the training labels come back with less than this share of the linear error."""
_SMEARED = 0.1
"""The interpolation is undone if that saves the training labels an error, summed, of more than this share of
their sum: it makes the noise of a network larger. Refuted by a label beyond (below) this whose maps have a
smaller (larger) Brier score without: hippocampi in voxels of 2 mm, 0.21 and more, gain; cords in slices of 3
to 5 mm, 0.012 and less, would lose."""
_BLUR = 0.7
"""Sigma, in voxels, of the blur that turns fractions into distances; 0.5 to 1 measure alike."""
_FARTHEST = 2.0
"""Distances end here, in voxels: a blurred fraction says nothing of what is farther."""
_NEAR, _WIDE = 1.0, 2.0
"""Sigmas, in voxels, of the neighbourhoods whose sums are restored, the near ones first. Voxel by voxel, the
noise of a network would become blocks."""
_ROUNDS = 10
"""Of restoring the sums of neighbourhoods that cutting off changes: after 3, 0.6 % is left, after 10,
0.3 %."""
_LARGEST_SHARE = 0.1
"""A map is moved by so much to keep its sum, a fortieth of a voxel where it is 0.5. None of 263 nodules needs
more than 0.09; a structure that is lost between slices must not come back as another."""
_LEAST_SURFACE = 0.02
"""Where less of a voxel is surface than this, little of its sum can be restored."""
_FAINT = 0.05
"""Less than this away from the surface is residue of a network, on both sides of it: it is left out."""
_TOLERANCE = 0.01
"""A component whose sum would change by more than this share is interpolated linearly."""
_BLOCK, _MARGIN = 64, 8
"""Voxels along an axis worked on at a time, and those read around them."""

Map = npt.NDArray[np.float32]
Errors = npt.NDArray[np.float64]
Matrices = Sequence[npt.NDArray[np.floating[Any]]]
Slices = tuple[slice, ...]
Way = Literal["linear", "fractions", "inverse", "fractions and inverse"]
WAYS: tuple[Way, ...] = ("linear", "fractions", "inverse", "fractions and inverse")
Shapes = tuple[Sequence[int], Sequence[int]]


# To the network's grid


def on_network_grid(label: Map, shape: Sequence[int]) -> Map:
    """Return a soft label, cropped as its image is and with its axes after transposition, on another grid.

    Of unknown voxels, NaN, nothing is taken: a voxel of which half or more is known has the mean of what is
    known.
    """
    known = ~np.isnan(label)
    target: Map = np.clip(_resampled(np.where(known, label, 0), shape), 0, 1)
    if known.all():
        return target
    share = _resampled(known.astype(np.float32), shape)
    mean: Map = np.full_like(target, np.nan)
    np.divide(target, share, out=mean, where=share >= KNOWN)
    return np.clip(mean, 0, 1, out=mean)


def _resampled(label: Map, shape: Sequence[int]) -> Map:
    """Return the means of the voxels that a coarser grid covers; linear along axes on which it is finer."""
    for axis, (source, size) in enumerate(zip(label.shape, shape, strict=True)):
        if size < source:
            means = area_means(source, int(size), source / size).astype(np.float32)
            label = np.moveaxis(np.tensordot(label, means, axes=(axis, 1)), -1, axis)
    return resample_linear(label, shape)


def resample_linear(array: Map, shape: Sequence[int]) -> Map:
    """Return an array sampled linearly at the centres of the voxels of another grid over the same extent.

    Sample i lies at (i + 0.5) * old / new - 0.5, clamped at the edges, as nnU-Net resamples images. Along
    thick slices, too, a label is interpolated linearly. Both have three axes.
    """
    if array.shape == tuple(shape):
        return np.ascontiguousarray(array)
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))[None, None]
    with torch.no_grad():
        resampled = torch.nn.functional.interpolate(
            tensor, size=tuple(int(size) for size in shape), mode="trilinear", align_corners=False
        )
    result: Map = resampled[0, 0].numpy()
    return result


# The choice


def way_errors(label: Map, soft_target: Map) -> list[float] | None:
    """Return the error, by each of `WAYS`, of a label back from its soft target: sum of |error| over its sum.

    Of a label that is unknown (NaN) in part, the mean over known planes. None: an empty label, one without
    a known plane, or an image of the network's grid, which all ways leave alike.
    """
    if np.isnan(label).any():
        return _way_errors_in_planes(label, soft_target.shape)
    total = float(label.sum(dtype=np.float64))
    if not total > 0 or label.shape == soft_target.shape:
        return None
    finer, coarser = _is_finer(soft_target.shape, label.shape), _is_finer(label.shape, soft_target.shape)
    errors: dict[tuple[bool, bool], float] = {}  # of ways that differ on this image
    effects = [("fractions" in way and finer, "inverse" in way and coarser) for way in WAYS]
    for way, effect in zip(WAYS, effects, strict=True):
        if effect not in errors:
            part, slices = on_image_grid(
                soft_target[None], whole_box(soft_target.shape), soft_target.shape, label.shape, [way]
            )
            came_back = placed(part, slices, label.shape)[0]
            errors[effect] = float(np.abs(came_back - label).sum(dtype=np.float64)) / total
    return [errors[effect] for effect in effects]


def _way_errors_in_planes(label: Map, network_shape: Sequence[int]) -> list[float] | None:
    """Return `way_errors` of known planes, each for itself, across the axis along which most are known."""
    known = ~np.isnan(label)
    across = [known.all(axis=tuple({0, 1, 2} - {axis})) for axis in range(label.ndim)]
    axis = int(np.argmax([planes.sum() for planes in across]))
    flat = tuple(1 if other == axis else size for other, size in enumerate(network_shape))
    errors = []
    for place in np.flatnonzero(across[axis]):
        plane = label.take([place], axis)
        errors.append(way_errors(plane, on_network_grid(plane, flat)))
    of_planes = [each for each in errors if each is not None]
    return np.mean(of_planes, axis=0).tolist() if of_planes else None


def chosen_way(errors: Iterable[Sequence[float] | None], settings: SoftSegSettings) -> Way:
    """Return the way that the settings ask for, else that of the training labels; linear in doubt."""
    if settings.to_image_grid != "auto":
        return settings.to_image_grid
    known = np.array([case for case in errors if case is not None]).reshape(-1, len(WAYS))
    linear_error, fraction_error = _where_they_differ(known[:, 0], known[:, 1])
    fractions = fraction_error < _MUCH_CLOSER * linear_error
    without, undone = _where_they_differ(known[:, int(fractions)], known[:, 2 + int(fractions)])
    inverse = without - undone > _SMEARED
    return WAYS[int(fractions) + 2 * int(inverse)]


def _where_they_differ(one: Errors, other: Errors) -> tuple[float, float]:
    """Return the means of two errors over the cases in which they differ: a finer, or a coarser image."""
    differ = one != other
    return (float(one[differ].mean()), float(other[differ].mean())) if differ.any() else (0.0, 0.0)


def known_ways(plans: Mapping[str, Any], names: Sequence[str]) -> list[Way]:
    """Return the way of each label of a model, by name; linear where one of an earlier version has none."""
    stored = plans[PLANS_KEY].get(WAY_KEY, {})
    return [stored.get(name, "linear") for name in names]


# To the image's grid


def on_image_grid(
    soft_maps: Map,
    box: Box,
    network_shape: Sequence[int],
    image_shape: Sequence[int],
    ways: Sequence[Way] | None = None,
) -> tuple[Map, Slices]:
    """Return the soft maps of a box on the image's grid, the part that is not 0, and where that part lies.

    The maps are 0 outside of the box; at the border of the case the edge goes on. On an image that is
    finer along no axis, fractions are linear; on one that is coarser along none, the inverse is.

    Args:
        soft_maps: (label, *size of the box) in [0, 1].
        box: (start, stop) per axis on the network's grid; may reach beyond the case.
        network_shape: of the whole case on the network's grid.
        image_shape: of the image's grid, which covers the same field of view.
        ways: of the labels; linear if not given.

    Returns:
        (label, *part) float32 in [0, 1], and the slices of that part of the image.
    """
    different: set[Way] = set(ways or WAYS[:1])
    if ways and len(different) > 1:  # of each label its own part
        shapes = network_shape, image_shape
        return _together(
            [on_image_grid(one[None], box, *shapes, [way]) for one, way in zip(soft_maps, ways, strict=True)]
        )
    (way,) = different
    fractions = "fractions" in way and _is_finer(network_shape, image_shape)
    extents = _covered(soft_maps, box, network_shape)
    if extents is None:
        return _nothing(len(soft_maps), len(box))
    inner = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(extents, box, strict=True))
    found, shape = soft_maps[(slice(None), *inner)], list(network_shape)
    if "inverse" in way:
        found, extents, shape = _interpolation_undone(found, extents, network_shape, image_shape)
    shapes = shape, image_shape
    reached = _reached(extents, shapes, fractions=fractions)
    slices = tuple(slice(*extent) for extent in reached)
    if any(start == stop for start, stop in reached):
        return _nothing(len(soft_maps), len(box))
    rings = _rings(extents, reached, shapes)
    part = np.pad(found, [(0, 0), *rings])
    starts = [a - before for (a, _), (before, _) in zip(extents, rings, strict=True)]
    values = [
        resample_fractions(label, starts, *shapes, reached)
        if fractions
        else resample_part(label, starts, *shapes, reached, order=1)
        for label in part
    ]
    on_image: Map = np.stack(values).clip(0, 1).astype(np.float32)
    if "inverse" in way and not fractions:  # not the others: ends between thick slices are off, not areas
        for label, said in zip(on_image, soft_maps, strict=True):
            total = float(said[inner].sum(dtype=np.float64))
            _with_sum(label, slices, (network_shape, image_shape), total)
    return on_image, slices


def _nothing(num_labels: int, num_axes: int) -> tuple[Map, Slices]:
    return np.zeros((num_labels, *(0,) * num_axes), np.float32), (slice(0, 0),) * num_axes


def _together(parts: Sequence[tuple[Map, Slices]]) -> tuple[Map, Slices]:
    """Return parts of several labels as one, 0 where a label has none, and where it lies."""
    filled = [(part, slices) for part, slices in parts if part.size]
    if not filled:
        return _nothing(len(parts), len(parts[0][1]))
    sides = list(zip(*(slices for _, slices in filled), strict=True))
    starts = [min(side.start for side in axis) for axis in sides]
    stops = [max(side.stop for side in axis) for axis in sides]
    shape = [stop - start for start, stop in zip(starts, stops, strict=True)]
    whole = np.zeros((len(parts), *shape), np.float32)
    for label, (part, slices) in zip(whole, parts, strict=True):
        if part.size:
            at = [slice(side.start - start, side.stop - start)
                  for side, start in zip(slices, starts, strict=True)]  # fmt: skip
            label[tuple(at)] = part[0]
    return whole, tuple(slice(*extent) for extent in zip(starts, stops, strict=True))


def _interpolation_undone(
    part: Map, extents: Sequence[Extent], network_shape: Sequence[int], image_shape: Sequence[int]
) -> tuple[Map, list[Extent], list[int]]:
    """Return a part of the maps with the axes on which the image is coarser on its grid; its extents; shape.

    A voxel of the image of which the maps hold nothing stays 0.
    """
    undone: Any = part
    holds: Any = (part != 0).astype(float)
    means: Any = part
    extents, shape, again = list(extents), list(network_shape), []
    for axis, (network, image) in enumerate(zip(network_shape, image_shape, strict=True)):
        if network <= image:
            continue
        start, stop = extents[axis]
        first, last = extents[axis] = overlapping_extent(network, image, (start, stop))
        shape[axis] = image
        of_voxels = area_means(network, image, network / image)[first:last]
        forth = linear_weights(image, network, (0, image), (0, network))[:, first:last]
        again.append((axis + 1, of_voxels @ forth))
        of_voxels = of_voxels[:, start:stop]
        undone = matmul_along(linear_inverse(network, image)[first:last, start:stop], undone, axis + 1)
        holds = matmul_along((of_voxels > 0).astype(float), holds, axis + 1)
        means = matmul_along(of_voxels, means, axis + 1)
    within = np.where(holds > 0, undone, 0).clip(0, 1)
    for _ in range(_ROUNDS):  # an edge, undone, overshoots; cut off alone, that would add to the sum
        found = within
        for axis, matrix in again:
            found = matmul_along(matrix, found, axis)
        missing = np.stack([_blurred(label, _WIDE) for label in means - found])
        within = np.where(holds > 0, within + missing, 0).clip(0, 1)
    return within.astype(np.float32), extents, shape


def _with_sum(part: Map, slices: Slices, shapes: Shapes, total: float) -> None:
    """Move a part of a map, on the image's grid, so that its soft target has the sum given.

    A value x moves by one share of x (1 - x): 0 and 1 stay. Without, a nodule of a few voxels comes back up
    to 4 % too large or too small, by where the samples happen to lie.
    """
    along = []  # how much a voxel of the image adds to the sum of its soft target, per axis
    for network, image, side in zip(*shapes, slices, strict=True):
        if network < image:
            to_network = area_means(image, network, image / network)
        else:
            to_network = linear_weights(image, network, (0, image), (0, network))
        along.append(to_network.sum(axis=0)[side].astype(np.float32))
    found: Any = part
    movable: Any = part * (1 - part)
    for weights in reversed(along):
        found, movable = found @ weights, movable @ weights
    if movable > 0:
        share = np.float32(np.clip((total - found) / movable, -_LARGEST_SHARE, _LARGEST_SHARE))
        part += share * part * (1 - part)


def _reached(extents: Sequence[Extent], shapes: Shapes, *, fractions: bool) -> list[Extent]:
    """Return which voxels of the image maps of these extents on the network's grid reach."""
    sizes = list(zip(*shapes, extents, strict=True))
    reached = [reached_extent(*size) for size in sizes]
    if not fractions:
        return reached
    overlapping = [overlapping_extent(*size) for size in sizes]
    return [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(reached, overlapping, strict=True)]


def _rings(extents: Sequence[Extent], reached: Sequence[Extent], shapes: Shapes) -> list[Extent]:
    """Return how many voxels of zeros belong before and after the extents, where the case goes on.

    One at least: values fall to 0 over one voxel of the network's grid. Otherwise all that are read.
    """
    rings = []
    for network, image, (start, stop), extent in zip(*shapes, extents, reached, strict=True):
        first, last = source_extent(network, image, extent, order=1)
        rings.append((max(start - first, int(start > 0)), max(last - stop, int(stop < network))))
    return rings


def placed(part: Map, slices: Slices, shape: Sequence[int]) -> Map:
    """Return maps (label, *shape) that hold a part at its place, and 0 elsewhere."""
    whole = np.zeros((len(part), *map(int, shape)), dtype=part.dtype)
    whole[(slice(None), *slices)] = part
    return whole


def whole_box(shape: Sequence[int]) -> Box:
    """Return the box of all voxels."""
    return tuple((0, size) for size in shape)


def _is_finer(network_shape: Sequence[int], image_shape: Sequence[int]) -> bool:
    """Return whether the image has more voxels than the network's grid along any axis."""
    return any(image > network for network, image in zip(network_shape, image_shape, strict=True))


def _covered(soft_maps: Map, box: Box, network_shape: Sequence[int]) -> list[Extent] | None:
    """Return the extents of values above 0, on the network's grid inside the case; None: there are none."""
    within = inside(box, network_shape)
    if any(part.stop <= part.start for part in within):
        return None
    inner = soft_maps[(slice(None), *inside_of_box(box, network_shape))]
    found = bounding_box((inner != 0).any(axis=0))
    if not found[0].stop:
        return None
    return [(part.start + at.start, part.start + at.stop) for part, at in zip(within, found, strict=True)]


# Fractions of voxels on a finer grid: the surface that explains them, as seen by smaller voxels
#
# A soft label of partial volume holds the fraction of each voxel that lies inside a surface; linear
# interpolation smears it over two voxels and more. Here fractions give a signed distance to the surface, in
# voxels: those of a flat surface, blurred by a Gaussian of sigma s, are Phi(distance / s). A smaller voxel
# holds the fraction of its box inside a flat surface at its distance. Where the given voxels would then hold
# another fraction, the distance is moved by the difference, and sums of small neighbourhoods are restored.


def resample_fractions(
    part: npt.NDArray[np.floating[Any]],
    starts: Sequence[int],
    source_shape: Sequence[int],
    target_shape: Sequence[int],
    box: Sequence[Extent],
) -> Map:
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


def _multiplied(matrices: Matrices, values: Map) -> Map:
    """Return the values with a matrix applied along each axis."""
    for matrix in matrices:  # the first axis becomes the last each time
        values = np.tensordot(values, matrix, axes=(0, 1))
    return values


def _in_blocks(values: Map, starts: Sequence[int], shapes: Shapes, box: Sequence[Extent]) -> Map:
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


def _from_surface(values: Map, starts: Sequence[int], shapes: Shapes, box: Sequence[Extent]) -> Map:
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
    mean: Map = of_target[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, covered, strict=True))]
    return mean


def _surface_fractions(values: Map, to_parts: Matrices, to_voxels: Matrices) -> Map:
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
    inside: Map, values: Map, to_parts: Matrices, to_voxels: Matrices, sigmas: Sequence[float]
) -> Map:
    """Return the fractions of the parts with the sums of neighbourhoods, of sigmas in voxels, restored."""
    for sigma in sigmas:
        surface = inside * (1 - inside)
        present = _blurred(_multiplied(to_voxels, surface), sigma).clip(_LEAST_SURFACE)
        missing = _blurred(values - _multiplied(to_voxels, inside), sigma) / present
        inside = (inside + _multiplied(to_parts, missing) * surface).clip(0, 1)
    return inside


def _blurred(values: Map, sigma: float) -> Map:
    """Return the values blurred by a Gaussian, in voxels; beyond an edge its values go on."""
    blurred: Map = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3)
    return blurred


def _distance(fractions: Map) -> Map:
    """Return signed distances to the surface, in voxels, above 0 inside."""
    blurred = _blurred(fractions, _BLUR)
    sigma = np.sqrt(_BLUR**2 + 1 / 12)  # that of the blur and of a voxel's box
    with np.errstate(divide="ignore"):  # beyond the blur's reach, 0 and 1: infinitely far
        distance: Map = (sigma * ndtri(blurred.clip(0, 1))).clip(-_FARTHEST, _FARTHEST)
    return distance.astype(np.float32)


def _cut(distance: Map) -> Map:
    """Return the fraction of each box inside a flat surface at its distance.

    A box is as wide, along the normal, as one of the same variance: that is the root of the sum of squares of
    the distance's changes from one box to the next.
    """
    squares = np.full_like(distance, 1e-12)
    for axis in range(distance.ndim):
        if distance.shape[axis] > 1:
            squares += np.gradient(distance, axis=axis) ** 2
    fraction: Map = (0.5 + distance / np.sqrt(squares)).clip(0, 1)
    return fraction


def _unexplained(
    values: Map, resampled: Map, starts: Sequence[int], shapes: Shapes, box: Sequence[Extent]
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
