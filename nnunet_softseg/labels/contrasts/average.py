"""The soft label of one subject: sum of the aligned masks of all contrasts / sum of their coverages.

After Bédard, Karthik et al., Medical Image Analysis 2025, "Towards contrast-agnostic soft segmentation of the
spinal cord". There, the average is made on the reference's grid and brought back to each contrast; here, each
mask is read once at every voxel of the target grid, without a second interpolation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.errors import UserError
from nnunet_softseg.labels.contrasts.alignment import (
    ROUNDING,
    Alignment,
    Motion,
    PiecewiseLinear,
    Reference,
    centres_of_mass,
    continued,
    drift_mm,
    identity,
    measure,
    reference_of,
    smoothed,
    with_cord_of_all,
)
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Floats, Volume, as_stored, cropped, upright
from nnunet_softseg.metrics.overlap import dice
from nnunet_softseg.settings import HARD_THRESHOLD

_CHUNK = 200_000  # voxels at a time: memory stays small with any mask
_STEEPEST = 0.7  # largest shift of the cord in plane per mm along S-I: 35 degrees
_ENOUGH_TO_BLAME = 2  # contrasts implausible against the reference before that is the reference's fault
_LONG_ENOUGH_MM = 30.0  # of a cord, to tell how it leans
_TANGENT_MM = 5.0  # sigma of the neighbourhood that its direction in a slice is of
_MOST_AREA_CHANGED = 0.03
"""Shifts of the phantom, up to 10 mm, come to 0.006; half of it stays in a label of two contrasts."""
# Indices closer to a whole number than this are meant to be whole: an affine read from a file has 7 digits,
# and a mask on the same grid must come through without a 0.9999.
_INDEX_DECIMALS = 4
_SAMPLES_PER_VOXEL = 1.5
"""How densely a large voxel is sampled along each of its axes: per voxel of the mask that is read."""


@dataclass(frozen=True, eq=False)
class SoftGroundTruth:
    """The soft label of one subject.

    Attributes:
        native: the soft label on the grid of each contrast's mask, values in [0, 1], never NaN; 0 in slices
            where that mask is empty.
        contrasts: how each contrast that took part lies against the reference, the reference itself included.
    """

    reference: str
    native: dict[str, Volume]
    contrasts: dict[str, Alignment]
    skipped: dict[str, str]


def soft_ground_truth(masks: Mapping[str, Volume], settings: GroundTruthSettings) -> SoftGroundTruth:
    """Return the soft label from contrast -> mask in [0, 1], on the grid of its image; in any order.

    Raises:
        UserError: if no mask is usable, or one has values outside of [0, 1].
    """
    usable, skipped = _usable(masks, settings)
    while True:
        reference, _reason = choose_reference(usable, settings.reference)
        truth, reference_is_wrong = _average(usable, reference, settings)
        implausible = {name for name, alignment in truth.contrasts.items() if alignment.warnings}
        # The reference stays, however badly it agrees: what is left must lie against something. But if it is
        # the reference that is wrong, what lies implausibly against it may be right.
        out = {reference} if reference_is_wrong else implausible - {reference}
        if not out or not settings.leave_out_implausible:
            return replace(truth, skipped=truth.skipped | skipped)
        for name in sorted(out):
            skipped[name] = "left out: " + "; ".join(truth.contrasts[name].warnings)
        usable = {name: mask for name, mask in usable.items() if name not in out}


def choose_reference(masks: Mapping[str, Volume], wanted: str) -> tuple[str, str | None]:
    """Return the contrast to average on, and why it is not the one wanted, or None if it is.

    Instead of a missing one: that with the thinnest slices, the longest cover along S-I, the smallest voxels.

    Raises:
        UserError: if no mask holds anything.
    """
    filled = {name: mask for name, mask in masks.items() if (mask.values > HARD_THRESHOLD).any()}
    if not filled:
        names = ", ".join(sorted(masks)) or "none"
        raise UserError(f"no reference can be chosen: no mask holds anything (masks of: {names})")
    if wanted in filled:
        return wanted, None
    best = min(sorted(filled), key=lambda name: _rank(filled[name]))
    thickness = upright(filled[best]).voxel_mm[2]
    problem = "its mask is empty" if wanted in masks else "it is missing"
    slices = f"{best} has the thinnest slices ({thickness:.3g} mm)"
    return best, f"{wanted} cannot be the reference, {problem}: {slices}"


def _rank(mask: Volume) -> tuple[float, float, float]:
    turned = upright(mask)
    size, slices = turned.voxel_mm, centres_of_mass(turned).slices.size
    return round(float(size[2]), 3), -round(slices * float(size[2]), 3), round(float(size.prod()), 3)


def _usable(
    masks: Mapping[str, Volume], settings: GroundTruthSettings
) -> tuple[dict[str, Volume], dict[str, str]]:
    """Return the masks that may take part, sorted by name, and why others may not."""
    usable, skipped = {}, {}
    for name in sorted(masks):
        if settings.contrasts is not None and name not in settings.contrasts:
            skipped[name] = "not among the contrasts that were asked for"
            continue
        values = masks[name].values
        lowest, highest = float(values.min()), float(values.max())
        if not (lowest >= 0 and highest <= 1):  # true for NaN, too
            raise UserError(
                f"mask of {name}: expected values in [0, 1], found {lowest:g} to {highest:g}: "
                "give a binary mask or a soft map"
            )
        if highest > HARD_THRESHOLD:
            usable[name] = masks[name]
        else:
            low = f"no value of its mask exceeds {HARD_THRESHOLD}"
            skipped[name] = "its mask is empty" if highest == 0 else low
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"no contrast with a usable mask ({reasons or 'no masks at all'}): check the masks")
    return usable, skipped


# A mask read anywhere in space: linear, along the cord from slice to slice, weighted by coverage


@dataclass(frozen=True, eq=False)
class SlicedMask:
    """A mask as its rater saw it: slice by slice.

    Attributes:
        mask: upright, cropped to what is not 0.
        covered: (slices,) 1 where the slice has a mask that takes part, else 0.
        path: slice index -> voxel index (R-L, A-P) of the cord's centre.
    """

    mask: Volume
    covered: Floats
    path: PiecewiseLinear

    def read(self, points: Floats) -> tuple[Floats, Floats]:
        """Return mask times coverage, and coverage, at points: (3, N) in scanner mm -> (N,) twice.

        Both are linear between slices and 0 one slice beyond the covered ones. From one slice to the next
        the mask is read along the cord, not straight up: between slices 5 mm apart, a cord that leans by 15
        degrees moves by 1.3 mm, and halfway it must be one cord and not two halves.
        """
        index = np.round(self.mask.to_index(points), _INDEX_DECIMALS)
        below = np.floor(index[2])
        above_share = index[2] - below
        centre = self.path.at(index[2])
        numbers, weighted, weight = np.arange(self.covered.size), np.zeros(below.size), np.zeros(below.size)
        for slices, nearness in ((below, 1 - above_share), (below + 1, above_share)):
            share = nearness * np.interp(slices, numbers, self.covered, left=0, right=0)
            used = np.flatnonzero(share)
            in_plane = (index[:2] - centre)[:, used] + self.path.at(slices[used])
            place = np.vstack([np.round(in_plane, _INDEX_DECIMALS), slices[None, used]])
            between = ndimage.map_coordinates(
                self.mask.values, place, output=np.float64, order=1, mode="grid-constant", cval=0.0
            )
            weighted[used] += share[used] * between
            weight += share
        return weighted, weight

    def reach_mm(self) -> float:
        """Return the largest distance of the mask from the cord's centre in its slices, plus a voxel."""
        size = self.mask.voxel_mm[:2]
        index = np.array(np.nonzero(self.mask.values), np.float64)
        away = (index[:2] - self.path.at(index[2])) * size[:, None]
        return float(np.linalg.norm(away, axis=0).max() + np.linalg.norm(size))


