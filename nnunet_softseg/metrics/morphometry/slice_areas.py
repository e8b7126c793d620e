"""Area per slice as it is in the slice's plane: no tilt correction, no levels."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg.metrics.morphometry.slice_frame import slice_frame

_AXES = 3
_SUPERIOR = 2


@dataclass(frozen=True)
class SliceAreas:
    """Area per axial slice, from inferior to superior.

    Attributes:
        height_mm: (n,) position of each slice along S-I, in the scanner's coordinates at the slice's centre.
        area_mm2: (n,) sum of the map's values times the area of a voxel; NaN where the slice is empty.
    """

    height_mm: npt.NDArray[np.float64]
    area_mm2: npt.NDArray[np.float64]

    def mean_between(self, lowest_mm: float, highest_mm: float) -> float:
        """Return the mean area of the slices centred in a range, empty ones passed over; NaN for none."""
        chosen = self.area_mm2[(self.height_mm >= lowest_mm) & (self.height_mm <= highest_mm)]
        return float(np.nanmean(chosen)) if np.isfinite(chosen).any() else float("nan")


def slice_areas(image: nib.Nifti1Image) -> SliceAreas:
    """Return the area of a soft map in each slice across S-I, neither rescaled nor corrected for tilt.

    Args:
        image: three axes in any order and direction, values in [0, 1].

    Raises:
        ValueError: if the image does not have three axes.
    """
    if image.ndim != _AXES:
        raise ValueError(f"a map must have three axes, got {image.ndim}")
    frame = slice_frame(image.affine)
    values: npt.NDArray[Any] = image.get_fdata(dtype=np.float32)
    area = values.sum(axis=frame.in_plane, dtype=np.float64) * frame.pixel_mm2
    area[area == 0] = np.nan
    heights = frame.world_mm(frame.slice_centres_mm(image.shape))[:, _SUPERIOR]
    upwards = slice(None, None, 1 if heights[-1] >= heights[0] else -1)
    return SliceAreas(heights[upwards], area[upwards])
