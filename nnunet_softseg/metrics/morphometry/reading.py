"""The voxels of an image, or one line that says why not."""

import zlib
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.nifti import UNREADABLE

_AXES = 3
_REAL_KINDS = "biuf"


def image_name(image: nib.Nifti1Image, otherwise: str) -> str:
    """Return the file of an image for messages, or what to call it if it has none."""
    file = image.get_filename()
    return str(file) if file else otherwise


def read_values(image: nib.Nifti1Image, name: str) -> npt.NDArray[Any]:
    """Return what a 3-D image holds, as stored and scaled by its header.

    Args:
        image: of real numbers.
        name: for messages.

    Raises:
        UserError: if it is not 3-D, cannot be read, or holds no real, finite numbers.
    """
    if image.ndim != _AXES:
        raise UserError(
            f"{name}: expected three axes, found {image.ndim}-D, shape {image.shape}: write one 3-D file per "
            "label"
        )
    try:
        values = np.asarray(image.dataobj)
    except (*UNREADABLE, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: expected a whole file, found: {reason}: write the file again") from error
    if values.dtype.kind not in _REAL_KINDS or not values.size:
        raise UserError(
            f"{name}: expected voxels of real numbers, found {values.size} of type {values.dtype}: write it "
            "as float32"
        )
    if not np.isfinite((values.min(), values.max())).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise UserError(
            f"{name}: expected finite values, found {bad} voxels that are not: write 0 where nothing is known"
        )
    return values
