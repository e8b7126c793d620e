"""Calibration of a soft map: of the voxels with 0.7, is 0.7 of the tissue cord?

Over a whole image, nearly all background, any curve looks perfect. Counted are the voxels near the reference:
along each axis no more than `MARGIN_MM` from one above 0 in it. They are the same for all methods, and scores
are relative to their number. Beyond them every voxel counts that is predicted above 0, in bins of its own: it
adds to the error and not to the number by which errors are divided, so no false voxel dilutes them.

A map that is off can be calibrated: isotonic regression gives the monotone map from predicted value to mean
reference that fits the same voxels best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d

from nnunet_softseg.io.geometry import bounding_box, check_grids

Map = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MARGIN_MM = 3.0
BINS = 10
_STEPS = 500
_FINE_EDGES = np.append(np.nextafter(0, 1), np.arange(1, _STEPS + 1) / _STEPS)
"""Between the bins of a `ValueTable`: 0 and 1 have bins of their own."""


@dataclass(frozen=True)
class ReliabilityCurve:
    """Sums over voxels by place and bin of the predicted value, (2, bins); `+` joins the curves of cases.

    Row 0 holds the voxels near the reference, row 1 the false ones beyond. Bins are equally wide; each holds
    its lower edge, the last its upper edge too. Voxels weigh the same.
    """

    count: npt.NDArray[np.int64]
    prediction_sum: Floats
    reference_sum: Floats
    squared_error_sum: Floats

    def __add__(self, other: "ReliabilityCurve") -> "ReliabilityCurve":
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"reliability curves of {self.count.shape[1]} and {other.count.shape[1]} bins cannot be "
                "added: compute both with the same bins"
            )
        names = [field.name for field in fields(self)]
        return ReliabilityCurve(*(getattr(self, name) + getattr(other, name) for name in names))

    @classmethod
    def empty(cls, bins: int = BINS) -> "ReliabilityCurve":
        """Return the curve of no voxels, the start of a sum over cases."""
        return cls(np.zeros((2, bins), dtype=np.int64), *(np.zeros((2, bins)) for _ in range(3)))

    @property
    def edges(self) -> Floats:
        """The (bins + 1,) edges of the bins, from 0 to 1."""
        return np.linspace(0, 1, self.count.shape[1] + 1)

    @property
    def num_voxels(self) -> npt.NDArray[np.int64]:
        """The voxels in each bin, near the reference and beyond."""
        return np.asarray(self.count.sum(axis=0))

    @property
    def mean_prediction(self) -> Floats:
        """The mean predicted value in each bin, NaN in an empty one: the curve's x."""
        return _ratio(self.prediction_sum.sum(axis=0), self.num_voxels)

    @property
    def mean_reference(self) -> Floats:
        """The mean reference, the observed frequency, in each bin, NaN in an empty one: the curve's y."""
        return _ratio(self.reference_sum.sum(axis=0), self.num_voxels)

    @property
    def expected_calibration_error(self) -> float:
        """The sum of |sum p - sum y| over the bins, per voxel near the reference; NaN for none.

        Within 3 mm of the reference it is the expected calibration error (ECE), for the value itself in place
        of a confidence; the false voxels beyond add their sum of p. So another false voxel there always makes
        it worse. Near the reference one can make it better, where its bin was predicted too low before: there
        errors of opposite sign cancel by the definition of calibration.

        Source: Naeini et al. 2015, Guo et al. 2017; the bins beyond are ours.
        """
        return self._per_voxel(np.abs(self.prediction_sum - self.reference_sum))

    @property
    def brier_score(self) -> float:
        """The sum of (p - y)^2 over the image, per voxel near the reference; NaN for none.

        Without false voxels beyond, it is the mean over the voxels near the reference (Brier 1950); many of
        them may bring it above 1. For a soft reference this is the expected score less the mean of y (1 - y):
        a perfect map scores 0.
        """
        return self._per_voxel(self.squared_error_sum)

    def _per_voxel(self, errors: Floats) -> float:
        total = int(self.count[0].sum())
        return float(errors.sum()) / total if total else np.nan


def reliability_curve(
    prediction: Map,
    reference: Map,
    spacing_mm: Sequence[float],
    *,
    margin_mm: float = MARGIN_MM,
    bins: int = BINS,
    near: Map | None = None,
    unknown: Mask | None = None,
) -> ReliabilityCurve:
    """Return the reliability curve of one label in one case, over the voxels described at the top.

    `near`: a map in place of the reference, near whose voxels above 0 the counted ones lie. `unknown`: voxels
    that do not count, 0 in both maps.
    """
    check_grids(prediction, reference, spacing_mm)
    if bins < 1 or not margin_mm >= 0:
        raise ValueError(f"a curve needs 1 bin and a margin of 0 mm or more, got {bins} and {margin_mm}")
    counted = _near(reference if near is None else near, spacing_mm, margin_mm, unknown)
    return _summed(prediction, reference, counted, np.linspace(0, 1, bins + 1)[1:-1])


