"""Fusion of the masks or soft maps of several raters into one soft label, voxel by voxel.

The mean is the fraction of raters who count a voxel to the structure. STAPLE (Warfield, Zou, Wells 2004)
estimates how good each rater is and gives the probability of the structure; masks only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import SimpleITK

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.geometry import Spacing, bounding_box, distances_mm, margin_voxels

METHODS = ("mean", "staple")
_LARGEST_LABEL = 9999
STAPLE_MAX_ITERATIONS = 2000
"""Some fifty are usual; two raters who share little take hundreds."""

Map = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FusionSettings:
    """Method and options of the fusion; a UserError for values out of range.

    Attributes:
        method: "mean": the (weighted) mean. "staple": STAPLE, of masks only.
        weights: one per rater, in their order, not negative; None: all alike.
        labels: values in label maps to fuse, one soft label each; None: single files hold fractions; in
            folders the labels of the file names, and label 1 of files whose names carry none.
        margin_mm: STAPLE and Fleiss' kappa count the voxels that a rater drew and those so near to one.
    """

    method: Literal["mean", "staple"] = "mean"
    weights: tuple[float, ...] | None = None
    labels: tuple[int, ...] | None = None
    margin_mm: float = 5.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"--method: expected {' or '.join(METHODS)}, found {self.method!r}: choose one")
        if not 0 < self.margin_mm < math.inf:
            found = f"found {self.margin_mm:g}"
            raise UserError(f"--margin-mm: expected a length above 0 mm, {found}: 5 is usual")
        if self.weights is not None:
            self._check_weights(self.weights)
        if self.labels is not None:
            allowed = set(self.labels) & set(range(1, _LARGEST_LABEL + 1))
            if not allowed or len(allowed) < len(self.labels):
                raise UserError(
                    f"--labels: expected different values from 1 to {_LARGEST_LABEL}, found "
                    f"{', '.join(map(str, self.labels)) or 'none'}: 0 is the background"
                )

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        found = ", ".join(f"{weight:g}" for weight in weights) or "none"
        if self.method == "staple":
            raise UserError(
                f"--weights: expected none with STAPLE, which estimates how good each rater is, found "
                f"{found}: leave them out, or use --method mean"
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise UserError(
                f"--weights: expected numbers of 0 or more, at least one above 0, found {found}: correct them"
            )


class StapleResult(NamedTuple):
    """Probability of the structure by STAPLE, exactly 0 where no rater drew, and the skill of each rater.

    Sensitivity is the share of the true structure that was drawn (NaN where nobody drew), specificity that of
    the true background, within the region, that was left free.
    """

    probability: npt.NDArray[np.float32]
    sensitivity: tuple[float, ...]
    specificity: tuple[float, ...]
    converged: bool


def weighted_mean(maps: Sequence[Map], weights: Sequence[float] | None = None) -> npt.NDArray[np.float32]:
    """Return sum(w m) / sum(w) of maps of one shape, in [0, 1], float32; without weights the plain mean."""
    weights = [1.0] * len(maps) if weights is None else weights
    total = np.zeros(maps[0].shape, dtype=np.float64)
    for rater_map, weight in zip(maps, weights, strict=True):
        total += weight * rater_map.astype(np.float64)
    return np.clip(total / sum(weights), 0, 1).astype(np.float32)


def neighbourhood(masks: Sequence[Mask], spacing_mm: Spacing, margin_mm: float) -> Mask:
    """Return the voxels within `margin_mm` of one that a rater drew.

    STAPLE and Fleiss' kappa count the background, too: over a whole image they would depend on its field of
    view. Masks have one shape (x, y, z); the spacing is along the same axes.
    """
    union: Mask = np.logical_or.reduce(masks)
    region = np.zeros_like(union)
    if union.any():
        box = bounding_box(union, margin_voxels(margin_mm, spacing_mm))
        everywhere = np.ones_like(union[box])
        near = distances_mm(union[box], spacing_mm, everywhere) <= margin_mm
        region[box] = near.reshape(everywhere.shape)
    return region


def staple(masks: Sequence[Mask], region: Mask) -> StapleResult:
    """Return STAPLE's probability of the structure, and each rater's sensitivity and specificity.

    The prior is the mean share of foreground in the region, one for all voxels. Masks that are all the same
    are their own consensus: there the equations are 0/0. Voxels that no rater drew get a probability of 1e-4
    or so from the equations, all together enough to outweigh a small structure: they are set to exactly 0.
    The region holds all that was drawn, see `neighbourhood`; a UserError without background in it.

    Source:
        Warfield, Zou, Wells, IEEE Transactions on Medical Imaging 23(7), 2004, without the Markov random
        field, by SimpleITK.
    """
    inside = [mask[region] for mask in masks]
    if all(np.array_equal(mask, inside[0]) for mask in inside[1:]):
        sensitivity = (1.0 if inside[0].any() else math.nan,) * len(masks)
        return StapleResult(masks[0].astype(np.float32), sensitivity, (1.0,) * len(masks), True)
    staple_filter = SimpleITK.STAPLEImageFilter()
    staple_filter.SetMaximumIterations(STAPLE_MAX_ITERATIONS)
    # Each voxel is judged by itself, so that they may lie in one row, whatever the form of the region.
    rows = [SimpleITK.GetImageFromArray(mask.astype(np.uint8)[None, None]) for mask in inside]
    estimated = SimpleITK.GetArrayFromImage(staple_filter.Execute(rows)).ravel()
    if not np.isfinite(estimated).all():
        raise UserError(
            "STAPLE has no solution for these masks: expected some structure and some background, found "
            "masks that fill the image: fuse them with --method mean"
        )
    probability = np.zeros(region.shape, dtype=np.float32)
    probability[region] = np.where(np.logical_or.reduce(inside), np.clip(estimated, 0, 1), 0)
    return StapleResult(
        probability,
        tuple(staple_filter.GetSensitivity()),
        tuple(staple_filter.GetSpecificity()),
        staple_filter.GetElapsedIterations() < STAPLE_MAX_ITERATIONS,
    )
