"""Where the patch lies in a case: in one box, or along a path, each slice of it set upright for the network.

A cord that leans is sheared upright, slice by slice. Its axial section stays longer than it is wide, though:
a cylinder cut at an angle θ is longer by 1 / cos θ in the direction in which it leans (15 % at 30 degrees).
So that direction is compressed by cos θ, too, and the network sees the section as in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from nnunet_softseg.preprocessing.center_crop import Box

Floats = npt.NDArray[np.float64]
_HALF = 0.5
_DRIFT = 0.25
"""How far the path may move within one box, relative to the patch: then it stays near the box's middle."""
_SPLINE_MARGIN = 3  # voxels around a slice that is shifted


class WholeImage(Protocol):
    """A case on the network's grid; see `network_image.NetworkImage`."""

    shape: tuple[int, ...]

    def extract(self, box: Box) -> torch.Tensor:
        """Return (channel, *size of the box), 0 outside of the case."""

    def own_slices(self, box: Box, axis: int) -> npt.NDArray[np.floating[Any]]:
        """Return (channel, *size of the box), but along the axis the image's own slices."""

    def slice_positions(self, axis: int) -> Floats:
        """Return where these lie, in slices of the network's grid."""

    def interpolated(
        self, own_slices: npt.NDArray[np.floating[Any]], axis: int
    ) -> npt.NDArray[np.floating[Any]]:
        """Return them interpolated along the axis, on the network's grid."""

    def coarse(self, stride: Sequence[int]) -> torch.Tensor:
        """Return (channel, *ceil(shape / stride)), averaged."""


@dataclass(frozen=True)
class Grid:
    """What there is to know of a model's grid.

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
            centre: 1 / cos θ along the direction in which the path leans, 1 across it.
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
    def lean(self) -> Floats:
        """(slices,) how many times larger an axial section is than one across the path: 1 / cos θ."""
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

    def seen(self, image: WholeImage) -> torch.Tensor:
        """Return what the network sees (channel, *space): the box, or its slices set upright."""
        if self.is_straight:
            return image.extract(self.box)
        margin = [0 if axis == self.si_axis else _SPLINE_MARGIN for axis in range(len(self.box))]
        around = tuple((start - m, stop + m) for (start, stop), m in zip(self.box, margin, strict=True))
        wide = np.moveaxis(image.own_slices(around, self.si_axis), 1 + self.si_axis, 1)
        places = image.slice_positions(self.si_axis)
        centres = _at(self._within_box(), places) + _SPLINE_MARGIN
        stretches = _at(self.stretches, places)
        seen = np.empty((*wide.shape[:2], *self.size), np.float32)
        for channel, place in np.ndindex(*wide.shape[:2]):
            offset = centres[place] - stretches[place] @ self._middle
            seen[channel, place] = _read(wide[channel, place], stretches[place], offset, self.size, order=3)
        upright = image.interpolated(np.moveaxis(seen, 1, 1 + self.si_axis), self.si_axis)
        return torch.from_numpy(np.ascontiguousarray(upright))

    def put_back(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps of what the network saw in the box, (label, *size of the box): linear, 0 elsewhere.

        The sum of a slice is that of the section: as much larger than what the network saw as the slice was
        compressed for it (within 1 % in one slice, 0.1 % in all together; exactly, where it is only shifted).
        """
        if self.is_straight:
            return maps
        slices = np.moveaxis(maps.numpy(), 1 + self.si_axis, 1)
        plane = tuple(stop - start for axis, (start, stop) in enumerate(self.box) if axis != self.si_axis)
        back = np.empty((*slices.shape[:2], *plane), np.float32)
        centres = self._within_box()
        for label, place in np.ndindex(*slices.shape[:2]):
            shrink: Floats = np.linalg.inv(self.stretches[place]).astype(np.float64)
            # A voxel of zeros around it: beyond its edge the map falls to 0 over one voxel.
            offset = 1 + self._middle - shrink @ centres[place]
            back[label, place] = _read(np.pad(slices[label, place], 1), shrink, offset, plane, order=1)
        return torch.from_numpy(np.moveaxis(back, 1, 1 + self.si_axis))

    def looked_at(self) -> npt.NDArray[np.bool_]:
        """Return which voxels of the box the network saw."""
        shape = [*self.size]
        shape.insert(self.si_axis, len(self.centres))
        seen: npt.NDArray[np.bool_] = (self.put_back(torch.ones((1, *shape)))[0] > _HALF).numpy()
        return seen

    def as_json(self) -> dict[str, Any]:
        """Return it as softseg.json tells it, on the network's grid."""
        return {
            "box": [list(extent) for extent in self.box],
            "straight": self.is_straight,
            "first_slice": [round(float(centre), 1) for centre in self.centres[0]],
            "last_slice": [round(float(centre), 1) for centre in self.centres[-1]],
            "steepest_deg": round(float(np.degrees(np.arccos(1 / self.lean.max()))), 1),
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
    is_shift = (matrix == np.eye(2)).all()
    part: Floats = ndimage.affine_transform(
        plane,
        np.ones(2) if is_shift else matrix,  # a shift is done axis by axis
        offset=offset,
        output_shape=tuple(size),
        order=order,
        mode="constant",
    )
    return part


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
    stretches = _stretches(centres, grid)
    starts = np.clip(centres - (patch - 1) / 2, 0, np.maximum(sizes - patch, 0))
    # As the fixed patch: around the middle of a case that is smaller.
    starts = np.where(sizes <= patch, (sizes - patch) // 2, starts)
    return Placement(starts + (patch - 1) / 2, stretches, (int(patch[0]), int(patch[1])), grid.si_axis)


def _stretches(centres: Floats, grid: Grid) -> Floats:
    """Return (slices, 2, 2): 1 / cos θ = √(1 + slope²) in the direction in which the path leans."""
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
