"""A simple object with its truth: image, share of each label in every voxel, numbers known from geometry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Share = npt.NDArray[np.float32]
Holds = Callable[[Floats, Floats, Floats], Sequence[npt.NDArray[np.bool_]]]
"""Points along x, y, z in mm, which broadcast -> whether each lies in each of the shapes."""
Slab = tuple[float, float]
_COLUMNS = 64


@dataclass(frozen=True)
class Scene:
    """One case of a phantom.

    Attributes:
        image: (x, y, z), or (row, column) of a picture.
        shares: name of the label -> share of each voxel that it fills, in [0, 1]; nested ones overlap.
        affine: voxel to RAS mm; None: a picture.
        rows: what is known from geometry, a row per object.
        maps: name -> integer map that belongs to the truth.
    """

    image: Floats
    shares: Mapping[str, Share]
    affine: Floats | None
    rows: Sequence[Mapping[str, Any]]
    maps: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)


def upright_affine(
    shape: Sequence[int], voxel_mm: Sequence[float], shift_mm: Sequence[float] | Floats = (0, 0, 0)
) -> Floats:
    """Return the affine of a RAS grid whose centre is off the origin by a shift in mm."""
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = np.array(shift_mm) - (np.array(shape) - 1) / 2 * voxel_mm
    return affine


def sampled_shares(
    holds: Holds, shape: Sequence[int], affine: Floats, step_mm: Sequence[float]
) -> list[Share]:
    """Return the share (x, y, z) of each shape in the voxels of an upright grid, by points at these steps."""
    voxel_mm = np.diag(affine)[:3]
    parts = [max(1, round(voxel / step)) for voxel, step in zip(voxel_mm, step_mm, strict=True)]
    x, y, z = (
        affine[axis, 3] + voxel_mm[axis] * ((np.arange(count * part) + 0.5) / part - 0.5)
        for axis, (count, part) in enumerate(zip(shape, parts, strict=True))
    )
    slabs = []
    for points in x.reshape(shape[0], parts[0], 1, 1):
        inside = holds(points, y[:, None], z)
        means = (
            np.broadcast_to(each, (parts[0], y.size, z.size))
            .mean(axis=0)
            .reshape(shape[1], parts[1], shape[2], parts[2])
            .mean(axis=(1, 3))
            for each in inside
        )
        slabs.append(np.stack([*means]))
    return [*np.stack(slabs, axis=1).astype(np.float32)]


def ellipse_share(shape: Sequence[int], centre: Sequence[float], half: Sequence[float]) -> Share:
    """Return the share of each pixel (row, column) in an ellipse, exact along rows, by 64 lines a column.

    Centre and half axes are along rows and columns in pixels; pixel 0 lies between 0 and 1.
    """
    across = (np.arange(shape[1] * _COLUMNS) + 0.5) / _COLUMNS
    reach = half[0] * np.sqrt(np.clip(1 - ((across - centre[1]) / half[1]) ** 2, 0, None))
    edges = np.arange(shape[0])[:, None]
    inside = np.clip(np.minimum(centre[0] + reach, edges + 1) - np.maximum(centre[0] - reach, edges), 0, 1)
    return np.asarray(inside.reshape(shape[0], shape[1], _COLUMNS).mean(axis=2), np.float32)


def union(shares: Sequence[Share]) -> Share:
    """Return the share of each voxel in any of several shapes, which lie beside each other."""
    return np.asarray(np.clip(np.sum(np.stack(shares), axis=0), 0, 1), np.float32)


def painted(shares: Mapping[str, Share], brightness: Sequence[float], rng: np.random.Generator) -> Floats:
    """Return an image of 40, changed by each label in turn towards its brightness, with noise of SD 5."""
    values = np.full(next(iter(shares.values())).shape, 40.0)
    for share, bright in zip(shares.values(), brightness, strict=True):
        values += share * (bright - values)
    return np.asarray(values + rng.normal(0, 5, values.shape))