def sliced(mask: Volume, motion: Motion, trim_mm: float) -> SlicedMask:
    """Return an upright, cropped mask ready to be read, without `trim_mm` at both ends."""
    filled = _filled(mask)
    covered = np.zeros(mask.values.shape[2])
    covered[filled] = 1.0
    if trim_mm > 0:
        thickness = mask.voxel_mm[2]
        middle = (filled - filled[0] + 0.5) * thickness
        length = (filled[-1] - filled[0] + 1) * thickness
        covered[filled[(middle < trim_mm) | (middle > length - trim_mm)]] = 0.0
    path = mask.to_index(motion.cord.values.T)
    return SlicedMask(mask, covered, PiecewiseLinear(motion.cord.knots, path[:2].T))


def _filled(mask: Volume) -> npt.NDArray[np.intp]:
    """Return the slices of an upright mask that are not empty: of a soft one those of small shares, too."""
    return np.flatnonzero((mask.values > 0).any(axis=(0, 1)))


def box_offsets(target: Volume, source: Volume, *, box: bool) -> Floats:
    """Return where a voxel of the target reads the source: (3, m) in mm from its centre, over its box.

    A voxel is a mean over its size. The source is a mean over its own voxels already, so the box that is
    left along an axis has a width of the root of the difference of squares: variances of boxes add up. None
    is left where the source's voxels are as large or larger, nor without `box`. Both volumes are upright.
    """
    width = _box_mm(target, source, box=box)
    counts = np.maximum(1, np.ceil(_SAMPLES_PER_VOXEL * width / _body_mm(source))).astype(np.intp)
    steps = [
        ((np.arange(count) + 0.5) / count - 0.5) * side for count, side in zip(counts, width, strict=True)
    ]
    along_axes = np.stack(np.meshgrid(*steps, indexing="ij")).reshape(3, -1)
    return np.asarray(target.affine[:3, :3] / target.voxel_mm @ along_axes)


