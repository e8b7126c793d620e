"""The shape of a label, coarsely: enough to tell a cord from what a network makes up where there is none.

A network that is shown an image without a cord may answer with pieces here and there, as confident as a cord.
No threshold on values finds that, but it does not look like any label of the training: so the shapes of those
are kept with the model.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.settings import HARD_THRESHOLD

AREA_TOLERANCE = 1.25
"""A slice may be this much larger than the largest of the training."""
VARIATION_TOLERANCE, VARIATION_SLACK = 2.0, 0.05
"""The areas may vary this many times as much as in training, and a little more where they hardly varied."""
ROUGHNESS_TOLERANCE, ROUGHNESS_SLACK = 3.0, 0.01
"""As for the variation. What is made up may have a cord's area all along, but not as smoothly: on phantoms,
maps of a cord reach 0.04, nine in ten of what is made up are above 0.05; labels reach 0.013."""
MAKE_BELIEVE_AREA, MAKE_BELIEVE_EXTENT = 2.0, 0.5
"""A piece with a median area above this, or an extent below, relative to the largest and the shortest label
of the training, is not taken for one."""
IN_PART = 0.75
"""A piece with less than this of the shortest label's extent must look like one in all that is seen of it:
what is unlike the training is not taken for a label. (In four of 200 necks without a cord two networks made
up a piece half as long as a cord, certain, and hardly too rough.)"""
MAKE_BELIEVE_VARIATION, MAKE_BELIEVE_ROUGHNESS = 0.2, 0.06
"""Nor is one whose areas vary by more over most of its length, or by more than is unlike the training,
whichever is more; nor one that is rougher, the same way."""
_ODD_AREA = 0.15
"""What an area lies beyond the median by more than this does not count for the roughness of the others."""
_SMOOTH_SLICES = 10.0  # sigma of what a roughness is measured against
MAD_TO_STD = 1.4826
"""Of normally distributed values, the standard deviation over the median absolute deviation."""
CERTAINTY, MAKE_BELIEVE_CERTAINTY = 0.955, 0.9
"""What a map reaches inside, on average, relative to the least certain label of the training: below the first
it is unlike the training, below the second no label. What is made up has the height of a cord in places only:
in 499 maps of cords, three networks, the least is 0.961, in 21 of 22 that were made up at most 0.957."""
TOGETHER = 1.4
"""How far the roughness, the certainty and the size may be from the training's on their ways to their limits,
added up; the size goes by the largest slice or the variation, as an enlargement changes both. What is made up
may be near each limit and beyond none. (Of 1016 maps of cords of phantoms, four trainings, the farthest is at
1.0; of 31 that were made up, the nearest but one at 1.7.)"""
_DEPTH = 0.25  # of the inside below the border, in radii of the structure
END_TOLERANCE = 5
"""A map may end this many slices of the network's grid farther from the image's end than any label did."""


@dataclass(frozen=True)
class LabelShape:
    """What is kept of the shape of one label in one case, or of the most extreme of many.

    Attributes:
        components: pieces above a half that do not touch, not even at corners.
        largest_area: sum of the label in its fullest slice, in voxels of the network's grid.
        area_variation: standard deviation of the slices' areas over their mean; empty slices not counted.
        empty_start: slices before the first that holds something above a half.
        empty_end: slices after the last.
        gap: slices of the longest run without anything above a half between those two.
        extent: slices from the first to the last.
        area_roughness: standard deviation of the areas' differences from areas smoothed over ten slices, over
            their mean.
        certainty: mean of the values inside: in every slice, a quarter of a radius and more from the border
            of what is above a half. 1 where nothing lies so deep.
    """

    components: int
    largest_area: float
    area_variation: float
    empty_start: int = 0
    empty_end: int = 0
    gap: int = 0
    extent: int = 0
    area_roughness: float = 0.0
    certainty: float = 1.0


def label_shape(
    soft: npt.NDArray[np.floating[Any]], axis: int, tilt_factor: npt.NDArray[np.float64] | None = None
) -> LabelShape | None:
    """Return the shape of a soft label or map; None if nothing of it exceeds a half.

    Args:
        soft: three axes, values in [0, 1].
        axis: that slices follow one another along.
        tilt_factor: per slice, area of the slice over that of a section across the structure.
    """
    core = soft > HARD_THRESHOLD
    if not core.any():
        return None
    around = ndimage.find_objects(core.astype(np.uint8))[0]
    _, components = ndimage.label(core[around], structure=np.ones((3,) * soft.ndim, dtype=bool))
    others = tuple(other for other in range(soft.ndim) if other != axis)
    areas = _areas(soft, axis, tilt_factor)
    areas = areas[areas > 0]
    filled = np.flatnonzero(core.any(axis=others))
    return LabelShape(
        int(components),
        float(areas.max()),
        float(areas.std() / areas.mean()),
        int(filled[0]),
        int(core.shape[axis] - 1 - filled[-1]),
        int(np.diff(filled).max(initial=1) - 1),
        int(filled[-1] - filled[0] + 1),
        float(_unevenness(areas).std() / areas.mean()),
        _certainty(soft[around], core[around], axis, float(np.median(areas))),
    )


def most_extreme(shapes: Iterable[LabelShape | None]) -> dict[str, float] | None:
    """Return the largest of each figure over the cases of a training, for JSON; None without any label.

    Of the extent and the certainty it is the smallest.
    """
    known = [asdict(shape) for shape in shapes if shape is not None]
    if not known:
        return None
    largest = {name: max(shape[name] for shape in known) for name in known[0]}
    smallest = {name: min(shape[name] for shape in known) for name in ("extent", "certainty")}
    return {**largest, **smallest}


class _Limits(NamedTuple):
    """The largest figures of a shape, and its smallest certainty, that are still like the training's."""

    largest_area: float
    area_variation: float
    area_roughness: float
    certainty: float


