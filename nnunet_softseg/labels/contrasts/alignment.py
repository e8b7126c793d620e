"""Alignment of a contrast to the reference: a shift, on request a rotation, for each slice of the contrast.

Slices are planes across a contrast's S-I axis; their coordinate is whole in the middle of each. Points,
scanner RAS+ mm (3, N), move within their plane only, so forward and back are exact inverses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Floats, Volume
from nnunet_softseg.settings import HARD_THRESHOLD

MIN_EIGENVALUE_RATIO = 1.6
"""A slice with a smaller ratio of the variances along its principal axes is too round to have a direction."""
MAX_ROTATION_DEG = 40.0
"""A larger rotation is taken for a wrong direction and ignored."""

_REACH = 0.5  # a slice extends by half of itself to both sides of its middle
ROUNDING = 1e-6  # in slices


@dataclass(frozen=True, eq=False)
class Alignment:
    """The alignment of a contrast, slice by slice of the reference.

    The slices are those across the reference's S-I axis, from inferior to superior. Their R-L and A-P axes
    are the two other array axes of the reference, turned to the right and to anterior: scanner axes for a
    straight reference, tipped with it for an oblique one.

    Attributes:
        height_mm: (n,) scanner z of each slice's middle.
        shift_mm: (n, 2), R-L (positive to the right) and A-P (positive to anterior): position in the contrast
            minus position in the reference, of the contrast's slice that the cord crosses there, linear
            between its slices. Where those are oblique to the reference's, the part along these axes.
        rotation_deg: (n,), from R-L towards A-P: direction in the contrast minus direction in the reference.
        measured: (n,), False where the shift was carried over from the nearest slice with both masks.
        coverage: (n,) in [0, 1], the weight of the contrast's mask in the average at the cord.
        agreement: Dice of the contrast's mask and its soft label, both > 0.5, in the slices of the mask that
            take part (all but the trimmed); NaN if neither has such a voxel there.
        warnings: why the contrast is implausible, with numbers; empty if it is not.
    """

    height_mm: Floats
    shift_mm: Floats
    rotation_deg: Floats
    measured: npt.NDArray[np.bool_]
    coverage: Floats
    agreement: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PiecewiseLinear:
    """A function of one coordinate: straight between ascending knots (m,), constant beyond; values (m, d)."""

    knots: Floats
    values: Floats

    def at(self, coordinate: Floats) -> Floats:
        """Return the values at each coordinate, (d, N)."""
        return np.stack([np.interp(coordinate, self.knots, column) for column in self.values.T])


@dataclass(frozen=True, eq=False)
class Centres:
    """The centres of mass (3, m), voxel indices and scanner mm, of the m slices that hold a mask."""

    slices: npt.NDArray[np.intp]
    index: Floats
    world: Floats


def centres_of_mass(mask: Volume) -> Centres:
    """Return the centre of mass of each slice of an upright mask that exceeds 0.5 somewhere.

    Voxels weigh what the mask says, so that the centre of a soft mask is exact as well.
    """
    slices = np.flatnonzero((mask.values > HARD_THRESHOLD).any(axis=(0, 1)))
    planes = mask.values[:, :, slices].astype(np.float64)
    total = planes.sum(axis=(0, 1))
    rl = np.arange(planes.shape[0]) @ planes.sum(axis=1) / total
    ap = np.arange(planes.shape[1]) @ planes.sum(axis=0) / total
    index = np.stack([rl, ap, slices.astype(np.float64)])
    return Centres(slices, index, mask.to_world(index))


@dataclass(frozen=True, eq=False)
class Slices:
    """The planes across the S-I axis of an upright volume.

    `axes`: (3, 2) unit vectors within the planes, to the right and, perpendicular to that, to anterior.
    """

    grid: Volume
    axes: Floats

    @classmethod
    def of(cls, grid: Volume) -> "Slices":
        """Return the slices of an upright volume."""
        right = grid.affine[:3, 0] / np.linalg.norm(grid.affine[:3, 0])
        anterior = grid.affine[:3, 1] - right * (right @ grid.affine[:3, 1])
        return cls(grid, np.stack([right, anterior / np.linalg.norm(anterior)], axis=1))

    def number(self, points: Floats) -> Floats:
        """Return the slice coordinate of points, (N,)."""
        return np.asarray(self.grid.to_index(points)[2])

    def crossing(self, line: Floats) -> PiecewiseLinear:
        """Return slice coordinate -> where a line of points (3, m) crosses that plane, 3 values in mm."""
        numbers = self.number(line)
        order = np.argsort(numbers, kind="stable")
        return PiecewiseLinear(numbers[order], line[:, order].T)


@dataclass(frozen=True, eq=False)
class Reference:
    """The contrast that others are aligned to.

    `filled`: (m,) slices with a mask; `cord`: (3, n) points along it in scanner mm, inferior to superior.
    """

    slices: Slices
    filled: npt.NDArray[np.intp]
    cord: Floats


def reference_of(mask: Volume) -> Reference:
    """Return the reference from its upright mask; the cord ends straight, at the far sides of its slices."""
    centres = centres_of_mass(mask)
    numbers, points = centres.slices, centres.world
    if numbers.size == 1:
        first = last = mask.affine[:3, 2]
    else:
        first = (points[:, 1] - points[:, 0]) / (numbers[1] - numbers[0])
        last = (points[:, -1] - points[:, -2]) / (numbers[-1] - numbers[-2])
    cord = np.column_stack([points[:, 0] - _REACH * first, points, points[:, -1] + _REACH * last])
    return Reference(Slices.of(mask), numbers, cord)


@dataclass(frozen=True, eq=False)
class Motion:
    """The map between the reference and a contrast.

    Attributes:
        slices: of the contrast.
        shift: slice of the contrast -> shift along its axes in mm, 2 values.
        rotation: slice of the contrast -> rotation about the cord in radians, 1 value; None for none.
        cord: slice of the contrast -> where it shows the centre of the cord, 3 values in mm.
        measured: (m,) slices of the contrast in which the shift was measured, from inferior to superior.
        steps: (m, 2) the shifts as measured, before smoothing.
    """

    slices: Slices
    shift: PiecewiseLinear
    rotation: PiecewiseLinear | None
    cord: PiecewiseLinear
    measured: npt.NDArray[np.intp]
    steps: Floats

    def to_contrast(self, points: Floats) -> Floats:
        """Return where the contrast shows what the reference shows at the points."""
        numbers = self.slices.number(points)
        return self._turned(points + self.slices.axes @ self.shift.at(numbers), numbers, sign=1.0)

    def to_reference(self, points: Floats) -> Floats:
        """Return where the reference shows what the contrast shows at the points: the exact inverse."""
        numbers = self.slices.number(points)
        return self._turned(points, numbers, sign=-1.0) - self.slices.axes @ self.shift.at(numbers)

    def _turned(self, points: Floats, numbers: Floats, *, sign: float) -> Floats:
        if self.rotation is None:
            return points
        angle, centre = sign * self.rotation.at(numbers)[0], self.cord.at(numbers)
        right, anterior = self.slices.axes.T @ (points - centre)
        to_right = (np.cos(angle) - 1) * right - np.sin(angle) * anterior
        to_anterior = np.sin(angle) * right + (np.cos(angle) - 1) * anterior
        return np.asarray(points + self.slices.axes @ np.stack([to_right, to_anterior]))


def identity(reference: Reference) -> Motion:
    """Return the map of the reference to itself."""
    still = PiecewiseLinear(np.zeros(1), np.zeros((1, 2)))
    cord = reference.slices.crossing(reference.cord)
    return Motion(reference.slices, still, None, cord, reference.filled, np.zeros((reference.filled.size, 2)))


def measure(reference: Reference, mask: Volume, settings: GroundTruthSettings) -> Motion | None:
    """Return the map to a contrast, from its upright mask; None if no slice holds both masks.

    The shift is measured in the contrast's own slices: from where the cord of the reference crosses their
    plane to the centre of mass of their mask. So neither mask is interpolated, and the thickness of a slice
    does not blur what has moved in it.
    """
    slices, centres = Slices.of(mask), centres_of_mass(mask)
    crossing = slices.crossing(reference.cord).at(centres.slices.astype(np.float64))
    # Those that the reference's cord crosses within a slice that has its mask.
    crossed = np.abs(slices.number(crossing) - centres.slices) <= ROUNDING
    away = np.abs(reference.slices.number(crossing)[:, None] - reference.filled).min(axis=1)
    shared = np.flatnonzero(crossed & (away <= _REACH + ROUNDING))
    if not shared.size:
        return None
    measured = centres.slices[shared]
    steps = (centres.world - crossing)[:, shared].T @ slices.axes
    numbers = measured.astype(np.float64)
    shift = PiecewiseLinear(numbers, smoothed(numbers * mask.voxel_mm[2], steps, settings.smooth_mm))
    rotation = _rotation(reference, mask, settings.smooth_mm) if settings.rotation else None
    return Motion(slices, shift, rotation, slices.crossing(centres.world), measured, steps)


def with_cord_of_all(reference: Reference, motions: Sequence[Motion]) -> Reference:
    """Return the reference, its cord continued where its own mask ends and those of other contrasts go on."""
    own = reference.slices.crossing(reference.cord)
    lines = [reference.slices.crossing(_cord_in_reference(motion)) for motion in motions]
    first = min(np.ceil(line.knots[0]) for line in (own, *lines))
    last = max(np.floor(line.knots[-1]) for line in (own, *lines))
    numbers = np.arange(first, last + 1)
    beyond = numbers[(numbers < own.knots[0]) | (numbers > own.knots[-1])]
    total, count = np.zeros((3, beyond.size)), np.zeros(beyond.size)
    for line in lines:
        seen = (beyond >= line.knots[0]) & (beyond <= line.knots[-1])
        total[:, seen] += line.at(beyond[seen])
        count += seen
    found = np.flatnonzero(count)
    cord = np.column_stack([own.values.T, total[:, found] / count[found]])
    order = np.argsort(np.concatenate((own.knots, beyond[found])), kind="stable")
    return replace(reference, cord=cord[:, order])


def _cord_in_reference(motion: Motion) -> Floats:
    """Return the cord of a contrast as the reference shows it; the cord does not turn about itself."""
    return motion.cord.values.T - motion.slices.axes @ motion.shift.at(motion.cord.knots)


def drift_mm(motion: Motion, reference: Reference) -> float:
    """Return the largest distance of a contrast's cord, brought to the reference, from that of all.

    There is one where the shift was carried over, not measured, or smoothed.
    """
    line = reference.slices.crossing(reference.cord)
    points = _cord_in_reference(motion)
    away = points - line.at(reference.slices.number(points))
    return float(np.linalg.norm(away, axis=0).max())


def continued(motion: Motion, reference: Reference) -> Motion:
    """Return a motion that knows the cord beyond the contrast's own mask, from what others show."""
    own = motion.cord
    numbers = motion.slices.number(reference.cord)
    there = reference.cord + motion.slices.axes @ motion.shift.at(numbers)
    beyond = (numbers < own.knots[0]) | (numbers > own.knots[-1])
    line = np.column_stack([own.values.T, there[:, beyond]])
    return replace(motion, cord=motion.slices.crossing(line))