def _box_mm(target: Volume, source: Volume, *, box: bool) -> Floats:
    """Return the widths, (3,) in mm along the target's axes, over which it is a mean and the source not."""
    wider = np.maximum(_body_mm(target) ** 2 - _body_mm(source) ** 2, 0.0)
    return np.sqrt(wider) if box else np.zeros(3)


def _body_mm(grid: Volume) -> Floats:
    """Return the size of what a voxel of an upright volume shows, (3,): slices with gaps are thinner."""
    apart = grid.voxel_mm
    thickness = apart[2] if grid.thickness_mm is None else min(grid.thickness_mm, apart[2])
    return np.array([*apart[:2], thickness])


def voxels_around(
    path: PiecewiseLinear, grid: Volume, slices: npt.NDArray[np.intp], reach_mm: float
) -> npt.NDArray[np.intp]:
    """Return the voxel indices (3, N) within `reach_mm` of the cord's path, in slices (n >= 1,) of a grid.

    The path: slice index -> voxel index (R-L, A-P) of the cord's centre. The grid is upright.
    """
    reach, shape = reach_mm / grid.voxel_mm[:2], grid.values.shape[:2]
    windows = []
    for number, centre in zip(slices, path.at(slices.astype(np.float64)).T, strict=True):
        low = np.clip(np.floor(centre - reach), 0, shape).astype(np.intp)
        high = np.clip(np.ceil(centre + reach) + 1, 0, shape).astype(np.intp)
        sides = [np.arange(first, last) for first, last in zip(low, high, strict=True)]
        windows.append(np.stack(np.meshgrid(*sides, [number], indexing="ij")).reshape(3, -1))
    return np.concatenate(windows, axis=1)


# All contrasts together


