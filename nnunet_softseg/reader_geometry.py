"""Where an image lies in the scanner, as nnU-Net's readers keep it in a case's properties."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


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
