"""Where the voxels of an image lie: affine, spacing, volume of a voxel, orientation.

    grid = VoxelGrid.of(load_nifti(file))
    grid.spacing_mm, grid.voxel_mm3, grid.orientation      # "RPI"
    raise_first_error(geometry_findings(file, image))      # what does not fit in the header

Affines are (4, 4), voxel (i, j, k) to world RAS in mm. Sizes are those of the affine, as in viewers, and not
of pixdim; the volume of a voxel is the affine's determinant, which holds for sheared axes, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.openers import ImageOpener
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from nnunet_softseg.errors import Finding, short_name

AFFINE_TOLERANCE = 1e-3
"""Largest difference, in mm, between entries of two affines of one grid."""
_AXES = "ijk"
_SPACE = 3
_SHEARED_FROM_DEG = 0.5
_MILLIMETRE = ("mm", "unknown")

Affine = npt.NDArray[np.float64]
Box = tuple[slice, ...]


# One grid


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """A grid of voxels in the scanner.

    Attributes:
        shape: voxels along each array axis.
        affine: (4, 4), voxel to world RAS in mm.
    """

    shape: tuple[int, ...]
    affine: Affine

    @classmethod
    def of(cls, image: nib.Nifti1Image) -> "VoxelGrid":
        """Return the grid of an image."""
        return cls(tuple(int(size) for size in image.shape), np.asarray(image.affine, dtype=np.float64))

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each array axis."""
        return tuple(float(size) for size in nib.affines.voxel_sizes(self.affine))

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, 0 where the affine spans none."""
        return abs(float(np.linalg.det(self.affine[:_SPACE, :_SPACE])))

    @property
    def spans_volume(self) -> bool:
        """Whether the affine is finite and maps every voxel somewhere else."""
        return bool(np.isfinite(self.affine).all()) and self.voxel_mm3 > 0

    @property
    def shear_deg(self) -> float:
        """Largest angle by which two array axes miss being perpendicular."""
        steps = self.affine[:_SPACE, :_SPACE] / nib.affines.voxel_sizes(self.affine)
        return float(np.degrees(np.arcsin(np.clip(np.abs(np.triu(steps.T @ steps, 1)).max(), 0, 1))))

    @property
    def orientation(self) -> str:
        """Anatomical direction in which each array axis grows, such as "RAS"."""
        return "".join(str(code) for code in nib.aff2axcodes(self.affine))

    def is_same(self, other: "VoxelGrid") -> bool:
        """Return whether two grids have one shape and affines equal within `AFFINE_TOLERANCE`."""
        return self.shape == other.shape and bool(
            np.allclose(self.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE)
        )

    def __str__(self) -> str:
        """Return the grid in words: "10 x 10 x 5 voxels of 1 x 1 x 2 mm, RPI, first voxel at (0, 0, 0)"."""
        sizes = " x ".join(f"{size:.4g}" for size in self.spacing_mm)
        origin = ", ".join(f"{value:.4g}" for value in self.affine[:_SPACE, _SPACE])
        shape = " x ".join(map(str, self.shape))
        oblique = "" if self._along_world_axes else f", affine {np.round(self.affine[:_SPACE], 4).tolist()}"
        return f"{shape} voxels of {sizes} mm, {self.orientation}, first voxel at ({origin}){oblique}"

    @property
    def _along_world_axes(self) -> bool:
        return int(np.count_nonzero(np.abs(self.affine[:_SPACE, :_SPACE]) > AFFINE_TOLERANCE)) <= _SPACE


def turned(values: npt.NDArray[Any], affine: Affine, like: Affine) -> tuple[npt.NDArray[Any], Affine]:
    """Return the same voxels, and their affine, with array axes in the order and direction of another image.

    Args:
        values: (x, y, z).
        affine: of the values.
        like: affine of the other image.
    """
    transform = ornt_transform(io_orientation(affine), io_orientation(like))
    if (transform == [[0, 1], [1, 1], [2, 1]]).all():
        return values, affine
    moved = np.ascontiguousarray(apply_orientation(values, transform))
    return moved, affine @ inv_ornt_aff(transform, values.shape)


def geometry_findings(file: Path, image: nib.Nifti1Image) -> Iterator[Finding]:
    """Say whether voxel sizes and affine of a file make sense, and agree; errors come first.

    Args:
        file: of the image.
        image: the same, opened.
    """
    name, grid = short_name(file), VoxelGrid.of(image)
    sizes = _sizes_in_file(file, image)[: image.ndim]
    listed = ", ".join(f"{size:g}" for size in sizes)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        what, remedy = "has voxel sizes that make no sense", "set the right voxel sizes in its header"
        yield Finding(name, what, "positive numbers of mm in pixdim", listed, remedy)
    if not grid.spans_volume:
        found, remedy = (
            str(np.round(grid.affine[:_SPACE], 3).tolist()),
            "repair qform and sform in its header",
        )
        yield Finding(
            name,
            "has an affine that maps no volume",
            "finite numbers and three independent axes",
            found,
            remedy,
        )
        return
    spacing_mm = np.asarray(grid.spacing_mm[: image.ndim])
    if not np.allclose(sizes[: len(spacing_mm)], spacing_mm, rtol=0, atol=AFFINE_TOLERANCE):
        found, remedy = f"{listed} in pixdim", "nothing, if the affine is right: it is what counts"
        what, expected = (
            "has two voxel sizes",
            f"{', '.join(f'{size:g}' for size in spacing_mm)} as its affine",
        )
        yield Finding(name, what, expected, found, remedy, "warning")
    if grid.shear_deg > _SHEARED_FROM_DEG:
        found, remedy = f"{grid.shear_deg:.1f} degrees less", "resample it to a grid without shear"
        yield Finding(name, "has sheared axes", "perpendicular ones", found, remedy, "warning")
    unit = image.header.get_xyzt_units()[0]
    if unit not in _MILLIMETRE:
        remedy = "write sizes and affine in mm: they are taken as such"
        yield Finding(name, "is not in mm", "mm in xyzt_units", unit, remedy, "warning")


def _sizes_in_file(file: Path, image: nib.Nifti1Image) -> npt.NDArray[np.floating[Any]]:
    """Return pixdim[1:4] as it stands in the file: nibabel mends zero and negative ones, silently."""
    with ImageOpener(str(file)) as opened:
        header = type(image.header).from_fileobj(opened, check=False)
    return np.asarray(header["pixdim"][1 : 1 + _SPACE])


# The geometry that nnU-Net's readers keep


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


# Parts of a grid


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
