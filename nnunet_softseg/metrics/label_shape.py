"""Outlier score of a soft map: a few figures of its shape against their ranges over the training's labels.

It flags maps, and by itself changes none. The figures of one case are a `LabelShape`; the range of each over
the training is kept with a model, per label. A figure whose range has no width sets no
limit: labels that are all alike do not tell how far others may differ.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.settings import HARD_THRESHOLD

SIZE_MARGIN = 1.25
"""How many times larger than the training's largest slice, or smaller than the smallest, one may be.

Refuted by 1 in 20 healthy adults, of another study than the training's, whose cord lies beyond."""
ROUGHNESS_MARGIN = 3.0
"""How many times as much as in training the areas may change from slice to slice, as maps are rougher than
labels. Refuted by good maps (Dice > 0.9) of real images, 1 in 20 of which is rougher."""
INTERIOR_MARGIN = 0.95
"""How far the interior mean may fall, relative to the training's least. Refuted in the same way."""
_SMOOTH_SLICES = 10.0  # sigma of the areas that the roughness is measured against
_DEPTH = 0.25  # of the interior below the border, in radii of the structure
_RENAMED = {"certainty": "interior_mean"}  # in models and soft targets made before

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]


@dataclass(frozen=True)
class LabelShape:
    """Figures of one label in one case.

    Attributes:
        components: of voxels above a half, 26 neighbours.
        largest_area: sum of the label in its fullest slice, in voxels of the network's grid.
        empty_start: slices before the first with a voxel above a half.
        empty_end: slices after the last.
        gap: slices of the longest run without such a voxel between the two.
        area_roughness: standard deviation of the areas' differences from areas smoothed over ten slices, over
            their mean.
        interior_mean: mean of the values a quarter of a radius and more from the border of the voxels above a
            half, in-plane; 1 where none lies so deep.
    """

    components: int
    largest_area: float
    empty_start: int = 0
    empty_end: int = 0
    gap: int = 0
    area_roughness: float = 0.0
    interior_mean: float = 1.0

    @classmethod
    def from_record(cls, stored: Mapping[str, Any]) -> "LabelShape":
        """Return the figures from JSON, also that of an earlier version with other figures and names."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in _renamed(stored).items() if name in known})


def label_shape(
    soft: npt.NDArray[np.floating[Any]], axis: int, tilt_factor: Floats | None = None
) -> LabelShape | None:
    """Return the shape of a soft label or map; None if nothing of it exceeds a half.

    Areas are sums over the voxels above a half and those that touch them: a faint background has no part.

    Args:
        soft: three axes, values in [0, 1].
        axis: that slices follow one another along.
        tilt_factor: per slice, its area over that of a section across the structure; areas are divided by it.
    """
    found = ndimage.find_objects((soft > HARD_THRESHOLD).astype(np.uint8))
    if not found:
        return None
    # With the voxels that touch it, no more: the rest has no part.
    around = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in found[0])
    part, core = soft[around], soft[around] > HARD_THRESHOLD
    neighbours = np.ones((3,) * soft.ndim, dtype=bool)
    others = tuple(other for other in range(soft.ndim) if other != axis)
    areas = np.where(ndimage.binary_dilation(core, neighbours), part, 0).sum(axis=others, dtype=np.float64)
    if tilt_factor is not None:
        areas /= tilt_factor[around[axis]]
    filled = np.flatnonzero(core.any(axis=others))
    areas = areas[areas > 0]
    start = around[axis].start + int(filled[0])
    stop = around[axis].start + int(filled[-1]) + 1
    return LabelShape(
        components=int(ndimage.label(core, neighbours)[1]),
        largest_area=float(areas.max()),
        empty_start=start,
        empty_end=soft.shape[axis] - stop,
        gap=int(np.diff(filled).max(initial=1) - 1),
        area_roughness=_roughness(areas),
        interior_mean=_interior_mean(part, core, axis, float(np.median(areas))),
    )


def _roughness(areas: Floats) -> float:
    return float((areas - ndimage.gaussian_filter1d(areas, _SMOOTH_SLICES)).std() / areas.mean())


def _interior_mean(
    soft: npt.NDArray[np.floating[Any]], core: npt.NDArray[np.bool_], axis: int, area: float
) -> float:
    in_plane = np.ones([1 if other == axis else 3 for other in range(soft.ndim)], dtype=bool)
    depth = max(1, round(_DEPTH * math.sqrt(area / math.pi)))
    inside = ndimage.binary_erosion(core, in_plane, iterations=depth)
    return float(soft[inside].mean(dtype=np.float64)) if inside.any() else 1.0


def training_ranges(shapes: Iterable[LabelShape | None]) -> dict[str, list[float]] | None:
    """Return the smallest and largest of each figure over a training, for JSON; None without any label."""
    known = [asdict(shape) for shape in shapes if shape is not None]
    if not known:
        return None
    columns = {name: [shape[name] for shape in known] for name in known[0]}
    return {name: [min(values), max(values)] for name, values in columns.items()}


def known_range(training: Mapping[str, Any], figure: str) -> Range:
    """Return the smallest and largest of a figure in training; 0 and infinity where a model knows neither.

    Args:
        training: from `training_ranges`, or of a model of an earlier version, which kept one number of each
            figure: the largest, and of the interior mean the smallest.
        figure: field of `LabelShape`.
    """
    stored = _renamed(training).get(figure, (0.0, math.inf))
    if isinstance(stored, int | float):
        return (stored, 1.0) if figure == "interior_mean" else (0.0, stored)
    return float(stored[0]), float(stored[1])


def outliers(shape: LabelShape, training: Mapping[str, Any]) -> list[str]:
    """Return which figures of a shape are unlike those of every label of the training, a sentence each.

    Args:
        shape: of a soft map.
        training: see `known_range`.
    """
    found = []
    for figure, (below, above) in _MARGINS.items():
        value, (least, most) = getattr(shape, figure), known_range(training, figure)
        if least < most and not below * least <= value <= above * most:
            name = figure.replace("_", " ")
            found.append(f"{name} {value:.3g} (in training {least:.3g} to {most:.3g})")
    return found


_MARGINS: dict[str, Range] = {
    "largest_area": (1 / SIZE_MARGIN, SIZE_MARGIN),
    "area_roughness": (0.0, ROUGHNESS_MARGIN),  # none is too smooth
    "interior_mean": (INTERIOR_MARGIN, math.inf),  # and none too sure
}


def _renamed(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in stored.items()}
