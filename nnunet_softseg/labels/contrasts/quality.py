"""Quality control numbers of one subject: agreement, shifts, areas, warnings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from nnunet_softseg.labels.contrasts.average import SoftGroundTruth
from nnunet_softseg.labels.contrasts.volume import Volume
from nnunet_softseg.metrics.morphometry.slice_table import slice_morphometry

_DIGITS = 3


@dataclass(frozen=True)
class ContrastQuality:
    """One contrast of a subject.

    Attributes:
        warnings: why it is implausible; empty if it is not.
        left_out: why it took no part in the average; None if it did.
        agreement: Dice against the average, both > 0.5, in the slices that take part; None without any.
        largest_shift_mm: the longest shift measured in a slice; None likewise.
        largest_shift_at_mm: scanner z of that slice.
        csa_before_mm2: mean area of the hard mask over the heights that all contrasts have; None without any.
        csa_after_mm2: the same of the soft label.
    """

    name: str
    warnings: tuple[str, ...] = ()
    left_out: str | None = None
    agreement: float | None = None
    largest_shift_mm: float | None = None
    largest_shift_at_mm: float | None = None
    csa_before_mm2: float | None = None
    csa_after_mm2: float | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it deserves a look."""
        return (*self.warnings, *([] if self.left_out is None else [f"left out: {self.left_out}"]))

    @property
    def csa_change_percent(self) -> float | None:
        """How much larger the soft label is than the hard mask."""
        before, after = self.csa_before_mm2, self.csa_after_mm2
        return None if before is None or after is None or before <= 0 else 100 * (after / before - 1)


@dataclass(frozen=True)
class SubjectQuality:
    """One subject, or one session of it.

    Attributes:
        contrasts: the reference first, the others as they came.
        common_mm: lowest and highest scanner z that every contrast of the average has; None if there is none.
        csa_std_before_mm2: standard deviation (n - 1) over contrasts of the area of the hard masks; None for
            fewer than two contrasts.
        csa_std_after_mm2: the same of the soft labels.
    """

    contrasts: tuple[ContrastQuality, ...] = ()
    common_mm: tuple[float, float] | None = None
    csa_std_before_mm2: float | None = None
    csa_std_after_mm2: float | None = None


class Areas(NamedTuple):
    """Area of hard mask and soft label (empty if it took no part), in mm2 by scanner z in mm, ascending."""

    before: "pd.Series[float]"
    after: "pd.Series[float]"


def areas_of(masks: Mapping[str, Volume], truth: SoftGroundTruth) -> dict[str, Areas]:
    """Return the areas of each contrast as `nnunet-softseg csa` measures them, corrected for tilt."""
    nothing = pd.Series([], dtype=float)
    return {
        name: Areas(_area(mask), _area(truth.native[name]) if name in truth.native else nothing)
        for name, mask in masks.items()
    }


def _area(volume: Volume) -> "pd.Series[float]":
    table = slice_morphometry(nib.Nifti1Image(volume.values, volume.affine)).dropna(subset="csa_mm2")
    area = pd.Series(table["csa_mm2"].to_numpy(), index=table["z_mm"].round(2).to_numpy())
    return area.round(_DIGITS).sort_index()


def subject_quality(truth: SoftGroundTruth, areas: Mapping[str, Areas]) -> SubjectQuality:
    """Return the numbers of one subject.

    Mean areas are taken over the heights that all contrasts have: from the highest of all lowest slices with
    a mask to the lowest of all highest ones. Slices that lie there in part count in part.
    """
    compared = [areas[name].before for name in areas if name in truth.contrasts]
    common = None
    if compared and not any(area.empty for area in compared):
        low, high = max(area.index[0] for area in compared), min(area.index[-1] for area in compared)
        common = (float(low), float(high)) if low <= high else None
    contrasts = tuple(
        _contrast_quality(name, truth, areas[name], common)
        for name in sorted(areas, key=lambda name: name != truth.reference)
    )
    before = _std(one.csa_before_mm2 for one in contrasts if one.left_out is None)
    after = _std(one.csa_after_mm2 for one in contrasts if one.left_out is None)
    return SubjectQuality(contrasts, common, before, after)


def _contrast_quality(
    name: str, truth: SoftGroundTruth, areas: Areas, common: tuple[float, float] | None
) -> ContrastQuality:
    before, after = (_mean_between(area, common) for area in areas)
    alignment = truth.contrasts.get(name)
    if alignment is None:
        reason = truth.skipped.get(name, "not in the average")
        return ContrastQuality(name, left_out=reason, csa_before_mm2=before, csa_after_mm2=after)
    shift_mm = at_mm = None
    measured = np.flatnonzero(alignment.measured)
    if measured.size:
        length = np.hypot(*alignment.shift_mm[measured].T)
        shift_mm = rounded(length.max())
        at_mm = round(float(alignment.height_mm[measured[length.argmax()]]), 2)
    agreement = rounded(alignment.agreement)
    return ContrastQuality(name, alignment.warnings, None, agreement, shift_mm, at_mm, before, after)


def rounded(value: float, digits: int = _DIGITS) -> float | None:
    """Return a number as JSON can hold it: neither NaN nor infinity are in its standard."""
    return round(float(value), digits) + 0.0 if np.isfinite(value) else None  # no -0.0


def _mean_between(area: "pd.Series[float]", heights_mm: tuple[float, float] | None) -> float | None:
    """Return the mean over a range, slices weighted by their length in it; None for none."""
    if heights_mm is None or area.empty:
        return None
    height = area.index.to_numpy()
    half = float(np.median(np.diff(height))) / 2 if height.size > 1 else 0.5
    # A range of one height, when a contrast has one slice only, still has the slices that hold it.
    low, high = heights_mm[0] - 1e-3, heights_mm[1] + 1e-3
    weight = np.clip(np.minimum(height + half, high) - np.maximum(height - half, low), 0, None)
    return rounded(float(weight @ area.to_numpy() / weight.sum())) if weight.any() else None


def _std(values: Iterable[float | None]) -> float | None:
    numbers = known(values)
    return rounded(float(np.std(numbers, ddof=1))) if len(numbers) > 1 else None


def known(values: Iterable[float | None]) -> list[float]:
    """Return the values that are not None."""
    return [value for value in values if value is not None]