def _limits(training: Mapping[str, float]) -> _Limits:
    return _Limits(
        AREA_TOLERANCE * training["largest_area"],
        VARIATION_TOLERANCE * training["area_variation"] + VARIATION_SLACK,
        # For a model that knows no roughness, anything is smooth enough.
        ROUGHNESS_TOLERANCE * training.get("area_roughness", np.inf) + ROUGHNESS_SLACK,
        CERTAINTY * training.get("certainty", 0),
    )


def differences(shape: LabelShape, training: Mapping[str, float]) -> list[str]:
    """Say in what areas are unlike those of every label of the training; nothing if they are not.

    Args:
        shape: of a soft map.
        training: from `most_extreme`.
    """
    found = []
    limits = _limits(training)
    if shape.largest_area > limits.largest_area:
        found.append(f"a slice of {shape.largest_area:.0f} voxels (at most {training['largest_area']:.0f})")
    if shape.area_variation > limits.area_variation:
        found.append(
            f"areas that vary by {shape.area_variation:.0%} (at most {training['area_variation']:.0%})"
        )
    if shape.area_roughness > limits.area_roughness:
        found.append(
            f"areas that differ by {shape.area_roughness:.1%} from slice to slice "
            f"(at most {training['area_roughness']:.1%})"
        )
    if shape.certainty < limits.certainty:
        found.append(f"an inside of {shape.certainty:.2f} (at least {training['certainty']:.2f})")
    way = _ways(shape, training)
    size = max(way.get("largest_area", 0), way.get("area_variation", 0))
    if not found and size + way.get("area_roughness", 0) + way.get("certainty", 0) > TOGETHER:
        near = ", ".join(f"{name.replace('_', ' ')} {getattr(shape, name):.3g}" for name in _Limits._fields)
        found.append(f"all together, {near}")
    return found


def _ways(shape: LabelShape, training: Mapping[str, float]) -> dict[str, float]:
    """Return of each figure how far it is from the training's to its limit: 0 not at all, 1 at the limit."""
    return {
        name: max(0.0, (getattr(shape, name) - training[name]) / (limit - training[name]))
        for name, limit in _limits(training)._asdict().items()
        if name in training and limit != training[name]
    }


