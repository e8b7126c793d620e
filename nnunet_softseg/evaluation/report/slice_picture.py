"""One axial slice of a case as small pictures: image, reference, predictions and their differences."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.maps import LabelMap
from nnunet_softseg.evaluation.report.wording import MINUS, shortened
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.metrics.morphometry.slice_frame import SliceFrame, slice_frame

SIDE_PIXELS = 240
LEAST_SIDE_MM, MOST_SIDE_MM = 28.0, 90.0
MARGIN_MM = 7.0
MAP_COLOURS, DIFFERENCE_COLOURS = "magma", "RdBu_r"
WINDOW_PERCENTILES = (1.0, 99.5)
_VISIBLE = 0.05

Plane = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Section:
    """The pictures of one slice, right of the patient on the left, anterior on top.

    Attributes:
        image: (SIDE_PIXELS, SIDE_PIXELS, 3), or None.
        image_trouble: why there is no image.
        reference: likewise.
        maps: method -> picture of its map.
        differences: method -> picture of map - reference.
        side_mm: length of a picture's side.
    """

    image: Pixels | None
    image_trouble: str
    reference: Pixels
    maps: Mapping[str, Pixels]
    differences: Mapping[str, Pixels]
    side_mm: float

    def panels(self) -> Iterator[tuple[str, Pixels]]:
        """Give caption and pixels of each picture."""
        if self.image is not None:
            yield "image", self.image
        yield "reference", self.reference
        for method, pixels in self.maps.items():
            yield shortened(method), pixels
            yield f"{shortened(method)} {MINUS} reference", self.differences[method]

    def strip(self) -> Pixels:
        """Return all pictures in a row."""
        gap = np.full((SIDE_PIXELS, 6, 3), 255, np.uint8)
        return np.hstack([part for _, each in self.panels() for part in (each, gap)][:-1])


def section_of(
    reference: LabelMap, maps: Mapping[str, LabelMap], image: Path | None, index: int | None
) -> tuple[Section, int]:
    """Return the pictures of a slice, and which it is.

    Args:
        reference: of the case.
        maps: method -> map on the grid of the reference; the first decides about the slice.
        image: file, or None.
        index: along the S-I axis of the reference; None takes the slice in which the first map differs most.
    """
    frame = slice_frame(reference.affine, str(reference.file))
    first = next(iter(maps.values()))
    if index is None:
        difference = np.abs(first.values - reference.values)
        index = int(difference.sum(axis=frame.in_plane).argmax())
    window = _Window.around(
        frame, [_plane(each.values, frame, index) for each in (reference, *maps.values())]
    )
    expected = window.cut(_plane(reference.values, frame, index))
    found = {name: window.cut(_plane(each.values, frame, index)) for name, each in maps.items()}
    shown, trouble = _image_plane(image, reference, frame, index)
    section = Section(
        image=None if shown is None else window.grey(shown),
        image_trouble=trouble,
        reference=_coloured(expected, MAP_COLOURS, 0, 1),
        maps={name: _coloured(plane, MAP_COLOURS, 0, 1) for name, plane in found.items()},
        differences={
            name: _coloured(plane - expected, DIFFERENCE_COLOURS, -1, 1) for name, plane in found.items()
        },
        side_mm=window.side_mm,
    )
    return section, index


def colour_bar(name: str) -> Pixels:
    """Return the colours of a map from its lowest to its highest value, (14, 200, 3)."""
    return _coloured(np.tile(np.linspace(0, 1, 200, dtype=np.float32), (14, 1)), name, 0, 1)


def _plane(values: Any, frame: SliceFrame, index: int) -> Plane:
    """Return a slice: rows from anterior to posterior, columns from the patient's right to the left."""
    plane = np.asarray(np.take(values, index, axis=frame.axis), dtype=np.float32)
    orientation = nib.io_orientation(frame.affine)[list(frame.in_plane)]
    if orientation[0, 0] == 0:  # the first axis is R-L: columns
        plane, orientation = plane.T, orientation[::-1]
    rows, columns = (slice(None, None, -1 if sign > 0 else 1) for sign in orientation[:, 1])
    return plane[rows, columns]


