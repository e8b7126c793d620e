"""Flags of a case in softseg.json, so that no doubtful map passes for a good one.

A flag is a word to filter by and a sentence for a person. Some are raised by the image (its orientation, its
voxels, nothing in it), some by the network's response, most by the soft map: empty, cut off by the box that
the network saw, ended inside the image, in pieces, unlike every label of the training. None changes a map.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnunet_softseg.metrics.label_shape import LabelShape, known_range, label_shape, outliers
from nnunet_softseg.settings import HARD_THRESHOLD

Map = npt.NDArray[np.floating[Any]]
FEWEST_SLICES = 3
"""A map that covers fewer slices of its image than this is flagged."""
END_TOLERANCE = 5
"""A map may end this many slices of the network's grid farther from the image's end than any label did."""
SPACING_TOLERANCE = 2.0
"""Voxels may be this many times larger than any of the training, or smaller."""


class Flag(StrEnum):
    """The words of softseg.json."""

    CONSTANT = "constant image"
    ORIENTATION = "orientation"
    SPACING = "spacing"
    WEAK = "weak response"
    MOVED = "found off the centre"
    DISCARDED = "discarded"
    EMPTY = "empty"
    BORDER = "touches the border"
    BROKEN_OFF = "ends inside the image"
    PIECES = "several pieces"
    UNLIKE = "unlike training"
    FEW_SLICES = "few slices"


class Flagged(NamedTuple):
    """A flag and why it was raised."""

    flag: Flag
    why: str


CONSTANT = Flagged(Flag.CONSTANT, "constant image: the soft map is empty")
MOVED = Flagged(Flag.MOVED, "the middle of the image did not show it: the soft map is from elsewhere")


# The image


def of_orientation(orientation: str | None, trained: str | None) -> list[Flagged]:
    """Flag axes that point another way than in training; None: not known."""
    if None in (orientation, trained) or orientation == trained:
        return []
    return [Flagged(Flag.ORIENTATION, f"orientation {orientation} differs from training's {trained}")]


def of_spacing(spacing_mm: Sequence[float], trained: Mapping[str, Sequence[float]] | None) -> list[Flagged]:
    """Flag voxels that are far larger or smaller than any of the training.

    Args:
        spacing_mm: of the image, as its reader orders axes.
        trained: "smallest" and "largest" along each of these axes, see `spacing_range`; None: not known.
    """
    if trained is None or len(spacing_mm) != len(trained["smallest"]):
        return []
    ranges = zip(spacing_mm, trained["smallest"], trained["largest"], strict=True)
    if all(low / SPACING_TOLERANCE <= length <= high * SPACING_TOLERANCE for length, low, high in ranges):
        return []
    found, low, high = (
        " x ".join(f"{length:.2g}" for length in lengths)
        for lengths in (spacing_mm, trained["smallest"], trained["largest"])
    )
    return [Flagged(Flag.SPACING, f"voxels of {found} mm are far from training's, {low} to {high} mm")]


# The network


def of_response(name: str, found: float, learned: float, floor_fraction: float) -> list[Flagged]:
    """Flag a robust peak of the raw output below a fraction of the running scale of the training."""
    if found >= floor_fraction * learned:
        return []
    why = (
        f"weak response for {name}: the network's raw output stands at {found:.3g}, in training at "
        f"{learned:.3g}; there may be none in this image"
    )
    return [Flagged(Flag.WEAK, why)]


# The soft map


def of_border(
    soft_maps: Map, coverage: npt.NDArray[np.bool_], goes_on: Sequence[tuple[bool, bool]]
) -> list[Flagged]:
    """Flag a soft map that reaches the border of the coverage, behind which the image goes on.

    Args:
        soft_maps: (label, *space), of a part of the case.
        coverage: (*space), of the voxels that the network saw.
        goes_on: per axis, whether the image goes on before the first index and after the last.
    """
    unseen = np.pad(~coverage, 1)
    for axis, faces in enumerate(goes_on):
        for face, beyond in zip((0, -1), faces, strict=True):
            np.moveaxis(unseen, axis, 0)[face] = beyond
    beside = np.zeros_like(coverage)
    inner = (slice(1, -1),) * coverage.ndim
    for axis in range(coverage.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            beside |= unseen[(*inner[:axis], shifted, *inner[axis + 1 :])]
    if not (soft_maps[:, beside & coverage] > HARD_THRESHOLD).any():
        return []
    why = "the soft map touches the border of what the network saw: the structure may be cut off, look at it"
    return [Flagged(Flag.BORDER, why)]


def of_map(
    soft_maps: Map,
    names: Sequence[str],
    training: Mapping[str, Any],
    si_axis: int,
    tilt_factor: npt.NDArray[np.float64] | None = None,
) -> list[Flagged]:
    """Flag maps that are empty, end inside the image, are in pieces or unlike every label of the training.

    Args:
        soft_maps: (label, *space) on the network's grid, along S-I all of the case.
        names: of the labels.
        training: "training_shapes" of the model's plans, per label from `label_shape.training_ranges`.
        si_axis: axis of the space along S-I.
        tilt_factor: see `label_shape`.
    """
    findings = []
    for name, soft_map in zip(names, soft_maps, strict=True):
        shape, known = label_shape(soft_map, si_axis, tilt_factor), training.get(name)
        if shape is None:
            findings.append(Flagged(Flag.EMPTY, f"nothing found of {name}: its soft map is empty"))
            continue
        most = known_range(known, "components")[1] if known else 1
        if shape.components > most:
            pieces = f"{name} is in {shape.components} separate pieces (in training at most {most:.0f})"
            findings.append(Flagged(Flag.PIECES, pieces))
        if known:
            unlike = f"{name} is unlike the labels of the training: "
            findings += [Flagged(Flag.UNLIKE, unlike + outlier) for outlier in outliers(shape, known)]
            findings += [Flagged(Flag.BROKEN_OFF, f"{name}: {end}") for end in _ends(shape, known)]
    return findings


def _ends(shape: LabelShape, training: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a map ends or stops inside the image, farther from its end than any label of the training.

    That is to look at, and no sign of an implausible map: an image may reach beyond the structure.
    """
    for figure, where in (("empty_start", "first"), ("empty_end", "last")):
        missing, most = getattr(shape, figure), known_range(training, figure)[1]
        if missing > most + END_TOLERANCE:
            yield f"it ends {missing} slices from the image's {where} (in training at most {most:.0f})"
    most = known_range(training, "gap")[1]
    if shape.gap > most:
        yield f"{shape.gap} slices are missing in it (in training at most {most:.0f})"


def of_discard(name: str) -> Flagged:
    """Flag a map that was emptied on request, as its shape is unlike the training."""
    return Flagged(Flag.DISCARDED, f"{name} is unlike the labels of the training: emptied, as was asked for")


def of_coverage(on_image: Map, names: Sequence[str], si_axis: int) -> list[Flagged]:
    """Flag a map that covers few slices of its image.

    Args:
        on_image: (label, *space) on the image's own grid.
        names: of the labels.
        si_axis: axis of the space along S-I.
    """
    findings = []
    for name, soft_map in zip(names, on_image, strict=True):
        others = tuple(axis for axis in range(soft_map.ndim) if axis != si_axis)
        covered = int((soft_map.max(axis=others) > HARD_THRESHOLD).sum()) if soft_map.size else 0
        if 0 < covered < FEWEST_SLICES:
            why = f"{name} is found in {covered} slices only, of {soft_map.shape[si_axis]}"
            findings.append(Flagged(Flag.FEW_SLICES, why))
    return findings