def broken_off(shape: LabelShape, training: Mapping[str, float]) -> list[str]:
    """Say where a shape ends or stops inside the image, as no label of the training does.

    Args:
        shape: of a soft map, over all slices of its image.
        training: from `most_extreme`.
    """
    found = []
    for name, where in (("empty_start", "first"), ("empty_end", "last")):
        missing, known = getattr(shape, name), training.get(name, 0)
        if missing > known + END_TOLERANCE:
            found.append(
                f"it ends {missing} slices from the image's {where} (in training at most {known:.0f})"
            )
    if shape.gap > training.get("gap", 0):
        found.append(
            f"{shape.gap} slices are missing in it (in training at most {training.get('gap', 0):.0f})"
        )
    return found


def could_be_labels(
    soft: npt.NDArray[np.floating[Any]],
    training: Mapping[str, float],
    axis: int,
    tilt_factor: npt.NDArray[np.float64] | None = None,
) -> Iterator[LabelShape]:
    """Yield the shape of each piece of a map that could be a label, going by the coarsest of it.

    A cord that a tumour widens still has the area of a cord in most of its slices, so medians are compared.
    One that is seen in part is still longer than what a network makes up, and what is seen of it is like the
    labels of the training. Of a label that is small in some case of the training, a lesion, small pieces are
    pieces.

    Args:
        soft: three axes, values in [0, 1].
        training: from `most_extreme`.
        axis: that slices follow one another along.
        tilt_factor: as for `label_shape`.
    """
    core = soft > HARD_THRESHOLD
    pieces, _ = ndimage.label(core, structure=np.ones((3,) * soft.ndim, dtype=bool))
    shortest = min(training.get("extent", 0), soft.shape[axis])
    for number, around in enumerate(ndimage.find_objects(pieces), start=1):
        piece = np.where(pieces[around] == number, soft[around], 0)
        leaning = None if tilt_factor is None else tilt_factor[around[axis]]
        areas = _areas(piece, axis, leaning)
        middle = float(np.median(areas))
        without_odd_ones = np.clip(areas, (1 - _ODD_AREA) * middle, (1 + _ODD_AREA) * middle)
        variation, roughness = (
            MAD_TO_STD * float(np.median(np.abs(difference))) / middle
            for difference in (areas - middle, _unevenness(without_odd_ones))
        )
        limits = _limits(training) if areas.size < IN_PART * shortest else _loosest_limits(training)
        if (
            areas.size >= MAKE_BELIEVE_EXTENT * shortest
            and middle <= limits.largest_area
            and variation <= limits.area_variation
            and roughness <= limits.area_roughness
            and (shape := label_shape(piece, axis, leaning)) is not None
            and shape.certainty >= limits.certainty
        ):
            yield shape


def _loosest_limits(training: Mapping[str, float]) -> _Limits:
    """Return what a piece may have at most, and of the certainty at least, to be taken for a label."""
    ordinary = _limits(training)
    return _Limits(
        MAKE_BELIEVE_AREA * training["largest_area"],
        max(MAKE_BELIEVE_VARIATION, ordinary.area_variation),
        max(MAKE_BELIEVE_ROUGHNESS, ordinary.area_roughness),
        MAKE_BELIEVE_CERTAINTY * training.get("certainty", 0),
    )


def _areas(
    soft: npt.NDArray[np.floating[Any]], axis: int, tilt_factor: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    others = tuple(other for other in range(soft.ndim) if other != axis)
    areas: npt.NDArray[np.float64] = soft.sum(axis=others, dtype=np.float64)
    return areas if tilt_factor is None else areas / tilt_factor


def _certainty(
    soft: npt.NDArray[np.floating[Any]], core: npt.NDArray[np.bool_], axis: int, area: float
) -> float:
    in_plane = np.ones([1 if other == axis else 3 for other in range(soft.ndim)], dtype=bool)
    depth = max(1, round(_DEPTH * math.sqrt(area / math.pi)))
    inside = ndimage.binary_erosion(core, in_plane, iterations=depth)
    return float(soft[inside].mean(dtype=np.float64)) if inside.any() else 1.0


def _unevenness(areas: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    uneven: npt.NDArray[np.float64] = areas - ndimage.gaussian_filter1d(areas, _SMOOTH_SLICES)
    return uneven
