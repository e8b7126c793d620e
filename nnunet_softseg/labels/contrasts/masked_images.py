"""Images and the masks drawn on them, read from disk: whole, on one grid, and nothing but 0 and 1."""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from nnunet_softseg.errors import Finding, UserError, raise_first_error, short_name
from nnunet_softseg.io.map_kind import RANGE_TOLERANCE, content_findings
from nnunet_softseg.io.nifti import UNREADABLE, file_findings, load_nifti, stored_values, without_nifti_ending
from nnunet_softseg.io.same_grid import affine_findings, shape_findings
from nnunet_softseg.labels.contrasts.sources import MaskedImage
from nnunet_softseg.labels.contrasts.volume import Volume
from nnunet_softseg.settings import HARD_THRESHOLD

_AXES, _SUPERIOR = 3, 2
_MANY = 4

Values = npt.NDArray[np.float32]


def check_there(files: Iterable[Path]) -> None:
    """Raise a UserError if a file is missing, or a link to content that was not fetched."""
    for file in files:
        if file.is_symlink() and not file.exists():
            remedy = "fetch its content (git annex get, datalad get)"
            raise UserError(
                str(Finding(short_name(file), "content is missing", "a file", "a broken link", remedy))
            )


def read_mask(source: MaskedImage, *, soft: bool = False) -> Volume:
    """Return the mask of an image on the grid of the image.

    Args:
        source: where both lie.
        soft: whether values between 0 and 1 are taken as they are.

    Raises:
        UserError: if a file is missing or broken, the two do not lie on one grid, or the mask is none.
    """
    check_there([source.image, source.mask])
    raise_first_error([*_image_findings(source.image), *file_findings(source.mask)])
    image, mask = load_nifti(source.image), load_nifti(source.mask)
    raise_first_error(shape_findings(source.mask, image.shape, mask.shape))
    raise_first_error(affine_findings(source.mask, image.affine, mask.affine))
    values = _values(source.mask)
    raise_first_error(mask_findings(source.mask, values, soft=soft))
    return Volume(_exact(values), image.affine, _thickness_mm(source.image, image.affine))


def stated_thickness_mm(image: Path) -> float | None:
    """Return `SliceThickness` of the JSON beside an image, in mm; None if there is none."""
    sidecar = image.with_name(f"{without_nifti_ending(image.name)}.json")
    try:
        return float(json.loads(sidecar.read_text(encoding="utf-8"))["SliceThickness"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # BIDS does not ask for it, and nothing here depends on the rest of that file


def _thickness_mm(image: Path, affine: npt.NDArray[np.float64]) -> float | None:
    """Return how thick the slices across S-I are, if that is stated and less than the distance between them.

    The header has that distance only, which is more where there are gaps. Of a sagittal or coronal image the
    thickness is that along another axis and says nothing here.
    """
    spacing = nib.affines.voxel_sizes(affine)
    apart = spacing[int(np.flatnonzero(io_orientation(affine)[:, 0] == _SUPERIOR)[0])]
    thickness = stated_thickness_mm(image)
    return thickness if thickness and 0 < thickness < apart == spacing.max() else None


def read_image(file: Path) -> Volume:
    """Return an image; what `read_mask` found whole.

    Raises:
        UserError: if its voxels are not numbers.
    """
    return Volume(_values(file), load_nifti(file).affine)


def mask_findings(file: Path, values: Values, *, soft: bool = False) -> list[Finding]:
    """Say whether a mask holds 0 and 1 only, or, if it may be soft, values between them.

    Args:
        file: of the mask, for the message.
        values: in the file.
        soft: whether it may be soft.
    """
    if _is_exact(values):
        return []
    errors = [finding for finding in content_findings(file, values) if finding.severity == "error"]
    if (errors and not np.isfinite(values).all()) or soft:
        return errors
    if not errors and bool(np.all(_is_hard(values))):
        return []
    distinct = np.unique(values)
    return [
        Finding(short_name(file), "not a binary mask", "values 0 and 1", _list(distinct), _remedy(distinct))
    ]


def _is_exact(values: Values) -> bool:
    return bool(np.all((values == 0) | (values == 1)))


def _is_hard(values: Values) -> npt.NDArray[np.bool_]:
    return np.minimum(np.abs(values), np.abs(values - 1)) <= RANGE_TOLERANCE


def _exact(values: Values) -> Values:
    """Return 0 and 1 for what a slope in the header puts some float32 steps beside them."""
    if _is_exact(values):
        return values
    hard: Values = (values > HARD_THRESHOLD).astype(np.float32)
    return np.where(_is_hard(values), hard, values)


def _list(distinct: npt.NDArray[np.float32]) -> str:
    if distinct.size <= _MANY:
        return ", ".join(f"{value:g}" for value in distinct)
    return f"{distinct.size} values from {distinct[0]:g} to {distinct[-1]:g}"


def _remedy(distinct: npt.NDArray[np.float32]) -> str:
    low, high = float(distinct[0]), float(distinct[-1])
    if low == 0 and distinct.size == 2 and high > 1:  # noqa: PLR2004
        return f"divide it by {high:g}"
    if low >= 0 and high <= 1:
        return "threshold it, or take it as it is (--soft-masks)"
    if low >= 0 and bool(np.all(distinct == np.round(distinct))):
        return "this looks like a label map: write the voxels of the cord's label as 1, all others as 0"
    return "write 1 where the cord is, 0 elsewhere"


def _values(file: Path) -> Values:
    dtype = load_nifti(file).get_data_dtype()
    if dtype.kind not in "biuf":
        found, remedy = str(dtype), "write it as integers or floats"
        raise UserError(str(Finding(short_name(file), "voxels are no numbers", "numbers", found, remedy)))
    try:
        return stored_values(file)
    except UNREADABLE as error:  # changed since it was looked at, or the disk fails
        found = str(error) or type(error).__name__
        raise UserError(
            str(Finding(short_name(file), "cannot be read", "a whole file", found, "write it again"))
        ) from error


def _image_findings(file: Path) -> list[Finding]:
    findings = file_findings(file)
    if findings and findings[0].what == "not a 3-D image" and math.prod(load_nifti(file).shape[_AXES:]) > 1:
        remedy = "draw the mask on a 3-D image, such as the mean of the volumes, and name it so (rec-average)"
        return [dataclasses.replace(findings[0], remedy=remedy)]
    return findings
