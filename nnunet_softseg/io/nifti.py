"""NIfTI files, opened."""

from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.finding import Finding, short_name

UNREADABLE = (OSError, EOFError, ValueError, ImageFileError, HeaderDataError)
"""What nibabel raises on a file that is missing, cut off or not an image."""


def without_nifti_ending(name: str) -> str:
    """Return a file name without `.nii` or `.nii.gz`; other names come back as they are."""
    return name.removesuffix(".gz").removesuffix(".nii") if name.endswith((".nii", ".nii.gz")) else name


def load_nifti(file: Path) -> nib.Nifti1Image:
    """Return an open NIfTI file; its header is read, its voxels stay on disk until they are asked for.

    Raises:
        UserError: if it is missing, or its header cannot be read.
    """
    try:
        image = nib.load(file)
    except UNREADABLE as error:
        raise UserError(_not_nifti(file, str(error) or type(error).__name__)) from error
    if not isinstance(image, nib.Nifti1Image):
        raise UserError(_not_nifti(file, type(image).__name__))
    return image


def _not_nifti(file: Path, found: str) -> str:
    return str(Finding(short_name(file), "cannot be opened", "a NIfTI file", found, "write the file again"))
