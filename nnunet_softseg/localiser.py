"""Where the cord runs, if it is not in the middle of its image: one coarse pass over all of it.

The network sees the whole image in-plane, at its own resolution, and half as many slices along S-I: a cord is
a tube, which looks the same when shortened, but not when it is made thin. (Measured on phantoms with a
network that never saw more than the middle of an image: halved in all three axes, it no longer knows a cord;
halved along S-I, the path below stays within 6 mm of every cord.) Normalised over so much image, its response
is calmer than that to many small tiles, half of them air.

Through that response goes one path from the first slice to the last, with the largest sum of what looks
like a cord: bright, and as narrow as the labels of the training. Where the path stays in the middle of one
box, the network sees that. Else the box follows it, slice by slice: what the network sees is the image
sheared until the cord stands upright, as in training. (Chunks of a tilted cord, each in a box of its own,
were tried: at 30 degrees the soft volume was 4 to 8 % lower than that of the same cord upright, sheared 2 to
5 %.)
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from nnunet_softseg.center_crop import Box
from nnunet_softseg.errors import UserError
from nnunet_softseg.norm_relu import plateau

Floats = npt.NDArray[np.float64]
Mode = Literal["always", "auto", "never"]
VARIABLE = "NNUNET_SOFTSEG_LOCALIZE"
WINDOW_VOXELS = 64 * 192 * 320
"""What the network sees at once in the coarse pass, at most: the patch of the paper."""
SI_STRIDE = 2
STEEPEST = 1.0
"""How far the path may move in-plane along S-I, mm per mm: 45 degrees."""
_FEWEST_WINDOW_SLICES = 32
WIDEST = math.isqrt(WINDOW_VOXELS // _FEWEST_WINDOW_SLICES)
"""How far it is looked in-plane, in voxels: 350, in the middle of images that are larger still."""
_HALF = 0.5
MOST_CANDIDATES = 5
_BESIDE = 3.0  # radii between one candidate and the next
_CENTRE, _SURROUND = 0.6, 1.8  # sigmas of what is looked for, in radii of the structure
_MOVE_COST = 0.02  # per mm, in units of the response
_SMOOTH_MM = 6.0
_DRIFT = 0.25
"""How far the path may move within one box, relative to the patch: then it stays near the box's middle."""
_SPLINE_MARGIN = 3  # voxels around a slice that is shifted


class WholeImage(Protocol):
    """A case on the network's grid; see `network_image.NetworkImage`."""

    shape: tuple[int, ...]

    def extract(self, box: Box) -> torch.Tensor:
        """Return (channel, *size of the box), 0 outside of the case."""

    def coarse(self, stride: Sequence[int]) -> torch.Tensor:
        """Return (channel, *ceil(shape / stride)), averaged."""


