"""Centreline through the centres of the slices, smooth over a length in mm; its tilt against the slices."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import make_smoothing_spline
from scipy.optimize import minimize_scalar

from nnunet_softseg.errors import UserError
from nnunet_softseg.metrics.slice_frame import Floats

SMOOTHING_MM = 30.0
"""Curves of a cord are longer (over 50 mm), the jitter of centres from slice to slice is shorter."""
LONGEST_SMOOTHING_MM = 1000.0
_FEWEST_FOR_A_SPLINE = 5
_LEAST_WEIGHT = 1e-3
_PROJECTION_STEP_MM = 1.0
_BEYOND_THE_ENDS_MM = 100.0


@dataclass(frozen=True)
class Centreline:
    """A curve in the frame of the slices: right and anterior as functions of the position along the normal.

    It goes on straight beyond the first and the last slice with a structure in it. If there was one slice
    only, it is not `known`: then the tilt is not, either.
    """

    first_mm: float
    last_mm: float
    known: bool
    _curve: Callable[[Floats, int], Floats]

    def points_mm(self, normal_mm: Floats) -> Floats:
        """Return right, anterior and normal of the line at positions along the normal: (n, 3) in mm."""
        inside = np.clip(normal_mm, self.first_mm, self.last_mm)
        in_plane = self._curve(inside, 0) + self._curve(inside, 1) * (normal_mm - inside)[:, None]
        return np.column_stack([in_plane, normal_mm])

    def slopes(self, normal_mm: Floats) -> Floats:
        """Return how far the line moves to the right and to anterior per mm along the normal, (n, 2)."""
        return self._curve(np.clip(normal_mm, self.first_mm, self.last_mm), 1)

    def nearest_mm(self, point_mm: Floats) -> float:
        """Return the position along the normal of the line's point that is nearest to a point (3,) in mm."""
        low = min(self.first_mm, float(point_mm[2])) - _BEYOND_THE_ENDS_MM
        high = max(self.last_mm, float(point_mm[2])) + _BEYOND_THE_ENDS_MM
        positions = np.arange(low, high, _PROJECTION_STEP_MM)
        coarse = positions[self._distance_mm(positions, point_mm).argmin()]
        found = minimize_scalar(
            lambda at: float(self._distance_mm(np.array([at]), point_mm)[0]),
            bounds=(coarse - _PROJECTION_STEP_MM, coarse + _PROJECTION_STEP_MM),
            method="bounded",
        )
        return float(found.x)

    def _distance_mm(self, normal_mm: Floats, point_mm: Floats) -> Floats:
        distance: Floats = np.linalg.norm(self.points_mm(normal_mm) - point_mm, axis=1)
        return distance


def fit_centreline(
    centres_mm: Floats, weight: Floats, spacing_mm: float, smoothing_mm: float = SMOOTHING_MM
) -> Centreline:
    """Return a smooth line through the centres of slices.

    Five slices or more: the natural cubic spline f that minimises, in each direction,
    sum w h (y - f)^2 + (L / 2 pi)^4 integral f''^2, with slice spacing h and smoothing length L. A wave of
    length L keeps half of its amplitude, one of 2 L keeps 94 %, whatever the spacing. Three or four
    slices: a parabola if they span L or more, else a straight line; two: a line; one: its centre.

    Centres are (n, 3) right, anterior, normal, in any order, gaps allowed, no two on one plane. The weight,
    (n,), is the amount of structure in the slice; slices with less than the median count less.

    Raises:
        UserError: if the length is not in [0, 1000].
    """
    if not 0 <= smoothing_mm <= LONGEST_SMOOTHING_MM:
        raise UserError(
            f"smoothing length: expected 0 to {LONGEST_SMOOTHING_MM:g} mm, found {smoothing_mm}: the default "
            f"is {SMOOTHING_MM:g}"
        )
    order = np.argsort(centres_mm[:, 2])
    position, in_plane = centres_mm[order, 2], centres_mm[order, :2]
    share = np.clip(weight[order] / np.median(weight), _LEAST_WEIGHT, 1.0)
    if len(position) >= _FEWEST_FOR_A_SPLINE:
        curve = _spline(position, in_plane, share * spacing_mm, (smoothing_mm / (2 * np.pi)) ** 4)
    else:
        curve = _polynomial(position, in_plane, share, smoothing_mm)
    return Centreline(float(position[0]), float(position[-1]), len(position) > 1, curve)


def _spline(
    position: Floats, in_plane: Floats, weight: Floats, penalty: float
) -> Callable[[Floats, int], Floats]:
    splines = [make_smoothing_spline(position, values, w=weight, lam=penalty) for values in in_plane.T]
    return lambda at, derivative: np.column_stack([spline(at, nu=derivative) for spline in splines])


def _polynomial(
    position: Floats, in_plane: Floats, weight: Floats, smoothing_mm: float
) -> Callable[[Floats, int], Floats]:
    degree = min(len(position) - 1, 1 if position[-1] - position[0] < smoothing_mm else 2)
    middle = float(position.mean())
    # The square root: polyfit's weights multiply the residuals, not their squares.
    coefficients = np.polynomial.polynomial.polyfit(position - middle, in_plane, degree, w=np.sqrt(weight))

    def curve(at: Floats, derivative: int) -> Floats:
        derived = np.polynomial.polynomial.polyder(coefficients, derivative)
        return np.asarray(np.polynomial.polynomial.polyval(at - middle, derived).T, dtype=np.float64)

    return curve
