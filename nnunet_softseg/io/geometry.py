"""Voxel grids: affine, spacing, volume of a voxel, orientation; whether two images lie on one grid.

Affines are (4, 4), voxel (i, j, k) to world RAS in mm. Sizes are those of the affine, as in viewers, and not
of pixdim; the volume of a voxel is the affine's determinant, which holds for sheared axes, too, and distances
are those between points that it maps to.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.openers import ImageOpener
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from scipy.ndimage import distance_transform_edt

from nnunet_softseg.errors import Finding, short_name

AFFINE_TOLERANCE = 1e-3
"""Largest difference, in mm, between entries of two affines of one grid."""
SIZE_TOLERANCE = 0.01
"""How far pixdim may be off the affine, as a fraction, in training data: nnU-Net resamples by pixdim."""
TWO_SIZES = "has two voxel sizes"
NOWHERE = "does not say where it lies"
SIZE_ASSUMED = "size_assumed"
"""Key in `extra` of an image in memory: whether nothing says how large its voxels are."""
_AXES = "ijk"
_SPACE = 3
_SHEARED_FROM_DEG = 0.5
_PERPENDICULAR, _FLAT, _LOST = 1e-4, 1e-6, 1e-9
_MILLIMETRE = (0, 2)  # codes of NIfTI-1: unknown, mm
_UNITS = {1: "metre", 3: "micrometre"}
_ONE_SIZE = (
    "its affine counts, but nnU-Net trains by pixdim: if the affine is right, "
    "image = nibabel.load(FILE, mmap=False), image.set_qform(image.affine), nibabel.save(image, FILE)"
)
_RESAMPLE = "resample the label linearly to the image's grid"

Affine = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Spacing = Sequence[float] | npt.NDArray[np.float64]
"""mm between voxels along each axis, or the step along each axis as a column, which tells shear, too."""
Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """A grid of voxels in the scanner: voxels along each array axis, (4, 4) affine to world RAS in mm."""

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
    def steps_mm(self) -> Affine:
        """A step along each array axis, (3, 3): columns are array axes."""
        return self.affine[:_SPACE, :_SPACE]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, 0 where the affine spans none."""
        return voxel_volume(self.steps_mm)

    @property
    def spans_volume(self) -> bool:
        """Whether the affine is finite and maps every voxel somewhere else, by more than rounding."""
        if not np.isfinite(self.affine).all():
            return False
        smallest, largest = min(self.spacing_mm), float(np.abs(self.affine).max())
        return self.voxel_mm3 > _FLAT * float(np.prod(self.spacing_mm)) > 0 and smallest > _LOST * largest

    @property
    def shear_deg(self) -> float:
        """Largest angle by which two array axes miss being perpendicular."""
        steps = self.affine[:_SPACE, :_SPACE] / nib.affines.voxel_sizes(self.affine)
        return float(np.degrees(np.arcsin(np.clip(np.abs(np.triu(steps.T @ steps, 1)).max(), 0, 1))))

    @property
    def orientation(self) -> str:
        """Anatomical direction in which each array axis grows, such as "RAS"."""
        return "".join(str(code) for code in nib.aff2axcodes(self.affine))

    @property
    def body_spacing_mm(self) -> tuple[float, ...]:
        """The same along R-L, A-P and S-I."""
        axes = np.argsort(io_orientation(self.affine)[:, 0])
        return tuple(self.spacing_mm[axis] for axis in axes)

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
        steps = np.abs(self.affine[:_SPACE, :_SPACE])
        is_oblique = np.count_nonzero(steps > AFFINE_TOLERANCE) > _SPACE
        oblique = f", affine {np.round(self.affine[:_SPACE], 4).tolist()}" if is_oblique else ""
        return f"{shape} voxels of {sizes} mm, {self.orientation}, first voxel at ({origin}){oblique}"


