"""The midsagittal plane of the cord, and what a lesion spares there in front of it and behind it.

Arrays are (x, y, z): right, anterior, superior. Source: tissue bridges of Huber et al. 2017
(doi:10.1002/ana.24932), as the Spinal Cord Toolbox defines them from version 7.3 on.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_softseg.settings import HARD_THRESHOLD

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_SLICES_EACH_WAY = 2
_FILLED_FROM = 0.95
"""A line without a voxel filled to this share has no soft width: what is short would count as spared."""


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

    def of_map(self, values: npt.NDArray[np.float32]) -> Floats:
        """Return a map in the plane: (y, z)."""
        first, second = (values[index].astype(np.float64) for index in self.slices)
        return self.between(first, second)


def midsagittal_plane(cord: npt.NDArray[np.float32], middle: int) -> MidsagittalPlane:
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
    cord: npt.NDArray[np.float32],
    lesion: npt.NDArray[np.float32],
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


def _hard_widths(cord: npt.NDArray[np.float32], lesion: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Return the voxels > 0.5 of the cord (y, z) dorsal and ventral of those of the lesion within it."""
    inside = cord > HARD_THRESHOLD
    cord_from, cord_to = _edges(inside)
    lesion_from, lesion_to = _edges(inside & (lesion > HARD_THRESHOLD))
    return lesion_from - cord_from, cord_to - lesion_to


def _soft_widths(cord: npt.NDArray[np.float32], lesion: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
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