@dataclass(frozen=True)
class _Window:
    """A square around all that is to be seen, in mm from the corner of the plane's first voxel."""

    spacing_mm: tuple[float, float]
    top_left_mm: tuple[float, float]
    side_mm: float

    @classmethod
    def around(cls, frame: SliceFrame, planes: list[Plane]) -> "_Window":
        sizes = nib.affines.voxel_sizes(frame.affine)[list(frame.in_plane)]
        columns_first = nib.io_orientation(frame.affine)[frame.in_plane[0], 0] == 0
        spacing = (float(sizes[1]), float(sizes[0])) if columns_first else (float(sizes[0]), float(sizes[1]))
        visible = np.any([plane > _VISIBLE for plane in planes], axis=0)
        ends = [
            (np.flatnonzero(visible.any(axis=1 - axis)) if visible.any() else np.arange(visible.shape[axis]))
            for axis in (0, 1)
        ]
        low = [found[0] * step for found, step in zip(ends, spacing, strict=True)]
        high = [(found[-1] + 1) * step for found, step in zip(ends, spacing, strict=True)]
        reach = max(b - a for a, b in zip(low, high, strict=True)) + 2 * MARGIN_MM
        side = float(np.clip(reach, LEAST_SIDE_MM, MOST_SIDE_MM))
        corner = tuple((a + b) / 2 - side / 2 for a, b in zip(low, high, strict=True))
        return cls(spacing, (float(corner[0]), float(corner[1])), side)

    def cut(self, plane: Plane) -> Plane:
        """Return the square as pixels, (SIDE_PIXELS, SIDE_PIXELS); 0 outside of the image."""
        # Nearest neighbour on purpose: the voxels and their values are what is to be seen.
        centres = (np.arange(SIDE_PIXELS) + 0.5) * self.side_mm / SIDE_PIXELS
        index = [
            np.floor((start + centres) / step).astype(int)
            for start, step in zip(self.top_left_mm, self.spacing_mm, strict=True)
        ]
        inside = [(found >= 0) & (found < size) for found, size in zip(index, plane.shape, strict=True)]
        clipped = [np.clip(found, 0, size - 1) for found, size in zip(index, plane.shape, strict=True)]
        return np.where(np.outer(*inside), plane[np.ix_(*clipped)], 0).astype(np.float32)

    def grey(self, plane: Plane) -> Pixels:
        """Return the square of an image in its own window of grey."""
        square = self.cut(plane)
        low, high = (float(end) for end in np.percentile(square, WINDOW_PERCENTILES))
        return _coloured(square, "gray", low, max(high, low + 1e-6))


def _coloured(plane: Plane, colours: str, low: float, high: float) -> Pixels:
    scaled = np.clip((plane - low) / (high - low), 0, 1)
    return np.asarray(colormaps[colours](scaled, bytes=True), dtype=np.uint8)[..., :3].copy()


def _image_plane(
    file: Path | None, reference: LabelMap, frame: SliceFrame, index: int
) -> tuple[Plane | None, str]:
    """Return a slice of the image, or why there is none: a report is not worth less without it."""
    if file is None:
        return None, "no image given"
    try:
        image = nib.funcs.squeeze_image(load_nifti(file))
        if not VoxelGrid.of(image).is_same(reference.grid):
            return None, "the image lies on another grid"
        # Only this slice is read where the file permits.
        place = tuple(slice(index, index + 1) if axis == frame.axis else slice(None) for axis in range(3))
        values = np.nan_to_num(np.asarray(image.dataobj[place], dtype=np.float32))
    except (UserError, OSError, EOFError, ValueError, zlib.error) as error:
        return None, " ".join(str(error).split())
    return _plane(values, frame, 0), ""