@dataclass(frozen=True, eq=False)
class _Contrast:
    """One contrast; `grid` is its mask upright, `start` the first voxel of `source.mask` in it."""

    grid: Volume
    start: npt.NDArray[np.intp]
    motion: Motion
    source: SlicedMask

    @property
    def covered(self) -> npt.NDArray[np.intp]:
        """The slices of the grid with a mask, trimmed or not."""
        return np.asarray(_filled(self.source.mask) + self.start[2])

    @property
    def path(self) -> PiecewiseLinear:
        """Slice of the grid -> voxel index (R-L, A-P) of the cord's centre in it."""
        own = self.source.path
        return PiecewiseLinear(own.knots + self.start[2], own.values + self.start[:2])


@dataclass(frozen=True, eq=False)
class _Aligned:
    """The contrasts that overlap with the reference, sorted by name, and why others take no part."""

    reference: Reference
    name: str
    contrasts: dict[str, _Contrast]
    skipped: dict[str, str]


def _average(
    usable: dict[str, Volume], reference: str, settings: GroundTruthSettings
) -> tuple[SoftGroundTruth, bool]:
    """Return the soft label, and whether it is the reference that lies implausibly."""
    aligned = _align(usable, reference, settings)
    windows = _windows_mm(aligned, box=settings.box)
    native, alignments = {}, {}
    for name, contrast in aligned.contrasts.items():
        label = _label(contrast, aligned, windows[name], box=settings.box)
        native[name] = as_stored(label, usable[name])
        alignments[name] = _alignment(contrast, aligned, label, settings)
    masks = {name: contrast.source.mask for name, contrast in aligned.contrasts.items()}
    warning = _warning_about_reference(masks, reference, settings)
    if warning:
        own = alignments[reference]
        alignments[reference] = replace(own, warnings=(*own.warnings, warning))
    truth = SoftGroundTruth(reference, native, alignments, aligned.skipped)
    return truth, warning is not None


def _align(usable: dict[str, Volume], reference_name: str, settings: GroundTruthSettings) -> _Aligned:
    grids = {name: upright(mask) for name, mask in usable.items()}
    tight = {name: cropped(grid) for name, grid in grids.items()}
    reference = reference_of(tight[reference_name][0])
    motions, skipped = {reference_name: identity(reference)}, {}
    for name in sorted(set(usable) - {reference_name}):
        motion = measure(reference, tight[name][0], settings)
        if motion is None:
            skipped[name] = (
                f"no overlap with {reference_name} along S-I: its mask lies between {_span(tight[name][0])}, "
                f"that of {reference_name} between {_span(tight[reference_name][0])}"
            )
        else:
            motions[name] = motion
    reference = with_cord_of_all(reference, [motions[name] for name in motions if name != reference_name])
    contrasts = {}
    for name in sorted(motions):
        motion = continued(motions[name], reference)
        mask, start = tight[name]
        source = sliced(mask, motion, 0.0 if name == reference_name else settings.trim_mm)
        if source.covered.any():
            contrasts[name] = _Contrast(grids[name], start, motion, source)
        else:
            skipped[name] = f"nothing is left of it after trimming {settings.trim_mm:g} mm at both ends"
    return _Aligned(reference, reference_name, contrasts, skipped)


def _span(mask: Volume) -> str:
    z = centres_of_mass(mask).world[2]
    return f"z = {z.min():.0f} and {z.max():.0f} mm"


def _windows_mm(aligned: _Aligned, *, box: bool) -> dict[str, float]:
    """Return, for each contrast, how far from the cord in its slices any mask may reach."""
    contrasts = aligned.contrasts
    drifts = {name: drift_mm(contrast.motion, aligned.reference) for name, contrast in contrasts.items()}
    reach = max(contrast.source.reach_mm() + drifts[name] for name, contrast in contrasts.items())
    across = [np.cross(*contrast.grid.affine[:3, :2].T) for contrast in contrasts.values()]
    normals = [normal / np.linalg.norm(normal) for normal in across]
    # Sections that are oblique to each other are longer by 1 / cos of the angle between them.
    cosine = min(abs(float(one @ other)) for one in normals for other in normals)
    windows = {}
    for name, contrast in contrasts.items():
        boxes = [_box_mm(contrast.grid, other.grid, box=box) for other in contrasts.values()]
        right, anterior, up = np.max(boxes, axis=0) / 2
        beyond = _STEEPEST * up + np.hypot(right, anterior) + np.linalg.norm(contrast.grid.voxel_mm[:2])
        windows[name] = (reach + drifts[name]) / cosine + float(beyond)
    return windows


