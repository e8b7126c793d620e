"""Two maps on one grid of voxels: whether they fit, and the box that holds all there is in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Box = tuple[slice, ...]


def check_grids(
    prediction: npt.NDArray[Any], reference: npt.NDArray[Any], spacing_mm: Sequence[float]
) -> None:
    """Refuse two arrays that cannot lie on one grid of voxels of that size.

    Raises:
        ValueError: if the shapes differ, there is no voxel, or the spacing is not one length > 0 per axis.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must lie on one grid, got {prediction.shape} and {reference.shape}"
        )
    if not prediction.size:
        raise ValueError(f"an image without a voxel has no measures, got shape {prediction.shape}")
    lengths = np.asarray(spacing_mm, dtype=np.float64)
    if lengths.shape != (prediction.ndim,) or not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(
            f"the spacing must be one length in mm above 0 per axis ({prediction.ndim}), got {spacing_mm}"
        )


def bounding_box(mask: npt.NDArray[np.bool_], margin: Sequence[int] = ()) -> Box:
    """Return one slice per axis around all true voxels, each of length 0 if there is none.

    Most of an image is empty; a measure that knows the whole size need not work on that part.

    Args:
        mask: any number of axes.
        margin: voxels to add at both ends of each axis, as far as the array goes; none if left out.
    """
    box: list[slice] = []
    inside = mask
    for axis, wide in enumerate(margin or (0,) * mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(inside.any(axis=others))
        if not found.size:
            return (slice(0, 0),) * mask.ndim
        first, last = int(found[0]), int(found[-1])
        box.append(slice(max(first - wide, 0), min(last + 1 + wide, mask.shape[axis])))
        # cut at once, without the margin: the next axes have less to look through
        inside = inside[(slice(None),) * axis + (slice(first, last + 1),)]
    return tuple(box)