def turned(values: npt.NDArray[Any], affine: Affine, like: Affine) -> tuple[npt.NDArray[Any], Affine]:
    """Return voxels (x, y, z) and their affine with axes in the order and direction of another affine."""
    transform = ornt_transform(io_orientation(affine), io_orientation(like))
    if (transform == [[0, 1], [1, 1], [2, 1]]).all():
        return values, affine
    moved = np.ascontiguousarray(apply_orientation(values, transform))
    return moved, affine @ inv_ornt_aff(transform, values.shape)


def geometry_findings(file: Path, image: nib.Nifti1Image, name: str = "") -> Iterator[Finding]:
    """Say whether an open file tells where its voxels lie, and how large they are, once; errors first."""
    name, grid, header = name or short_name(file), VoxelGrid.of(image), image.header
    if not grid.spans_volume:
        what, expected = "has an affine that maps no volume", "finite numbers and three independent axes"
        found = np.round(grid.affine[:_SPACE], 3).tolist()
        yield Finding(name, what, expected, str(found), _repair(header))
        return
    sizes = np.array(sizes_in_file(file, image))
    spacing_mm, listed = np.asarray(grid.spacing_mm[: len(sizes)]), _listed(sizes)
    if not nib.is_proxy(image.dataobj):  # no NIfTI file
        yield from _size_findings(name, image)
        return
    by_affine = int(header["sform_code"]) > 0
    if not (by_affine or (np.isfinite(sizes).all() and (sizes > 0).all())):
        what, remedy = "has voxel sizes that make no sense", "set the right voxel sizes in its header"
        yield Finding(name, what, "positive numbers of mm in pixdim", listed, remedy)
    elif not np.allclose(sizes, spacing_mm, rtol=0, atol=AFFINE_TOLERANCE):
        expected, found = f"{_listed(spacing_mm)} mm as its affine", f"{listed} in pixdim"
        yield Finding(name, TWO_SIZES, expected, found, _ONE_SIZE, "warning")
    if not (by_affine or header["qform_code"] > 0):
        found = "both 0: its place and orientation are guesses"
        remedy = "nothing within this image; set them before it is compared with others by its place"
        yield Finding(name, NOWHERE, "sform_code or qform_code above 0", found, remedy, "warning")
    if grid.shear_deg > _SHEARED_FROM_DEG:
        found, remedy = f"{grid.shear_deg:.1f} degrees less", "resample it to a grid without shear"
        yield Finding(name, "has sheared axes", "perpendicular ones", found, remedy, "warning")
    if int(header["xyzt_units"]) % 8 not in _MILLIMETRE:
        found = _UNITS.get(int(header["xyzt_units"]) % 8, "no known unit")
        remedy = "write sizes and affine in mm: they are taken as such"
        yield Finding(name, "is not in mm", "mm in xyzt_units", found, remedy, "warning")


def _size_findings(name: str, image: nib.Nifti1Image) -> Iterator[Finding]:
    """Say whether the size of the voxels of a TIFF is not known."""
    if image.extra.get(SIZE_ASSUMED):
        what, expected = "has no voxel sizes", 'a file <case>.json beside it, {"spacing": [z, y, x]} in mm'
        found, remedy = "none, so that 1 x 1 x 1 mm are taken", "add it, or nothing, if voxels are cubes"
        yield Finding(name, what, expected, found, remedy, "warning")


def _repair(header: Any) -> str:
    try:
        qform = header.get_qform(coded=True)[0]
    except ValueError:  # a quaternion longer than 1
        qform = None
    if qform is None or not VoxelGrid((), np.asarray(qform, dtype=np.float64)).spans_volume:
        return "repair qform and sform in its header"
    return (
        "repair its sform, the qform is valid: image = nibabel.load(FILE, mmap=False), "
        "image.set_sform(image.get_qform()), nibabel.save(image, FILE)"
    )


def sizes_in_file(file: Path, image: nib.Nifti1Image) -> list[float]:
    """Return the voxel sizes in pixdim as it stands: nibabel mends zero and negative ones, silently.

    Of an image that is no NIfTI file, those that it was opened with.
    """
    if not nib.is_proxy(image.dataobj):
        return [float(size) for size in image.header.get_zooms()[:_SPACE]]
    with ImageOpener(str(file)) as opened:
        header = type(image.header).from_fileobj(opened, check=False)
    return [float(size) for size in header["pixdim"][1 : 1 + min(image.ndim, _SPACE)]]


