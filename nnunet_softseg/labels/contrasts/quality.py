"""What the quality page shows of one subject, measured and drawn while its images are at hand."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.labels.contrasts.alignment import Alignment
from nnunet_softseg.labels.contrasts.average import SoftGroundTruth
from nnunet_softseg.labels.contrasts.outlined_picture import (
    AXIAL,
    SAGITTAL,
    OutlinedPicture,
    Plane,
    Planes,
    Window,
    centred_window,
    outlined_picture,
)
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Floats, Volume, upright
from nnunet_softseg.metrics.morphometry.slice_table import slice_morphometry
from nnunet_softseg.settings import HARD_THRESHOLD

AXIAL_EXTENT_MM = 25.0
"""Side of the square around the cord that is shown."""
AXIAL_PLACES = (0.85, 0.5, 0.15)
"""Where the axial pictures lie between the lowest and the highest slice that all contrasts have."""
_SAGITTAL_MARGIN_MM = 12.0
_SAGITTAL_LEAST_WIDTH_MM = 45.0
_ENDS_MM = 5.0
_DIGITS = 3


@dataclass(frozen=True)
class Curve:
    """A quantity along S-I, from inferior to superior.

    Attributes:
        height_mm: scanner z.
        value: as many.
    """

    height_mm: tuple[float, ...]
    value: tuple[float, ...]


@dataclass(frozen=True)
class ContrastQuality:
    """One contrast of a subject.

    Attributes:
        name: of the contrast.
        doubts: why it is implausible; empty if it is not.
        left_out: why it took no part in the average; None if it did.
        agreement: Dice against the average, both > 0.5; None if it took no part.
        largest_shift_mm: the longest shift measured in a slice; None likewise.
        largest_shift_at_mm: scanner z of that slice.
        csa_before_mm2: mean area of the hard mask over the heights that all contrasts have; None for no such
            heights.
        csa_after_mm2: the same of the soft label.
        shift_rl: shift to the right in mm for each slice of the reference.
        shift_ap: shift to anterior, likewise.
        measured: False where the shift is carried over from the nearest slice with both masks.
        area_before: area of the hard mask in mm2 in each of its slices.
        area_after: the same of the soft label.
        pictures: axial ones from superior to inferior, then a sagittal one.
    """

    name: str
    doubts: tuple[str, ...]
    left_out: str | None
    agreement: float | None
    largest_shift_mm: float | None
    largest_shift_at_mm: float | None
    csa_before_mm2: float | None
    csa_after_mm2: float | None
    shift_rl: Curve
    shift_ap: Curve
    measured: tuple[bool, ...]
    area_before: Curve
    area_after: Curve
    pictures: tuple[OutlinedPicture, ...]


@dataclass(frozen=True)
class SubjectQuality:
    """What the page shows of one subject.

    Attributes:
        name: of the subject, and its session.
        reference: the contrast on whose grid the average is.
        notes: what is worth knowing about the subject, such as that another reference was taken than wished.
        contrasts: the reference first, the others as they came.
        common_mm: lowest and highest scanner z that every contrast of the average has; None if there is none.
        csa_std_before_mm2: standard deviation over contrasts of the area of the hard masks, n - 1 in its
            denominator; None for fewer than two contrasts.
        csa_std_after_mm2: the same of the soft labels.
        settings: of the ground truth.
        version: of this package.
    """

    name: str
    reference: str
    notes: tuple[str, ...]
    contrasts: tuple[ContrastQuality, ...]
    common_mm: tuple[float, float] | None
    csa_std_before_mm2: float | None
    csa_std_after_mm2: float | None
    settings: dict[str, Any]
    version: str = __version__

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SubjectQuality":
        """Return what `as_dict` returned, also after JSON has made lists of tuples.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        fields = dict(content)
        fields["contrasts"] = tuple(_contrast_from(contrast) for contrast in fields["contrasts"])
        fields["notes"] = tuple(fields["notes"])
        if fields["common_mm"] is not None:
            low, high = fields["common_mm"]
            fields["common_mm"] = (float(low), float(high))
        return cls(**fields)


def _contrast_from(content: Mapping[str, Any]) -> ContrastQuality:
    fields = dict(content)
    for name in ("shift_rl", "shift_ap", "area_before", "area_after"):
        fields[name] = Curve(tuple(fields[name]["height_mm"]), tuple(fields[name]["value"]))
    for name in ("doubts", "measured"):
        fields[name] = tuple(fields[name])
    fields["pictures"] = tuple(OutlinedPicture(**one) for one in fields["pictures"])
    return ContrastQuality(**fields)


