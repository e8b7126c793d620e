"""One plane of an image as a picture, with a mask and a soft label as lines over it.

A pixel of the picture is a voxel of the plane, nothing is resampled; the page stretches the picture to the
size of the voxels in mm. Lines are SVG paths in the same pixels: the edges of the mask's voxels, and the
contours of the soft label between the centres of its voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage.measure import approximate_polygon, find_contours

from nnunet_softseg.io.html import picture
from nnunet_softseg.settings import HARD_THRESHOLD

UNITS_PER_PIXEL = 50
"""Paths are in whole units of so many per pixel: shorter to write, and finer than a screen shows."""
LINE_TOLERANCE = 0.03
"""Points of a contour are left out where it moves by less than this part of a pixel."""
WINDOW_PERCENTILES = (1.0, 99.5)
PICTURE_QUALITY = 92
AXIAL, SAGITTAL = "axial", "sagittal"

Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OutlinedPicture:
    """A picture with lines over it.

    Attributes:
        plane: "axial" (right of the patient on the left, anterior on top) or "sagittal" (anterior on the
            left, superior on top).
        height_mm: scanner z of the slice's middle at the cord; for a sagittal plane that of its upper edge.
        columns: of the picture, in pixels.
        rows: likewise.
        width_mm: of the picture.
        length_mm: likewise, from top to bottom.
        uri: the picture as a data URI.
        hard: SVG path along the edges of the mask's voxels, `UNITS_PER_PIXEL`.
        soft: SVG path of the soft label's 0.5 line.
        faint: SVG path of its lines nearer to 0 and to 1.
        caption: what is special about it.
    """

    plane: str
    height_mm: float
    columns: int
    rows: int
    width_mm: float
    length_mm: float
    uri: str
    hard: str
    soft: str
    faint: str
    caption: str = ""


@dataclass(frozen=True)
class Window:
    """The part of a plane that is shown; it may reach beyond the plane.

    Attributes:
        start: (2,) first index along the plane's axes.
        count: (2,) how many.
    """

    start: tuple[int, int]
    count: tuple[int, int]

    def cut(self, plane: Plane, beyond: float) -> Plane:
        """Return this part of a plane, as it is looked at: the axes grow to the left and upwards.

        Args:
            plane: (R-L, A-P) or (A-P, S-I), growing to R, A and S.
            beyond: the value outside the plane.

        Returns:
            (rows, columns).
        """
        part = np.full(self.count, beyond, np.float32)
        inside = [
            (max(start, 0), min(start + count, size))
            for start, count, size in zip(self.start, self.count, plane.shape, strict=True)
        ]
        target = tuple(slice(a - s, b - s) for (a, b), s in zip(inside, self.start, strict=True))
        if all(a < b for a, b in inside):
            part[target] = plane[tuple(slice(a, b) for a, b in inside)]
        return part.T[::-1, ::-1]


def centred_window(
    middle: npt.NDArray[np.float64], spacing_mm: Sequence[float], extent_mm: Sequence[float]
) -> Window:
    """Return the window of an extent around a place.

    Args:
        middle: (2,) index, may be fractional.
        spacing_mm: (2,) voxel size.
        extent_mm: (2,), rounded to voxels.
    """
    count = [max(round(extent / step), 1) for extent, step in zip(extent_mm, spacing_mm, strict=True)]
    start = [round(float(m) - (n - 1) / 2) for m, n in zip(middle, count, strict=True)]
    return Window((start[0], start[1]), (count[0], count[1]))


def grey_levels(part: Plane) -> npt.NDArray[np.uint8]:
    """Return an image between black and white by its percentiles; NaN, outside of the image, is black."""
    finite = np.isfinite(part)
    if not finite.any():
        return np.zeros(part.shape, np.uint8)
    low, high = np.percentile(part[finite], WINDOW_PERCENTILES)
    scaled = (np.where(finite, part, low) - low) / max(high - low, np.finfo(np.float32).tiny)
    grey: npt.NDArray[np.uint8] = np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return grey


def hard_outline(part: Plane) -> str:
    """Return the edges between voxels > 0.5 and the others as an SVG path, () for none.

    Args:
        part: (rows, columns). Where the mask goes on beyond it, there is no edge.
    """
    around = np.pad(part > HARD_THRESHOLD, 1, mode="edge")
    pieces = []
    for command, padded in (("h", around), ("v", around.T)):
        # edge[r, c]: between row r - 1 and row r of the part, along column c
        edge = (padded[1:] != padded[:-1])[:, 1:-1]
        change = np.diff(np.pad(edge, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        line, first = np.nonzero(change == 1)
        after = np.nonzero(change == -1)[1]
        for at, start, length in zip(line, first, after - first, strict=True):
            x, y = (start, at) if command == "h" else (at, start)
            pieces.append(f"M{x * UNITS_PER_PIXEL} {y * UNITS_PER_PIXEL}{command}{length * UNITS_PER_PIXEL}")
    return "".join(pieces)


def soft_outline(part: Plane, *levels: float) -> str:
    """Return the lines where a soft label, linear between its voxels' centres, has these values.

    Args:
        part: (rows, columns).
        levels: values in (0, 1).

    Returns:
        An SVG path, empty for no line. A single row, as of an image of one slice, has none.
    """
    if min(part.shape) == 1:
        return ""
    pieces = []
    for level in levels:
        for contour in find_contours(part, level):
            thinned = approximate_polygon(contour, LINE_TOLERANCE)
            # Voxel centres lie half a pixel from the picture's corner; SVG has x before y.
            points = np.round((thinned[:, ::-1] + 0.5) * UNITS_PER_PIXEL).astype(int)
            steps = np.diff(points, axis=0)
            way = " ".join(f"{x} {y}" for x, y in steps[steps.any(axis=1)])
            if way:
                pieces.append(f"M{points[0, 0]} {points[0, 1]}l{way}".replace(" -", "-"))
    return "".join(pieces)


@dataclass(frozen=True)
class Planes:
    """The same plane of an image, its mask and its soft label: axes as for `Window.cut`, NaN is no image."""

    image: Plane
    hard: Plane
    soft: Plane


def outlined_picture(
    planes: Planes,
    window: Window,
    spacing_mm: Sequence[float],
    *,
    plane: str,
    height_mm: float,
    caption: str = "",
) -> OutlinedPicture:
    """Return the window of a plane as a picture with its lines.

    Args:
        planes: image, mask, soft label.
        window: what is shown of them.
        spacing_mm: (2,) voxel size along the plane's axes.
        plane: "axial" or "sagittal".
        height_mm: see `OutlinedPicture`.
        caption: likewise.
    """
    columns, rows = window.count
    soft = window.cut(planes.soft, 0.0)
    return OutlinedPicture(
        plane=plane,
        height_mm=round(height_mm, 2),
        columns=columns,
        rows=rows,
        width_mm=round(columns * float(spacing_mm[0]), 3),
        length_mm=round(rows * float(spacing_mm[1]), 3),
        uri=picture(grey_levels(window.cut(planes.image, float("nan"))), PICTURE_QUALITY),
        hard=hard_outline(window.cut(planes.hard, 0.0)),
        soft=soft_outline(soft, HARD_THRESHOLD),
        faint=soft_outline(soft, 0.1, 0.9) if plane == AXIAL else "",
        caption=caption,
    )
