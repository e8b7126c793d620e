"""Anatomies to synthesise images from: tissues on a fine grid, and the exact share of the structure.

Everything is in mm of one space, RAS+: volumes of an anatomy may lie on different grids in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.cluster.vq import kmeans

Floats = npt.NDArray[np.float64]
Values = npt.NDArray[np.float32]
Bounds = tuple[tuple[float, float, float], tuple[float, float, float]]

UNLABELLED = 0
CLASSES = 8
"""Of the brightness of a template or an image where no label says what is there."""
_SAMPLED = 40_000


@dataclass(frozen=True)
class Volume:
    """Values (X, Y, Z) at the points of a grid; `affine`, (4, 4), takes an index to RAS+ mm."""

    values: npt.NDArray[Any]
    affine: Floats

    def sample(self, points_mm: Values, *, linear: bool = True) -> Values:
        """Return the values at points (3, N) in mm, 0 outside of the grid; linear or nearest."""
        matrix = np.linalg.inv(self.affine)[:3].astype(np.float32)
        index = matrix[:, :3] @ points_mm
        index += matrix[:, 3:]
        low = np.clip(np.floor(index.min(axis=1)).astype(int), 0, np.array(self.values.shape) - 1)
        high = np.clip(np.ceil(index.max(axis=1)).astype(int) + 1, low + 1, self.values.shape)
        # Only the box that is looked at, with a rim of zeros where it ends with the grid.
        box = self.values[tuple(slice(*ends) for ends in zip(low, high, strict=True))]
        box = np.pad(box, 1)
        if linear and box.dtype != np.float32:
            box = box.astype(np.float32)
        index += (1 - low[:, None]).astype(np.float32)
        return np.asarray(
            ndimage.map_coordinates(box, index, order=int(linear), mode="constant", output=np.float32)
        )

    @cached_property
    def bounds_mm(self) -> Bounds:
        """The lowest and the highest coordinate of its points along R-L, A-P, S-I in mm."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.values.shape])).reshape(3, -1)
        mm = self.affine[:3] @ _homogeneous(corners)
        return tuple(map(float, mm.min(axis=1))), tuple(map(float, mm.max(axis=1)))  # type: ignore[return-value]


def _homogeneous(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.vstack([points, np.ones((1, points.shape[1]), points.dtype)])


@dataclass(frozen=True)
class Layer:
    """A tissue that fills a share of each voxel, within the share of the layer before it."""

    share: Volume
    tissue: int


@dataclass(frozen=True)
class LabelAnatomy:
    """What one or many images are drawn from.

    Attributes:
        name: for messages and file names.
        tissues: values of tissues, `UNLABELLED` where nothing is known.
        layers: nested shares in [0, 1], the outermost first, laid over `tissues`.
        structure: values of `tissues` that are the structure, or, if there are layers, the tissue of the one
            whose share is the structure's.
        image: its brightness says what is there where nothing is labelled; 0: unknown.
        contrasts: brightness by tissue value, of contrasts as they are acquired; without any, brightness is
            random.
    """

    name: str
    tissues: Volume
    structure: tuple[int, ...]
    layers: tuple[Layer, ...] = ()
    image: Volume | None = None
    contrasts: Sequence[Mapping[int, float]] = field(default=(), repr=False)

    @cached_property
    def values(self) -> tuple[int, ...]:
        """All tissue values that occur, `UNLABELLED` aside."""
        there = np.flatnonzero(np.bincount(self.tissues.values.ravel()))
        return tuple(sorted({*map(int, there), *(layer.tissue for layer in self.layers)} - {UNLABELLED}))

    @cached_property
    def structure_share(self) -> Volume:
        """The share of the structure in each point of a grid."""
        for layer in self.layers:
            if layer.tissue in self.structure:
                return layer.share
        inside = np.isin(self.tissues.values, self.structure)
        return Volume(inside.astype(np.uint8), self.tissues.affine)

    @cached_property
    def centreline(self) -> Floats:
        """The centres of the structure's sections, (sections, 3) in mm, from the lowest up.

        Sections are planes of the array axis that is closest to S-I.
        """
        share = self.structure_share
        axis = int(np.abs(share.affine[2, :3]).argmax())
        planes = np.moveaxis(share.values, axis, 0)
        filled = [k for k in range(len(planes)) if planes[k].any()]
        centres = []
        for k in filled:
            a, b = ndimage.center_of_mass(planes[k])
            centres.append(np.insert([a, b], axis, k))
        line = (share.affine[:3] @ _homogeneous(np.array(centres).reshape(-1, 3).T)).T
        return np.asarray(line[np.argsort(line[:, 2])])

    @cached_property
    def reach_mm(self) -> float:
        """How far the outermost layer reaches from the centreline, in mm; infinite without layers."""
        if not self.layers:
            return float("inf")
        outer = self.layers[0].share
        index = np.argwhere(outer.values > 0)[::7]
        mm = (outer.affine[:3] @ _homogeneous(index.T)).T
        return float(np.quantile(np.hypot(*(mm - self.centre_at(mm[:, 2]))[:, :2].T), 0.9999)) + 2.0

    def centre_at(self, z_mm: npt.NDArray[Any]) -> Floats:
        """Return the point of the centreline, (N, 3) in mm, at heights; beyond its ends, that of the end."""
        line = self.centreline
        x, y = (np.interp(z_mm, line[:, 2], line[:, axis]) for axis in (0, 1))
        return np.stack([x, y, np.asarray(z_mm, float)], axis=1)

    @cached_property
    def _image_box_mm(self) -> Floats:
        """Lowest and highest R-L and A-P, (2, 2) in mm, of what the image shows."""
        if self.image is None:
            raise ValueError(f"{self.name}: expected an image beside the tissues, found none")
        shown = np.argwhere(self.image.values.max(axis=2) > 0)
        ends = np.array([[*shown.min(axis=0), 0], [*shown.max(axis=0), 0]], float).T
        mm = self.image.affine[:2] @ _homogeneous(ends)
        return np.sort(mm, axis=1)

    def depth_in_image_mm(self, points_mm: Values) -> Values:
        """Return how far points (3, N) lie inside of what the image shows along R-L and A-P, in mm."""
        (left, right), (back, front) = self._image_box_mm.astype(np.float32)
        x, y, _ = points_mm
        across = np.minimum(x - left, right - x)
        return np.asarray(np.minimum(across, np.minimum(y - back, front - y)))

    @cached_property
    def brightness_classes(self) -> Floats:
        """Centres of `CLASSES` classes of the image's brightness by k-means, rising; empty without image."""
        if self.image is None:
            return np.zeros(0)
        known = self.image.values[self.image.values > 0].astype(float)
        chosen = known[:: max(1, known.size // _SAMPLED)]
        spread = float(chosen.std()) or 1.0
        centres, _ = kmeans(chosen / spread, CLASSES, seed=0)
        return np.sort(centres) * spread