def subject_quality(
    name: str,
    images: Mapping[str, Volume],
    masks: Mapping[str, Volume],
    truth: SoftGroundTruth,
    *,
    settings: GroundTruthSettings | None = None,
    notes: Sequence[str] = (),
) -> SubjectQuality:
    """Return what the page shows of one subject.

    Areas are those of `nnunet-softseg csa`, corrected for tilt. To be comparable, the contrasts' means are
    taken over the same heights: from the highest of all lowest slices with a mask to the lowest of all
    highest ones. Slices that lie there in part count in part.

    Args:
        name: of the subject, and its session.
        images: contrast -> image on the grid of its mask; a contrast without one is drawn on black.
        masks: contrast -> hard mask as drawn by its rater; all contrasts that were found.
        truth: what was made of them.
        settings: what it was made with.
        notes: of the subject, see `SubjectQuality`.
    """
    before = {contrast: _area_curve(masks[contrast]) for contrast in masks}
    after = {contrast: _area_curve(truth.native[contrast]) for contrast in masks if contrast in truth.native}
    taking_part = [contrast for contrast in masks if contrast in truth.contrasts]
    common = _common_heights([before[contrast] for contrast in taking_part])
    pictures = _Drawing(images, masks, truth, common).pictures()
    contrasts = []
    for contrast in sorted(masks, key=lambda contrast: contrast != truth.reference):
        shown = after.get(contrast, Curve((), ()))
        contrasts.append(
            _contrast_quality(contrast, truth, (before[contrast], shown), common, pictures[contrast])
        )
    compared = [contrast for contrast in contrasts if contrast.name in truth.contrasts]
    return SubjectQuality(
        name=name,
        reference=truth.reference,
        notes=tuple(notes),
        contrasts=tuple(contrasts),
        common_mm=common,
        csa_std_before_mm2=_spread(contrast.csa_before_mm2 for contrast in compared),
        csa_std_after_mm2=_spread(contrast.csa_after_mm2 for contrast in compared),
        settings=settings.as_dict() if settings else {},
    )


def _contrast_quality(
    name: str,
    truth: SoftGroundTruth,
    areas: tuple[Curve, Curve],
    common: tuple[float, float] | None,
    pictures: Sequence[OutlinedPicture],
) -> ContrastQuality:
    alignment = truth.contrasts.get(name)
    largest, place = (None, None) if alignment is None else _largest_shift(alignment)
    shift_rl, shift_ap, measured = _shift_curves(alignment)
    return ContrastQuality(
        name=name,
        doubts=() if alignment is None else tuple(alignment.doubts),
        left_out=truth.skipped.get(name, "not in the average") if alignment is None else None,
        agreement=None if alignment is None else _rounded(alignment.agreement),
        largest_shift_mm=largest,
        largest_shift_at_mm=place,
        csa_before_mm2=_mean_between(areas[0], common),
        csa_after_mm2=_mean_between(areas[1], common),
        shift_rl=shift_rl,
        shift_ap=shift_ap,
        measured=measured,
        area_before=areas[0],
        area_after=areas[1],
        pictures=tuple(pictures),
    )


# Numbers


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), _DIGITS)


def _shift_curves(alignment: Alignment | None) -> tuple[Curve, Curve, tuple[bool, ...]]:
    if alignment is None:
        return Curve((), ()), Curve((), ()), ()
    rl, ap = (_curve(alignment.height_mm, shift) for shift in alignment.shift_mm.T)
    return rl, ap, tuple(bool(there) for there in alignment.measured)


def _curve(height_mm: Floats, value: Floats) -> Curve:
    return Curve(tuple(np.round(height_mm, 2).tolist()), tuple(np.round(value, _DIGITS).tolist()))


def _area_curve(volume: Volume) -> Curve:
    """Return the area of each slice that is not empty, corrected for tilt, from inferior to superior."""
    table = slice_morphometry(nib.Nifti1Image(volume.values, volume.affine))
    filled = table.dropna(subset="csa_mm2").sort_values("z_mm")
    return _curve(filled["z_mm"].to_numpy(), filled["csa_mm2"].to_numpy())


