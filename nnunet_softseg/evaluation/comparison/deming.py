"""The Deming line: a straight line between two measurements that both have errors."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nnunet_softseg.evaluation.comparison.paired_statistics import Floats

_FEWEST = 3
"""Subjects from which leaving one out says how certain the line is."""


class DemingLine(NamedTuple):
    """y = slope x + intercept, with standard errors and covariance of the two; NaN if not known."""

    slope: float = np.nan
    intercept: float = np.nan
    slope_se: float = np.nan
    intercept_se: float = np.nan
    covariance: float = np.nan

    def at(self, x: Floats) -> Floats:
        """Return the line's value at each x."""
        return self.slope * x + self.intercept

    def se_at(self, x: Floats) -> Floats:
        """Return the standard error of the line's value at each x."""
        variance = self.intercept_se**2 + 2 * x * self.covariance + x**2 * self.slope_se**2
        return np.sqrt(np.maximum(variance, 0.0))


def deming_line(x: npt.ArrayLike, y: npt.ArrayLike, subjects: npt.ArrayLike) -> DemingLine:
    """Return the line that is nearest to all points across itself: errors of x and y have one variance.

    Unlike least squares it does not take the errors of x for a slope below 1, and exchanging x and y gives
    the inverse line. Standard errors by leaving out one subject at a time (jackknife).

    Args:
        x: (n,) first measurement.
        y: (n,) second measurement of the same, same unit.
        subjects: (n,) whose they are; one may have several.

    Returns:
        NaN for fewer than two points, or values of which neither follows the other.

    Source: Deming 1943; Linnet 1993, Clin Chem 39:424, for the jackknife.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    names, owners = np.unique(np.asarray(subjects), return_inverse=True)
    slope, intercept = _fit(first, second)
    if names.size < _FEWEST or np.isnan(slope):
        return DemingLine(slope, intercept)
    without = [_fit(first[owners != left_out], second[owners != left_out]) for left_out in range(names.size)]
    covariance = np.cov(np.array(without), rowvar=False, ddof=0) * (names.size - 1)
    errors = np.sqrt(np.diag(covariance))
    return DemingLine(slope, intercept, float(errors[0]), float(errors[1]), float(covariance[0, 1]))


def _fit(x: Floats, y: Floats) -> tuple[float, float]:
    if x.size <= 1:
        return np.nan, np.nan
    from_mean_x, from_mean_y = x - x.mean(), y - y.mean()
    together = float(from_mean_x @ from_mean_y)
    rounding = 1e-12 * float(np.abs(x).max() * np.abs(y).max()) * x.size
    if abs(together) <= rounding:
        return np.nan, np.nan
    apart = float(from_mean_y @ from_mean_y - from_mean_x @ from_mean_x)
    slope = (apart + float(np.hypot(apart, 2 * together))) / (2 * together)
    return slope, float(y.mean() - slope * x.mean())
