"""Recentring: the patch placed along a cord that does not run in the middle of its image.

One coarse pass shows the network the whole image in-plane, at its own resolution, and half as many slices
along S-I: a tube looks the same when it is shortened, but not when it is thinned. The path with the largest
sum of ring contrast is found through the response, from the first slice to the last. Where it stays in the
middle of one box, the network sees that box. Else the patch follows it: each slice is sheared upright, and
compressed by cos θ in the direction of the tilt: a cylinder cut at an angle θ is longer there by 1 / cos θ.

A cord tilted by 30 degrees is hardly known to a network that saw upright ones: so coarse passes through the
image sheared by 27 degrees to either side give further candidates.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.network.soft_map import robust_peak
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box
from nnunet_softseg.preprocessing.resampling import area_means

Image = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]
WINDOW_VOXELS = 32 * 192 * 320
"""Of a window of the coarse pass, at most: half of the patch of the paper, as to memory."""
SI_STRIDE = 2
STEEPEST = 1.0
"""How far the path may move in-plane along S-I, mm per mm: 45 degrees."""
_FEWEST_WINDOW_SLICES = 16
_OVERLAP = 0.25
WIDEST = math.isqrt(WINDOW_VOXELS // _FEWEST_WINDOW_SLICES)
"""In-plane extent that is searched, in voxels: 350, in the middle of larger images."""
MOST_CANDIDATES = 5
LEAST_RING_CONTRAST = 0.1
"""Of a candidate, the mean over all slices: a fifth of them may hold all of the cord. (Phantoms, four
trainings: 0.26 to 0.7 along a cord, 0.0 to 0.7 without one.) Refuted by a real cord in a path below."""
SHEARS = ((0.0, 0.0), (-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5))
"""Of the image that is searched, mm in-plane per mm along S-I."""
_BESIDE = 3.0  # radii between one candidate and the next
_CENTRE, _AROUND = 0.6, 2.2  # smoothing of the centre and distance of the ring, in radii of the structure
_DIRECTIONS = 8
_MOVE_COST = 0.02  # per mm, in units of the response
_SMOOTH_MM = 6.0
_UNSURE_MM = 5.0  # at either end of a map: its middle is that of the path, rather than of the cord
_END_MM = 8.0  # of the rest, by which the path is extended
_FEWEST_SURE = 4  # as many lengths of the unsure end, or all of it is taken
_HALF = 0.5
_LEAST_REFERENCE = 1e-6
_TRUNCATE = 4.0  # of the smoothing, in its sigmas
_DRIFT = 0.25
"""How far the path may move within one box, relative to the patch: then it stays near the box's middle."""
_SPLINE_MARGIN = 3  # voxels around a slice that is shifted


