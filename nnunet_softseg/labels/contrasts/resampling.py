"""A mask read anywhere in space: linear, along the cord from slice to slice, weighted by coverage."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.labels.contrasts.alignment import Motion, PiecewiseLinear, centres_of_mass
from nnunet_softseg.labels.contrasts.volume import Floats, Volume

# Indices closer to a whole number than this are meant to be whole: an affine read from a file has 7 digits,
# and a mask on the same grid must come through without a 0.9999.
_INDEX_DECIMALS = 4
_SAMPLES_PER_SLICE = 1.5
"""How densely a thick slice is sampled: per slice of the mask that is read."""


@dataclass(frozen=True, eq=False)
class SlicedMask:
    """A mask as its rater saw it: slice by slice.

    Attributes:
        mask: upright, cropped to what is not 0.
        covered: (slices,) 1 where the slice has a mask that takes part, else 0.
        path: slice index -> voxel index (R-L, A-P) of the cord's centre.
    """

    mask: Volume
    covered: Floats
    path: PiecewiseLinear

    def read(self, points: Floats) -> tuple[Floats, Floats]:
        """Return mask times coverage, and coverage, at points: (3, N) in scanner mm -> (N,) twice.

        Both are linear between slices and 0 one slice beyond the covered ones. From one slice to the next
        the mask is read along the cord, not straight up: between slices 5 mm apart, a cord that leans by 15
        degrees moves by 1.3 mm, and halfway it must be one cord and not two halves.
        """
        index = np.round(self.mask.to_index(points), _INDEX_DECIMALS)
        below = np.floor(index[2])
        above_share = index[2] - below
        centre = self.path.at(index[2])
        numbers, weighted, weight = np.arange(self.covered.size), np.zeros(below.size), np.zeros(below.size)
        for slices, nearness in ((below, 1 - above_share), (below + 1, above_share)):
            share = nearness * np.interp(slices, numbers, self.covered, left=0, right=0)
            used = np.flatnonzero(share)
            in_plane = (index[:2] - centre)[:, used] + self.path.at(slices[used])
            place = np.vstack([np.round(in_plane, _INDEX_DECIMALS), slices[None, used]])
            between = ndimage.map_coordinates(
                self.mask.values, place, output=np.float64, order=1, mode="grid-constant", cval=0.0
            )
            weighted[used] += share[used] * between
            weight += share
        return weighted, weight

    def reach_mm(self) -> float:
        """Return the largest distance of the mask from the cord's centre in its slices, plus a voxel."""
        size = self.mask.voxel_mm[:2]
        index = np.array(np.nonzero(self.mask.values), np.float64)
        away = (index[:2] - self.path.at(index[2])) * size[:, None]
        return float(np.linalg.norm(away, axis=0).max() + np.linalg.norm(size))


def sliced(mask: Volume, motion: Motion, trim_mm: float) -> SlicedMask:
    """Return an upright, cropped mask ready to be read, without `trim_mm` at both ends."""
    centres = centres_of_mass(mask)
    covered = np.zeros(mask.values.shape[2])
    covered[centres.slices] = 1.0
    if trim_mm > 0:
        thickness = mask.voxel_mm[2]
        middle = (centres.slices - centres.slices[0] + 0.5) * thickness
        length = (centres.slices[-1] - centres.slices[0] + 1) * thickness
        covered[centres.slices[(middle < trim_mm) | (middle > length - trim_mm)]] = 0.0
    path = mask.to_index(motion.cord.values.T)
    return SlicedMask(mask, covered, PiecewiseLinear(motion.cord.knots, path[:2].T))


def box_offsets(target: Volume, source: Volume, *, box: bool) -> Floats:
    """Return where a voxel of the target reads the source: (3, m) in mm from its centre, along its thickness.

    A thick slice is a mean over its thickness. The source is a mean over its own thickness already, so the
    box that is left has a width of the root of the difference of squares: variances of boxes add up. None is
    left if the source's slices are as thick or thicker, nor without `box`. Both volumes are upright.
    """
    thickness, given = _thickness_mm(target), _thickness_mm(source)
    width = float(np.sqrt(max(thickness**2 - given**2, 0.0))) if box else 0.0
    count = max(1, int(np.ceil(_SAMPLES_PER_SLICE * width / given)))
    steps = ((np.arange(count) + 0.5) / count - 0.5) * width
    return np.asarray(target.affine[:3, 2:3] / target.voxel_mm[2] * steps)


def _thickness_mm(grid: Volume) -> float:
    """Return how thick the slices of an upright volume are; they don't overlap."""
    apart = float(grid.voxel_mm[2])
    return apart if grid.thickness_mm is None else min(grid.thickness_mm, apart)


def voxels_around(
    path: PiecewiseLinear, grid: Volume, slices: npt.NDArray[np.intp], reach_mm: float
) -> npt.NDArray[np.intp]:
    """Return the voxel indices (3, N) within `reach_mm` of the cord's path, in slices (n >= 1,) of a grid.

    The path: slice index -> voxel index (R-L, A-P) of the cord's centre. The grid is upright.
    """
    reach, shape = reach_mm / grid.voxel_mm[:2], grid.values.shape[:2]
    windows = []
    for number, centre in zip(slices, path.at(slices.astype(np.float64)).T, strict=True):
        low = np.clip(np.floor(centre - reach), 0, shape).astype(np.intp)
        high = np.clip(np.ceil(centre + reach) + 1, 0, shape).astype(np.intp)
        sides = [np.arange(first, last) for first, last in zip(low, high, strict=True)]
        windows.append(np.stack(np.meshgrid(*sides, [number], indexing="ij")).reshape(3, -1))
    return np.concatenate(windows, axis=1)
