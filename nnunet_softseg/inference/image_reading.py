"""An image to predict, read by nnU-Net's reader, or one line that says why not."""

import contextlib
import gzip
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nibabel.orientations import io_orientation
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient

from nnunet_softseg.errors import Finding, UserError, raise_first_error, short_name
from nnunet_softseg.io.nifti import UNREADABLE, load_nifti

Image = npt.NDArray[np.floating[Any]]
MOST_VOXELS = 2**29
"""800 x 800 x 800, 2 GB as float32: more than any scan of a spine."""
_NIFTI_ENDINGS = (".nii", ".nii.gz")
_VOLUME, _SLICE = 3, 2
_GZIP_SIZE = struct.Struct("<I")
_OBJECTIONS = (*UNREADABLE, AssertionError, RuntimeError, MemoryError, zlib.error)
"""What nibabel and SimpleITK raise where voxels are missing, and nnU-Net's readers where they object."""


def read_image(
    image_files: Sequence[str], plans_manager: Any, configuration_manager: Any
) -> tuple[Image, dict[str, Any]]:
    """Return (image, properties) of a case as nnU-Net's reader gives them.

    Args:
        image_files: one per channel, or one with all channels where the reader knows such files.
        plans_manager: nnU-Net's; it names the reader.
        configuration_manager: nnU-Net's.

    Returns:
        image: (channel, z, y, x) float32, finite.
        properties: spacing in mm and geometry.

    Raises:
        UserError: if a file is no image that can be predicted: missing, cut off, not three-dimensional, too
            large, with voxel sizes that make no sense, complex or coloured, with NaN; or if the number of
            channels is not that of training.
    """
    files = [Path(file) for file in image_files]
    flat = len(configuration_manager.patch_size) == _SLICE
    for file in files:
        if file.name.endswith(_NIFTI_ENDINGS):
            raise_first_error(_header_findings(file, flat=flat))
    try:
        image, properties = _read(files, plans_manager.image_reader_writer_class)
    except _OBJECTIONS as error:
        raise UserError(str(_unreadable(files, error))) from error
    found, expected = len(image), len(configuration_manager.normalization_schemes)
    if found != expected:
        channels = Finding(
            short_name(files[0]),
            "number of channels",
            f"{expected}, as in training",
            str(found),
            "give one 3-D file per channel, <case>_0000, <case>_0001, ...",
        )
        raise UserError(str(channels))
    check_content(image, short_name(files[0]))
    return image, properties


def _read(files: Sequence[Path], reader: Any) -> tuple[Image, dict[str, Any]]:
    """Return what nnU-Net's reader gives; of one NIfTI file without its detour over float64."""
    if reader not in (NibabelIO, NibabelIOWithReorient) or len(files) > 1:
        given: tuple[Image, dict[str, Any]] = reader().read_images([str(file) for file in files])
        return given
    stored = image = load_nifti(files[0])
    geometry = {"original_affine": stored.affine}
    if reader is NibabelIOWithReorient:
        image = stored.as_reoriented(io_orientation(stored.affine))
        geometry["reoriented_affine"] = image.affine
    spacing_mm = [float(size) for size in image.header.get_zooms()[::-1]]
    array = np.asarray(image.dataobj).astype(np.float32).transpose(2, 1, 0)
    return array[None], {"nibabel_stuff": geometry, "spacing": spacing_mm}


