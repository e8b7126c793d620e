"""Cross-sectional area from a soft map, in mm2."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

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
    axis, ascending = _si_axis(image.affine)
    values: npt.NDArray[Any] = np.moveaxis(image.get_fdata(dtype=np.float32), axis, 0)
    spacing = nib.affines.voxel_sizes(image.affine)
    area = values.sum(axis=(1, 2), dtype=np.float64) * float(np.prod(spacing) / spacing[axis])
    area[area == 0] = np.nan
    heights = _slice_heights(image, axis)
    order = slice(None) if ascending else slice(None, None, -1)
    return SliceAreas(heights[order], area[order])


def _si_axis(affine: npt.NDArray[np.float64]) -> tuple[int, bool]:
    orientation = io_orientation(affine)
    axis = int(np.flatnonzero(orientation[:, 0] == _SUPERIOR)[0])
    return axis, bool(orientation[axis, 1] > 0)


def _slice_heights(image: nib.Nifti1Image, axis: int) -> npt.NDArray[np.float64]:
    centres = np.tile((np.array(image.shape[:3]) - 1) / 2, (image.shape[axis], 1))
    centres[:, axis] = np.arange(image.shape[axis])
    heights: npt.NDArray[np.float64] = nib.affines.apply_affine(image.affine, centres)[:, _SUPERIOR]
    return heights
