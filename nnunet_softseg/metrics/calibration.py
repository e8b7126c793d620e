"""Calibration of a soft map: of the voxels with 0.7, is 0.7 of the tissue cord?

Over a whole image, nearly all background, any curve looks perfect. Voxels count that lie, along each axis, no
more than `MARGIN_MM` from one above 0 in the reference or above 0.5 in the prediction: with less, a map with
a faint residue all over the background would choose to be judged there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d

from nnunet_softseg.io.geometry import Box, bounding_box, check_grids
from nnunet_softseg.settings import HARD_THRESHOLD

Map = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]

MARGIN_MM = 3.0
BINS = 10


@dataclass(frozen=True)
class ReliabilityCurve:
    """Sums over the voxels of each bin of the predicted value, (bins,); `+` joins the curves of cases.

    Bins are equally wide; each holds its lower edge, the last its upper edge too. Voxels weigh the same.
    """

    count: npt.NDArray[np.int64]
    prediction_sum: Floats
    reference_sum: Floats
    squared_error_sum: Floats

    def __add__(self, other: "ReliabilityCurve") -> "ReliabilityCurve":
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"reliability curves of {self.count.size} and {other.count.size} bins cannot be added: "
                "compute both with the same bins"
            )
        names = [field.name for field in fields(self)]
        return ReliabilityCurve(*(getattr(self, name) + getattr(other, name) for name in names))

    @classmethod
    def empty(cls, bins: int = BINS) -> "ReliabilityCurve":
        """Return the curve of no voxels, the start of a sum over cases."""
        return cls(np.zeros(bins, dtype=np.int64), np.zeros(bins), np.zeros(bins), np.zeros(bins))

    @property
    def edges(self) -> Floats:
        """The (bins + 1,) edges of the bins, from 0 to 1."""
        return np.linspace(0, 1, self.count.size + 1)

    @property
    def mean_prediction(self) -> Floats:
        """The mean predicted value in each bin, NaN in an empty one: the curve's x."""
        return _ratio(self.prediction_sum, self.count)

    @property
    def mean_reference(self) -> Floats:
        """The mean reference, the observed frequency, in each bin, NaN in an empty one: the curve's y."""
        return _ratio(self.reference_sum, self.count)

    @property
    def expected_calibration_error(self) -> float:
        """The mean of |mean prediction - mean reference| over the bins, by their voxels; NaN for none.

        Source: Naeini et al. 2015, Guo et al. 2017 (ECE), for the value itself in place of a confidence.
        """
        total = int(self.count.sum())
        return float(np.abs(self.prediction_sum - self.reference_sum).sum()) / total if total else np.nan

    @property
    def brier_score(self) -> float:
        """The mean of (p - y)^2 over all counted voxels; NaN for none. Source: Brier 1950.

        For a soft reference this is the expected score less the mean of y (1 - y): a perfect map scores 0.
        """
        total = int(self.count.sum())
        return float(self.squared_error_sum.sum()) / total if total else np.nan


def reliability_curve(
    prediction: Map,
    reference: Map,
    spacing_mm: Sequence[float],
    *,
    margin_mm: float = MARGIN_MM,
    bins: int = BINS,
) -> ReliabilityCurve:
    """Return the reliability curve of one label in one case, over the voxels described at the top."""
    check_grids(prediction, reference, spacing_mm)
    if bins < 1 or not margin_mm >= 0:
        raise ValueError(f"a curve needs 1 bin and a margin of 0 mm or more, got {bins} and {margin_mm}")
    box, counted = _region(prediction, reference, spacing_mm, margin_mm)
    predicted, expected = (whole[box][counted].astype(np.float64) for whole in (prediction, reference))
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], predicted, side="right")

    def sums(values: Floats) -> Floats:
        return np.bincount(place, weights=values, minlength=bins).astype(np.float64)

    count = np.bincount(place, minlength=bins).astype(np.int64)
    return ReliabilityCurve(count, sums(predicted), sums(expected), sums((predicted - expected) ** 2))


def _region(
    prediction: Map, reference: Map, spacing_mm: Sequence[float], margin_mm: float
) -> tuple[Box, npt.NDArray[np.bool_]]:
    """Return a box, and the voxels in it that count."""
    # a margin of three voxels must not become two because 3.0 / 0.1 is 29.999
    reach = [
        min(int(margin_mm / length + 1e-6), size)
        for length, size in zip(spacing_mm, reference.shape, strict=True)
    ]
    core = (reference > 0) | (prediction > HARD_THRESHOLD)
    box = bounding_box(core, reach)
    counted = core[box].view(np.uint8)
    for axis, wide in enumerate(reach):
        if wide and counted.size:
            counted = maximum_filter1d(counted, 2 * wide + 1, axis=axis, mode="constant")
    region: npt.NDArray[np.bool_] = counted.astype(np.bool_)
    return box, region


def _ratio(sums: Floats, count: npt.NDArray[np.int64]) -> Floats:
    ratio: Floats = np.divide(sums, count, out=np.full(count.size, np.nan), where=count > 0)
    return ratio