def _label(target: _Contrast, aligned: _Aligned, window_mm: float, *, box: bool) -> npt.NDArray[np.float32]:
    """Return the average on the upright grid of one contrast, 0 in slices where its mask is empty."""
    voxels = voxels_around(target.path, target.grid, target.covered, window_mm)
    label = np.zeros(target.grid.values.shape, np.float32)
    for part in np.array_split(voxels, 1 + voxels.shape[1] // _CHUNK, axis=1):
        label[tuple(part)] = _mean_at(target.grid.to_world(part), target, aligned, box=box)
    return label


def _mean_at(points: Floats, target: _Contrast, aligned: _Aligned, *, box: bool) -> Floats:
    """Return the sum of the masks over the sum of their coverages, at points of the target's space, (N,)."""
    weighted, weight = np.zeros(points.shape[1]), np.zeros(points.shape[1])
    for contrast in aligned.contrasts.values():  # sorted: the same sum whatever the order of the input
        offsets = box_offsets(target.grid, contrast.grid, box=box)
        for offset in offsets.T:
            there = points + offset[:, None]
            if contrast is not target:
                there = contrast.motion.to_contrast(target.motion.to_reference(there))
            mask, coverage = contrast.source.read(there)
            weighted += mask / offsets.shape[1]
            weight += coverage / offsets.shape[1]
    return np.clip(weighted / np.where(weight > 0, weight, 1.0), 0.0, 1.0)


def _alignment(
    contrast: _Contrast, aligned: _Aligned, native: npt.NDArray[np.float32], settings: GroundTruthSettings
) -> Alignment:
    """Return how a contrast lies against the reference, in all slices of the reference's grid."""
    reference, grid = aligned.reference.slices, aligned.contrasts[aligned.name].grid
    size = grid.values.shape
    index = np.tile((np.array(size, np.float64)[:, None] - 1) / 2, size[2])
    index[2] = np.arange(size[2])
    middles = grid.to_world(index)
    numbers = reference.number(middles)
    cord = reference.crossing(aligned.reference.cord).at(numbers)
    cord += grid.affine[:3, 2:3] * (numbers - reference.number(cord))  # straight on beyond its ends
    motion = contrast.motion
    numbers = motion.slices.number(cord)
    shift = motion.slices.axes @ motion.shift.at(numbers)
    turned = np.zeros(numbers.size) if motion.rotation is None else motion.rotation.at(numbers)[0]
    _mask, coverage = contrast.source.read(motion.to_contrast(cord))
    there = np.flatnonzero(contrast.source.covered) + contrast.start[2]
    agreement = dice(contrast.grid.values[:, :, there], native[:, :, there])
    warnings = _shift_warnings(motion, settings)
    if agreement < (limit := settings.min_agreement):
        warnings.append(f"agreement with the average (Dice) is {agreement:.2f}, less than {limit:g}")
    if len(aligned.contrasts) > 1:
        warnings += _edge_warnings(contrast.grid)
    half = max(1.0, float(grid.voxel_mm[2] / contrast.grid.voxel_mm[2])) / 2
    distance = np.abs(numbers[:, None] - motion.measured).min(axis=1)
    return Alignment(
        height_mm=middles[2],
        shift_mm=shift.T @ reference.axes,
        rotation_deg=np.degrees(turned),
        measured=distance <= half + ROUNDING,
        coverage=coverage,
        agreement=agreement,
        warnings=tuple(warnings),
    )


# Plausibility of an alignment


def _shift_warnings(motion: Motion, settings: GroundTruthSettings) -> list[str]:
    """Return why the shifts of an alignment are implausible, with numbers; empty if they are not."""
    warnings = []
    height = motion.cord.at(motion.measured.astype(np.float64))[2]
    length = np.linalg.norm(motion.steps, axis=1)
    place, limit = int(length.argmax()), settings.max_shift_mm
    if length[place] > limit:
        warnings.append(
            f"shift of {length[place]:.1f} mm at z = {height[place]:.0f} mm, more than {limit:g} mm"
        )
    jumps = np.linalg.norm(np.diff(motion.steps, axis=0), axis=1)
    if jumps.size and jumps.max() > settings.max_jump_mm:
        place = int(jumps.argmax())
        warnings.append(
            f"shift changes by {jumps[place]:.1f} mm between slices at z = {height[place]:.0f} and "
            f"{height[place + 1]:.0f} mm, more than {settings.max_jump_mm:g} mm"
        )
    return warnings + _lean_warnings(motion)


def _edge_warnings(mask: Volume) -> list[str]:
    """Say where an upright mask goes on beyond its image to the sides: there it reads as background."""
    inside = mask.values > HARD_THRESHOLD
    cut = {"R-L": inside[[0, -1]].any(axis=(0, 1)), "A-P": inside[:, [0, -1]].any(axis=(0, 1))}
    axes = " and ".join(axis for axis, slices in cut.items() if slices.any())
    if not axes:
        return []
    number = int(np.count_nonzero(cut["R-L"] | cut["A-P"]))
    return [
        f"its mask reaches the edge of its image along {axes} in {number} slice{'s' * (number > 1)}: what "
        "lies beyond counts as background, and shifts are measured to a part of the cord"
    ]


def _lean_warnings(motion: Motion) -> list[str]:
    """Say whether the cord leans otherwise than the reference's, as of a neck that nodded between images.

    Shifts keep the section of each slice. The area across the cord is that times the cosine of the angle
    between cord and slices, and changes with it; slice by slice, as a neck bends.
    """
    numbers = motion.measured.astype(np.float64)
    height = numbers * motion.slices.grid.voxel_mm[2]
    if np.ptp(height) < _LONG_ENOUGH_MM:
        return []
    own = (motion.slices.axes.T @ motion.cord.at(numbers)).T
    slopes = [
        np.gradient(smoothed(height, line, _TANGENT_MM), height, axis=0) for line in (own, own - motion.steps)
    ]
    lines = [np.column_stack([slope, np.ones(height.size)]) for slope in slopes]
    lengths = [np.linalg.norm(line, axis=1) for line in lines]  # 1 / cosine
    change = float((lengths[0] / lengths[1]).mean()) - 1
    if abs(change) <= _MOST_AREA_CHANGED:
        return []
    cosines = (lines[0] * lines[1]).sum(axis=1) / (lengths[0] * lengths[1])
    lean = np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean()
    return [
        f"its cord leans by {lean:.0f} degrees against the reference's: shifts change its area there by "
        f"{100 * change:+.0f} %, more than {100 * _MOST_AREA_CHANGED:g} %"
    ]


def _warning_about_reference(
    masks: Mapping[str, Volume], reference: str, settings: GroundTruthSettings
) -> str | None:
    """Return why the reference is implausible: two contrasts or more against it, fewer against another."""
    against = _implausible_against(masks, reference, settings)
    if against < _ENOUGH_TO_BLAME:
        return None
    others = {name: _implausible_against(masks, name, settings) for name in sorted(set(masks) - {reference})}
    best = min(others, key=lambda name: others[name])
    if others[best] >= against:
        return None
    return f"{against} of {len(others)} contrasts lie implausibly against it, against {best} {others[best]}"


def _implausible_against(masks: Mapping[str, Volume], reference: str, settings: GroundTruthSettings) -> int:
    base = reference_of(masks[reference])
    motions = [measure(base, mask, settings) for name, mask in masks.items() if name != reference]
    return sum(bool(_shift_warnings(motion, settings)) for motion in motions if motion is not None)
