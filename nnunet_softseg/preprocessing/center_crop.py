"""Box of a case that the network sees.

The patch is fixed in R-L and A-P around the centre of the image, where the cord runs; all of S-I is kept, in
tiles where it is longer than the patch (Bedard et al. 2025, section 3.3). Arrays are those of a preprocessed
case: nnU-Net's reader gives (z, y, x), its planner may transpose them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.io.geometry import array_orientation

Box = tuple[tuple[int, int], ...]
_AXES = 3


def crop_axis(
    properties: Mapping[str, Any],
    transpose_forward: Sequence[int],
    patch_size: Sequence[int],
    *,
    wanted: bool = True,
) -> int | None:
    """Return the array axis along S-I of a preprocessed case; None: patches lie where nnU-Net puts them.

    The one decision between the two: the patch is fixed where the settings want it so, the patch has three
    axes, and the properties of nnU-Net's reader tell the orientation. It is kept with the model.
    """
    orientation = array_orientation(properties, transpose_forward)
    if not wanted or len(patch_size) < _AXES or orientation is None:
        return None
    return next(axis for axis, letter in enumerate(orientation) if letter in "SI")


def describe_patches(si_axis: int | None, patch_size: Sequence[int], *, wanted: bool) -> str:
    """Return in words where patches are, and why not around the centre if that was wanted."""
    if si_axis is not None:
        return "around the centre of the image"
    if not wanted:
        return "anywhere"
    why = "the configuration is 2d" if len(patch_size) < _AXES else "images do not tell their orientation"
    return f"anywhere, as nnU-Net draws them: {why}, and so there is no fixed patch around the centre"


def network_box(shape: Sequence[int], patch_size: Sequence[int], si_axis: int | None) -> Box:
    """Return the box of a case that the network sees: (start, stop) per axis, stop exclusive.

    A negative start and a stop beyond the shape mean padding, where the case is smaller than the patch.
    Without an S-I axis there is no crop.
    """
    if si_axis is None:
        return tuple((0, int(size)) for size in shape)
    box = []
    for axis, (size, patch) in enumerate(zip(shape, patch_size, strict=True)):
        start = 0 if axis == si_axis else (int(size) - int(patch)) // 2
        box.append((start, start + int(size if axis == si_axis else patch)))
    return tuple(box)


def inside(box: Box, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the slices of a case of that shape that lie inside the box."""
    return tuple(
        slice(max(start, 0), min(stop, size)) for (start, stop), size in zip(box, shape, strict=True)
    )


def inside_of_box(box: Box, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the slices of a box that lie inside a case of that shape, in coordinates of the box."""
    return tuple(
        slice(part.start - start, part.stop - start)
        for part, (start, _) in zip(inside(box, shape), box, strict=True)
    )


def kept_mass(soft_target: npt.NDArray[np.floating[Any]], box: Box) -> npt.NDArray[np.float64]:
    """Return the fraction of each label's sum that lies inside the box, (label,); NaN for an empty label.

    Unknown voxels, NaN, count as 0.
    """
    axes = tuple(range(1, soft_target.ndim))
    total = np.nansum(soft_target, axis=axes, dtype=np.float64)
    cropped = soft_target[(slice(None), *inside(box, soft_target.shape[1:]))]
    kept = np.nansum(cropped, axis=axes, dtype=np.float64)
    fraction: npt.NDArray[np.float64] = np.full_like(total, np.nan)
    np.divide(kept, total, out=fraction, where=total > 0)
    return fraction


def patch_centres(
    shape: Sequence[int],
    patch_size: Sequence[int],
    si_axis: int,
    foreground_si: npt.NDArray[np.integer[Any]],
    known_si: npt.NDArray[np.integer[Any]] | None = None,
) -> dict[int, npt.NDArray[np.int64]]:
    """Return where training patches may be centred so that they lie in the box of `network_box`.

    nnU-Net's data loader draws a voxel from such a table (its "class locations"): first a key, each with the
    same chance, then a row, (1 + ndim,): a leading 0, then array coordinates. Key 0 holds every position
    along S-I, or those of known voxels, key 1 those on the label, by the S-I coordinates of labelled voxels,
    which may be none.
    """
    box = network_box(shape, patch_size, si_axis)
    centre = [start + int(patch) // 2 for (start, _), patch in zip(box, patch_size, strict=True)]
    size, patch = int(shape[si_axis]), int(patch_size[si_axis])
    first = min((size - patch) // 2, 0) + patch // 2
    last = max(size - patch, min((size - patch) // 2, 0)) + patch // 2

    def rows(si: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        table = np.tile(np.array([0, *centre], dtype=np.int64), (len(si), 1))
        table[:, 1 + si_axis] = si
        return table

    def reached(si: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        return np.unique(np.clip(np.asarray(si, dtype=np.int64), first, last))

    everywhere = np.arange(first, last + 1, dtype=np.int64)
    known = reached(known_si) if known_si is not None and len(known_si) else everywhere
    return {0: rows(known), 1: rows(reached(foreground_si))}
