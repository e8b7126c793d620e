"""A NIfTI file, opened, checked and read."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from nnunet_softseg.errors import Finding, UserError, short_name

NIFTI_ENDINGS = (".nii.gz", ".nii")
UNREADABLE = (OSError, EOFError, ValueError, ImageFileError, HeaderDataError, zlib.error)
"""What nibabel raises on a file that is missing, cut off or not an image."""
_READ_IN_CHUNKS_OF = 1 << 20
_GZIP_SIZE = struct.Struct("<I")
_AXES = 3
_REAL_KINDS = "biuf"
_AGAIN = "write the file again"

Values = npt.NDArray[np.float32]


# Files


def without_nifti_ending(name: str) -> str:
    """Return a file name without `.nii` or `.nii.gz`; other names come back as they are."""
    return name.removesuffix(".gz").removesuffix(".nii") if name.endswith(NIFTI_ENDINGS) else name


def load_nifti(file: Path) -> nib.Nifti1Image:
    """Return an open NIfTI file; its header is read, its voxels stay on disk until they are asked for.

    Raises:
        UserError: if it is missing, or its header cannot be read.
    """
    try:
        image = nib.load(file)
        if isinstance(image, nib.Nifti1Image):
            return image
        raise ImageFileError(type(image).__name__)
    except UNREADABLE as error:
        found = str(error) or type(error).__name__
        not_nifti = Finding(short_name(file), "cannot be opened", "a NIfTI file", found, _AGAIN)
        raise UserError(str(not_nifti)) from error


def file_findings(file: Path, name: str = "") -> list[Finding]:
    """Say whether a NIfTI file is there, whole (by its checksum if compressed), 3-D and of real numbers.

    Readers cannot be left to find this out: SimpleITK fills what a file is short of with zeros, in silence.
    The name is for messages; "" takes that of file and folder.
    """
    name = name or short_name(file)
    if not file.is_file():
        found, remedy = "none", "add it"
        if file.is_symlink():
            found, remedy = "a broken link", "add it, or fetch its content (git annex get, datalad get)"
        return [Finding(name, "file is missing", "a NIfTI file", found, remedy)]
    try:
        size = inflated_size(file)
    except (OSError, EOFError, zlib.error) as error:
        return [Finding(name, "corrupt or truncated gzip", "a whole file", first_line(error), _AGAIN)]
    try:
        image: Any = nib.load(file)
    except UNREADABLE as error:
        return [Finding(name, "unreadable NIfTI header", "a NIfTI file", first_line(error), _AGAIN)]
    return _stored_findings(name, image, size)


def _stored_findings(name: str, image: nib.Nifti1Image, size: int) -> list[Finding]:
    shape, dtype, expected = image.shape, image.get_data_dtype(), bytes_needed(image)
    if size < expected:
        return [Finding(name, "truncated data", f"{expected} bytes by its header", str(size), _AGAIN)]
    if len(shape) != _AXES:
        what, found = "not a 3-D image", f"{len(shape)}-D, shape {shape}"
        return [Finding(name, what, "shape (x, y, z)", found, _three_axes(shape))]
    if dtype.kind not in _REAL_KINDS:
        what, remedy = "voxels are not real numbers", "write it as one of them"
        return [Finding(name, what, "integers or floats", str(dtype), remedy)]
    return []


def inflated_size(file: Path) -> int:
    """Return the number of bytes of a file, inflated; a broken stream raises what gzip and zlib raise."""
    if not file.name.endswith(".gz"):
        return file.stat().st_size
    with gzip.open(file) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(_READ_IN_CHUNKS_OF), b""))


def bytes_needed(image: nib.Nifti1Image) -> int:
    """Return the length that the header of a file asks for, inflated."""
    # nibabel's header forgets where the voxels begin; what will read them knows.
    data = cast(ArrayProxy, image.dataobj)
    return int(data.offset) + math.prod(image.shape) * int(data.dtype.itemsize)


def is_long_enough(file: Path, needed: int) -> bool:
    """Return whether a file, inflated, has so many bytes; its checksum is not looked at."""
    if file.suffix != ".gz":
        return file.stat().st_size >= needed
    with file.open("rb") as opened:
        opened.seek(-_GZIP_SIZE.size, os.SEEK_END)
        (size,) = _GZIP_SIZE.unpack(opened.read())
    # The end of a complete gzip stream says how long it is; only one that differs is inflated.
    if size == needed % 2**32:
        return True
    try:
        return inflated_size(file) >= needed
    except (OSError, EOFError, zlib.error):
        return False


def _three_axes(shape: tuple[int, ...]) -> str:
    if len(shape) > _AXES and all(size == 1 for size in shape[_AXES:]):
        return "drop the axes of length 1"
    return "write one 3-D file per label (<case>_0001.nii.gz, <case>_0002.nii.gz, ...)"


def first_line(error: BaseException) -> str:
    """Return the line of an error that says what is wrong, whoever raised it."""
    lines = str(error).strip().splitlines()
    # SimpleITK's last line is the one that says what is wrong.
    return (lines[-1] if lines else type(error).__name__).strip()


# Values


def image_name(image: nib.Nifti1Image, otherwise: str) -> str:
    """Return the file of an image for messages, or what to call it if it has none."""
    file = image.get_filename()
    return str(file) if file else otherwise


def stored_values(file: Path) -> Values:
    """Return the values of a whole NIfTI file, (x, y, z), in the order in which viewers count voxels.

    The range is judged by these: of nnU-Net's readers, SimpleITK turns NaN into 0, in silence.

    Raises:
        UserError: if it cannot be read after all.
    """
    return np.asarray(_values(load_nifti(file), str(file)), dtype=np.float32)


def read_values(image: nib.Nifti1Image, name: str) -> npt.NDArray[Any]:
    """Return the values of a 3-D image, scaled by its header, in the type that gives; name: for messages.

    Raises:
        UserError: if it is not 3-D, cannot be read, or holds no real, finite numbers.
    """
    if image.ndim != _AXES:
        raise UserError(
            f"{name}: expected three axes, found {image.ndim}-D, shape {image.shape}: "
            f"{_three_axes(image.shape)}"
        )
    values = _values(image, name)
    if values.dtype.kind not in _REAL_KINDS or not values.size:
        raise UserError(
            f"{name}: expected voxels of real numbers, found {values.size} of type {values.dtype}: write it "
            "as float32"
        )
    if not np.isfinite((values.min(), values.max())).all():
        raise UserError(str(not_finite(name, values)))
    return values


def _values(image: nib.Nifti1Image, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(image.dataobj)
    except UNREADABLE as error:  # changed since it was looked at, or the disk fails
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: expected a whole file, found: {reason}: {_AGAIN}") from error


def not_finite(name: str, values: npt.NDArray[Any]) -> Finding:
    """Return the finding for NaN and infinity."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    remedy = "write 0 where nothing is known (0/0 outside of all masks is the usual cause)"
    return Finding(name, "NaN or infinite values", "finite values", f"{bad} voxels that are not", remedy)
