"""Frame of the axial slices of an image: axis in the array, normal, size in mm; area within each slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.geometry import VoxelGrid

Floats = npt.NDArray[np.float64]

AMBIGUOUS_FROM_DEG = 40.0
"""Tip of the slices against S-I from which two array axes are nearly equally close to it."""
_AXES = 3
_SUPERIOR = 2


@dataclass(frozen=True)
class SliceFrame:
    """The slices of a grid, everything with one index along the array axis closest to S-I.

    Positions in the frame are mm along three perpendicular unit vectors, the rows of `unit_vectors` (3, 3):
    right and anterior within the plane of the slices, and their normal, superior. The origin: the scanner's.
    `in_plane` are the other array axes, in order; the affine leads from voxel to world RAS in mm.
    """

    axis: int
    in_plane: tuple[int, int]
    affine: Floats
    unit_vectors: Floats

    @property
    def _voxel_vectors(self) -> Floats:
        """A step along each array axis in the frame, (3, 3): columns are array axes."""
        return self.unit_vectors @ self.affine[:3, :3]

    @property
    def in_plane_steps_mm(self) -> Floats:
        """A step along each in-plane array axis, (2, 2): rows right and anterior, columns the axes."""
        return self._voxel_vectors[:2, list(self.in_plane)]

    @property
    def pixel_mm2(self) -> float:
        """Area of a voxel in the plane of its slice."""
        return float(abs(np.linalg.det(self.in_plane_steps_mm)))

    @property
    def spacing_mm(self) -> float:
        """Distance between neighbouring slices along their normal."""
        return float(abs(self._voxel_vectors[2, self.axis]))

    @property
    def tip_deg(self) -> float:
        """Angle between the slices' normal and the scanner's S-I axis."""
        return float(np.degrees(np.arccos(np.clip(self.unit_vectors[2, _SUPERIOR], -1, 1))))

    def positions_mm(self, index: Floats) -> Floats:
        """Return where voxel indices (n, 3), may be fractional, lie in the frame: (n, 3) in mm."""
        return np.asarray(nib.affines.apply_affine(self.affine, index) @ self.unit_vectors.T)

    def world_mm(self, positions_mm: Floats) -> Floats:
        """Return positions (n, 3) of the frame in world RAS coordinates, (n, 3) in mm."""
        world: Floats = positions_mm @ self.unit_vectors
        return world

    def slice_centres_mm(self, shape: Sequence[int]) -> Floats:
        """Return the middle of each slice in the frame, (slices, 3) in mm."""
        index = np.tile((np.array(shape, float) - 1) / 2, (shape[self.axis], 1))
        index[:, self.axis] = np.arange(shape[self.axis])
        return self.positions_mm(index)


def slice_frame(affine: npt.ArrayLike, name: str = "image") -> SliceFrame:
    """Return the slices of the grid of an image by its affine, in any orientation, oblique or not.

    Raises:
        UserError: if it maps the grid to no volume.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if not VoxelGrid((), matrix).spans_volume:
        raise UserError(
            f"{name}: expected an affine that spans a volume, found {matrix[:3, :3].tolist()}: repair sform "
            "or qform"
        )
    orientation = io_orientation(matrix)
    axis = int(np.flatnonzero(orientation[:, 0] == _SUPERIOR)[0])
    first, second = (other for other in range(_AXES) if other != axis)
    normal = np.cross(matrix[:3, first], matrix[:3, second])
    normal /= np.linalg.norm(normal)
    if normal @ matrix[:3, axis] * orientation[axis, 1] < 0:
        normal = -normal
    right = np.array([1.0, 0.0, 0.0]) - normal[0] * normal
    right /= np.linalg.norm(right)
    return SliceFrame(axis, (first, second), matrix, np.stack([right, np.cross(normal, right), normal]))


@dataclass(frozen=True)
class SliceAreas:
    """Area per axial slice, from inferior to superior, (n,); NaN where the slice is empty.

    The height is that of the slice's centre along S-I in the scanner's coordinates.
    """

    height_mm: npt.NDArray[np.float64]
    area_mm2: npt.NDArray[np.float64]

    def mean_between(self, lowest_mm: float, highest_mm: float) -> float:
        """Return the mean area of the slices centred in a range, empty ones passed over; NaN for none."""
        chosen = self.area_mm2[(self.height_mm >= lowest_mm) & (self.height_mm <= highest_mm)]
        return float(np.nanmean(chosen)) if np.isfinite(chosen).any() else float("nan")


def slice_areas(image: nib.Nifti1Image) -> SliceAreas:
    """Return the area of a soft map in each slice across S-I, neither rescaled nor corrected for tilt."""
    if image.ndim != _AXES:
        raise ValueError(f"a map must have three axes, got {image.ndim}")
    frame = slice_frame(image.affine)
    values: npt.NDArray[Any] = image.get_fdata(dtype=np.float32)
    area = values.sum(axis=frame.in_plane, dtype=np.float64) * frame.pixel_mm2
    area[area == 0] = np.nan
    heights = frame.world_mm(frame.slice_centres_mm(image.shape))[:, _SUPERIOR]
    upwards = slice(None, None, 1 if heights[-1] >= heights[0] else -1)
    return SliceAreas(heights[upwards], area[upwards])
