"""Cords as upright prisms, whose areas are known by counting voxels, in folders as methods write them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

SHAPE = (16, 16, 20)
WIDTH = 6
"""The reference: 6 x 6 voxels."""


def prism(
    width: float = WIDTH, *, first: int = 2, last: int = 17, shape: Sequence[int] = SHAPE
) -> npt.NDArray[np.float32]:
    """Return a prism of 6 x `width` voxels from slice `first` to `last`; a fraction goes to both sides."""
    profile = np.clip(width / 2 + 0.5 - np.abs(np.arange(shape[1]) - shape[1] // 2), 0, 1)
    values = np.zeros(shape, dtype=np.float32)
    values[5:11, :, first : last + 1] = profile[:, None]
    return values


def write(
    file: Path,
    values: npt.NDArray[Any],
    *,
    affine: npt.NDArray[Any] | None = None,
    dtype: Any = np.float32,
    slope: float | None = None,
) -> Path:
    """Write a NIfTI file of this type on disk; with a slope, the integers that come nearest times it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = values if slope is None else np.round(values / slope)
    image = nib.Nifti1Image(stored.astype(dtype), np.eye(4) if affine is None else affine)
    image.header.set_slope_inter(1 if slope is None else slope, 0)
    nib.save(image, file)
    return file


def write_all(folder: Path, maps: Mapping[str, npt.NDArray[Any]], **options: Any) -> Path:
    """Write a map per name, without ending."""
    for name, values in maps.items():
        write(folder / f"{name}.nii.gz", values, **options)
    return folder


def case_ids(subjects: Sequence[str], contrasts: Sequence[str]) -> list[str]:
    return [f"sub-{subject}_{contrast}" for subject in subjects for contrast in contrasts]


def references(folder: Path, cases: Sequence[str]) -> Path:
    """Write softLabelsTs: a prism of 6 x 6.5 voxels for all cases."""
    return write_all(folder, {f"{case}_0001": prism(6.5) for case in cases})
