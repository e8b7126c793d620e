"""The soft map on the network's grid: background made exactly 0, and the way to another grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

Array = npt.NDArray[np.floating[Any]] | torch.Tensor


def keep_supported(
    soft_map: npt.NDArray[np.float32], core_threshold: float, support_threshold: float
) -> npt.NDArray[np.float32]:
    """Return the soft map of one label with everything 0 that does not belong to a core.

    A residue of 0.005 in 300,000 background voxels weighs more than a cord. It is removed by support, not by
    clipping: what is connected (26 neighbours) to a voxel above the core threshold through voxels above the
    support threshold keeps its value, and so does the ring of voxels around that, whatever its value. So
    partial volume at the boundary stays as it is.

    Args:
        soft_map: (*space), values in [0, 1].
        core_threshold: a component without a voxel above this is background.
        support_threshold: components are made of voxels above this.

    Returns:
        A new array of the same shape and type.
    """
    kept = np.zeros_like(soft_map)
    above = soft_map > support_threshold
    if not above.any():
        return kept
    # Only the surroundings of what is above the threshold are worked on: the rest is 0 in any case.
    box = tuple(
        slice(max(part.start - 1, 0), part.stop + 1)
        for part in ndimage.find_objects(above.astype(np.uint8))[0]
    )
    neighbours = np.ones((3,) * soft_map.ndim, dtype=bool)
    components, count = ndimage.label(above[box], structure=neighbours)
    has_core = np.zeros(count + 1, dtype=bool)
    has_core[np.unique(components[soft_map[box] > core_threshold])] = True
    has_core[0] = False
    supported = ndimage.binary_dilation(has_core[components], structure=neighbours)
    kept[box] = np.where(supported, soft_map[box], 0)
    return kept


def resample_soft_map(
    data: Array,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    *,
    core_threshold: float = 0.5,
    support_threshold: float = 0.05,
) -> npt.NDArray[np.float32]:
    """Return soft maps on another grid of the same field of view: linear on all axes, background exactly 0.

    nnU-Net calls this, by its name in the plans, where it would resample logits. It would take the nearest
    slice along a thick-slice axis; a soft map is interpolated there too. Order 1 is the inverse of how soft
    targets come to the network's grid: at the centre of an original voxel it returns what was there.

    Args:
        data: (label, *space) soft maps in [0, 1].
        new_shape: of the space.
        current_spacing: in mm; not needed, both grids cover the same field of view.
        new_spacing: in mm; not needed either.
        core_threshold: see `keep_supported`.
        support_threshold: see `keep_supported`.

    Returns:
        (label, *new_shape) float32 in [0, 1].
    """
    soft_maps = np.asarray(data, dtype=np.float32)
    cleaned = np.stack([keep_supported(label, core_threshold, support_threshold) for label in soft_maps])
    size = [int(length) for length in new_shape]
    if list(cleaned.shape[1:]) == size:
        return cleaned
    # Half-pixel centres and a clamped edge: the convention of skimage.transform.resize, which nnU-Net uses
    # for the image.
    resampled = interpolate(
        torch.from_numpy(cleaned)[None], size=size, mode="trilinear", align_corners=False
    )[0]
    result: npt.NDArray[np.float32] = resampled.clamp(0, 1).numpy()
    return result
