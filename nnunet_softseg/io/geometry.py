"""Where the voxels of an image lie: affine, orientation, grid; and whether two images share them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import Finding, short_name

AFFINE_TOLERANCE = 1e-3
_AXES = "ijk"

Box = tuple[slice, ...]


def reader_affines(properties: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the (4, 4) affines, voxel (i, j, k) to RAS in mm, that a reader keeps with an image, by name."""
    if "nibabel_stuff" in properties:
        stored = properties["nibabel_stuff"]
        return {name.split("_")[0]: np.asarray(affine, dtype=np.float64) for name, affine in stored.items()}
    if "sitk_stuff" in properties:
        stored = properties["sitk_stuff"]
        spacing = np.asarray(stored["spacing"], dtype=np.float64)
        affine = np.eye(4)
        size = len(spacing)
        affine[:size, :size] = np.asarray(stored["direction"], dtype=np.float64).reshape(size, size) * spacing
        affine[:size, 3] = stored["origin"]
        return {"original": np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine}
    return {}


def array_orientation(properties: Mapping[str, Any], transpose_forward: Sequence[int]) -> str | None:
    """Return the anatomical direction of each axis of a preprocessed case; "SAR": the first to superior.

    Args:
        properties: of the case, as nnU-Net's reader gave them.
        transpose_forward: of the plans.

    Returns:
        One letter of R, L, A, P, S, I per array axis; None where the properties hold no geometry.
    """
    affines = reader_affines(properties)
    flat = len(properties.get("sitk_stuff", {}).get("spacing", _AXES)) != len(_AXES)
    if flat or not affines:
        return None
    affine = affines.get("reoriented", affines["original"])
    file_axes = nib.aff2axcodes(affine)  # i, j, k of the file
    reader_axes = file_axes[::-1]  # readers return (k, j, i)
    return "".join(reader_axes[axis] for axis in transpose_forward)


def check_grids(
    prediction: npt.NDArray[Any], reference: npt.NDArray[Any], spacing_mm: Sequence[float]
) -> None:
    """Refuse two arrays that cannot lie on one grid of voxels of that size.

    Raises:
        ValueError: if the shapes differ, there is no voxel, or the spacing is not one length > 0 per axis.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must lie on one grid, got {prediction.shape} and {reference.shape}"
        )
    if not prediction.size:
        raise ValueError(f"an image without a voxel has no measures, got shape {prediction.shape}")
    lengths = np.asarray(spacing_mm, dtype=np.float64)
    if lengths.shape != (prediction.ndim,) or not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(
            f"the spacing must be one length in mm above 0 per axis ({prediction.ndim}), got {spacing_mm}"
        )


def bounding_box(mask: npt.NDArray[np.bool_], margin: Sequence[int] = ()) -> Box:
    """Return one slice per axis around all true voxels, each of length 0 if there is none.

    Most of an image is empty; a measure that knows the whole size need not work on that part.

    Args:
        mask: any number of axes.
        margin: voxels to add at both ends of each axis, as far as the array goes; none if left out.
    """
    box: list[slice] = []
    inside = mask
    for axis, wide in enumerate(margin or (0,) * mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(inside.any(axis=others))
        if not found.size:
            return (slice(0, 0),) * mask.ndim
        first, last = int(found[0]), int(found[-1])
        box.append(slice(max(first - wide, 0), min(last + 1 + wide, mask.shape[axis])))
        # cut at once, without the margin: the next axes have less to look through
        inside = inside[(slice(None),) * axis + (slice(first, last + 1),)]
    return tuple(box)


def shape_findings(
    file: Path, expected: Sequence[int], found: Sequence[int], axes: str = "x, y, z"
) -> list[Finding]:
    """Say whether a label has the shape of its image."""
    if tuple(expected) == tuple(found):
        return []
    return [
        Finding(
            short_name(file),
            "shape differs from that of the image",
            f"({axes}) = {_numbers(expected)}",
            _numbers(found),
            "resample the label linearly to the image's grid, or look for a mix-up of files",
        )
    ]


def affine_findings(
    file: Path,
    expected: npt.NDArray[np.float64],
    found: npt.NDArray[np.float64],
    seen_by: str = "NIfTI header",
) -> list[Finding]:
    """Say whether a label lies where its image lies.

    Args:
        file: of the label.
        expected: (4, 4) voxel to world in mm, of the image.
        found: of the label.
        seen_by: whose reading of the header it is: readers differ where qform and sform do.
    """
    difference = np.abs(np.asarray(expected) - np.asarray(found))
    if bool(np.all(difference <= AFFINE_TOLERANCE)):  # false for NaN
        return []
    row, column = np.unravel_index(int(np.argmax(np.nan_to_num(difference, nan=np.inf))), difference.shape)
    return [
        Finding(
            short_name(file),
            f"affine differs from that of the image by {difference[row, column]:.4g} (row {row}, column "
            f"{column}, {seen_by})",
            f"{expected[row, column]:.6g} +- {AFFINE_TOLERANCE}",
            f"{found[row, column]:.6g}",
            "resample the label linearly to the image's grid, or, if only its header is wrong, copy the "
            "header of the image",
        )
    ]


def reader_geometry_findings(file: Path, image: Mapping[str, Any], label: Mapping[str, Any]) -> list[Finding]:
    """Say whether nnU-Net's reader sees image and label on one grid.

    Args:
        file: of the label.
        image: properties that the reader gave with the image.
        label: properties that the same reader gave with the label.
    """
    expected, found = reader_affines(image), reader_affines(label)
    return [
        finding
        for name in expected
        if name in found
        for finding in affine_findings(file, expected[name], found[name], f"{name} affine of the reader")
    ][:1]


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
