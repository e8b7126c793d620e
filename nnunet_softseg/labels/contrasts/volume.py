"""A mask or label with the place of its voxels, as stored and upright."""

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.geometry import bounding_box, turned

Floats = npt.NDArray[np.float64]

_AXES = 3
_UPRIGHT = np.eye(4)


@dataclass(frozen=True, eq=False)
class Volume:
    """Values on a voxel grid: any orientation, any obliquity.

    Attributes:
        values: (x, y, z) in the order of the file, float32.
        affine: (4, 4), voxel index -> scanner RAS+ mm.
        thickness_mm: of a slice across the S-I axis, where it is known to be less than the distance between
            slices (a gap); None takes slices as thick as they are apart.

    Raises:
        UserError: for an array without three axes or without voxels, a singular affine, a thickness of 0 mm.
    """

    values: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    thickness_mm: float | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != _AXES or 0 in self.values.shape:
            raise UserError(f"a mask must have three axes, none of them empty, got shape {self.values.shape}")
        affine = np.array(self.affine, np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
            raise UserError(f"an affine must be an invertible (4, 4) matrix, got {affine.tolist()}")
        if self.thickness_mm is not None and not 0 < self.thickness_mm < np.inf:
            raise UserError(f"the thickness of a slice must be above 0 mm, got {self.thickness_mm:g}")
        object.__setattr__(self, "values", np.asarray(self.values, np.float32))
        object.__setattr__(self, "affine", affine)

    @property
    def voxel_mm(self) -> Floats:
        """Size of a voxel along the array axes, (3,) in mm."""
        return np.asarray(nib.affines.voxel_sizes(self.affine), np.float64)

    def to_world(self, index: npt.NDArray[np.floating | np.integer]) -> Floats:
        """Return the scanner coordinates of voxel indices: (3, N) -> (3, N) in mm."""
        return np.asarray(self.affine[:3, :3] @ index + self.affine[:3, 3:], np.float64)

    def to_index(self, points: Floats) -> Floats:
        """Return the voxel indices of points, fractional: (3, N) in scanner mm -> (3, N)."""
        return np.asarray(np.linalg.solve(self.affine[:3, :3], points - self.affine[:3, 3:]), np.float64)


def upright(volume: Volume) -> Volume:
    """Return the same voxels with the array axes in the order R-L, A-P, S-I, growing to R, A and S."""
    values, affine = turned(volume.values, volume.affine, _UPRIGHT)
    return replace(volume, values=values, affine=affine)


def as_stored(values: npt.NDArray[np.float32], like: Volume) -> Volume:
    """Return upright values in the order and on the grid of a stored volume: the inverse of `upright`."""
    return replace(like, values=turned(values, _UPRIGHT, like.affine)[0])


def cropped(volume: Volume) -> tuple[Volume, npt.NDArray[np.intp]]:
    """Return the box around all values that are not 0, and the index of its first voxel, (3,)."""
    box = bounding_box(volume.values != 0)
    start = np.array([side.start for side in box], np.intp)
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_world(start[:, None])[:, 0]
    return replace(volume, values=np.ascontiguousarray(volume.values[box]), affine=affine), start
