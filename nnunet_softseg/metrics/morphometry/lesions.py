"""Lesions of the cord: size of each, and the tissue that it spares in the midsagittal plane.

Arrays are (x, y, z): right, anterior, superior. Source: tissue bridges of Huber et al. 2017
(doi:10.1002/ana.24932), as the Spinal Cord Toolbox defines them from version 7.3 on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from nnunet_softseg.errors import UserError, examples, raise_first_error
from nnunet_softseg.io.geometry import Box, VoxelGrid, grid_findings, turned
from nnunet_softseg.io.nifti import MapKind, as_fractions, classify, content_findings, image_name, read_values
from nnunet_softseg.metrics.morphometry.slice_table import line_through
from nnunet_softseg.metrics.slice_frame import Floats, SliceFrame, slice_frame
from nnunet_softseg.settings import HARD_THRESHOLD

LESION_COLUMNS = {
    "lesion": "number of the lesion, from 1, the largest first: a piece of the map > 0.5, corners joined",
    "volume_mm3": "sum of the map's values times the volume of a voxel, mm3",
    "length_mm": "S-I: length of the cord's centreline within the slices where the map is > 0.5, mm",
    "width_mm": "A-P: largest extent of the map > 0.5 in a slice, times the cosine of the centreline's angle "
    "in the sagittal plane, mm",
    "equivalent_diameter_mm": "diameter of the circle with the largest area of the lesion across the "
    "centreline, mm",
    "axial_damage_ratio": "largest ratio, over the slices, of the lesion's area to the cord's",
    "dorsal_bridge_mm": "spared tissue behind the lesion in the midsagittal plane, the least over the "
    "slices, across the centreline, mm; half the cord's A-P diameter where the lesion is not in the plane; "
    "empty where it is not in the cord",
    "ventral_bridge_mm": "the same in front of the lesion, mm",
    "total_bridge_mm": "sum of both, mm",
    "definition": "of the bridges. hard: voxels > 0.5 are counted. soft: sums of the values",
    "flags": "parasagittal: not in the midsagittal plane. outside: not in the cord. protrudes: more than a "
    "tenth of it is outside the cord",
}
"""The columns of the table of lesions, with units."""
THICKEST_SOFT_MM = 1.0
"""Thickest sagittal slice of which the soft width is nearer to the truth than that of voxels > 0.5."""
_SLICES_EACH_WAY = 2
_FILLED_FROM = 0.95
"""A line without a voxel filled to this share has no soft width: what is short would count as spared."""
_PROTRUDES_FROM = 0.1
_AROUND = np.ones((3, 3, 3), dtype=bool)

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Bridge:
    """Where one bridge is narrowest: axial slice and edges along A-P in voxel indices; its width in mm."""

    width_mm: float
    slice: int
    begin: float
    end: float


@dataclass(frozen=True)
class MidsagittalPlane:
    """Plane between two neighbouring sagittal slices, at a voxel index along R-L that may be fractional."""

    position: float

    @property
    def slices(self) -> tuple[int, int]:
        """The two sagittal slices; the same one twice where the plane lies on it."""
        return int(np.floor(self.position)), int(np.ceil(self.position))

    def between(self, first: Floats, second: Floats) -> Floats:
        """Return values of the plane, linear between those of the two slices; NaN leaves the other one."""
        share = self.position - np.floor(self.position)
        mixed = (1 - share) * first + share * second
        return np.where(np.isnan(first), second, np.where(np.isnan(second), first, mixed))

    def of_map(self, values: Values) -> Floats:
        """Return a map in the plane: (y, z)."""
        first, second = (values[index].astype(np.float64) for index in self.slices)
        return self.between(first, second)


@dataclass(frozen=True)
class CordImage:
    """A cord with its lesions, axes right, anterior, superior; angles of its centreline in each slice.

    `sagittal` and `whole` are the cosines of the centreline's angle against the slice's normal: within the
    sagittal plane, and in space.
    """

    cord: Values
    lesion: Values
    frame: SliceFrame
    grid: VoxelGrid
    sagittal: Floats
    whole: Floats
    has_partial_volume: bool


@dataclass(frozen=True)
class Lesions:
    """Table with `LESION_COLUMNS`, the plane, and (dorsal, ventral) bridge of each lesion in the cord.

    `bridges` is number of the lesion -> both; `warnings` are lines. Without a lesion there is no plane.
    """

    table: pd.DataFrame
    image: CordImage
    plane: MidsagittalPlane | None = None
    bridges: dict[int, tuple[Bridge, Bridge]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def measure_lesions(lesion: nib.Nifti1Image, cord: nib.Nifti1Image, *, hard: bool = False) -> Lesions:
    """Return size and tissue bridges of each lesion of a map, largest first.

    Both are soft maps or masks on one grid, in any orientation. Bridges are soft where both have partial
    volume, sagittal slices are at most 1 mm thick, and the lesion fills voxels of the plane; else, or if
    `hard`, of the maps > 0.5. All lesions share one midsagittal plane, that of the largest in the
    cord.

    Raises:
        UserError: if the maps are not what is expected, their grids differ, no lesion is in the cord, or the
            cord ends inside one.
    """
    name = image_name(lesion, "lesion map")
    image = _read(lesion, cord, name)
    pieces, count = _pieces(image.lesion)
    empty = pd.DataFrame(columns=list(LESION_COLUMNS))
    if not count:
        highest = float(image.lesion.max())
        found = f"nothing above 0.5 (largest value {highest:.2g})" if highest > 0 else "nothing above 0"
        return Lesions(empty, image, warnings=(f"{name}: no lesion, {found}: the table has no rows",))
    overlaps = _in_cord(image, pieces, count)
    if not overlaps.any():
        raise UserError(
            f"{name}: expected lesions inside the cord, found {count}, all outside of "
            f"{image_name(cord, 'it')}: is it the cord of this image?"
        )
    boxes = ndimage.find_objects(pieces, count)
    _check_cord_reaches(image, pieces, boxes, overlaps, name)
    plane = midsagittal_plane(image.cord, _middle(image.lesion, pieces, boxes, int(overlaps.argmax())))
    soft = image.has_partial_volume and image.grid.spacing_mm[0] <= THICKEST_SOFT_MM and not hard
    rows, bridges = [], {}
    for number, box in enumerate(boxes, start=1):
        alone = np.where(pieces[box] == number, image.lesion[box], np.float32(0))
        row: dict[str, object] = {"lesion": number, **_size(image, alone, box)}
        flags = ["outside"]
        if overlaps[number - 1]:
            bridges[number], definition, is_in_plane = _bridges_of(image, plane, alone, box, soft=soft)
            dorsal, ventral = (bridge.width_mm for bridge in bridges[number])
            row |= {"dorsal_bridge_mm": dorsal, "ventral_bridge_mm": ventral}
            row |= {"total_bridge_mm": dorsal + ventral, "definition": definition}
            outside = float(np.maximum(alone - image.cord[box], 0).sum() / alone.sum())
            flags = ["parasagittal"] * (not is_in_plane) + ["protrudes"] * (outside > _PROTRUDES_FROM)
        rows.append(row | {"flags": " ".join(flags)})
    table = pd.DataFrame(rows, columns=list(LESION_COLUMNS))
    return Lesions(table, image, plane, bridges, tuple(_warnings(table, name)))


# Reading


def _read(lesion: nib.Nifti1Image, cord: nib.Nifti1Image, name: str) -> CordImage:
    cord_name = image_name(cord, "cord map")
    of_lesion, lesion_is_soft, lesion_affine = _fractions(lesion, name)
    of_cord, cord_is_soft, affine = _fractions(cord, cord_name)
    grid = VoxelGrid(of_cord.shape, affine)
    raise_first_error(grid_findings(name, grid, VoxelGrid(of_lesion.shape, lesion_affine), of="the cord"))
    frame = slice_frame(affine, cord_name)
    line = line_through(of_cord, frame)
    if line is None:
        raise UserError(f"{cord_name}: expected a map of the cord, found nothing above 0")
    slopes = line.slopes(frame.slice_centres_mm(of_cord.shape)[:, 2])
    anterior = frame.in_plane_steps_mm[:, 1] / np.linalg.norm(frame.in_plane_steps_mm[:, 1])
    return CordImage(
        of_cord,
        of_lesion,
        frame,
        grid,
        1 / np.sqrt(1 + (slopes @ anterior) ** 2),
        1 / np.sqrt(1 + (slopes**2).sum(axis=1)),
        lesion_is_soft and cord_is_soft,
    )


def _fractions(image: nib.Nifti1Image, name: str) -> tuple[Values, bool, Floats]:
    """Return a map as it lies in the body (right, anterior, superior), whether it is soft, and its affine."""
    values = read_values(image, name)
    content = classify(values)
    raise_first_error(content_findings(name, values, content=content))
    upright, affine = turned(as_fractions(values, content), np.asarray(image.affine, np.float64), np.eye(4))
    return upright, content.kind is MapKind.SOFT, affine


# Which voxels


def _pieces(lesion: Values) -> tuple[npt.NDArray[np.int32], int]:
    """Return the number of the lesion of each voxel, the largest is 1, and how many there are.

    What is above 0 beside a piece of the map > 0.5 belongs to it, watersheds between pieces.
    """
    from skimage.segmentation import watershed  # only here: it takes longer to load than a map to read

    cores, count = ndimage.label(lesion > HARD_THRESHOLD, _AROUND)
    if not count:
        return cores, 0
    pieces = watershed(-lesion, cores, connectivity=_AROUND, mask=lesion > 0)
    sums = np.bincount(pieces.ravel(), lesion.ravel(), minlength=count + 1)[1:]
    renumbered = np.zeros(count + 1, dtype=np.int32)
    renumbered[1 + np.argsort(-sums, kind="stable")] = np.arange(1, count + 1)
    return renumbered[pieces], count


def _in_cord(image: CordImage, pieces: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.bool_]:
    """Return whether each lesion > 0.5 has a voxel in the cord > 0.5, (count,)."""
    both = (image.lesion > HARD_THRESHOLD) & (image.cord > HARD_THRESHOLD)
    return np.bincount(pieces[both], minlength=count + 1)[1:] > 0


def _check_cord_reaches(
    image: CordImage, pieces: npt.NDArray[np.int32], boxes: Sequence[Box], overlaps: npt.ArrayLike, name: str
) -> None:
    has_cord = np.asarray((image.cord > HARD_THRESHOLD).any(axis=(0, 1)))
    for number in (int(index) + 1 for index in np.flatnonzero(overlaps)):
        box = boxes[number - 1]
        core = (pieces[box] == number) & (image.lesion[box] > HARD_THRESHOLD)
        without = np.flatnonzero(np.asarray(core.any(axis=(0, 1))) & ~has_cord[box[2]])
        if without.size:
            raise UserError(
                f"{name}: expected the cord in every slice of lesion {number}, found {without.size} slice(s) "
                "without it: the cord ends inside the lesion, complete it"
            )


def _middle(lesion: Values, pieces: npt.NDArray[np.int32], boxes: Sequence[Box], index: int) -> int:
    """Return the axial slice of the centre of a lesion, by its index in the boxes."""
    box = boxes[index]
    along = np.where(pieces[box] == index + 1, lesion[box], 0).sum(axis=(0, 1), dtype=np.float64)
    first: int = box[2].start
    return round(first + float(np.arange(len(along)) @ along / along.sum()))


# Size


def _size(image: CordImage, alone: Values, box: Box) -> dict[str, object]:
    """Return volume, extents, diameter and damage ratio of one lesion; `alone` are its values in its box."""
    along = box[2]
    area = alone.sum(axis=(0, 1), dtype=np.float64)
    of_cord = image.cord[:, :, along].sum(axis=(0, 1), dtype=np.float64)
    core = alone > HARD_THRESHOLD
    there, profile = np.asarray(core.any(axis=(0, 1))), np.asarray(core.any(axis=0))
    extent = len(profile) - profile.argmax(axis=0) - profile[::-1].argmax(axis=0)
    across_mm2 = (area * image.whole[along]).max() * image.frame.pixel_mm2
    measured = there & (of_cord > 0)
    return {
        "volume_mm3": area.sum() * image.grid.voxel_mm3,
        "length_mm": (image.frame.spacing_mm / image.whole[along][there]).sum(),
        "width_mm": (extent * image.sagittal[along])[there].max() * image.grid.spacing_mm[1],
        "equivalent_diameter_mm": 2 * np.sqrt(across_mm2 / np.pi),
        "axial_damage_ratio": (area[measured] / of_cord[measured]).max() if measured.any() else np.nan,
    }


# Bridges


def _bridges_of(
    image: CordImage, plane: MidsagittalPlane, alone: Values, box: Box, *, soft: bool
) -> tuple[tuple[Bridge, Bridge], str, bool]:
    """Return (dorsal, ventral) of one lesion, "soft" or "hard", and whether it is in the plane.

    Soft only if it fills voxels of the plane.
    """
    cord = image.cord[:, :, box[2]]
    lesion = np.zeros_like(cord)
    lesion[box[:2]] = alone
    spared = spared_in_plane(plane, cord, lesion, soft=soft)
    if soft and not np.isfinite(spared.dorsal).any():
        soft, spared = False, spared_in_plane(plane, cord, lesion, soft=False)
    is_in_plane = bool(np.isfinite(spared.dorsal).any())
    if not is_in_plane:
        half = (spared.cord_to - spared.cord_from) / 2
        half[~(lesion > HARD_THRESHOLD).any(axis=(0, 1))] = np.nan
        spared = replace(spared, dorsal=half, ventral=half)
    narrowest = []
    for widths, direction in ((spared.dorsal, 1), (spared.ventral, -1)):
        across = widths * image.sagittal[box[2]] * image.grid.spacing_mm[1]
        # Outside of the cord's own width in the plane there is nothing to spare.
        row = int(np.nanargmin(across)) if np.isfinite(across).any() else 0
        begin = float((spared.cord_from if direction > 0 else spared.cord_to)[row])
        end = begin + direction * float(widths[row])
        narrowest.append(Bridge(float(across[row]), box[2].start + row, begin, end))
    return (narrowest[0], narrowest[1]), "soft" if soft else "hard", is_in_plane


def _warnings(table: pd.DataFrame, name: str) -> Iterator[str]:
    """Say which lesions are to be looked at, a line for each flag."""
    meaning = {
        "outside": "not in the cord: no bridges, no damage ratio: a false voxel?",
        "protrudes": "more than a tenth outside the cord: is the cord complete?",
        "parasagittal": "not in the midsagittal plane: bridges are half the cord's A-P diameter each",
    }
    for flag, words in meaning.items():
        numbers = table.loc[table["flags"].str.contains(flag), "lesion"]
        if len(numbers):
            yield f"{name}: lesion {examples([str(number) for number in numbers], 6)}: {words}"


# In the midsagittal plane


def midsagittal_plane(cord: Values, middle: int) -> MidsagittalPlane:
    """Return the plane through the cord's centre along R-L, the mean of five axial slices around `middle`."""
    first = max(0, middle - _SLICES_EACH_WAY)
    mass = cord[:, :, first : middle + _SLICES_EACH_WAY + 1].sum(axis=1, dtype=np.float64)
    there = mass.sum(axis=0) > 0
    centres = (np.arange(len(mass)) @ mass)[there] / mass.sum(axis=0)[there]
    return MidsagittalPlane(float(centres.mean()))


