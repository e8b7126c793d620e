"""Where the cord runs, if it is not in the middle of its image: one coarse pass over all of it.

The network sees the whole image in-plane, at its own resolution, and half as many slices along S-I: a cord is
a tube, which looks the same when shortened, but not when it is made thin. (Measured on phantoms with a
network that never saw more than the middle of an image: halved in all three axes, it no longer knows a cord;
halved along S-I, the path below stays within 6 mm of every cord.) Normalised over so much image, its response
is calmer than that to many small tiles, half of them air.

Through that response goes one path from the first slice to the last, with the largest sum of what looks
like a cord: bright, and darker all around, as far off as the labels of the training are wide. Where the path
stays in the middle of one box, the network sees that. Else the box follows it, slice by slice, see
`placement`: first the path, then once or twice more what was found along it, whose middle is known to a part
of a voxel. (Chunks of a tilted cord, each in a box of its own, were tried: at 30 degrees the soft volume was
4 to 8 % lower than that of the same cord upright.)

A cord that leans by 30 degrees or more may be hardly known to a network that saw upright ones only. So where
the middle of the image shows none, or one that leaves the box, and no path is right, the image is sheared by
27 degrees to either side, and looked at again.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.placement import Floats, Grid, Placement, WholeImage, place
from nnunet_softseg.network.norm_relu import robust_peak

Mode = Literal["always", "auto", "never"]
VARIABLE = "NNUNET_SOFTSEG_LOCALIZE"
WINDOW_VOXELS = 32 * 192 * 320
"""What the network sees at once in the coarse pass, at most: half of the patch of the paper, as to memory."""
SI_STRIDE = 2
STEEPEST = 1.0
"""How far the path may move in-plane along S-I, mm per mm: 45 degrees."""
_FEWEST_WINDOW_SLICES = 16
_OVERLAP = 0.25
WIDEST = math.isqrt(WINDOW_VOXELS // _FEWEST_WINDOW_SLICES)
"""How far it is looked in-plane, in voxels: 350, in the middle of images that are larger still."""
MOST_CANDIDATES = 5
LEAST_LIKENESS = 0.1
"""Of a place that is worth a look: the mean over all slices, so a fifth of them may hold all of the cord.