def sizes_agree(spacing_mm: Spacing, by_affine: Sequence[float]) -> bool:
    """Return whether voxel sizes are within `SIZE_TOLERANCE` of those of the affine; false for NaN."""
    return bool(np.allclose(spacing_mm, by_affine[: len(spacing_mm)], rtol=SIZE_TOLERANCE, atol=0))


# Volume and distance


def _steps(spacing_mm: Spacing) -> Affine:
    given = np.asarray(spacing_mm, dtype=np.float64)
    return np.diag(given) if given.ndim == 1 else given


def axis_lengths(spacing_mm: Spacing) -> list[float]:
    """Return the mm between voxels along each axis."""
    return [float(length) for length in np.linalg.norm(_steps(spacing_mm), axis=0)]


def margin_voxels(margin_mm: float, spacing_mm: Spacing) -> list[int]:
    """Return the voxels along each axis that hold all within a distance."""
    across = np.linalg.norm(np.linalg.inv(_steps(spacing_mm)), axis=1)
    return [math.ceil(margin_mm * float(each)) for each in across]


def has_neighbours(shape: Sequence[int]) -> list[bool]:
    """Return whether voxels have neighbours along each axis: across an image of a plane there are none.

    A single voxel is taken for a volume.
    """
    return [size > 1 or max(shape) == 1 for size in shape]


def voxel_volume(spacing_mm: Spacing) -> float:
    """Return the volume of a voxel, mm3 in three dimensions: the determinant of its steps."""
    return abs(float(np.linalg.det(_steps(spacing_mm))))


def distances_mm(mask: Mask, spacing_mm: Spacing, at: Mask) -> npt.NDArray[np.float64]:
    """Return the distance from each true voxel of `at`, (n,) in the order of the array, to one of a mask.

    Both have one shape. Distances are those between the centres of voxels, sheared axes included.
    """
    steps = _steps(spacing_mm)
    lengths = axis_lengths(spacing_mm)
    across = np.triu((steps / lengths).T @ (steps / lengths), 1)
    if np.abs(across).max() < _PERPENDICULAR:
        return np.asarray(distance_transform_edt(~mask, sampling=lengths)[at])
    from scipy.spatial import KDTree  # only here: few grids are sheared

    tree = KDTree(np.argwhere(mask) @ steps.T)
    return np.asarray(tree.query(np.argwhere(at) @ steps.T)[0])


# Two images on one grid of voxels


def check_grids(prediction: npt.NDArray[Any], reference: npt.NDArray[Any], spacing_mm: Spacing) -> None:
    """Raise a ValueError if shapes differ, have no voxel, or the spacing is not one length > 0 per axis."""
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must lie on one grid, got {prediction.shape} and {reference.shape}"
        )
    if not prediction.size:
        raise ValueError(f"an image without a voxel has no measures, got shape {prediction.shape}")
    steps, axes = np.asarray(spacing_mm, dtype=np.float64), prediction.ndim
    positive = np.isfinite(steps).all() and (
        (steps > 0).all() if steps.ndim == 1 else voxel_volume(steps) > 0
    )
    if steps.shape not in ((axes,), (axes, axes)) or not positive:
        raise ValueError(
            f"the spacing must be one length in mm above 0 per axis ({prediction.ndim}), got {spacing_mm}"
        )


def grid_findings(
    file: Path | str, expected: VoxelGrid, found: VoxelGrid, of: str = "the image"
) -> list[Finding]:
    """Say whether a file (or the name of one) lies on the grid of another: its shape, then its affine."""
    by_shape = shape_findings(file, expected.shape, found.shape, of=of)
    return by_shape or affine_findings(file, expected.affine, found.affine, of=of)


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
    what, remedy = f"shape differs from that of {of}", f"{_RESAMPLE}, or look for a mix-up of files"
    wanted = f"({axes}) = ({_listed(expected)})"
    return [Finding(short_name(file), what, wanted, f"({_listed(found)})", remedy)]


