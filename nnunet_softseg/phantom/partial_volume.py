"""The voxels of one image, and the share of cord, CSF, grey matter in each: box integrals of the anatomy.

A voxel near the canal is divided into parts; in each part a boundary is taken as flat, and the part's share
on the inner side is that of a slab as wide as the part along the boundary's normal. So the error falls with
the square of the parts' size, where counting parts would leave steps of one over their number.
"""

# ruff: noqa: PLR2004 - the numbers draw grey matter and roots: mm, or relative to the radius of the cord

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.phantom.anatomy import Anatomy, Floats, SectionPoints, locate

# Largest part of a voxel in plane, in mm: where the cord's boundary may be, and elsewhere. Along the slice
# axis the cord changes slowly, and its tilt is in the width of the slab.
_PART_MM, _COARSE_PART_MM, _PART_SI_MM = 0.17, 0.4, 1.0
_CHUNK = 40_000  # parts at a time: small arrays stay in the processor's cache
_CANAL_REACH_MM = 16.0  # from the centreline, beyond the widest canal
_MARGIN_MM = 0.3  # by how much a boundary bends within a thick voxel, at most
# The cord lies in the anterior half of its sac, and most of the epidural fat behind it: centres on the v
# axis, in mm.
_THECAL_V_MM, _CANAL_V_MM = -0.5, -0.8


@dataclass(frozen=True)
class Grid:
    """A voxel grid in scanner RAS+ mm; slices are counted along the array axis that is closest to S-I.

    `shift_mm` is (slices, 2): how far the anatomy has moved in each slice along the slice's own R-L and A-P
    axes (positive to the right and to anterior), in mm.
    """

    shape: tuple[int, int, int]
    affine: Floats
    shift_mm: Floats

    @property
    def voxel_mm(self) -> Floats:
        """Size of a voxel along the array axes, (3,) in mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def array_axis(self) -> tuple[int, int, int]:
        """The array axis that is closest to R-L, A-P and S-I."""
        directions = np.abs(self.affine[:3, :3] / self.voxel_mm)
        rl, ap, si = (int(axis) for axis in directions.argmax(axis=1))
        return rl, ap, si

    @property
    def slice_axis(self) -> int:
        """The array axis that is closest to S-I."""
        return self.array_axis[2]

    @property
    def unit_axes(self) -> Floats:
        """Unit vectors (3, 3) as columns: along R-L, A-P, S-I, to the right, anterior, superior."""
        axes = self.affine[:3, list(self.array_axis)]
        signs = np.sign(np.diagonal(axes))
        return np.asarray(axes * signs / np.linalg.norm(axes, axis=0))

    def anatomy_mm(self, index: npt.NDArray[Any]) -> Floats:
        """Return the point of the unmoved anatomy, (3, N) in mm, seen at each voxel index, (3, N).

        The index may be fractional: it belongs to the nearest slice.
        """
        slices = np.rint(index[self.slice_axis]).astype(np.intp)
        scanner = self.affine[:3, :3] @ index + self.affine[:3, 3:]
        return np.asarray(scanner - self.moves_mm[:, slices])

    @property
    def moves_mm(self) -> Floats:
        """How far the anatomy has moved in each slice in the scanner, (3, slices) in mm."""
        return np.asarray(self.unit_axes[:, :2] @ self.shift_mm.T)

    def slice_centres_mm(self) -> Floats:
        """Return the centre of each slice in the scanner, (3, slices) in mm."""
        index = np.tile((np.array(self.shape, float)[:, None] - 1) / 2, self.shape[self.slice_axis])
        index[self.slice_axis] = np.arange(self.shape[self.slice_axis])
        return self.affine[:3, :3] @ index + self.affine[:3, 3:]


@dataclass(frozen=True)
class MaskBias:
    """How a rater's outline differs from the cord, slice by slice.

    `area` (slices,): relative error of the area, 0.08 is 8 % too large, made by moving the whole outline by
    one distance. `wobble_mm` (slices, 2): amplitudes of cos and sin of twice the angle around the cord, added
    to that distance.
    """

    area: Floats
    wobble_mm: Floats


@dataclass(frozen=True)
class Fractions:
    """Shares in [0, 1], (N,) each, of the voxels with the flat indices `voxels`; all others hold nothing.

    The bony canal holds the thecal sac, which holds the cord and the nerve roots; the cord holds the grey
    matter. `mask` is the cord as a rater outlines it. `height_mm` is where the voxel's centre lies along the
    cord.
    """

    voxels: npt.NDArray[np.intp]
    height_mm: Floats
    canal: Floats
    thecal: Floats
    cord: Floats
    grey: Floats
    roots: Floats
    mask: Floats


def cord_fraction(
    anatomy: Anatomy, shape: tuple[int, int, int], affine: Floats, *, refine: int = 1
) -> npt.NDArray[np.float32]:
    """Return the share of each voxel that is cord, in [0, 1]: the exact soft label of a grid.

    The affine, (4, 4) voxel index to RAS+ mm, may be oblique; `refine` divides the parts of a voxel further.
    """
    grid = Grid(shape, np.asarray(affine, float), np.zeros((max(shape), 2)))
    fractions = voxel_fractions(anatomy, grid, refine=refine)
    return to_volume(grid, fractions.voxels, fractions.cord)


def to_volume(grid: Grid, voxels: npt.NDArray[np.intp], values: Floats) -> npt.NDArray[np.float32]:
    """Return a volume of the grid's shape with these values at these flat indices, and 0 elsewhere."""
    volume = np.zeros(int(np.prod(grid.shape)), np.float32)
    volume[voxels] = values
    return volume.reshape(grid.shape)


