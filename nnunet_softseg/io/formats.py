"""Image files by their endings; those that are no NIfTI, opened as NIfTI images in memory, and written.

MHA, NRRD and GIPL, which SimpleITK reads, say where their voxels lie. PNG, BMP and TIFF ("pictures") do not:
a voxel is 1 x 1 x 1, in a TIFF of three axes as `<case>.json` beside it says, which nnU-Net reads and writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg.io.geometry import SIZE_ASSUMED, reader_affines

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".mha", ".nrrd", ".gipl")
PICTURE_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
IMAGE_ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS, *PICTURE_ENDINGS)
PNG, FLOAT_PICTURE = ".png", ".tif"
NIFTI_READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
READERS = {
    **dict.fromkeys(NIFTI_ENDINGS, NIFTI_READERS),
    **dict.fromkeys(ITK_ENDINGS, ("SimpleITKIO", "SimpleITKIOWithReorient")),
    **dict.fromkeys((PNG, ".bmp"), ("NaturalImage2DIO",)),
    **dict.fromkeys((".tif", ".tiff"), ("NaturalImage2DIO", "Tiff3DIO")),
}
"""Readers of nnU-Net's that can open files of an ending."""
_TIFF_ENDINGS = (".tif", ".tiff")
_PLANE, _SPACE = 2, 3
_COLOURS = (3, 4)  # RGB, RGBA: nnU-Net's rule
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # upright in viewers: columns go to the left, rows to the back


def is_nifti(name: str) -> bool:
    """Return whether a file name ends as a NIfTI file's, in capitals or not, as nibabel takes them."""
    return name.lower().endswith(NIFTI_ENDINGS)


def is_image(name: str) -> bool:
    """Return whether a file name ends as that of an image which nnU-Net reads, in capitals or not."""
    return name.lower().endswith(IMAGE_ENDINGS)


def is_picture(name: str) -> bool:
    """Return whether a file name ends as that of an image which does not say where it lies."""
    return name.lower().endswith(PICTURE_ENDINGS)


NIFTI, ANY_FORMAT = (is_nifti,), (is_nifti, is_image)
"""Images to take of a folder: NIfTI files alone; or, where there is none, all."""


def without_nifti_ending(name: str) -> str:
    """Return a file name without `.nii` or `.nii.gz`, capitals or not; other names come back as they are."""
    return _without(name, NIFTI_ENDINGS)


def without_ending(name: str) -> str:
    """Return a file name without the ending of an image; other names come back as they are."""
    return _without(name, IMAGE_ENDINGS)