@dataclass(frozen=True)
class Spared:
    """What a lesion spares in each axial slice of a plane, in voxels along A-P, (z,); NaN without a lesion.

    `cord_from` and `cord_to` are the cord's edges in the slice, voxel indices.
    """

    dorsal: Floats
    ventral: Floats
    cord_from: Floats
    cord_to: Floats


def spared_in_plane(
    plane: MidsagittalPlane,
    cord: Values,
    lesion: Values,
    *,
    soft: bool,
) -> Spared:
    """Return the widths in each slice of the plane: those of its two sagittal slices, linear in between.

    Where the lesion lies in one of the two only, that one's counts. Maps are (x, y, z), in [0, 1].
    """
    widths = _soft_widths if soft else _hard_widths
    both = [
        np.stack([*widths(cord[index], lesion[index]), *_edges(cord[index] > HARD_THRESHOLD)])
        for index in plane.slices
    ]
    return Spared(*plane.between(*both))


def _edges(mask: Mask) -> tuple[Floats, Floats]:
    """Return the edges of a mask (y, z) along y, (z,) each, in voxels from the first one's centre."""
    there = mask.any(axis=0)
    first, last = mask.argmax(axis=0) - 0.5, len(mask) - 0.5 - mask[::-1].argmax(axis=0)
    return np.where(there, first, np.nan), np.where(there, last, np.nan)


def _hard_widths(cord: Values, lesion: Values) -> tuple[Floats, Floats]:
    """Return the voxels > 0.5 of the cord (y, z) dorsal and ventral of those of the lesion within it."""
    inside = cord > HARD_THRESHOLD
    cord_from, cord_to = _edges(inside)
    lesion_from, lesion_to = _edges(inside & (lesion > HARD_THRESHOLD))
    return lesion_from - cord_from, cord_to - lesion_to


def _soft_widths(cord: Values, lesion: Values) -> tuple[Floats, Floats]:
    """Return the sums of cord minus lesion (y, z) dorsal and ventral of the lesion's centre.

    NaN where no voxel of the line is filled by the lesion.
    """
    whole, lost = cord.astype(np.float64), np.minimum(lesion, cord).astype(np.float64)
    filled = lost.max(axis=0) >= _FILLED_FROM
    index = np.arange(len(lost), dtype=np.float64)
    centre = (index @ lost) / np.where(filled, lost.sum(axis=0), np.nan)
    behind = np.clip(centre - index[:, None] + 0.5, 0, 1)
    spared = whole - lost
    return (spared * behind).sum(axis=0), (spared * (1 - behind)).sum(axis=0)