def voxel_fractions(
    anatomy: Anatomy, grid: Grid, bias: MaskBias | None = None, *, refine: int = 1
) -> Fractions:
    """Return the shares of every voxel that the canal touches; without a bias, the mask is the cord itself.

    `refine` divides the parts of a voxel further; at 1, shares are right to about 0.002 (see the tests).
    """
    bias = bias or MaskBias(np.zeros(len(grid.shift_mm)), np.zeros((len(grid.shift_mm), 2)))
    index, height, at_boundary = _voxels_of_canal(anatomy, grid)
    shares = np.zeros((6, index.shape[1]))
    for some, part_mm in ((at_boundary, _PART_MM), (~at_boundary, _COARSE_PART_MM)):
        offsets, edges = _parts(grid, part_mm / refine)
        for chunk in _chunks(np.flatnonzero(some), offsets.shape[1]):
            slices = np.repeat(index[grid.slice_axis, chunk], offsets.shape[1])
            parts = (index[:, chunk, None] + offsets[:, None, :]).reshape(3, -1)
            points = locate(anatomy, grid.anatomy_mm(parts))
            of_parts = _shares(anatomy, points, edges, MaskBias(bias.area[slices], bias.wobble_mm[slices]))
            shares[:, chunk] = of_parts.reshape(6, chunk.size, -1).mean(axis=2)
    return Fractions(np.ravel_multi_index(tuple(index), grid.shape), height, *shares)


