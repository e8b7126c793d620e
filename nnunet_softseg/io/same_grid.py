"""Whether two images, or arrays, lie on one grid of voxels: one answer and one message.

raise_first_error(grid_findings(label_file, VoxelGrid.of(image), VoxelGrid.of(label)))
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import Finding, short_name
from nnunet_softseg.io.geometry import AFFINE_TOLERANCE, Affine, VoxelGrid, reader_affines


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


def grid_findings(
    file: Path | str, expected: VoxelGrid, found: VoxelGrid, of: str = "the image"
) -> list[Finding]:
    """Say whether a file lies on the grid of another, with its shape first.

    Args:
        file: that is looked at, or its name for messages.
        expected: grid of the other file.
        found: grid of this file.
        of: the other file, for messages.
    """
    return shape_findings(file, expected.shape, found.shape, of=of) or affine_findings(
        file, expected.affine, found.affine, of=of
    )


def shape_findings(
    file: Path | str,
    expected: Sequence[int],
    found: Sequence[int],
    axes: str = "x, y, z",
    *,
    of: str = "the image",
) -> list[Finding]:
    """Say whether a label has the shape of its image."""
    if tuple(expected) == tuple(found):
        return []
    return [
        Finding(
            _name(file),
            f"shape differs from that of {of}",
            f"({axes}) = {_numbers(expected)}",
            _numbers(found),
            "resample the label linearly to the image's grid, or look for a mix-up of files",
        )
    ]


def affine_findings(
    file: Path | str,
    expected: Affine,
    found: Affine,
    seen_by: str = "NIfTI header",
    *,
    of: str = "the image",
) -> list[Finding]:
    """Say whether a label lies where its image lies.

    Args:
        file: of the label.
        expected: (4, 4) voxel to world in mm, of the image.
        found: of the label.
        seen_by: whose reading of the header it is: readers differ where qform and sform do.
        of: the other file, for messages.
    """
    difference = np.abs(np.asarray(expected) - np.asarray(found))
    if bool(np.all(difference <= AFFINE_TOLERANCE)):  # false for NaN
        return []
    row, column = np.unravel_index(int(np.argmax(np.nan_to_num(difference, nan=np.inf))), difference.shape)
    return [
        Finding(
            _name(file),
            f"affine differs from that of {of} by {difference[row, column]:.4g} (row {row}, column "
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


def _name(file: Path | str) -> str:
    return file if isinstance(file, str) else short_name(file)
