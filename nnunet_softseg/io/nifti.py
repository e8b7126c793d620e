"""NIfTI files, opened."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from nnunet_softseg.errors import Finding, UserError, short_name

NIFTI_ENDINGS = (".nii.gz", ".nii")
RANGE_TOLERANCE = 1e-5
"""Fractions written as integers with a slope come back a few float32 steps off. What is within is clipped."""
_READ_IN_CHUNKS_OF = 1 << 20
_AXES = 3
_LARGEST_OVERSHOOT = 0.5
_LARGEST_LABEL_VALUE = 20
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


def file_findings(file: Path) -> list[Finding]:
    """Say whether a NIfTI file is there, whole (by its checksum if compressed) and three-dimensional.

    Readers cannot be left to find this out: SimpleITK fills what a file is short of with zeros, in silence.
    """
    name, again = short_name(file), "write the file again"
    if not file.is_file():
        found = "a broken link" if file.is_symlink() else "none"
        return [Finding(name, "file is missing", "a NIfTI file", found, "add it")]
    try:
        size = _uncompressed_size(file)
    except (OSError, EOFError, zlib.error) as error:
        return [Finding(name, "corrupt or truncated gzip", "a whole file", first_line(error), again)]
    try:
        image: Any = nib.load(file)
    except UNREADABLE as error:
        return [Finding(name, "unreadable NIfTI header", "a NIfTI file", first_line(error), again)]
    shape, data = image.shape, image.dataobj
    expected = data.offset + math.prod(shape) * data.dtype.itemsize
    if size < expected:
        return [Finding(name, "truncated data", f"{expected} bytes by its header", str(size), again)]
    if len(shape) != _AXES:
        what, found = "not a 3-D image", f"{len(shape)}-D, shape {shape}"
        return [Finding(name, what, "shape (x, y, z)", found, _three_axes(shape))]
    return []


def _uncompressed_size(file: Path) -> int:
    if not file.name.endswith(".gz"):
        return file.stat().st_size
    with gzip.open(file) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(_READ_IN_CHUNKS_OF), b""))


def _three_axes(shape: tuple[int, ...]) -> str:
    if len(shape) > _AXES and all(size == 1 for size in shape[_AXES:]):
        return "drop the axes of length 1"
    return "write one 3-D file per label (<case>_0001.nii.gz, <case>_0002.nii.gz, ...)"


def first_line(error: BaseException) -> str:
    """Return the line of an error that says what is wrong, whoever raised it."""
    lines = str(error).strip().splitlines()
    # SimpleITK's last line is the one that says what is wrong.
    return (lines[-1] if lines else type(error).__name__).strip()


def stored_values(file: Path) -> npt.NDArray[np.float32]:
    """Return what a NIfTI file holds, (x, y, z), in the order in which viewers count voxels.

    The range is judged by this and not by what nnU-Net's readers give: SimpleITK turns NaN into 0, in
    silence.

    Args:
        file: whole, see `file_findings`.
    """
    return np.asarray(load_nifti(file).dataobj, dtype=np.float32)


def content_findings(file: Path, soft_label: npt.NDArray[Any]) -> list[Finding]:
    """Say whether the values are finite, in [0, 1], and not all zero (a warning: a label may be absent)."""
    name = short_name(file)
    bad = int(np.count_nonzero(~np.isfinite(soft_label)))
    if bad:
        remedy = "write 0 where nothing is known (0/0 outside of all masks is the usual cause)"
        return [
            Finding(name, "NaN or infinite values", "finite values", f"{bad} voxels that are not", remedy)
        ]
    low, high = (float(soft_label.min()), float(soft_label.max())) if soft_label.size else (0.0, 0.0)
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        remedy = _range_remedy(soft_label, low, high)
        return [Finding(name, "values outside [0, 1]", "[0, 1]", f"[{low:.6g}, {high:.6g}]", remedy)]
    if high <= 0:
        remedy = "nothing, if the label is absent from this image"
        return [Finding(name, "all zero", "some voxels above 0", "none", remedy, "warning")]
    return []


def _range_remedy(soft_label: npt.NDArray[Any], low: float, high: float) -> str:
    if low >= -_LARGEST_OVERSHOOT and high <= 1 + _LARGEST_OVERSHOOT:
        return "clip it to [0, 1]; resample labels linearly, splines overshoot"
    if low < -RANGE_TOLERANCE:
        return (
            "this does not look like a fraction: write the fraction of each voxel that belongs to the label"
        )
    if high <= _LARGEST_LABEL_VALUE and bool(np.all(soft_label == np.round(soft_label))):
        return "this looks like an integer label map: write one file per label with its fraction in [0, 1]"
    factor = next((factor for factor in (100, 255) if high <= factor + _LARGEST_OVERSHOOT), high)
    return f"divide it by {factor:g}"