@dataclass(frozen=True)
class Placement:
    """Where the patch lies in each slice of a case.

    Attributes:
        starts: (slices, 2) of the patch in-plane, in voxels of the network's grid; where the cord is straight
            enough whole numbers, the same in every slice.
        size: (2,) of the patch in-plane.
        si_axis: array axis along S-I.
    """

    starts: Floats
    size: tuple[int, int]
    si_axis: int

    @property
    def is_straight(self) -> bool:
        """Whether it is one box."""
        return bool((self.starts == self.starts[0]).all())

    @property
    def box(self) -> Box:
        """The smallest box of the case that holds the patch of every slice."""
        first = np.floor(self.starts.min(axis=0)).astype(int)
        last = np.ceil(self.starts.max(axis=0)).astype(int)
        in_plane = [
            (int(start), int(stop) + size) for start, stop, size in zip(first, last, self.size, strict=True)
        ]
        in_plane.insert(self.si_axis, (0, len(self.starts)))
        return tuple(in_plane)

    def seen(self, image: WholeImage) -> torch.Tensor:
        """Return what the network sees (channel, *space): the box, or its slices shifted into line."""
        if self.is_straight:
            return image.extract(self.box)
        margin = [0 if axis == self.si_axis else _SPLINE_MARGIN for axis in range(len(self.box))]
        around = tuple((start - m, stop + m) for (start, stop), m in zip(self.box, margin, strict=True))
        wide = np.moveaxis(image.extract(around).numpy(), 1 + self.si_axis, 1)
        seen = np.empty((*wide.shape[:2], *self.size), np.float32)
        within = self._within_box() + _SPLINE_MARGIN
        for channel, place in np.ndindex(*wide.shape[:2]):
            seen[channel, place] = _read(wide[channel, place], within[place], self.size, order=3)
        return torch.from_numpy(np.moveaxis(seen, 1, 1 + self.si_axis))

    def put_back(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps of what the network saw in the box, (label, *size of the box): linear, 0 elsewhere.

        Slice by slice the sum stays the same.
        """
        if self.is_straight:
            return maps
        slices = np.moveaxis(maps.numpy(), 1 + self.si_axis, 1)
        plane = tuple(stop - start for axis, (start, stop) in enumerate(self.box) if axis != self.si_axis)
        back = np.empty((*slices.shape[:2], *plane), np.float32)
        within = self._within_box()
        for label, place in np.ndindex(*slices.shape[:2]):
            # A voxel of zeros around it: beyond its edge the map falls to 0 over one voxel.
            back[label, place] = _read(np.pad(slices[label, place], 1), 1 - within[place], plane, order=1)
        return torch.from_numpy(np.moveaxis(back, 1, 1 + self.si_axis))

    def looked_at(self) -> npt.NDArray[np.bool_]:
        """Return which voxels of the box the network saw."""
        shape = [*self.size]
        shape.insert(self.si_axis, len(self.starts))
        seen: npt.NDArray[np.bool_] = (self.put_back(torch.ones((1, *shape)))[0] > _HALF).numpy()
        return seen

    def as_json(self) -> dict[str, Any]:
        """Return it as softseg.json tells it, on the network's grid."""
        return {
            "box": [list(extent) for extent in self.box],
            "straight": self.is_straight,
            "first_slice": [round(float(start), 1) for start in self.starts[0]],
            "last_slice": [round(float(start), 1) for start in self.starts[-1]],
        }

    def _within_box(self) -> Floats:
        in_plane = [start for axis, (start, _) in enumerate(self.box) if axis != self.si_axis]
        within: Floats = self.starts - in_plane
        return within


def _read(plane: npt.NDArray[np.float32], start: Floats, size: Sequence[int], *, order: int) -> Floats:
    """Return a part of a plane, from anywhere between its voxels; 0 beyond it."""
    # An affine whose matrix is a diagonal is done axis by axis.
    part: Floats = ndimage.affine_transform(
        plane, np.ones(2), offset=start, output_shape=tuple(size), order=order, mode="constant"
    )
    return part


@dataclass(frozen=True)
class Grid:
    """What the localiser needs to know of a model's grid.

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

    @property
    def stride(self) -> tuple[int, ...]:
        """Of the coarse pass; slices that are thick already are all looked at."""
        finest = min(self.spacing_mm[axis] for axis in self.in_plane)
        along = SI_STRIDE if self.spacing_mm[self.si_axis] < SI_STRIDE * finest else 1
        return tuple(along if axis == self.si_axis else 1 for axis in range(len(self.patch_size)))


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
) -> Iterator[Placement]:
    """Yield where the patch may be placed, the likeliest place first, then the likeliest beside those before.

    Args:
        image: the whole case.
        forward: (channel, *space) -> raw output (label, *space), for any space that is a multiple of the
            network's total stride.
        reference: (label,) raw plateau of the training; 0 where not known.
        grid: of the model.
    """
    coarse = image.coarse(grid.stride)
    si, (first, second) = grid.si_axis, grid.in_plane
    skipped = [max(0, coarse.shape[1 + axis] - WIDEST) // 2 for axis in (first, second)]
    for axis, start in zip((first, second), skipped, strict=True):
        coarse = coarse.narrow(1 + axis, start, min(WIDEST, coarse.shape[1 + axis]))
    response = coarse_response(coarse, forward, reference, grid)
    in_plane = tuple(grid.spacing_mm[axis] for axis in (first, second))
    step_mm = grid.spacing_mm[si] * grid.stride[si]
    wanted = likeness(np.moveaxis(response, si, 0), grid.radius)
    # From the centre of a coarse slice to those of the slices that it is the mean of.
    at = (np.arange(image.shape[si]) + 0.5) / grid.stride[si] - 0.5
    for _ in range(MOST_CANDIDATES):
        path = best_path(wanted, step_mm, in_plane)
        smooth = ndimage.gaussian_filter1d(
            (path + skipped).astype(np.float64), _SMOOTH_MM / step_mm, axis=0, mode="nearest"
        )
        centres = np.stack([np.interp(at, np.arange(len(smooth)), line) for line in smooth.T], axis=1)
        yield place(centres, image.shape, grid)
        wanted = without(wanted, path, grid.radius)


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
    known = torch.where(reference > 0, reference, plateau(raw[None]).flatten()).clamp(min=1e-6)
    relative = (raw / known.reshape(-1, *[1] * len(shape))).clamp(0, 1).sum(0).clamp(max=1)
    response: Floats = relative.double().numpy()
    return response


def _windows(shape: Sequence[int], grid: Grid) -> list[tuple[int, int]]:
    """Return (start, stop) of windows along S-I, half overlapping where there are several."""
    size, stride = int(shape[grid.si_axis]), grid.total_stride[grid.si_axis]
    in_plane = int(np.prod([shape[axis] for axis in grid.in_plane]))
    length = max(WINDOW_VOXELS // in_plane, _FEWEST_WINDOW_SLICES) // stride * stride
    length = max(length, stride)
    if size <= length:
        return [(0, size)]
    number = int(np.ceil((size - length) / (length / 2))) + 1
    # Starts are multiples of the stride, so that every window pools as the first does.
    starts = np.round(np.linspace(0, size - length, number) / stride).astype(int) * stride
    return [(int(start), int(start) + length) for start in np.unique(starts)]


def likeness(response: Floats, radius: float) -> Floats:
    """Return how much each place looks like the middle of a structure: it minus its surroundings.

    Args:
        response: (slices, *plane) in [0, 1].
        radius: of the structure, in voxels.
    """
    centre, surround = (
        ndimage.gaussian_filter(response, (1.0, factor * radius, factor * radius), mode="nearest")
        for factor in (_CENTRE, _SURROUND)
    )
    difference: Floats = centre - surround
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


def place(centres: Floats, shape: Sequence[int], grid: Grid) -> Placement:
    """Return where the patch lies so that a path runs through its middle, inside the case where it can.

    Args:
        centres: (slices, 2) where the path runs, in voxels of the network's grid, for each slice of it.
        shape: of the case.
        grid: of the model.
    """
    sizes, patch = (
        np.array([lengths[axis] for axis in grid.in_plane]) for lengths in (shape, grid.patch_size)
    )
    if (np.ptp(centres, axis=0) <= _DRIFT * patch).all():
        middle = (centres.max(axis=0) + centres.min(axis=0)) / 2
        centres = np.tile(np.round(middle + 0.5 - patch / 2) + (patch - 1) / 2, (len(centres), 1))
    starts = np.clip(centres - (patch - 1) / 2, 0, np.maximum(sizes - patch, 0))
    # As the fixed patch: around the middle of a case that is smaller.
    starts = np.where(sizes <= patch, (sizes - patch) // 2, starts)
    return Placement(starts.astype(np.float64), (int(patch[0]), int(patch[1])), grid.si_axis)