@contextlib.contextmanager
def naming(image_files: Sequence[str | Path]) -> Iterator[None]:
    """Put the name of the file in front of what is found to be wrong with its case.

    Raises:
        UserError: with the name, for one without.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{short_name(Path(image_files[0]))}: {error}") from error


def check_content(image: Image, name: str = "the image") -> None:
    """Refuse an image that holds NaN or infinity.

    Raises:
        UserError: with the number of such voxels.
    """
    # Plane by plane: an array of answers for all voxels costs more than the question.
    missing = sum(plane.size - int(np.isfinite(plane).sum()) for channel in image for plane in channel)
    if missing:
        raise UserError(
            f"{name}: expected numbers only, found {missing} NaN or infinite voxels of "
            f"{image.size}: repair it (for example numpy.nan_to_num) before predicting"
        )


def _header_findings(file: Path, *, flat: bool) -> Iterator[Finding]:
    """Yield what the header alone tells to be wrong, before a voxel is read."""
    name, image = short_name(file), load_nifti(file)
    shape = tuple(int(size) for size in image.shape)
    as_written = "shape " + " x ".join(map(str, shape))
    if len(shape) > _VOLUME:
        yield Finding(
            name, "has a fourth dimension", "one 3-D image", as_written, "predict each volume, or their mean"
        )
    if len(shape) < (_SLICE if flat else _VOLUME) or not all(shape):
        yield Finding(name, "is no volume", "a 3-D image", as_written, "give the whole volume")
    if np.prod(shape, dtype=np.float64) > MOST_VOXELS:
        most = f"at most {MOST_VOXELS} voxels, {MOST_VOXELS * 4 / 1e9:.1f} GB as float32"
        yield Finding(name, "is too large", most, as_written, "crop it to the spine, or downsample it")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        yield Finding(name, "holds no grey values", "integers or floats", str(dtype), "convert it")
    yield from _geometry_findings(file, image)
    # nibabel's header forgets where the voxels begin; what will read them knows.
    begin = cast(ArrayProxy, image.dataobj).offset
    needed = int(begin) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not _holds(file, needed):
        yield Finding(
            name, "is cut off", f"{needed} bytes, inflated", "fewer", "write or copy the file again"
        )


def _holds(file: Path, needed: int) -> bool:
    """Return whether a file, inflated, has so many bytes; to SimpleITK, what is missing is silently 0."""
    if file.suffix != ".gz":
        return file.stat().st_size >= needed
    with file.open("rb") as opened:
        opened.seek(-_GZIP_SIZE.size, os.SEEK_END)
        (size,) = _GZIP_SIZE.unpack(opened.read())
    # The end of a complete gzip stream says how long it is; only what says something else is inflated to see.
    return size == needed % 2**32 or _inflated_size(file) >= needed


def _inflated_size(file: Path) -> int:
    size = 0
    try:
        with gzip.open(file) as opened:
            while block := opened.read(2**20):
                size += len(block)
    except (OSError, EOFError, zlib.error):
        return -1
    return size


def _geometry_findings(file: Path, image: nib.Nifti1Image) -> Iterator[Finding]:
    name = short_name(file)
    sizes = _voxel_sizes_in_file(file, image)[: len(image.shape)]
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        yield Finding(
            name,
            "has voxel sizes that make no sense",
            "positive numbers of mm in pixdim",
            ", ".join(f"{size:g}" for size in sizes),
            "set the right voxel sizes in its header",
        )
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < np.finfo(np.float32).tiny:
        yield Finding(
            name,
            "has an affine that maps no volume",
            "finite numbers and three independent axes",
            str(np.round(affine[:3], 3).tolist()),
            "repair qform and sform in its header",
        )


def _voxel_sizes_in_file(file: Path, image: nib.Nifti1Image) -> npt.NDArray[np.floating[Any]]:
    """Return pixdim[1:4] as it stands in the file: nibabel mends what is zero or negative, silently."""
    with ImageOpener(str(file)) as opened:
        header = type(image.header).from_fileobj(opened, check=False)
    sizes: npt.NDArray[np.floating[Any]] = np.asarray(header["pixdim"][1 : 1 + _VOLUME])
    return sizes


def _unreadable(files: Sequence[Path], error: Exception) -> Finding:
    names = ", ".join(map(short_name, files))
    if isinstance(error, MemoryError):
        return Finding(names, "does not fit into memory", "free memory", str(error), "crop it to the spine")
    said = " ".join(str(error).split()) or type(error).__name__
    together = "" if len(files) == 1 else ", channels on the same grid"
    return Finding(
        names, "cannot be read", f"a complete 3-D image{together}", said, "write or copy the file again"
    )