def _without(name: str, endings: tuple[str, ...]) -> str:
    ending = next((ending for ending in endings if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def soft_ending(file_ending: str) -> str:
    """Return the ending of the soft maps of images with an ending, of a format that holds floats."""
    ending = file_ending.lower()
    if ending in ITK_ENDINGS:
        return ending
    return FLOAT_PICTURE if ending in PICTURE_ENDINGS else NIFTI_ENDINGS[0]


# Opened


def open_other(file: Path) -> nib.Nifti1Image:
    """Return an image that is no NIfTI as NIfTI in memory, (x, y, z); a broken one raises whatever it does.

    Of a picture with one slice (x, y, 1), of one in colours (x, y, 1, colour).
    """
    values, affine = _picture(file) if is_picture(file.name) else _itk(file)
    image = nib.Nifti1Image(_storable(values), affine)
    placed = 0 if is_picture(file.name) else 1
    image.set_sform(affine, placed)
    image.set_qform(affine, placed)
    is_tiff_of_slices = (
        file.name.lower().endswith(_TIFF_ENDINGS) and values.ndim == _SPACE and values.shape[-1] > 1
    )
    image.extra[SIZE_ASSUMED] = is_tiff_of_slices and not spacing_file(file).is_file()
    return image


def _storable(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values of a type that NIfTI has and nibabel takes without being asked."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype(np.int8)  # 1 is full: not one of 255 levels
    if kind in "iu" and size == np.dtype(np.int64).itemsize:
        return values.astype(np.float64)
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _itk(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    import SimpleITK as sitk  # noqa: N813  its own documentation's name

    image = sitk.ReadImage(str(file))
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError(f"{image.GetNumberOfComponentsPerPixel()} numbers in each voxel, expected one")
    values = sitk.GetArrayFromImage(image).T
    geometry = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    affine = reader_affines({"sitk_stuff": geometry})["original"]
    return values[..., None] if values.ndim == _PLANE else values, affine


def _picture(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    if file.name.lower().endswith(_TIFF_ENDINGS):
        import tifffile

        values = np.asarray(tifffile.imread(file))
    else:
        from skimage.io import imread  # what nnU-Net's reader takes

        values = np.asarray(imread(file))
    if values.ndim == _PLANE:
        return values.T[..., None], _LPS
    if values.ndim == _SPACE and values.shape[-1] in _COLOURS:
        return values.transpose(1, 0, 2)[:, :, None], _LPS
    if values.ndim != _SPACE:
        raise ValueError(f"{values.ndim} axes, shape {values.shape}")
    spacing_zyx = _spacing(spacing_file(file)) or (1.0, 1.0, 1.0)
    return values.T, _LPS @ np.diag([*spacing_zyx[::-1], 1.0])


def spacing_file(file: Path) -> Path:
    """Return the file, there or not, in which the spacing of a TIFF of three axes stands for nnU-Net.

    Images and soft labels of a case, `<case>_<number, 4 digits>`, share one, `<case>.json`.
    """
    stem = without_ending(file.name)
    case, _, number = stem.rpartition("_")
    numbered = bool(case) and len(number) == 4 and number.isdigit()  # noqa: PLR2004  nnU-Net's names
    alone = file.with_name(f"{stem}.json")
    return file.with_name(f"{case}.json") if numbered and not alone.is_file() else alone


def _spacing(file: Path) -> list[float] | None:
    """Return the spacing (z, y, x) in a file of nnU-Net's; None: there is no such file."""
    if not file.is_file():
        return None
    spacing = json.loads(file.read_text(encoding="utf-8"))["spacing"]
    if len(spacing) != _SPACE or not all(size > 0 for size in spacing):
        raise ValueError(f"{file.name} has spacing {spacing}, expected three numbers above 0")
    return [float(size) for size in spacing]


# Written


def itk_image(values: npt.NDArray[Any], geometry: Mapping[str, Any]) -> Any:
    """Return an image of SimpleITK's of values (z, y, x), with the geometry that nnU-Net's reader keeps.

    A reader that turns images says how they lie in their files; they are turned back.
    """
    import SimpleITK as sitk  # noqa: N813

    flat = len(geometry["spacing"]) == _PLANE
    image = sitk.GetImageFromArray(np.ascontiguousarray(values[0] if flat else values))
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    if "original_orientation" in geometry:
        image = sitk.DICOMOrient(image, geometry["original_orientation"])
    return image


def write_other(file: Path, values: npt.NDArray[np.float32], properties: Mapping[str, Any]) -> None:
    """Write values (z, y, x) as float32 MHA, NRRD, GIPL or TIFF, with what nnU-Net's reader knows of a case.

    A TIFF of one slice has two axes; that of several cannot hold its spacing (`spacing_file`).
    """
    if not is_picture(file.name):
        import SimpleITK as sitk  # noqa: N813

        sitk.WriteImage(itk_image(values.astype(np.float32), properties["sitk_stuff"]), str(file), True)
        return
    import tifffile

    is_volume = values.shape[0] > 1
    stored = np.ascontiguousarray(values if is_volume else values[0], dtype=np.float32)
    tifffile.imwrite(file, stored, compression="zlib", photometric="minisblack")