def smoothed(height: Floats, values: Floats, sigma_mm: float) -> Floats:
    """Return values (m, d) at heights (m,), each from a line fitted to its neighbours, Gaussian weights.

    A line, and not a mean, so that neither a drift nor the ends are pulled towards the middle.
    """
    if sigma_mm == 0:
        return values
    result = np.empty_like(values)
    for place, here in enumerate(height):
        away = height - here
        root = np.exp(-0.25 * (away / sigma_mm) ** 2)
        line = np.stack([np.ones_like(away), away], axis=1) * root[:, None]
        result[place] = np.linalg.lstsq(line, values * root[:, None], rcond=1e-9)[0][0]
    return result


def _rotation(reference: Reference, mask: Volume, sigma_mm: float) -> PiecewiseLinear | None:
    """Return the rotation from the first principal axes of the slices, where both masks have one."""
    axes = Slices.of(mask).axes
    reference_slices, _centres, reference_angle = _principal_axes(reference.slices.grid, axes)
    slices, centres, angle = _principal_axes(mask, axes)
    if not reference_slices.size or not slices.size:
        return None
    numbers = reference.slices.number(centres)
    nearest = np.abs(numbers[:, None] - reference_slices).argmin(axis=1)
    # An axis has no sign: angles differ by -90 to 90 degrees.
    rotation = (angle - reference_angle[nearest] + np.pi / 2) % np.pi - np.pi / 2
    near = np.abs(numbers - reference_slices[nearest]) <= _REACH + ROUNDING
    valid = near & (np.abs(rotation) <= np.radians(MAX_ROTATION_DEG))
    if not valid.any():
        return None
    knots = slices[valid].astype(np.float64)
    return PiecewiseLinear(knots, smoothed(knots * mask.voxel_mm[2], rotation[valid, None], sigma_mm))


def _principal_axes(mask: Volume, axes: Floats) -> tuple[npt.NDArray[np.intp], Floats, Floats]:
    """Return the first principal axis of each slice of an upright mask that is not nearly round.

    The slices (m,), their centres (3, m) in scanner mm, and the angle (m,) of the axis, in radians from the
    first of the two unit vectors in `axes` (3, 2) towards the second.
    """
    centres = centres_of_mass(mask)
    places, angles = [], []
    for place, number in enumerate(centres.slices):
        plane = mask.values[:, :, number]
        index = np.array(np.nonzero(plane), np.float64)
        away = mask.affine[:3, :2] @ (index - centres.index[:2, place : place + 1])
        within = axes.T @ away
        weight = plane[plane > 0].astype(np.float64)
        variances, directions = np.linalg.eigh((within * weight) @ within.T)
        if variances[1] > MIN_EIGENVALUE_RATIO * max(variances[0], 0.0):
            places.append(place)
            angles.append(float(np.arctan2(directions[1, 1], directions[0, 1])))
    found = np.array(places, np.intp)
    return centres.slices[found], centres.world[:, found], np.array(angles, np.float64)
