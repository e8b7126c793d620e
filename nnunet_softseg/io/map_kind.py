"""The meaning of a map's values: a mask, fractions of a label, several labels, percent."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import Finding, examples, short_name
from nnunet_softseg.io.nifti import Values, not_finite

RANGE_TOLERANCE = 1e-5
"""Fractions written as integers with a slope come back a few float32 steps off. What is within is clipped."""
_WHOLE_TOLERANCE = 1e-3
_FEW_LABELS, _MOST_LABELS = 40, 1000
_FULL_SCALES = (100, 255)
_LARGEST_OVERSHOOT = 0.5


class MapKind(enum.Enum):
    """The meaning of a map's values, told by the values alone; the words are those of messages."""

    EMPTY = "all zero"
    MASK = "a mask of 0 and 1"
    SOFT = "fractions in [0, 1]"
    LABELS = "a label map"
    PERCENT = "a map in percent"
    BYTES = "a map from 0 to 255"
    OVERSHOOT = "fractions that overshoot"
    OTHER = "other values"


_REMEDIES = {
    MapKind.LABELS: "this looks like an integer label map: write one file per label with its fraction in "
    "[0, 1]",
    MapKind.OVERSHOOT: "clip it to [0, 1]; resample labels linearly, splines overshoot",
    MapKind.OTHER: "this does not look like a fraction: write the fraction of each voxel that belongs to the "
    "label",
}


@dataclass(frozen=True)
class MapContent:
    """The values of a map in short.

    Attributes:
        kind: their meaning.
        low: the smallest.
        high: the largest.
        labels: its values above 0 if all are whole numbers from 0, so that one can be chosen as a label:
            those of masks, label maps and maps in percent or bytes; None: no label map (an image has more).
    """

    kind: MapKind
    low: float
    high: float
    labels: tuple[int, ...] | None

    @property
    def is_fraction(self) -> bool:
        """Whether the values are the fraction of each voxel that belongs to one label."""
        return self.kind in (MapKind.EMPTY, MapKind.MASK, MapKind.SOFT)

    @property
    def found(self) -> str:
        """The values in words, for messages."""
        if self.labels is not None and len(self.labels) < _FEW_LABELS:
            return f"whole numbers ({examples([str(value) for value in (0, *self.labels)], 6)})"
        return f"[{self.low:.6g}, {self.high:.6g}]"

    def remedy(self, choose: str = "") -> str:
        """Return how values that are no fractions become fractions; `choose` as in `content_findings`."""
        if self.kind is MapKind.LABELS and choose:
            return f"choose a label of it with {choose}"
        if self.kind in (MapKind.PERCENT, MapKind.BYTES):
            factor = next(factor for factor in _FULL_SCALES if self.high <= factor + _LARGEST_OVERSHOOT)
            chosen = f", or choose a label of it with {choose}" if choose and self.labels is not None else ""
            return f"divide it by {factor}{chosen}"
        if self.kind is MapKind.OTHER and self.low >= 0:
            return f"divide it by {self.high:g}"
        return _REMEDIES[self.kind]


def classify(values: npt.NDArray[Any]) -> MapContent:
    """Return the meaning of finite values.

    In [0, 1], they are fractions of one label. Whole numbers beyond that are labels, unless there are many of
    them or the largest is 100 or 255, which fractions in percent or bytes have.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE:
        if high <= 0:
            return MapContent(MapKind.EMPTY, low, high, ())
        if _are_whole(values, RANGE_TOLERANCE):
            return MapContent(MapKind.MASK, low, high, (1,) if round(high) else ())
        return MapContent(MapKind.SOFT, low, high, None)
    if low >= -RANGE_TOLERANCE and _are_whole(values, _WHOLE_TOLERANCE):
        labels = tuple(int(value) for value in np.unique(np.round(values)) if value)
        few = len(labels) < _FEW_LABELS and round(high) not in _FULL_SCALES
        kind = MapKind.LABELS if few else _scale(low, high)
        return MapContent(kind, low, high, labels if len(labels) < _MOST_LABELS else None)
    return MapContent(_scale(low, high), low, high, None)


def _are_whole(values: npt.NDArray[Any], tolerance: float) -> bool:
    if values.dtype.kind in "biu":
        return True
    # Plane by plane: the first one with fractions answers.
    return all(bool((np.abs(plane - np.round(plane)) <= tolerance).all()) for plane in np.atleast_1d(values))


def _scale(low: float, high: float) -> MapKind:
    if low >= -_LARGEST_OVERSHOOT and high <= 1 + _LARGEST_OVERSHOOT:
        return MapKind.OVERSHOOT
    if low < -RANGE_TOLERANCE or high > _FULL_SCALES[1] + _LARGEST_OVERSHOOT:
        return MapKind.OTHER
    return MapKind.PERCENT if high <= _FULL_SCALES[0] + _LARGEST_OVERSHOOT else MapKind.BYTES


def mask_of_label(values: npt.NDArray[Any], label: int) -> Values:
    """Return 1 where a label map has a label, else 0; values stored with a slope come back a little off."""
    return np.asarray(np.round(values) == label, dtype=np.float32)


def content_findings(file: Path | str, values: npt.NDArray[Any], choose: str = "") -> list[Finding]:
    """Say whether the values are finite, in [0, 1], and not all zero (a warning: a label may be absent).

    Args:
        file: of the map, or its name for messages.
        values: of one label.
        choose: the option by which a command takes one label of a label map, `--label`; "" if it cannot.
    """
    name = short_name(file)
    if values.size and not np.isfinite((values.min(), values.max())).all():
        return [not_finite(name, values)]
    content = classify(values)
    if content.kind is MapKind.EMPTY:
        remedy = "nothing, if the label is absent from this image"
        return [Finding(name, "all zero", "some voxels above 0", "none", remedy, "warning")]
    if content.is_fraction:
        return []
    return [Finding(name, "values outside [0, 1]", "[0, 1]", content.found, content.remedy(choose))]
