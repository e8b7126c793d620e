"""Images as nnU-Net's readers of NIfTI files give them, and label maps as they write them; without nnU-Net.

Arrays are (channel, z, y, x). The properties of a case hold `spacing`, (z, y, x) in mm, and the geometry of
its file under the key that nnU-Net's reader uses.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.formats import NIFTI_READERS, itk_image
from nnunet_softseg.io.nifti import load_nifti, values_to_the_end

Image = npt.NDArray[np.float32]
Properties = dict[str, Any]
_PLANE, _SPACE = 2, 3
_APART_MM = 999  # slices of an image of one slice, in pixels: nnU-Net's number
_EIGHT_BITS = 255


def is_known(reader: str) -> bool:
    """Return whether a reader of nnU-Net's, by its name in the plans, is one of those here."""
    return reader in NIFTI_READERS


def reads_to_the_end(reader: str) -> bool:
    """Return whether a reader tells by itself that a file is cut off, or that its checksum is wrong."""
    return is_known(reader) and not reader.startswith("SimpleITK")


def read_channels(files: Sequence[Path], reader: str) -> tuple[Image, Properties]:
    """Return image and properties of a case, of one file per channel.

    Args:
        files: NIfTI, or of a format that SimpleITK knows.
        reader: see `is_known`.

    Raises:
        ValueError: if the channels have other shapes or spacings; whatever a broken file provokes.
        UserError: if the reader needs SimpleITK, which is not installed.
    """
    read = _by_simpleitk if reader.startswith("SimpleITK") else _by_nibabel
    given = [read(file, reader.endswith("WithReorient")) for file in files]
    for what, values in (
        ("shapes", [list(image.shape) for image, _ in given]),
        ("spacings", [list(properties["spacing"]) for _, properties in given]),
    ):
        if any(value != values[0] for value in values):
            raise ValueError(f"channels of {what} {', '.join(map(str, values))}")
    _tell_other_places(files, [properties for _, properties in given])
    return np.concatenate([image for image, _ in given]), given[0][1]


def _tell_other_places(files: Sequence[Path], given: Sequence[Properties]) -> None:
    """Print a line if the channels do not lie at the same place: nnU-Net, too, takes them as if they did."""

    def place(properties: Properties) -> Any:
        if "nibabel_stuff" in properties:
            geometry = properties["nibabel_stuff"]
            return np.asarray(geometry.get("reoriented_affine", geometry["original_affine"]))
        return np.array([*properties["sitk_stuff"]["origin"], *properties["sitk_stuff"]["direction"]])

    if any(not np.array_equal(place(properties), place(given[0])) for properties in given[1:]):
        names = ", ".join(file.name for file in files)
        print(f"nnunet-softseg: {names}: the headers put them at different places: look whether they align")


def _by_nibabel(file: Path, reorients: bool) -> tuple[Image, Properties]:
    stored = load_nifti(file)
    geometry = {"original_affine": stored.affine}
    image = nib.Nifti1Image(values_to_the_end(stored.dataobj), stored.affine, stored.header)
    if reorients:
        image = image.as_reoriented(io_orientation(stored.affine))
        geometry["reoriented_affine"] = image.affine
    spacing_mm = [float(size) for size in image.header.get_zooms()[::-1]]
    array = np.asarray(image.dataobj).astype(np.float32).transpose(2, 1, 0)
    return array[None], {"nibabel_stuff": geometry, "spacing": spacing_mm}


def _by_simpleitk(file: Path, reorients: bool) -> tuple[Image, Properties]:
    sitk = simpleitk()
    image = sitk.ReadImage(str(file))
    stored = {}
    if reorients:
        orientation = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines
        stored["original_orientation"] = orientation(image.GetDirection())
        image = sitk.DICOMOrient(image, "RAS")
    spacing = image.GetSpacing()
    geometry = {"spacing": spacing, "origin": image.GetOrigin(), "direction": image.GetDirection(), **stored}
    array = sitk.GetArrayFromImage(image)
    spacing_mm = [*spacing[::-1]]
    if array.ndim == _PLANE:
        array, spacing_mm = array[None], [max(spacing) * _APART_MM, *spacing_mm]
    if array.ndim == _SPACE:
        array = array[None]
    else:  # all channels in one file
        spacing_mm = spacing_mm[1:]
    spacing_mm = [*np.abs(spacing_mm)]
    return array.astype(np.float32), {"sitk_stuff": geometry, "spacing": spacing_mm}


def simpleitk() -> Any:
    """Return the module SimpleITK; raise a UserError that says how to get it."""
    try:
        import SimpleITK
    except ImportError as error:
        raise UserError(
            "the model's images are read by SimpleITK: expected it here, found none: pip install SimpleITK"
        ) from error
    return SimpleITK


def write_label_map(
    label_map: npt.NDArray[np.integer[Any]], file: Path, properties: Mapping[str, Any]
) -> None:
    """Write a label map (z, y, x) as the reader of these properties does."""
    largest_of_8_bits = label_map.max(initial=0) < _EIGHT_BITS
    values = label_map.astype(np.uint8 if largest_of_8_bits else np.uint16, copy=False)
    if "nibabel_stuff" in properties:
        nib.save(nifti_as_stored(values.transpose(2, 1, 0), properties["nibabel_stuff"]), file)
        return
    simpleitk().WriteImage(itk_image(values, properties["sitk_stuff"]), str(file), True)


def nifti_as_stored(values: npt.NDArray[Any], geometry: Mapping[str, Any]) -> nib.Nifti1Image:
    """Return values (x, y, z) of nnU-Net's reader, of that geometry, with the axes of the file."""
    if "reoriented_affine" not in geometry:
        return nib.Nifti1Image(values, geometry["original_affine"])
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(geometry["original_affine"]))
    turned: nib.Nifti1Image = nib.Nifti1Image(values, geometry["reoriented_affine"]).as_reoriented(back)
    return turned