def _summed(prediction: Map, reference: Map, near: Mask, edges: Floats) -> ReliabilityCurve:
    """Return the sums over the voxels near the reference and the false ones, by bins between the edges."""
    tables = []
    for counted in (near, (prediction > 0) & ~near):
        predicted, expected = (whole[counted].astype(np.float64) for whole in (prediction, reference))
        place = np.searchsorted(edges, predicted, side="right")
        weights = (np.ones_like(predicted), predicted, expected, (predicted - expected) ** 2)
        tables.append([np.bincount(place, weights=values, minlength=len(edges) + 1) for values in weights])
    count, *sums = np.stack(tables, axis=1)
    return ReliabilityCurve(count.astype(np.int64), *sums)


def _near(reference: Map, spacing_mm: Sequence[float], margin_mm: float, unknown: Mask | None) -> Mask:
    """Return the known voxels that lie, along each axis, within the margin of one above 0."""
    # a margin of three voxels must not become two because 3.0 / 0.1 is 29.999
    reach = [
        min(int(margin_mm / length + 1e-6), size)
        for length, size in zip(spacing_mm, reference.shape, strict=True)
    ]
    near = reference > 0
    box = bounding_box(near, reach)
    counted = near[box].view(np.uint8)
    for axis, wide in enumerate(reach):
        if wide and counted.size:
            counted = maximum_filter1d(counted, 2 * wide + 1, axis=axis, mode="constant")
    near[box] = counted
    return near if unknown is None else near & ~unknown


def _ratio(sums: Floats, count: npt.NDArray[np.int64]) -> Floats:
    ratio: Floats = np.divide(sums, count, out=np.full(count.size, np.nan), where=count > 0)
    return ratio


# Calibration by isotonic regression


@dataclass(frozen=True)
class IsotonicMap:
    """A monotone map of values in [0, 1], linear between its knots (x, y), with 0 -> 0."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.float64)
        fits = x.ndim == 1 and x.shape == y.shape and x.size > 1 and x[0] == y[0] == 0 and x[-1] == 1
        if not (fits and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all() and y[-1] <= 1):
            raise ValueError("expected knots from (0, 0) to x = 1, ascending, with y in [0, 1]")

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values mapped, of the same type; 0 stays exactly 0."""
        mapped: npt.NDArray[Any] = np.interp(values, self.x, self.y).astype(values.dtype)
        return mapped


@dataclass(frozen=True)
class ValueTable:
    """The voxels of a reliability curve in bins fine enough to fit a map and to tell what it changes.

    Bins are 1 / 500 wide; exactly 0 and exactly 1 have their own. Tables of cases add up.
    """

    sums: ReliabilityCurve

    @classmethod
    def of(
        cls,
        prediction: Map,
        reference: Map,
        spacing_mm: Sequence[float],
        *,
        unknown: Mask | None = None,
    ) -> "ValueTable":
        """Return the table of one label in one case; `unknown` as in `reliability_curve`."""
        check_grids(prediction, reference, spacing_mm)
        near = _near(reference, spacing_mm, MARGIN_MM, unknown)
        return cls(_summed(prediction, reference, near, _FINE_EDGES))

    @classmethod
    def empty(cls) -> "ValueTable":
        """Return the table of no voxels, the start of a sum over cases."""
        return cls(ReliabilityCurve.empty(len(_FINE_EDGES) + 1))

    def __add__(self, other: "ValueTable") -> "ValueTable":
        return ValueTable(self.sums + other.sums)

    def isotonic_map(self) -> IsotonicMap:
        """Return the map by which the table's voxels above 0 have the smallest squared error.

        Values above all of the table are moved as the largest of it, up to 1; without any voxel above 0 the
        map changes nothing.

        Source: isotonic regression, Zadrozny and Elkan 2002; onto a soft label as in TwinTrack (CURVAS 2025).
        """
        from sklearn.isotonic import IsotonicRegression  # only here: it takes half a second to load

        weight, predicted, expected = (
            values.sum(axis=0)[1:]
            for values in (self.sums.count, self.sums.prediction_sum, self.sums.reference_sum)
        )
        filled = weight > 0
        if not filled.any():
            return IsotonicMap((0.0, 1.0), (0.0, 1.0))
        regression = IsotonicRegression(y_min=0, y_max=1)
        regression.fit(*(values[filled] / weight[filled] for values in (predicted, expected)), weight[filled])
        x, y = ([0.0, *knots] for knots in (regression.X_thresholds_, regression.y_thresholds_))
        if x[-1] < 1:
            y.append(min(1.0, y[-1] + 1 - x[-1]))
            x.append(1.0)
        return IsotonicMap(*(tuple(map(float, knots)) for knots in (x, y)))

    def curve(self, mapping: IsotonicMap | None = None) -> ReliabilityCurve:
        """Return the reliability curve of the voxels, as they are or mapped."""
        count, reference = self.sums.count, self.sums.reference_sum
        value = np.divide(self.sums.prediction_sum, count, out=np.zeros(count.shape), where=count > 0)
        mapped = mapping(value) if mapping else value
        errors = self.sums.squared_error_sum + count * (mapped**2 - value**2)
        errors -= 2 * (mapped - value) * reference
        place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], mapped, side="right")
        is_in = place[:, :, None] == np.arange(BINS)
        by_bin = np.einsum("trv,rvb->trb", [count, count * mapped, reference, errors], is_in)
        return ReliabilityCurve(by_bin[0].astype(np.int64), *by_bin[1:])