(Measured with four trainings on phantoms with a cord off the centre, lumbar or leaning by 30 degrees: 0.26 to
0.7 along the cord, 0.3 or more along the likeliest path of an image. Where there is no cord: 0.0 to 0.7, in a
third of the sides of necks less than 0.1; with random weights 0.04.)
"""
LEANS = ((0.0, 0.0), (-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5))
"""In which directions it is looked, mm in-plane per mm along S-I, if it was not found as the image stands."""
_BESIDE = 3.0  # radii between one candidate and the next
_CENTRE, _AROUND = 0.6, 2.2  # sigma of what is looked for, and how far around it, in radii of the structure
_DIRECTIONS = 8
_MOVE_COST = 0.02  # per mm, in units of the response
_SMOOTH_MM = 6.0
_UNSURE_MM = 5.0  # at either end of what was found: its middle lies where the path was, rather than the cord
_END_MM = 8.0  # of what is left, which say where the rest may be
_FEWEST_SURE = 4  # as many lengths of the unsure end, or all of it is taken
_HALF = 0.5
_TRUNCATE = 4.0  # of the smoothing, in its sigmas


class Candidate(NamedTuple):
    """Where the patch may be placed.

    Attributes:
        placement: of the patch.
        likeness: of the response along the path, the mean over its slices; see `likeness`.
    """

    placement: Placement
    likeness: float


def mode() -> Mode:
    """Return what the environment variable NNUNET_SOFTSEG_LOCALIZE says; "auto" without it.

    Raises:
        UserError: for another word.
    """
    word = os.environ.get(VARIABLE, "auto") or "auto"
    for known in get_args(Mode):
        if word == known:
            chosen: Mode = known
            return chosen
    raise UserError(f"{VARIABLE}: expected one of {', '.join(get_args(Mode))}, found {word!r}: correct it")


def candidates(
    image: WholeImage,
    forward: Callable[[torch.Tensor], torch.Tensor],
    reference: torch.Tensor,
    grid: Grid,
    leaning: bool = True,
) -> Iterator[Candidate]:
    """Yield where the patch may be placed, the likeliest place first, then the likeliest beside those before.

    After these come the likeliest places of a cord that leans so much that the network hardly knows it: in
    the image sheared to one side after the other. Where nothing in the image as it stands looks a little like
    a cord, there are none.

    Args:
        image: the whole case.
        forward: (channel, *space) -> raw output (label, *space), for any space that is a multiple of the
            network's total stride.
        reference: (label,) raw robust peak of the training; 0 where not known.
        grid: of the model.
        leaning: whether to look in sheared images, too: four more coarse passes.
    """
    stride = coarse_stride(grid)
    coarse = image.coarse(stride)
    si, (first, second) = grid.si_axis, grid.in_plane
    skipped = [max(0, coarse.shape[1 + axis] - WIDEST) // 2 for axis in (first, second)]
    for axis, start in zip((first, second), skipped, strict=True):
        coarse = coarse.narrow(1 + axis, start, min(WIDEST, coarse.shape[1 + axis]))
    in_plane = tuple(grid.spacing_mm[axis] for axis in (first, second))
    step_mm = grid.spacing_mm[si] * stride[si]
    # From the centre of a coarse slice to those of the slices that it is the mean of.
    at = (np.arange(image.shape[si]) + 0.5) / stride[si] - 0.5
    anything = False
    for lean in LEANS if leaning else LEANS[:1]:
        shifts = _shifts(lean, coarse.shape[1 + si], step_mm, in_plane)
        upright = sheared(coarse, shifts, si)
        response = coarse_response(upright, forward, reference, grid)
        wanted = likeness(np.moveaxis(response, si, 0), grid.radius)
        for _ in range(MOST_CANDIDATES if lean == LEANS[0] else 1):
            path = best_path(wanted, step_mm, in_plane)
            along = float(wanted[np.arange(len(path)), path[:, 0], path[:, 1]].mean())
            if along < LEAST_LIKENESS:
                break
            anything = True
            smooth = _smoothed((path + shifts).astype(np.float64), step_mm) + skipped
            centres = np.stack([np.interp(at, np.arange(len(smooth)), line) for line in smooth.T], axis=1)
            yield Candidate(place(centres, image.shape, grid), along)
            wanted = without(wanted, path, grid.radius)
        if not anything:
            return


def _shifts(
    lean: tuple[float, float], slices: int, step_mm: float, in_plane_mm: Sequence[float]
) -> npt.NDArray[np.intp]:
    """Return (slices, 2): by how many voxels what leans lies off where it is in the middle slice."""
    height_mm = (np.arange(slices) - (slices - 1) / 2) * step_mm
    shifts: npt.NDArray[np.intp] = np.round(height_mm[:, None] * lean / np.array(in_plane_mm)).astype(np.intp)
    return shifts


def sheared(image: torch.Tensor, shifts: npt.NDArray[np.intp], si_axis: int) -> torch.Tensor:
    """Return an image whose slices are shifted back, 0 where nothing is left to shift in.

    Args:
        image: (channel, *space).
        shifts: (slices, 2), in voxels along the other two axes.
        si_axis: of the space, that slices follow one another along.
    """
    slices = image.movedim(1 + si_axis, 0)
    result = torch.zeros_like(slices)
    for into, plane, shift in zip(result, slices, shifts, strict=True):
        rows, columns = (
            (slice(max(0, -by), size - max(0, by)), slice(max(0, by), size + min(0, by)))
            for by, size in zip(shift.tolist(), plane.shape[1:], strict=True)
        )
        if all(part.stop > part.start for part in (*rows, *columns)):
            into[:, rows[0], columns[0]] = plane[:, rows[1], columns[1]]
    return result.movedim(0, 1 + si_axis)


def refined(placement: Placement, soft_map: torch.Tensor, shape: Sequence[int], grid: Grid) -> Placement:
    """Return where the patch lies along what was found: a finer path than that of the coarse pass.

    Args:
        placement: of the patch when it was found.
        soft_map: (label, *size of the placement's box).
        shape: of the case.
        grid: of the model.
    """
    found = np.moveaxis(soft_map.sum(0).numpy(), grid.si_axis, 0)
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
    """Return the stride of the coarse pass per axis; slices that are thick already are all looked at."""
    finest = min(grid.spacing_mm[axis] for axis in grid.in_plane)
    along = SI_STRIDE if grid.spacing_mm[grid.si_axis] < SI_STRIDE * finest else 1
    return tuple(along if axis == grid.si_axis else 1 for axis in range(len(grid.patch_size)))


def _smoothed(path: Floats, step_mm: float) -> Floats:
    """Return a path as a smooth line, which goes straight on at its ends."""
    sigma = _SMOOTH_MM / step_mm
    beyond = math.ceil(_TRUNCATE * sigma)
    # Else it would level out at its ends: a leaning cord would drift out of the middle, and seem upright.
    longer = np.pad(path, ((beyond, beyond), (0, 0)), mode="reflect", reflect_type="odd")
    smooth: Floats = ndimage.gaussian_filter1d(longer, sigma, axis=0, truncate=_TRUNCATE)
    return smooth[beyond:-beyond]


@torch.inference_mode()
def coarse_response(
    coarse: torch.Tensor,
    forward: Callable[[torch.Tensor], torch.Tensor],
    reference: torch.Tensor,
    grid: Grid,
) -> Floats:
    """Return the network's response to a coarse image (channel, *space), in [0, 1], all labels together.

    It is seen whole in-plane; along S-I in windows where it is too large, averaged where they overlap.
    """
    shape = coarse.shape[1:]
    padding = [(-size) % stride for size, stride in zip(shape, grid.total_stride, strict=True)]
    before_last = [amount for pad in reversed(padding) for amount in (0, pad)]
    padded = torch.nn.functional.pad(coarse, before_last)
    total = torch.zeros((len(reference), *padded.shape[1:]))
    weight = torch.zeros(padded.shape[1 + grid.si_axis])
    for start, stop in _windows(padded.shape[1:], grid):
        window = [slice(None)] * padded.ndim
        window[1 + grid.si_axis] = slice(start, stop)
        total[tuple(window)] += forward(padded[tuple(window)]).float().cpu()
        weight[start:stop] += 1
    along = [1] * padded.ndim
    along[1 + grid.si_axis] = -1
    raw = (total / weight.reshape(along))[(slice(None), *(slice(0, size) for size in shape))]
    known = torch.where(reference > 0, reference, robust_peak(raw[None]).flatten()).clamp(min=1e-6)
    relative = (raw / known.reshape(-1, *[1] * len(shape))).clamp(0, 1).sum(0).clamp(max=1)
    response: Floats = relative.double().numpy()
    return response


def _windows(shape: Sequence[int], grid: Grid) -> list[tuple[int, int]]:
    """Return (start, stop) of windows along S-I, overlapping by a quarter or more where there are several."""
    size, stride = int(shape[grid.si_axis]), grid.total_stride[grid.si_axis]
    in_plane = int(np.prod([shape[axis] for axis in grid.in_plane]))
    length = max(WINDOW_VOXELS // in_plane, _FEWEST_WINDOW_SLICES) // stride * stride
    length = max(length, stride)
    if size <= length:
        return [(0, size)]
    number = math.ceil((size - length) / ((1 - _OVERLAP) * length)) + 1
    starts = np.round(np.linspace(0, size - length, number)).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def likeness(response: Floats, radius: float) -> Floats:
    """Return how much each place looks like the middle of a structure: it minus the largest around it.

    What is bright, but long or wide in-plane, muscle or skin, goes on to one side at least. (Measured with
    two networks on 40 phantoms that lean: the first path is the cord's in 71 of 80, and in 62 if the mean
    around is taken in place of the largest.)

    Args:
        response: (slices, *plane) in [0, 1].
        radius: of the structure, in voxels.
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
    """Return what is wanted with nothing left around a path, so that the next best one runs elsewhere."""
    rows, columns = (
        np.square(np.arange(size) - at[:, None], dtype=np.float32)
        for size, at in zip(wanted.shape[1:], path.T, strict=True)
    )
    near = rows[:, :, None] + columns[:, None, :] < (_BESIDE * radius) ** 2
    left: Floats = np.where(near, -1.0, wanted)
    return left


def best_path(wanted: Floats, step_mm: float, spacing_mm: tuple[float, ...]) -> npt.NDArray[np.intp]:
    """Return the path through all slices with the largest sum of what is wanted, less what its moves cost.

    Args:
        wanted: (slices, *plane).
        step_mm: from slice to slice.
        spacing_mm: in-plane.

    Returns:
        (slices, 2) indices in the plane. Found by dynamic programming, so no other path is better.
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
