"""A cord as a cylinder with lesions in it: the share of each in every voxel, and the truth by geometry.

Coordinates of the cord: right, anterior, along it, in mm; its centreline is (0, 0, w). It is tilted in the
sagittal plane. Points are dense along A-P, where bridges are measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

RADIUS_MM = 5.0
_STEP_MM = (0.2, 0.08, 0.3)


@dataclass(frozen=True)
class Lesion:
    """A box or an ellipsoid in a cord of `RADIUS_MM`: centre and half sizes along right, anterior, cord."""

    shape: str
    centre_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]

    def holds(self, right: np.ndarray, anterior: np.ndarray, along: np.ndarray) -> np.ndarray:
        relative = [
            (at - centre) / half
            for at, centre, half in zip((right, anterior, along), self.centre_mm, self.half_mm, strict=True)
        ]
        if self.shape == "box":
            first, second, third = (np.abs(each) < 1 for each in relative)
            return first & second & third
        return sum(each**2 for each in relative) < 1

    @property
    def volume_mm3(self) -> float:
        return float(np.prod(self.half_mm)) * (8 if self.shape == "box" else 4 / 3 * np.pi)

    @property
    def largest_area_mm2(self) -> float:
        """Across the cord."""
        return self.half_mm[0] * self.half_mm[1] * (4 if self.shape == "box" else np.pi)

    @property
    def dorsal_mm(self) -> float:
        """Bridge in the plane right = 0, for a lesion that is centred on it."""
        return RADIUS_MM + self.centre_mm[1] - self.half_mm[1]

    @property
    def ventral_mm(self) -> float:
        return RADIUS_MM - self.centre_mm[1] - self.half_mm[1]


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
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = np.array(shift_mm) - (np.array(shape) - 1) / 2 * voxel_mm
    parts = [max(1, round(voxel / step)) for voxel, step in zip(voxel_mm, _STEP_MM, strict=True)]
    right, anterior, superior = (
        affine[axis, 3] + voxel_mm[axis] * ((np.arange(count * part) + 0.5) / part - 0.5)
        for axis, (count, part) in enumerate(zip(shape, parts, strict=True))
    )
    cosine, sine = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
    across = cosine * anterior[:, None] - sine * superior
    along = sine * anterior[:, None] + cosine * superior
    cord, lesion = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for index in range(shape[0]):
        points = right[index * parts[0] : (index + 1) * parts[0], None, None]
        inside = points**2 + across**2 < RADIUS_MM**2
        hurt = np.zeros_like(inside)
        for each in lesions:
            hurt |= inside & each.holds(points, across, along)
        for values, there in ((cord, inside), (lesion, hurt)):
            values[index] = (
                there.mean(axis=0).reshape(shape[1], parts[1], shape[2], parts[2]).mean(axis=(1, 3))
            )
    return Phantom(cord, lesion, affine)
