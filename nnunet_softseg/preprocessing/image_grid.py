"""Soft maps from the network's grid to the image's: linearly, or as fractions of voxels.

Linear interpolation is right for any label, and smears a boundary over two voxels of the coarser grid. Where
the softness of a label is partial volume, `fractions` keeps it as sharp as it was. Which it is, the training
labels say: each goes to the network's grid and back in both ways.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box
from nnunet_softseg.preprocessing.fractions import overlapping_extent, resample_fractions
from nnunet_softseg.preprocessing.resampling import Extent, reached_extent, resample_part, source_extent
from nnunet_softseg.preprocessing.soft_target import on_network_grid
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

WAY_KEY = "to_image_grid"
"""Of the way of each label, by its name, among our entries of the plans."""
_MUCH_CLOSER = 0.8
"""Fractions are chosen if the training labels come back with less than this share of the linear error."""

Map = npt.NDArray[np.float32]
Slices = tuple[slice, ...]
Way = Literal["linear", "fractions"]
Shapes = tuple[Sequence[int], Sequence[int]]


# The choice


def way_errors(label: Map, soft_target: Map) -> list[float] | None:
    """Return [linear, fractions]: sum of |error| over that of a label that comes back from its soft target.

    Of a label that is unknown (NaN) in part, the mean over known planes. None: an empty label, one without
    a known plane, or an image that is finer along no axis, which both ways leave alike.
    """
    if np.isnan(label).any():
        return _way_errors_in_planes(label, soft_target.shape)
    total = float(label.sum(dtype=np.float64))
    if not total > 0 or not _is_finer(soft_target.shape, label.shape):
        return None
    errors = []
    ways: tuple[Way, ...] = ("linear", "fractions")
    for way in ways:
        part, slices = on_image_grid(
            soft_target[None], whole_box(soft_target.shape), soft_target.shape, label.shape, [way]
        )
        came_back = placed(part, slices, label.shape)[0]
        errors.append(float(np.abs(came_back - label).sum(dtype=np.float64)) / total)
    return errors


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
    """Return the way that the settings ask for, else that of the smaller error; linear in doubt."""
    if settings.to_image_grid != "auto":
        return settings.to_image_grid
    linear, fractions = np.sum([[0.0, 0.0], *(case for case in errors if case is not None)], axis=0)
    return "fractions" if fractions < _MUCH_CLOSER * linear else "linear"


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
    finer along no axis, every way is linear: what was interpolated linearly comes back as it was.

    Args:
        soft_maps: (label, *size of the box) in [0, 1].
        box: (start, stop) per axis on the network's grid; may reach beyond the case.
        network_shape: of the whole case on the network's grid.
        image_shape: of the image's grid, which covers the same field of view.
        ways: of the labels; linear if not given.

    Returns:
        (label, *part) float32 in [0, 1], and the slices of that part of the image.
    """
    if ways is None or not _is_finer(network_shape, image_shape):
        ways = ["linear"] * len(soft_maps)
    shapes = network_shape, image_shape
    extents = _covered(soft_maps, box, network_shape)
    reached = _reached(extents, shapes, ways) if extents else [(0, 0)] * len(box)
    slices = tuple(slice(*extent) for extent in reached)
    if extents is None or any(start == stop for start, stop in reached):
        return np.zeros((len(soft_maps), *(0,) * len(box)), np.float32), (slice(0, 0),) * len(box)
    inner = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(extents, box, strict=True))
    rings = _rings(extents, reached, shapes)
    part = np.pad(soft_maps[(slice(None), *inner)], [(0, 0), *rings])
    starts = [a - before for (a, _), (before, _) in zip(extents, rings, strict=True)]
    values = [
        resample_fractions(label, starts, *shapes, reached)
        if way == "fractions"
        else resample_part(label, starts, *shapes, reached, order=1)
        for label, way in zip(part, ways, strict=True)
    ]
    on_image: Map = np.stack(values).clip(0, 1).astype(np.float32)
    return on_image, slices


def _reached(extents: Sequence[Extent], shapes: Shapes, ways: Sequence[Way]) -> list[Extent]:
    """Return which voxels of the image maps of these extents on the network's grid reach."""
    sizes = list(zip(*shapes, extents, strict=True))
    reached = [reached_extent(*size) for size in sizes]
    if "fractions" not in ways:
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