class WholeImage:
    """A preprocessed case (channel, *space) on the network's grid, in memory.

    `network_image.NetworkImage` makes the parts that are asked for.
    """

    def __init__(self, image: Values) -> None:
        self._values = image
        self.shape: tuple[int, ...] = tuple(image.shape[1:])

    def extract(self, box: Box) -> Image:
        """Return (channel, *size of the box), 0 outside of the case."""
        return self._padded(box, self.shape)

    def _padded(self, box: Box, shape: tuple[int, ...]) -> Image:
        """Return a box of the case on a grid of that shape, 0 outside of the case."""
        padded = np.zeros((len(self._values), *(stop - start for start, stop in box)), np.float32)
        within = inside(box, shape)
        if all(extent.stop > extent.start for extent in within):
            padded[(slice(None), *inside_of_box(box, shape))] = self._part(within, shape)
        return padded

    def _part(self, within: tuple[slice, ...], shape: tuple[int, ...]) -> Values:
        """Return a part that lies inside the case, on a grid of that shape: here that of the values."""
        del shape
        return self._values[(slice(None), *within)]

    def own_slices(self, box: Box, axis: int) -> Values:
        """Return (channel, *size of the box), but along the axis the image's own slices: here the grid's."""
        del axis
        return self.extract(box)

    def slice_positions(self, axis: int) -> Floats:
        """Return the positions of these, in slices of the network's grid."""
        return np.arange(self.shape[axis], dtype=np.float64)

    def interpolated(self, own_slices: Values, axis: int) -> Values:
        """Return own slices interpolated along the axis, on the network's grid."""
        del axis
        return own_slices

    def coarse(self, stride: Sequence[int], part: Sequence[slice]) -> Image:
        """Return a part of the case averaged onto a grid of (channel, *ceil(shape / stride)), float32.

        Voxel j of that grid is the mean of the image over voxels j * stride to (j + 1) * stride of the
        network's grid; what sticks out of the case is left out of the mean. No more than the part is made.
        """
        sizes = zip(self._values.shape[1:], self.shape, stride, part, strict=True)
        first, second, third = (
            area_means(source, -(-target // step), step * source / target).astype(np.float32)[rows]
            for source, target, step, rows in sizes
        )
        channels = [np.tensordot(first, second @ (channel @ third.T), axes=1) for channel in self._values]
        return np.stack(channels).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Grid:
    """Grid of a model.

    Attributes:
        si_axis: array axis along S-I.
        spacing_mm: per axis.
        patch_size: per axis.
        total_stride: of the network per axis; the size of an image it takes is a multiple of it.
        radius: of the structure in-plane, in voxels.
    """

    si_axis: int
    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    total_stride: tuple[int, ...]
    radius: float

    @property
    def in_plane(self) -> tuple[int, ...]:
        """The other axes."""
        return tuple(axis for axis in range(len(self.patch_size)) if axis != self.si_axis)


@dataclass(frozen=True)
class Placement:
    """Where the patch lies in each slice of a case.

    Attributes:
        centres: (slices, 2) of the patch in-plane, in voxels of the network's grid; where the cord is
            straight enough that of one box, the same in every slice.
        stretches: (slices, 2, 2) from a way in the patch to that in the case, both in voxels and from its
            centre: 1 / cos θ in the direction of the tilt, 1 across it.
        size: (2,) of the patch in-plane.
        si_axis: array axis along S-I.
    """

    centres: Floats
    stretches: Floats
    size: tuple[int, int]
    si_axis: int

    @property
    def is_straight(self) -> bool:
        """Whether it is one box."""
        return bool((self.centres == self.centres[0]).all() and (self.stretches == np.eye(2)).all())

    @property
    def tilt_factor(self) -> Floats:
        """(slices,) area of an axial section over that of one across the path: 1 / cos θ."""
        return np.asarray(np.linalg.det(self.stretches), dtype=np.float64)

    @property
    def box(self) -> Box:
        """The smallest box of the case that holds the patch of every slice."""
        reach = np.abs(self.stretches) @ self._middle
        first = np.floor((self.centres - reach).min(axis=0)).astype(int)
        last = np.ceil((self.centres + reach).max(axis=0)).astype(int)
        in_plane = [(int(start), int(stop) + 1) for start, stop in zip(first, last, strict=True)]
        in_plane.insert(self.si_axis, (0, len(self.centres)))
        return tuple(in_plane)

    def patch(self, image: WholeImage) -> Image:
        """Return the network's input (channel, *space): the box, or its slices set upright."""
        if self.is_straight:
            return image.extract(self.box)
        margin = [0 if axis == self.si_axis else _SPLINE_MARGIN for axis in range(len(self.box))]
        around = tuple((start - m, stop + m) for (start, stop), m in zip(self.box, margin, strict=True))
        wide = np.moveaxis(image.own_slices(around, self.si_axis), 1 + self.si_axis, 1)
        places = image.slice_positions(self.si_axis)
        centres = _at(self._within_box(), places) + _SPLINE_MARGIN
        stretches = _at(self.stretches, places)
        slices = np.empty((*wide.shape[:2], *self.size), np.float32)
        for channel, place in np.ndindex(*wide.shape[:2]):
            offset = centres[place] - stretches[place] @ self._middle
            slices[channel, place] = _read(wide[channel, place], stretches[place], offset, self.size, order=3)
        upright = image.interpolated(np.moveaxis(slices, 1, 1 + self.si_axis), self.si_axis)
        return np.ascontiguousarray(upright, dtype=np.float32)

    def put_back(self, maps: Image) -> Image:
        """Return maps of the patch in the box, (label, *size of the box): linear, 0 elsewhere.

        The sum of a slice grows as the slice was compressed for the network.
        """
        if self.is_straight:
            return maps
        slices = np.moveaxis(maps, 1 + self.si_axis, 1)
        plane = tuple(stop - start for axis, (start, stop) in enumerate(self.box) if axis != self.si_axis)
        back = np.empty((*slices.shape[:2], *plane), np.float32)
        centres = self._within_box()
        for label, place in np.ndindex(*slices.shape[:2]):
            shrink: Floats = np.linalg.inv(self.stretches[place]).astype(np.float64)
            # A voxel of zeros around it: beyond its edge the map falls to 0 over one voxel.
            offset = 1 + self._middle - shrink @ centres[place]
            back[label, place] = _read(np.pad(slices[label, place], 1), shrink, offset, plane, order=1)
        return np.moveaxis(back, 1, 1 + self.si_axis)

    def coverage(self) -> npt.NDArray[np.bool_]:
        """Return which voxels of the box the network saw."""
        shape = [*self.size]
        shape.insert(self.si_axis, len(self.centres))
        covered: npt.NDArray[np.bool_] = self.put_back(np.ones((1, *shape), np.float32))[0] > _HALF
        return covered

    def as_json(self) -> dict[str, Any]:
        """Return it as softseg.json tells it, on the network's grid."""
        return {
            "box": [list(extent) for extent in self.box],
            "straight": self.is_straight,
            "first_slice": [round(float(centre), 1) for centre in self.centres[0]],
            "last_slice": [round(float(centre), 1) for centre in self.centres[-1]],
            "steepest_deg": round(float(np.degrees(np.arccos(1 / self.tilt_factor.max()))), 1),
        }

    @property
    def _middle(self) -> Floats:
        middle: Floats = (np.array(self.size) - 1) / 2
        return middle

    def _within_box(self) -> Floats:
        in_plane = [start for axis, (start, _) in enumerate(self.box) if axis != self.si_axis]
        within: Floats = self.centres - in_plane
        return within


def _at(values: Floats, places: Floats) -> Floats:
    """Return values per slice of the network's grid, (slices, ...), at places between them."""
    columns = values.reshape(len(values), -1).T
    between = [np.interp(places, np.arange(len(values)), column) for column in columns]
    return np.stack(between, axis=1).reshape(len(places), *values.shape[1:])


def _read(
    plane: npt.NDArray[np.float32], matrix: Floats, offset: Floats, size: Sequence[int], *, order: int
) -> Floats:
    """Return a part of a plane, from anywhere between its voxels; 0 beyond it."""
    part: Floats = ndimage.affine_transform(
        plane, matrix, offset=offset, output_shape=tuple(size), order=order, mode="constant"
    )
    return part


def place(centres: Floats, shape: Sequence[int], grid: Grid) -> Placement:
    """Return the patch placed along a path, inside a case of that shape where it can be.

    The path is given by its centres (slices, 2), in voxels, for each slice of the network's grid.
    """
    sizes, patch = (
        np.array([lengths[axis] for axis in grid.in_plane]) for lengths in (shape, grid.patch_size)
    )
    if (np.ptp(centres, axis=0) <= _DRIFT * patch).all():
        middle = (centres.max(axis=0) + centres.min(axis=0)) / 2
        centres = np.tile(np.round(middle + 0.5 - patch / 2) + (patch - 1) / 2, (len(centres), 1))
    stretches = _stretches(centres, grid)
    starts = np.clip(centres - (patch - 1) / 2, 0, np.maximum(sizes - patch, 0))
    # As the fixed patch: around the middle of a case that is smaller.
    starts = np.where(sizes <= patch, (sizes - patch) // 2, starts)
    return Placement(starts + (patch - 1) / 2, stretches, (int(patch[0]), int(patch[1])), grid.si_axis)


def _stretches(centres: Floats, grid: Grid) -> Floats:
    """Return (slices, 2, 2): 1 / cos θ = √(1 + slope²) in the direction of the path's tilt."""
    in_plane = np.array([grid.spacing_mm[axis] for axis in grid.in_plane])
    slopes = np.zeros_like(centres)
    if len(centres) > 1:
        slopes = np.gradient(centres, axis=0) * in_plane / grid.spacing_mm[grid.si_axis]
    steep = np.linalg.norm(slopes, axis=1, keepdims=True)
    direction = np.divide(slopes, steep, out=np.zeros_like(slopes), where=steep > 0)
    longer = (np.sqrt(1 + steep**2) - 1)[:, :, None] * direction[:, :, None] * direction[:, None, :]
    # In voxels on both sides: from voxels to mm, stretched, and back.
    stretches: Floats = np.eye(2) + longer * in_plane[None, None, :] / in_plane[None, :, None]
    return stretches


class Candidate(NamedTuple):
    """A placement of the patch, and the ring contrast along its path: the mean over the slices."""

    placement: Placement
    ring_contrast: float


def candidates(
    image: WholeImage,
    forward: Callable[[Image], Image],
    reference: Values,
    grid: Grid,
    tilted: bool = True,
) -> Iterator[Candidate]:
    """Yield placements of the patch, that of the largest ring contrast first, then the next best beside it.

    After these follow, if tilted, the best in the image sheared to each side: four more coarse passes. Where
    no path reaches the least ring contrast, there are none. `forward` is (channel, *space) -> raw output
    (label, *space), for any multiple of the total stride; the reference (label,) the running scale, 0 where
    not known.
    """
    stride = coarse_stride(grid)
    si, (first, second) = grid.si_axis, grid.in_plane
    # In-plane the coarse image is as fine as the case.
    skipped = [max(0, image.shape[axis] - WIDEST) // 2 for axis in (first, second)]
    searched = [slice(None)] * len(image.shape)
    for axis, start in zip((first, second), skipped, strict=True):
        searched[axis] = slice(start, start + WIDEST)
    coarse = image.coarse(stride, searched)
    in_plane = tuple(grid.spacing_mm[axis] for axis in (first, second))
    step_mm = grid.spacing_mm[si] * stride[si]
    # From the centre of a coarse slice to those of the slices that it is the mean of.
    at = (np.arange(image.shape[si]) + 0.5) / stride[si] - 0.5
    anything = False
    for shear in SHEARS if tilted else SHEARS[:1]:
        shifts = _shifts(shear, coarse.shape[1 + si], step_mm, in_plane)
        upright = sheared(coarse, shifts, si)
        response = coarse_response(upright, forward, reference, grid)
        wanted = ring_contrast(np.moveaxis(response, si, 0), grid.radius)
        for _ in range(MOST_CANDIDATES if shear == SHEARS[0] else 1):
            path = best_path(wanted, step_mm, in_plane)
            along = float(wanted[np.arange(len(path)), path[:, 0], path[:, 1]].mean())
            if along < LEAST_RING_CONTRAST:
                break
            anything = True
            smooth = _smoothed((path + shifts).astype(np.float64), step_mm) + skipped
            centres = np.stack([np.interp(at, np.arange(len(smooth)), line) for line in smooth.T], axis=1)
            yield Candidate(place(centres, image.shape, grid), along)
            wanted = without(wanted, path, grid.radius)
        if not anything:
            return


def _shifts(
    shear: tuple[float, float], slices: int, step_mm: float, in_plane_mm: Sequence[float]
) -> npt.NDArray[np.intp]:
    """Return (slices, 2): the shift of each slice of a sheared image, in voxels; 0 in the middle."""
    height_mm = (np.arange(slices) - (slices - 1) / 2) * step_mm
    shifts: Floats = np.round(height_mm[:, None] * shear / np.array(in_plane_mm))
    return shifts.astype(np.intp)


def sheared(image: Image, shifts: npt.NDArray[np.intp], si_axis: int) -> Image:
    """Return an image (channel, *space) whose slices along S-I are shifted back in-plane, 0 where empty.

    The shifts are (slices, 2), in voxels along the other two axes.
    """
    slices = np.moveaxis(image, 1 + si_axis, 0)
    result = np.zeros_like(slices)
    for into, plane, shift in zip(result, slices, shifts, strict=True):
        rows, columns = (
            (slice(max(0, -by), size - max(0, by)), slice(max(0, by), size + min(0, by)))
            for by, size in zip(shift.tolist(), plane.shape[1:], strict=True)
        )
        if all(part.stop > part.start for part in (*rows, *columns)):
            into[:, rows[0], columns[0]] = plane[:, rows[1], columns[1]]
    return np.moveaxis(result, 0, 1 + si_axis)


def refined(placement: Placement, soft_map: Image, shape: Sequence[int], grid: Grid) -> Placement:
    """Return the patch placed along a soft map: a finer path than that of the coarse pass.

    The map, (label, *size of its box), is that of a patch at the placement given, in a case of that shape.
    """
    found = np.moveaxis(soft_map.sum(0), grid.si_axis, 0)
    areas = found.sum(axis=(1, 2))
    is_whole = areas > _HALF * np.median(areas[areas > 0]) if areas.any() else areas > 0
    if not is_whole.any():
        return placement
    box = [extent for axis, extent in enumerate(placement.box) if axis != grid.si_axis]
    middles = np.array([ndimage.center_of_mass(section) for section in found[is_whole]])
    middles += [start for start, _ in box]
    places = np.flatnonzero(is_whole)
    unsure = round(_UNSURE_MM / grid.spacing_mm[grid.si_axis])
    if len(places) > _FEWEST_SURE * unsure:
        sure = slice(unsure, len(places) - unsure)
        places, middles = places[sure], middles[sure]
    between = np.arange(places[0], places[-1] + 1)
    line = np.stack([np.interp(between, places, middle) for middle in middles.T], axis=1)
    smooth = _smoothed(line, grid.spacing_mm[grid.si_axis])
    end = math.ceil(_END_MM / grid.spacing_mm[grid.si_axis])
    return place(_straight_on(smooth, places[0], len(found) - 1 - places[-1], end), shape, grid)


def _straight_on(line: Floats, before: int, after: int, end: int) -> Floats:
    """Return a line with so many more slices before and after it, in the direction of so many at its end."""
    head, tail = (
        piece[-1] + np.arange(1, number + 1)[:, None] * (piece[-1] - piece[0]) / max(1, len(piece) - 1)
        for piece, number in ((line[end::-1], before), (line[-1 - end :], after))
    )
    longer: Floats = np.concatenate([head[::-1], line, tail])
    return longer


def coarse_stride(grid: Grid) -> tuple[int, ...]:
    """Return the stride of the coarse pass per axis; of thick slices none is skipped."""
    finest = min(grid.spacing_mm[axis] for axis in grid.in_plane)
    along = SI_STRIDE if grid.spacing_mm[grid.si_axis] < SI_STRIDE * finest else 1
    return tuple(along if axis == grid.si_axis else 1 for axis in range(len(grid.patch_size)))


def _smoothed(path: Floats, step_mm: float) -> Floats:
    """Return a path as a smooth line, which goes straight on at its ends."""
    sigma = _SMOOTH_MM / step_mm
    beyond = math.ceil(_TRUNCATE * sigma)
    # Else it would level out at its ends: a tilted cord would drift out of the middle, and seem upright.
    longer = np.pad(path, ((beyond, beyond), (0, 0)), mode="reflect", reflect_type="odd")
    smooth: Floats = ndimage.gaussian_filter1d(longer, sigma, axis=0, truncate=_TRUNCATE)
    return smooth[beyond:-beyond]


def coarse_response(
    coarse: Image,
    forward: Callable[[Image], Image],
    reference: Values,
    grid: Grid,
) -> Floats:
    """Return the network's response to a coarse image (channel, *space), in [0, 1], all labels together.

    It is seen whole in-plane; along S-I in windows where it is too large, averaged where they overlap.
    """
    shape = coarse.shape[1:]
    bottom = [-(-size // stride) for size, stride in zip(shape, grid.total_stride, strict=True)]
    if max(bottom) == 1:
        bottom[grid.si_axis] = 2  # the norm of the lowest stage needs two voxels
    padding = [
        (0, voxels * stride - size)
        for voxels, stride, size in zip(bottom, grid.total_stride, shape, strict=True)
    ]
    padded = np.pad(coarse, [(0, 0), *padding])
    total = np.zeros((len(reference), *padded.shape[1:]), np.float32)
    weight = np.zeros(padded.shape[1 + grid.si_axis], np.float32)
    for start, stop in _windows(padded.shape[1:], grid):
        window = [slice(None)] * padded.ndim
        window[1 + grid.si_axis] = slice(start, stop)
        total[tuple(window)] += forward(padded[tuple(window)])
        weight[start:stop] += 1
    along = [1] * padded.ndim
    along[1 + grid.si_axis] = -1
    raw = (total / weight.reshape(along))[(slice(None), *(slice(0, size) for size in shape))]
    known = np.where(reference > 0, reference, robust_peak(raw[None]).ravel()).clip(min=_LEAST_REFERENCE)
    relative = (raw / known.reshape(-1, *[1] * len(shape)).astype(np.float32)).clip(0, 1).sum(0).clip(max=1)
    response: Floats = relative.astype(np.float64)
    return response


def _windows(shape: Sequence[int], grid: Grid) -> list[tuple[int, int]]:
    """Return (start, stop) of windows along S-I, overlapping by a quarter or more where there are several."""
    size, stride = int(shape[grid.si_axis]), grid.total_stride[grid.si_axis]
    in_plane = int(np.prod([shape[axis] for axis in grid.in_plane]))
    length = max(WINDOW_VOXELS // in_plane, _FEWEST_WINDOW_SLICES) // stride * stride
    length = max(length, stride)
    if size <= length:
        return [(0, size)]
    return [(start, start + length) for start in window_starts(size, length, 1 - _OVERLAP)]


def window_starts(size: int, window: int, step: float) -> list[int]:
    """Return where windows begin that cover a line, evenly, at most `step` windows apart."""
    number = math.ceil((size - window) / (window * step)) + 1
    apart = (size - window) / (number - 1) if number > 1 else 0.0
    return [int(np.round(apart * place)) for place in range(number)]


def ring_contrast(response: Floats, radius: float) -> Floats:
    """Return the contrast of each voxel to a ring around it: the smoothed response minus its largest there.

    Bright structures that go on to one side, muscle or skin, have none. The response is (slices, *plane) in
    [0, 1], the radius that of the structure, in voxels.
    """
    smooth = ndimage.gaussian_filter(response, (1.0, _CENTRE * radius, _CENTRE * radius), mode="nearest")
    reach = math.ceil(_AROUND * radius)
    wide = np.pad(smooth, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    rows, columns = smooth.shape[1:]
    around = np.full_like(smooth, -np.inf)
    for angle in np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS:
        row, column = (reach + round(_AROUND * radius * way) for way in (np.sin(angle), np.cos(angle)))
        np.maximum(around, wide[:, row : row + rows, column : column + columns], out=around)
    difference: Floats = smooth - around
    return difference


def without(wanted: Floats, path: npt.NDArray[np.intp], radius: float) -> Floats:
    """Return ring contrasts with -1 around a path, so that the next best one runs elsewhere."""
    rows, columns = (
        np.square(np.arange(size) - at[:, None], dtype=np.float32)
        for size, at in zip(wanted.shape[1:], path.T, strict=True)
    )
    near = rows[:, :, None] + columns[:, None, :] < (_BESIDE * radius) ** 2
    left: Floats = np.where(near, -1.0, wanted)
    return left


def best_path(wanted: Floats, step_mm: float, spacing_mm: tuple[float, ...]) -> npt.NDArray[np.intp]:
    """Return the path (slices, 2) with the largest sum of ring contrast, less the cost of its moves.

    It is found by dynamic programming, so no other path is better. The contrasts are (slices, *plane), the
    step from slice to slice and the spacing in-plane in mm.
    """
    reach = [max(1, int(np.ceil(STEEPEST * step_mm / length))) for length in spacing_mm]
    moves = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1)
    cost = _MOVE_COST * np.linalg.norm(moves * spacing_mm, axis=-1)
    best = [wanted[0]]
    for plane in wanted[1:]:
        best.append(plane + ndimage.grey_dilation(best[-1], structure=-cost, mode="constant", cval=-np.inf))
    place = np.array(np.unravel_index(best[-1].argmax(), best[-1].shape))
    path = [place]
    for plane in reversed(best[:-1]):
        candidates = place + moves.reshape(-1, 2)
        inside = ((candidates >= 0) & (candidates < plane.shape)).all(axis=1)
        candidates, prices = candidates[inside], cost.ravel()[inside]
        place = candidates[(plane[tuple(candidates.T)] - prices).argmax()]
        path.append(place)
    return np.array(path[::-1], dtype=np.intp)
