"""A cord with lesions of `nnunet_softseg.phantom.scene`, as images and files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from nnunet_softseg.phantom.scene import RADIUS_MM, Lesion, lesion_shares, upright_affine

__all__ = ["RADIUS_MM", "Lesion", "Phantom", "phantom"]


@dataclass(frozen=True)
class Phantom:
    """Shares in [0, 1] of cord and lesions, and the affine of the grid."""

    cord: np.ndarray
    lesion: np.ndarray
    affine: np.ndarray

    def images(self, *, masks: bool = False) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
        """Lesion and cord; as masks: shares > 0.5."""
        maps = [(each > 0.5).astype(np.uint8) if masks else each for each in (self.lesion, self.cord)]
        return nib.Nifti1Image(maps[0], self.affine), nib.Nifti1Image(maps[1], self.affine)

    def write(self, folder: Path, *, masks: bool = False) -> tuple[Path, Path]:
        files = folder / "lesion.nii.gz", folder / "cord.nii.gz"
        for image, file in zip(self.images(masks=masks), files, strict=True):
            nib.save(image, file)
        return files


def phantom(
    *lesions: Lesion,
    voxel_mm: Sequence[float] = (0.8, 0.8, 0.8),
    tilt_deg: float = 0.0,
    shift_mm: Sequence[float] = (0.0, 0.0, 0.0),
    size_mm: Sequence[float] = (14.0, 22.0, 24.0),
) -> Phantom:
    """Return the shares of each voxel of a grid that is off the cord's centre by a shift."""
    shape = [round(size / voxel) for size, voxel in zip(size_mm, voxel_mm, strict=True)]
    affine = upright_affine(shape, voxel_mm, shift_mm)
    cord, *each = lesion_shares(lesions, shape, affine, tilt_deg, (0.2, 0.08, 0.3))
    return Phantom(cord, np.max(each, axis=0) if each else np.zeros_like(cord), affine)
