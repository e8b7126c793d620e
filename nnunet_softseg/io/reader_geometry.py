"""Where an image lies in the scanner, as nnU-Net's readers keep it in a case's properties."""

from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

_AXES = "ijk"


def reader_affines(properties: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the (4, 4) affines, voxel (i, j, k) to RAS in mm, that a reader keeps with an image, by name."""
    if "nibabel_stuff" in properties:
        stored = properties["nibabel_stuff"]
        return {name.split("_")[0]: np.asarray(affine, dtype=np.float64) for name, affine in stored.items()}
    if "sitk_stuff" in properties:
        stored = properties["sitk_stuff"]
        spacing = np.asarray(stored["spacing"], dtype=np.float64)
        affine = np.eye(4)
        size = len(spacing)
        affine[:size, :size] = np.asarray(stored["direction"], dtype=np.float64).reshape(size, size) * spacing
        affine[:size, 3] = stored["origin"]
        return {"original": np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine}
    return {}


def array_orientation(properties: Mapping[str, Any], transpose_forward: Sequence[int]) -> str | None:
    """Return the anatomical direction of each axis of a preprocessed case; "SAR": the first to superior.

    Args:
        properties: of the case, as nnU-Net's reader gave them.
        transpose_forward: of the plans.

    Returns:
        One letter of R, L, A, P, S, I per array axis; None where the properties hold no geometry.
    """
    affines = reader_affines(properties)
    flat = len(properties.get("sitk_stuff", {}).get("spacing", _AXES)) != len(_AXES)
    if flat or not affines:
        return None
    affine = affines.get("reoriented", affines["original"])
    file_axes = nib.aff2axcodes(affine)  # i, j, k of the file
    reader_axes = file_axes[::-1]  # readers return (k, j, i)
    return "".join(reader_axes[axis] for axis in transpose_forward)