def _chunks(voxels: npt.NDArray[np.intp], parts: int) -> Iterator[npt.NDArray[np.intp]]:
    step = max(1, _CHUNK // parts)
    for start in range(0, voxels.size, step):
        yield voxels[start : start + step]


def _voxels_of_canal(
    anatomy: Anatomy, grid: Grid
) -> tuple[npt.NDArray[np.intp], Floats, npt.NDArray[np.bool_]]:
    """Return the voxels of the canal: indices (3, N), heights in mm, which may hold the cord's boundary."""
    low, high = _box_around_canal(anatomy, grid)
    index = np.indices(tuple(high - low)).reshape(3, -1) + low[:, None]
    points = locate(anatomy, grid.anatomy_mm(index))
    height, spread = anatomy.height_mm(points.z), _spread(points, grid.affine[:3, :3])
    to_canal, width = _ellipse(points, _CANAL_V_MM, anatomy.canal_axes(height), spread)
    to_cord, cord_width = _ellipse(points, 0.0, anatomy.cord_axes(height), spread)
    # A box reaches at most sqrt(3)/2 of the root of its summed squares from its centre.
    touched = to_canal < np.sqrt(3) / 2 * width + _MARGIN_MM
    at_boundary = np.abs(to_cord) < np.sqrt(3) / 2 * cord_width + _MARGIN_MM
    return index[:, touched], height[touched], at_boundary[touched]


def _box_around_canal(anatomy: Anatomy, grid: Grid) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the first and one past the last index of the box of voxels that holds the canal."""
    centres = grid.slice_centres_mm()
    reach = np.abs(np.diff(centres[2])).max(initial=1.0)
    low_mm, high_mm = centres[2].min() - reach, centres[2].max() + reach
    z = np.linspace(low_mm - _CANAL_REACH_MM, high_mm + _CANAL_REACH_MM, 400)
    line = np.vstack([anatomy.centreline(z)[0], z])
    index = np.linalg.inv(grid.affine)[:3] @ np.vstack([line, np.ones(z.size)])
    reach_voxels = (_CANAL_REACH_MM + np.abs(grid.shift_mm).max(initial=0.0)) / grid.voxel_mm
    low = np.floor(index.min(axis=1) - reach_voxels).astype(np.intp)
    high = np.ceil(index.max(axis=1) + reach_voxels).astype(np.intp) + 1
    return np.clip(low, 0, grid.shape), np.clip(high, 0, grid.shape)


def _parts(grid: Grid, part_mm: float) -> tuple[Floats, Floats]:
    """Return the centres of a voxel's parts, (3, parts) in voxels from its own, and a part's edges in mm."""
    limits = np.full(3, part_mm)
    limits[grid.slice_axis] *= _PART_SI_MM / _PART_MM
    counts = np.ceil(grid.voxel_mm / limits - 1e-6).astype(int)
    along = [(np.arange(count) + 0.5) / count - 0.5 for count in counts]
    return np.array(list(product(*along))).T, grid.affine[:3, :3] / counts


def _shares(anatomy: Anatomy, points: SectionPoints, edges: Floats, bias: MaskBias) -> Floats:
    """Return (6, N): shares of canal, thecal sac, cord, grey matter, roots, mask in boxes at the points."""
    height = anatomy.height_mm(points.z)
    spread = _spread(points, edges)
    axes = anatomy.cord_axes(height)
    canal = _share(*_ellipse(points, _CANAL_V_MM, anatomy.canal_axes(height), spread))
    thecal = _share(*_ellipse(points, _THECAL_V_MM, anatomy.thecal_axes(height), spread))
    cord = _share(*_ellipse(points, 0.0, axes, spread))
    move = _outline_move(axes, bias.area)
    distance, width = _ellipse(points, 0.0, (axes[0] + move, axes[1] + move), spread)
    mask = _share(distance - _wobble(points, axes, bias.wobble_mm), width)
    roots = (thecal - cord) * _is_root(points, axes, anatomy.distance_to_disc_mm(height))
    return np.stack([canal, thecal, cord, cord * _is_grey(points, axes), roots, mask])


def _spread(points: SectionPoints, edges: Floats) -> tuple[Floats, Floats, Floats]:
    """Return sums over a box's edges of products of their u and v components: uu, uv, vv in mm2."""
    metric = edges @ edges.T
    u, v = points.direction_u, points.direction_v
    metric_u = [sum(metric[i, j] * u[j] for j in range(3)) for i in range(3)]
    uu = sum(u[i] * metric_u[i] for i in range(3))
    uv = sum(v[i] * metric_u[i] for i in (1, 2))  # v has no x component
    vv = metric[1, 1] * v[1] ** 2 + 2 * metric[1, 2] * v[1] * v[2] + metric[2, 2] * v[2] ** 2
    return uu, uv, vv


def _ellipse(
    points: SectionPoints,
    centre_v: float,
    axes: tuple[Floats, Floats],
    spread: tuple[Floats, Floats, Floats],
) -> tuple[Floats, Floats]:
    """Return the distance to an ellipse (first order, negative inside) and the width of the box, in mm.

    The width is that of the one-dimensional box with the same variance as the box of this spread seen along
    the normal.
    """
    u, v = points.u, points.v - centre_v
    normal_u, normal_v = u / axes[0] ** 2, v / axes[1] ** 2
    norm = np.sqrt(normal_u**2 + normal_v**2) + 1e-9
    radius = np.sqrt(u * normal_u + v * normal_v)
    per_norm = (radius + 1e-9) / norm
    squares = normal_u**2 * spread[0] + 2 * normal_u * normal_v * spread[1] + normal_v**2 * spread[2]
    squares /= norm**2
    # A box on a convex boundary holds less than one on a flat boundary: half of its mean sagitta.
    curvature = per_norm**3 / (axes[0] * axes[1]) ** 2
    return (radius - 1) * per_norm + curvature * squares / 24, np.sqrt(squares)


def _share(distance: Floats, width: Floats) -> Floats:
    """Return the share of a box of this width inside a flat boundary at this distance from its centre."""
    return np.clip(0.5 - distance / (width + 1e-9), 0.0, 1.0)


def _outline_move(axes: tuple[Floats, Floats], area: Floats) -> Floats:
    """Return by how much both semi-axes a, b grow, in mm, so that (a + d)(b + d) = a b (1 + area)."""
    total, product_ = axes[0] + axes[1], axes[0] * axes[1]
    return (np.sqrt(total**2 + 4 * product_ * area) - total) / 2


def _wobble(points: SectionPoints, axes: tuple[Floats, Floats], wobble_mm: Floats) -> Floats:
    """Return how far the outline lies outside of its ellipse in the direction of each point, in mm."""
    u, v = points.u / axes[0], points.v / axes[1]
    squared = u**2 + v**2 + 1e-9
    return (wobble_mm[:, 0] * (u**2 - v**2) + wobble_mm[:, 1] * 2 * u * v) / squared


def _is_grey(points: SectionPoints, axes: tuple[Floats, Floats]) -> npt.NDArray[np.bool_]:
    """Return where the butterfly is: ventral and dorsal horns, what lies between, the commissure; 15 %."""
    u, v = np.abs(points.u / axes[0]), points.v / axes[1]
    ventral = ((u - 0.27) / 0.15) ** 2 + ((v - 0.26) / 0.21) ** 2 < 1
    between = ((u - 0.22) / 0.12) ** 2 + (v / 0.22) ** 2 < 1
    along, across = 0.32 * (u - 0.31) - 0.947 * (v + 0.30), 0.947 * (u - 0.31) + 0.32 * (v + 0.30)
    dorsal = (along / 0.40) ** 2 + (across / 0.075) ** 2 < 1
    commissure = (u < 0.26) & (np.abs(v - 0.02) < 0.06)
    return ventral | between | dorsal | commissure


def _is_root(points: SectionPoints, axes: tuple[Floats, Floats], to_disc_mm: Floats) -> npt.NDArray[np.bool_]:
    """Return where the roots are: threads from the cord's four corners to the sides, above each disc."""
    out = np.abs(points.u) - 0.62 * axes[0]
    line = 0.62 * axes[1] - 0.25 * out
    thread = np.abs(np.abs(points.v) - line) < 0.4
    window = np.abs(to_disc_mm - 4.0 + 0.6 * out) < 3.0
    return (out > 0) & thread & window