def affine_findings(
    file: Path | str,
    expected: Affine,
    found: Affine,
    seen_by: str = "NIfTI header",
    *,
    of: str = "the image",
) -> list[Finding]:
    """Say whether a label has its image's affine; readers (`seen_by`) differ where qform and sform do."""
    difference = np.abs(np.asarray(expected) - np.asarray(found))
    if bool(np.all(difference <= AFFINE_TOLERANCE)):  # false for NaN
        return []
    at = np.unravel_index(int(np.argmax(np.nan_to_num(difference, nan=np.inf))), difference.shape)
    where = f"row {at[0]}, column {at[1]}, {seen_by}"
    what = f"affine differs from that of {of} by {difference[at]:.4g} ({where})"
    wanted = f"{expected[at]:.6g} +- {AFFINE_TOLERANCE}"
    remedy = f"{_RESAMPLE}, or, if only its header is wrong, copy the header of the image"
    return [Finding(short_name(file), what, wanted, f"{found[at]:.6g}", remedy)]


def reader_geometry_findings(file: Path, image: Mapping[str, Any], label: Mapping[str, Any]) -> list[Finding]:
    """Say whether nnU-Net's reader sees an image and the label in a file on one grid, by its properties."""
    found = reader_affines(label)
    for name, expected in reader_affines(image).items():
        if name in found:
            findings = affine_findings(file, expected, found[name], f"{name} affine of the reader")
            if findings:
                return findings
    return []


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


# The geometry that nnU-Net's readers keep


def reader_affines(properties: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the (4, 4) affines, voxel (i, j, k) to RAS in mm, that a reader keeps with an image, by name."""
    if "nibabel_stuff" in properties:
        stored = properties["nibabel_stuff"]
        return {name.split("_")[0]: np.asarray(affine, dtype=np.float64) for name, affine in stored.items()}
    if "sitk_stuff" in properties:
        stored = properties["sitk_stuff"]
        spacing = np.asarray(stored["spacing"], dtype=np.float64)
        affine, size = np.eye(4), len(spacing)
        affine[:size, :size] = np.asarray(stored["direction"], dtype=np.float64).reshape(size, size) * spacing
        affine[:size, 3] = stored["origin"]
        return {"original": np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine}
    return {}


def reader_spacing_mm(stated_mm: Sequence[float], affine: Affine, *, reorients: bool) -> list[float]:
    """Return the spacing (k, j, i) of an image as a reader gives it, by the affine where that disagrees.

    Readers take it from pixdim, which one that reorients replaces, for images that it turns only.
    """
    grid = VoxelGrid((), affine)
    by_affine = [*(grid.body_spacing_mm if reorients else grid.spacing_mm)][::-1]
    agree = np.allclose(stated_mm, by_affine, rtol=0, atol=AFFINE_TOLERANCE)
    return [float(size) for size in stated_mm] if agree else by_affine


def array_orientation(properties: Mapping[str, Any], transpose_forward: Sequence[int]) -> str | None:
    """Return the direction of each axis of a preprocessed case, "SAR"; None without geometry of a reader."""
    affines = reader_affines(properties)
    flat = len(properties.get("sitk_stuff", {}).get("spacing", _AXES)) != len(_AXES)
    if flat or not affines:
        return None
    file_axes = nib.aff2axcodes(affines.get("reoriented", affines["original"]))  # i, j, k
    reader_axes = file_axes[::-1]  # readers return (k, j, i)
    return "".join(reader_axes[axis] for axis in transpose_forward)


def bounding_box(mask: npt.NDArray[np.bool_], margin: Sequence[int] = ()) -> Box:
    """Return one slice per axis around all true voxels, each of length 0 if there is none.

    The margin is in voxels, at both ends of each axis, as far as the array goes.
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
