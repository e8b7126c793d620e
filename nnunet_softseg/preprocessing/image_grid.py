"""Soft maps from the network's grid to the image's: linearly, or as fractions of voxels.

Linear interpolation is right for any label, and smears a boundary over two voxels of the coarser grid. Where
the softness of a label is partial volume, `fractions` keeps it as sharp on a finer image as it was. On a
coarser one `inverse` undoes the interpolation that made the soft target. Which of these a label needs, the
training labels say: each goes to the network's grid and back in all ways.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box
from nnunet_softseg.preprocessing.fractions import overlapping_extent, resample_fractions
from nnunet_softseg.preprocessing.resampling import (
    Extent,
    area_means,
    linear_inverse,
    matmul_along,
    reached_extent,
    resample_part,
    source_extent,
)
from nnunet_softseg.preprocessing.soft_target import on_network_grid
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

WAY_KEY = "to_image_grid"
"""Of the way of each label, by its name, among our entries of the plans."""
_MUCH_CLOSER = 0.8
"""Fractions are chosen if the training labels come back with less than this share of the linear error."""
_SMEARED = 0.1
"""The interpolation is undone if that saves the training labels an error, summed, of more than this share of
their sum: it makes the noise of a network larger. Refuted by a label beyond (below) this whose maps have a
smaller (larger) Brier score without: hippocampi in voxels of 2 mm, 0.21 and more, gain; cords in slices of 3
to 5 mm, 0.012 and less, would lose."""

Map = npt.NDArray[np.float32]
Errors = npt.NDArray[np.float64]
Slices = tuple[slice, ...]
Way = Literal["linear", "fractions", "inverse", "fractions and inverse"]
WAYS: tuple[Way, ...] = ("linear", "fractions", "inverse", "fractions and inverse")
Shapes = tuple[Sequence[int], Sequence[int]]


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
        errors.append(way_errors(plane, on_network_grid(plane, whole_box(plane.shape), flat)))
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


# The way


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
    maps: Any = part
    extents, shape = list(extents), list(network_shape)
    for axis, (network, image) in enumerate(zip(network_shape, image_shape, strict=True)):
        if network <= image:
            continue
        start, stop = extents[axis]
        first, last = overlapping_extent(network, image, (start, stop))
        covers = area_means(network, image, network / image)[first:last, start:stop] > 0
        holds = matmul_along(covers.astype(float), (maps != 0).astype(float), axis + 1) > 0
        back = linear_inverse(network, image)[first:last, start:stop]
        maps = np.where(holds, matmul_along(back, maps, axis + 1), 0)
        extents[axis], shape[axis] = (first, last), image
    return maps.clip(0, 1).astype(np.float32), extents, shape


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
    found = ndimage.find_objects((inner != 0).any(axis=0).astype(np.uint8))
    if not found:
        return None
    return [(part.start + at.start, part.start + at.stop) for part, at in zip(within, found[0], strict=True)]