def _common_heights(curves: Sequence[Curve]) -> tuple[float, float] | None:
    if not curves or any(not curve.height_mm for curve in curves):
        return None
    low = max(curve.height_mm[0] for curve in curves)
    high = min(curve.height_mm[-1] for curve in curves)
    return (low, high) if low <= high else None


def _mean_between(curve: Curve, heights_mm: tuple[float, float] | None) -> float | None:
    """Return the mean over a range, slices weighted by their length in it; None for none."""
    if heights_mm is None or not curve.height_mm:
        return None
    height, value = np.array(curve.height_mm), np.array(curve.value)
    half = float(np.median(np.diff(height))) / 2 if height.size > 1 else 0.5
    # A range of one height, when a contrast has one slice only, still has the slices that hold it.
    low, high = heights_mm[0] - 1e-3, heights_mm[1] + 1e-3
    weight = np.clip(np.minimum(height + half, high) - np.maximum(height - half, low), 0, None)
    return _rounded(float(weight @ value / weight.sum())) if weight.any() else None


def _spread(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(float(np.std(known, ddof=1))) if len(known) > 1 else None


def _largest_shift(alignment: Alignment) -> tuple[float | None, float | None]:
    measured = np.flatnonzero(alignment.measured)
    if not measured.size:
        return None, None
    length = np.hypot(*alignment.shift_mm[measured].T)
    place = measured[length.argmax()]
    return _rounded(float(length.max())), round(float(alignment.height_mm[place]), 2)


# Pictures


@dataclass(frozen=True)
class _Upright:
    """A contrast with its axes R-L, A-P, S-I: image (None for none), mask and soft label."""

    image: Volume | None
    hard: Volume
    soft: Volume | None

    @property
    def spacing_mm(self) -> Floats:
        return self.hard.voxel_mm

    def planes(self, axis: int, index: int) -> Planes:
        """Return the plane of an index along an axis."""
        hard = _plane(self.hard, axis, index)
        return Planes(
            np.full_like(hard, np.nan) if self.image is None else _plane(self.image, axis, index),
            hard,
            np.zeros_like(hard) if self.soft is None else _plane(self.soft, axis, index),
        )


def _plane(volume: Volume, axis: int, index: int) -> Plane:
    plane: Plane = np.moveaxis(volume.values, axis, 0)[index]
    return plane


@dataclass(frozen=True)
class _Cord:
    """Where the cord of a contrast runs.

    Attributes:
        slices: (n,) those that hold it.
        centre: (n, 2) its index along R-L and A-P.
        height_mm: (n,) scanner z of these places.
        index: (3, voxels) all of it.
    """

    slices: npt.NDArray[np.intp]
    centre: Floats
    height_mm: Floats
    index: npt.NDArray[np.intp]

    def slice_at(self, height_mm: float) -> tuple[int, Floats, float]:
        """Return the slice nearest to a height, the cord's centre in it, and its height."""
        place = int(np.abs(self.height_mm - height_mm).argmin())
        return int(self.slices[place]), self.centre[place], float(self.height_mm[place])


def _cord(mask: Volume) -> _Cord | None:
    index = np.array(np.nonzero(mask.values > HARD_THRESHOLD))
    if not index.size:
        return None
    slices, which, counts = np.unique(index[2], return_inverse=True, return_counts=True)
    centre = np.stack([np.bincount(which, index[axis]) / counts for axis in (0, 1)], axis=1)
    height = mask.to_world(np.vstack([centre.T, slices]))[2]
    return _Cord(slices, centre, height, index)


class _Drawing:
    """The pictures of one subject: all contrasts at the same heights."""

    def __init__(
        self,
        images: Mapping[str, Volume],
        masks: Mapping[str, Volume],
        truth: SoftGroundTruth,
        common: tuple[float, float] | None,
    ) -> None:
        self._contrasts = {
            name: _Upright(
                upright(images[name]) if name in images else None,
                upright(mask),
                upright(truth.native[name]) if name in truth.native else None,
            )
            for name, mask in masks.items()
        }
        self._truth = truth
        self._cords = {name: _cord(contrast.hard) for name, contrast in self._contrasts.items()}
        self._span = self._span_mm()
        low, high = common or self._span
        self._heights = [low + place * (high - low) for place in AXIAL_PLACES]

    def _span_mm(self) -> tuple[float, float]:
        """Return the lowest and the highest place of the cord in any contrast that takes part."""
        known = [
            cord for name, cord in self._cords.items() if cord is not None and name in self._truth.contrasts
        ]
        if not known:
            return (0.0, 0.0)
        return (
            min(cord.height_mm.min() for cord in known) - _ENDS_MM,
            max(cord.height_mm.max() for cord in known) + _ENDS_MM,
        )

    def pictures(self) -> dict[str, list[OutlinedPicture]]:
        """Return the pictures of each contrast."""
        width = max(map(self._cord_width_mm, self._contrasts))
        return {
            name: [*self._axial(name), self._sagittal(name, max(width, _SAGITTAL_LEAST_WIDTH_MM))]
            for name in self._contrasts
        }

    def _cord_width_mm(self, name: str) -> float:
        cord = self._cords[name]
        if cord is None:
            return 0.0
        voxels = float(np.ptp(cord.index[1])) + 1
        return voxels * float(self._contrasts[name].spacing_mm[1]) + 2 * _SAGITTAL_MARGIN_MM

    def _places(self, name: str) -> list[tuple[float, str]]:
        """Return the heights of a contrast's axial pictures, and what is special about them."""
        places = [(height, "") for height in self._heights]
        alignment = self._truth.contrasts.get(name)
        if alignment is not None and alignment.doubts:
            _largest, height = _largest_shift(alignment)
            if height is not None:
                places.append((height, "largest shift"))
        return places

    def _axial(self, name: str) -> list[OutlinedPicture]:
        contrast = self._contrasts[name]
        # Of few thick slices, several heights lie in the same one: it is shown once.
        shown: dict[int, tuple[Floats, float, str]] = {}
        for wanted, caption in self._places(name):
            index, middle, height = self._slice_at(name, wanted)
            shown[index] = (middle, height, caption or shown.get(index, (None, 0, ""))[2])
        spacing = contrast.spacing_mm[:2].tolist()
        return [
            outlined_picture(
                contrast.planes(2, index),
                centred_window(middle, spacing, (AXIAL_EXTENT_MM,) * 2),
                spacing,
                plane=AXIAL,
                height_mm=height,
                caption=caption,
            )
            for index, (middle, height, caption) in shown.items()
        ]

    def _slice_at(self, name: str, height_mm: float) -> tuple[int, Floats, float]:
        """Return a slice, its picture's centre and its height; without a mask, where the reference has it."""
        cord = self._cords[name]
        if cord is not None:
            return cord.slice_at(height_mm)
        grid, reference = self._contrasts[name].hard, self._cords.get(self._truth.reference)
        middle = (np.array(grid.values.shape) - 1.0) / 2
        if reference is not None:
            index, centre, _height = reference.slice_at(height_mm)
            there = self._contrasts[self._truth.reference].hard.to_world(np.array([[*centre, index]]).T)
            middle = np.clip(grid.to_index(there)[:, 0], 0, np.array(grid.values.shape) - 1.0)
        middle[2] = round(middle[2])
        return int(middle[2]), middle[:2], float(grid.to_world(middle[:, None])[2, 0])

    def _sagittal(self, name: str, width_mm: float) -> OutlinedPicture:
        contrast, cord = self._contrasts[name], self._cords[name]
        if cord is None:
            _index, middle, _height = self._slice_at(name, self._heights[len(self._heights) // 2])
            rl, ap = round(float(middle[0])), float(middle[1])
        else:
            rl = int(np.bincount(cord.index[0]).argmax())
            ap = float(cord.index[1].min() + cord.index[1].max()) / 2
        across = centred_window(np.array([ap, 0]), contrast.spacing_mm[1:].tolist(), (width_mm, 1))
        first, count = self._slices_in_span(contrast.hard, rl, ap)
        window = Window((across.start[0], first), (across.count[0], count))
        top = contrast.hard.to_world(np.array([[rl, ap, first + count - 0.5]]).T)
        return outlined_picture(
            contrast.planes(0, rl),
            window,
            contrast.spacing_mm[1:].tolist(),
            plane=SAGITTAL,
            height_mm=float(top[2, 0]),
        )

    def _slices_in_span(self, grid: Volume, rl: float, ap: float) -> tuple[int, int]:
        """Return the first and the number of the slices with their middle in the heights that are shown."""
        index = np.arange(grid.values.shape[2])
        height = grid.to_world(np.stack([np.full(index.size, rl), np.full(index.size, ap), index]))[2]
        inside = np.flatnonzero((height >= self._span[0]) & (height <= self._span[1]))
        return (int(inside[0]), int(inside.size)) if inside.size else (0, int(index.size))
