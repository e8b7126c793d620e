"""Figures of the labels of a training, and the output scale that they choose, both kept with the model.

The output scale says how raw output becomes a soft map, and what of the map is background. It does no harm:
given the soft labels of the training in place of raw output, the output stage gives them back.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.geometry import bounding_box
from nnunet_softseg.settings import HARD_THRESHOLD, PLANS_KEY, SoftSegSettings

VOLUME_TOLERANCE = 0.01
"""Of the volume of a label, that the output stage may change; of less than 20 voxels, one voxel."""
PEAK_TOLERANCE = 0.02
_SMALL = 20  # voxels
_REACHES_ONE = 0.9
_FULL = 0.98  # of the largest value: not partial volume
_SUPPORTS = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_LOST = 0.002  # of the volume, to the clean-up
CASE_TOLERANCE = VOLUME_TOLERANCE - _LOST
"""What the scale per case may take of it: less than a network errs in a scale that is one for all cases."""
_MARGIN = 0.5  # what a network answers, of what the label is
_SMOOTH_SLICES = 10.0  # sigma of the areas that the roughness is measured against
_DEPTH = 0.25  # of the interior below the border, in radii of the structure
_RENAMED = {"certainty": "interior_mean"}  # in models made before

SoftArray = npt.NDArray[np.floating[Any]]
Range = tuple[float, float]


# Heights of one label in one case


@dataclass(frozen=True)
class LabelPeaks:
    """How high one label of one case stands, on the grid of the network.

    Attributes:
        robust_peak: sum(y^5) / sum(y^4), as `network.norm_relu.robust_peak`.
        largest: value.
        volume: in voxels.
        partial_share: of the volume, in voxels below the largest value.
        weakest_component: least of the components' largest values, of those that are known as a whole; the
            largest value, where none is.
        support_threshold: largest at which the clean-up keeps every such component and the volume.
    """

    robust_peak: float
    largest: float
    volume: float
    partial_share: float
    weakest_component: float
    support_threshold: float


def label_peaks(soft: SoftArray) -> LabelPeaks | None:
    """Return the figures of a soft label (*space); None for one that is nowhere above 0.02.

    Unknown voxels, NaN, count as 0. A component that touches one may be the end of a larger one, as in a few
    annotated slices, and says nothing about the weakest.
    """
    unknown = np.isnan(soft)
    soft = np.where(unknown, 0, soft)
    largest = float(soft.max(initial=0.0))
    if largest <= PEAK_TOLERANCE:
        return None
    box = bounding_box(soft > 0, (1,) * soft.ndim)
    cut = ndimage.binary_dilation(unknown[box], np.ones((3,) * soft.ndim)) if unknown.any() else None
    soft = soft[box]
    values = np.asarray(soft[soft > 0], dtype=np.float64)
    fourth = (values / largest) ** 4
    in_float32 = np.asarray(soft, dtype=np.float32)
    support, weakest = _support_and_weakest(in_float32, float(values.sum()), cut)
    return LabelPeaks(
        robust_peak=float((fourth * values).sum() / fourth.sum()),
        largest=largest,
        volume=float(values.sum()),
        partial_share=float(values[values < _FULL * largest].sum() / values.sum()),
        weakest_component=weakest,
        support_threshold=support,
    )


def _support_and_weakest(
    soft: npt.NDArray[np.float32], volume: float, cut: npt.NDArray[np.bool_] | None
) -> tuple[float, float]:
    """Return both; components with a voxel in `cut` do not count, None: all do."""
    largest = soft.max()
    peaks = _peaks_of_whole(soft, 0.0, cut)
    faintest = float(peaks[peaks > PEAK_TOLERANCE].min(initial=largest))
    for support in _SUPPORTS:
        if support <= _MARGIN * faintest and keep_supported(soft, 0.0, support).sum() >= (1 - _LOST) * volume:
            break
    return support, float(_peaks_of_whole(soft, support, cut).min(initial=largest))


def _peaks_of_whole(
    soft: npt.NDArray[np.float32], threshold: float, cut: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.float64]:
    """Return `component_peaks` without those of components that have a voxel in `cut`."""
    if cut is not None:
        above, neighbours = soft > threshold, np.ones((3,) * soft.ndim, dtype=bool)
        soft = np.where(ndimage.binary_propagation(above & cut, neighbours, above), 0, soft)
    return component_peaks(soft, threshold)


# Shape of one label in one case


@dataclass(frozen=True)
class LabelShape:
    """Figures of one label in one case.

    Attributes:
        components: of voxels above a half, 26 neighbours.
        largest_area: sum of the label in its fullest slice, in voxels of the network's grid.
        empty_start, empty_end: slices before the first and after the last with a voxel above a half.
        gap: slices of the longest run without such a voxel between the two.
        area_roughness: standard deviation of the areas' differences from areas smoothed over ten slices, over
            their mean.
        interior_mean: mean of the values a quarter of a radius and more from the border of the voxels above a
            half, in-plane; 1 where none lies so deep.
        length: slices from the first to the last with a voxel above a half; 0: not known.
    """

    components: int
    largest_area: float
    empty_start: int = 0
    empty_end: int = 0
    gap: int = 0
    area_roughness: float = 0.0
    interior_mean: float = 1.0
    length: int = 0


def label_shape(
    soft: SoftArray, axis: int, tilt_factor: npt.NDArray[np.float64] | None = None
) -> LabelShape | None:
    """Return the shape of a soft label or map; None if nothing of it exceeds a half, or a part is unknown.

    Areas are sums over the voxels above a half and those that touch them: a faint background has no part.
    They are divided by the tilt factor, per slice: its area over that of a section across the structure.
    """
    # With the voxels that touch it, no more: the rest has no part.
    around = bounding_box(soft > HARD_THRESHOLD, (1,) * soft.ndim)
    part, core = soft[around], soft[around] > HARD_THRESHOLD
    if not part.size or np.isnan(soft).any():  # where an annotation ends says nothing about the structure
        return None
    neighbours = np.ones((3,) * soft.ndim, dtype=bool)
    others = tuple(other for other in range(soft.ndim) if other != axis)
    areas = np.where(ndimage.binary_dilation(core, neighbours), part, 0).sum(axis=others, dtype=np.float64)
    if tilt_factor is not None:
        areas /= tilt_factor[around[axis]]
    filled = np.flatnonzero(core.any(axis=others))
    areas = areas[areas > 0]
    smooth = ndimage.gaussian_filter1d(areas, _SMOOTH_SLICES)
    start = around[axis].start + int(filled[0])
    stop = around[axis].start + int(filled[-1]) + 1
    return LabelShape(
        components=int(ndimage.label(core, neighbours)[1]),
        largest_area=float(areas.max()),
        empty_start=start,
        empty_end=soft.shape[axis] - stop,
        gap=int(np.diff(filled).max(initial=1) - 1),
        area_roughness=float((areas - smooth).std() / areas.mean()),
        interior_mean=_interior_mean(part, core, axis, float(np.median(areas))),
        length=stop - start,
    )


def _interior_mean(soft: SoftArray, core: npt.NDArray[np.bool_], axis: int, area: float) -> float:
    in_plane = np.ones([1 if other == axis else 3 for other in range(soft.ndim)], dtype=bool)
    depth = max(1, round(_DEPTH * math.sqrt(area / math.pi)))
    inside = ndimage.binary_erosion(core, in_plane, iterations=depth)
    return float(soft[inside].mean(dtype=np.float64)) if inside.any() else 1.0


def training_ranges(shapes: Iterable[LabelShape | None]) -> dict[str, list[float]] | None:
    """Return the smallest and largest of each figure over a training, for JSON; None without any label."""
    known = [asdict(shape) for shape in shapes if shape is not None]
    if not known:
        return None
    columns = {name: [shape[name] for shape in known] for name in known[0]}
    return {name: [min(values), max(values)] for name, values in columns.items()}


def known_range(training: Mapping[str, Any], figure: str) -> Range:
    """Return the smallest and largest of a figure in training; 0 and infinity where a model knows neither.

    A model of an earlier version kept one number of each: the largest, of the interior mean the smallest.
    """
    figures = {_RENAMED.get(name, name): value for name, value in training.items()}
    stored = figures.get(figure, (0.0, math.inf))
    if isinstance(stored, int | float):
        return (stored, 1.0) if figure == "interior_mean" else (0.0, stored)
    return float(stored[0]), float(stored[1])


# Clean-up


def component_peaks(soft: SoftArray, threshold: float) -> npt.NDArray[np.float64]:
    """Return the largest value of each component (26 neighbours) of the voxels above a threshold."""
    components, count = ndimage.label(soft > threshold, np.ones((3,) * soft.ndim, dtype=bool))
    return np.asarray(ndimage.maximum(soft, components, np.arange(1, count + 1)), dtype=np.float64)


def keep_supported(
    soft_map: npt.NDArray[np.float32], core_threshold: float, support_threshold: float
) -> npt.NDArray[np.float32]:
    """Return a copy of the soft map of one label in which voxels without support are 0.

    A residue of 0.005 in 300,000 background voxels weighs more than a cord. It is removed by support, not by
    clipping: components (26 neighbours) of voxels above the support threshold that have a voxel above the
    core threshold keep their values, and so does the ring of voxels around them, whatever its value. So
    partial volume at the boundary stays as it is.
    """
    kept = np.zeros_like(soft_map)
    # Plain numbers are compared in the map's precision: against NumPy's its 0.05 would be above a 0.05.
    core_threshold, support_threshold = float(core_threshold), float(support_threshold)
    above = soft_map > support_threshold
    # Only the box of the voxels above the threshold is worked on: the rest is 0 in any case.
    box = bounding_box(above, (1,) * soft_map.ndim)
    neighbours = np.ones((3,) * soft_map.ndim, dtype=bool)
    components, count = ndimage.label(above[box], structure=neighbours)
    has_core = np.zeros(count + 1, dtype=bool)
    has_core[np.unique(components[soft_map[box] > core_threshold])] = True
    has_core[0] = False
    supported = ndimage.binary_dilation(has_core[components], structure=neighbours)
    kept[box] = np.where(supported, soft_map[box], 0)
    return kept


# One label in a model


@dataclass(frozen=True)
class OutputScale:
    """The way from raw output to soft map of one label.

    Attributes:
        output_scale: "case": the robust peak of the raw output of a case becomes `height`; "fixed": the raw
            output is the map, cut off at 0 and 1, on one scale for all cases.
        height: robust peak of the labels of the training.
        core_threshold: see `keep_supported`.
        support_threshold: see `keep_supported`.
        least_agreement: of mirrored passes (`soft_map.Agreement`): with less, there is nothing of the
            label; 0: that is not asked.
        why: this output scale, and thresholds lower than 0.5 and 0.05, for a person.
    """

    output_scale: Literal["case", "fixed"] = "case"
    height: float = 1.0
    core_threshold: float = HARD_THRESHOLD
    support_threshold: float = _SUPPORTS[0]
    least_agreement: float = 0.0
    why: str = "a model of an earlier version"

    @property
    def is_fixed(self) -> bool:
        """Whether one scale serves all cases."""
        return self.output_scale == "fixed"


def choose_output_scale(
    peaks: Mapping[str, LabelPeaks | None], settings: SoftSegSettings, *, fixed_patch: bool = True
) -> OutputScale:
    """Return the output scale of a label, of its figures in each case of the training.

    Per case where every label reaches 1 and none is changed by more than `CASE_TOLERANCE`; else fixed. Fixed,
    too, without a patch fixed around one structure: the loss gives every patch a scale of its own, so that
    structures which share few patches learn other heights, and an image of many has one peak for them all.
    The clean-up removes no component of the labels. What the settings name is as they say.
    """
    known = {case: found for case, found in peaks.items() if found is not None}
    height, worst, worst_case = _height(known) if known else (1.0, 0.0, "")
    scale, why = settings.output_scale, "by the settings"
    if scale == "auto":
        why = _reason_for_fixed(known, worst, worst_case) or ("" if fixed_patch else "no fixed patch")
        scale, why = ("fixed", why) if why else ("case", "reaches 1 in every case")
    faint = min(known, key=lambda case: known[case].weakest_component, default="")
    weakest = known[faint].weakest_component if known else 1.0
    core = HARD_THRESHOLD if weakest >= _REACHES_ONE else _MARGIN * weakest
    if core < HARD_THRESHOLD:
        why += f"; weakest component {weakest:.2f} in {faint}"
    support = min((found.support_threshold for found in known.values()), default=_SUPPORTS[0])
    return OutputScale(
        output_scale=scale,
        height=height,
        core_threshold=core if settings.core_threshold is None else settings.core_threshold,
        support_threshold=support if settings.support_threshold is None else settings.support_threshold,
        why=why,
    )


def _reason_for_fixed(known: Mapping[str, LabelPeaks], worst: float, worst_case: str) -> str:
    """Return why labels need one scale for all cases, wherever patches lie; empty: they do not."""
    lowest, highest = (pick(known, key=lambda case: known[case].largest, default="") for pick in (min, max))
    if known and known[lowest].largest < _REACHES_ONE:
        return f"reaches {known[lowest].largest:.2f} in {lowest}, {known[highest].largest:.2f} in {highest}"
    if worst > CASE_TOLERANCE:
        return f"a map divided by its own peak would be off by {worst:.1%} of the volume in {worst_case}"
    return ""


def _height(known: Mapping[str, LabelPeaks]) -> tuple[float, float, str]:
    """Return the height that changes the worst case least; the error there, of the tolerance; this case."""
    robust, largest, volume, partial = (
        np.array([getattr(found, name) for found in known.values()])
        for name in ("robust_peak", "largest", "volume", "partial_share")
    )
    heights = np.linspace(robust.min(), robust.max(), 41)[:, None]
    factor = heights / robust
    # Above 1 nothing grows: a map that becomes larger does so in its partial volume alone.
    error = np.where(factor > 1, (factor - 1) * partial, 1 - factor)
    small = volume < _SMALL
    error *= np.where(small, np.minimum(1, VOLUME_TOLERANCE * volume), 1)
    off_peak = np.abs(np.minimum(factor * largest, 1) - largest) * (VOLUME_TOLERANCE / PEAK_TOLERANCE)
    worst = np.maximum(error, off_peak)
    best = int(worst.max(axis=1).argmin())
    return float(heights[best, 0]), float(worst[best].max()), list(known)[int(worst[best].argmax())]


def output_scales(plans: Mapping[str, Any], names: Sequence[str]) -> list[OutputScale]:
    """Return the output scale of each label of a model; per case for a model of an earlier version."""
    entry, settings = plans[PLANS_KEY], SoftSegSettings.from_plans(plans)
    stored = entry.get("output_scales", {})
    earlier = {"core_threshold": settings.core_threshold, "support_threshold": settings.support_threshold}
    of_settings = {name: value for name, value in earlier.items() if value is not None}
    return [OutputScale(**stored.get(name, of_settings)) for name in names]


def scales_of_before(
    kept: Mapping[str, Mapping[str, Any]], settings: SoftSegSettings
) -> dict[str, OutputScale]:
    """Return the output scales of a training that goes on, with the thresholds that the settings now name.

    Raises:
        UserError: if they name another output scale: the network has learned the one of before.
    """
    thresholds = {
        name: value
        for name in ("core_threshold", "support_threshold")
        if (value := getattr(settings, name)) is not None
    }
    found = {name: replace(OutputScale(**scale), **thresholds) for name, scale in kept.items()}
    for name, scale in found.items():
        if settings.output_scale not in ("auto", scale.output_scale):
            raise UserError(
                f'setting output_scale: expected "auto" or "{scale.output_scale}", that of {name} in the '
                f'training that goes on, found "{settings.output_scale}": train anew'
            )
    return found


def is_same_scale(one: OutputScale, other: OutputScale) -> bool:
    """Return whether networks of one model can have both, as heights of labels differ by a trifle."""
    return one.is_fixed == other.is_fixed and abs(one.height - other.height) <= PEAK_TOLERANCE


def keep_output_scales(plans: dict[str, Any], chosen: Mapping[str, OutputScale]) -> None:
    """Write the output scales of all labels into the plans of a model."""
    plans[PLANS_KEY]["output_scales"] = {name: asdict(scale) for name, scale in chosen.items()}
    for configuration in plans["configurations"].values():
        if "resampling_fn_probabilities_kwargs" in configuration:
            for threshold in ("core_threshold", "support_threshold"):
                values = [getattr(scale, threshold) for scale in chosen.values()]
                configuration["resampling_fn_probabilities_kwargs"][threshold] = values


def describe(chosen: Mapping[str, OutputScale]) -> list[str]:
    """Return two lines for the log: the output scale and the clean-up of each label."""
    scales = "; ".join(f"{name} {scale.output_scale} ({scale.why})" for name, scale in chosen.items())
    clean_up = "; ".join(
        f"{name} {scale.core_threshold:.3g} (support {scale.support_threshold:g})"
        for name, scale in chosen.items()
    )
    return [
        f"output scale: {scales}",
        f"background is what has no voxel above: {clean_up}",
    ]
