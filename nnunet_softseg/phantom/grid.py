"""The voxels of one image: position, the S-I axis, and the displacement of each slice."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_softseg.phantom.anatomy import Floats


@dataclass(frozen=True)
class Grid:
    """A voxel grid in scanner RAS+ mm; slices are counted along the array axis that is closest to S-I.

    `shift_mm` is (slices, 2): how far the anatomy has moved in each slice along the slice's own R-L and A-P
    axes (positive to the right and to anterior), in mm.
    """

    shape: tuple[int, int, int]
    affine: Floats
    shift_mm: Floats

    @property
    def voxel_mm(self) -> Floats:
        """Size of a voxel along the array axes, (3,) in mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def array_axis(self) -> tuple[int, int, int]:
        """The array axis that is closest to R-L, A-P and S-I."""
        directions = np.abs(self.affine[:3, :3] / self.voxel_mm)
        rl, ap, si = (int(axis) for axis in directions.argmax(axis=1))
        return rl, ap, si

    @property
    def slice_axis(self) -> int:
        """The array axis that is closest to S-I."""
        return self.array_axis[2]

    @property
    def unit_axes(self) -> Floats:
        """Unit vectors (3, 3) as columns: along R-L, A-P, S-I, to the right, anterior, superior."""
        axes = self.affine[:3, list(self.array_axis)]
        signs = np.sign(np.diagonal(axes))
        return np.asarray(axes * signs / np.linalg.norm(axes, axis=0))

    def anatomy_mm(self, index: Floats, slices: npt.NDArray[np.intp]) -> Floats:
        """Return the point of the unmoved anatomy, (3, N) in mm, seen at each voxel index.

        The index, (3, N), may be fractional; `slices`, (N,), are the slices that it belongs to.
        """
        scanner = self.affine[:3, :3] @ index + self.affine[:3, 3:]
        return scanner - self.unit_axes[:, :2] @ self.shift_mm[slices].T

    def slice_centres_mm(self) -> Floats:
        """Return the centre of each slice in the scanner, (3, slices) in mm."""
        index = np.tile((np.array(self.shape, float)[:, None] - 1) / 2, self.shape[self.slice_axis])
        index[self.slice_axis] = np.arange(self.shape[self.slice_axis])
        return self.affine[:3, :3] @ index + self.affine[:3, 3:]
