"""Agreement of two soft maps, voxel by voxel and between their surfaces, and all measures of a case together.

Arrays are those of one label on one grid, values in [0, 1]. Soft measures take the values as they are, hard
ones the voxels strictly above 0.5. NaN, no value: `measure_table.MEASURES` declares when.

The surface of a mask is the set of *centres of its boundary voxels*, those with at least one face neighbour
outside of it, as all beyond the image is. Across an image of a plane, with one voxel along an axis, there is
no neighbour: there the surface is the outline. Towards what is unknown there is no surface. Each counts once;
tools that weight surface elements by their area give somewhat other numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, generate_binary_structure

from nnunet_softseg.io.geometry import (
    Spacing,
    axis_lengths,
    bounding_box,
    check_grids,
    distances_mm,
    has_neighbours,
    voxel_volume,
)
from nnunet_softseg.metrics.calibration import Map, Mask, ReliabilityCurve, reliability_curve
from nnunet_softseg.metrics.instances import InstanceMatches, match_instances
from nnunet_softseg.metrics.measure_table import MEASURES
from nnunet_softseg.settings import HARD_THRESHOLD

# A distance of exactly the tolerance counts as within it, whatever rounding did to spacing and square root.
_ROUNDING_MM = 1e-6


def dice(prediction: Map, reference: Map, threshold: float = HARD_THRESHOLD) -> float:
    """Return the Dice coefficient of the voxels above the threshold; NaN if both maps have none."""
    predicted, expected = prediction > threshold, reference > threshold
    total = int(predicted.sum()) + int(expected.sum())
    return 2 * int((predicted & expected).sum()) / total if total else math.nan


def soft_dice(prediction: Map, reference: Map) -> float:
    """Return 2 sum(min(p, y)) / (sum p + sum y), which is 1 only for equal maps; NaN if both are empty.

    The minimum in place of the product makes it right for soft labels: a soft map agrees fully with itself.
    """
    total = float(prediction.sum(dtype=np.float64) + reference.sum(dtype=np.float64))
    return 2 * float(np.minimum(prediction, reference).sum(dtype=np.float64)) / total if total else math.nan


def mean_absolute_error(prediction: Map, reference: Map, where: Mask | None = None) -> float:
    """Return the mean of |p - y|, over all voxels or those of a mask; NaN for an empty mask."""
    return _mean(np.abs(prediction.astype(np.float64) - reference), where)


def root_mean_square_error(prediction: Map, reference: Map, where: Mask | None = None) -> float:
    """Return the root of the mean of (p - y)^2, over all voxels or those of a mask; NaN for an empty mask."""
    return math.sqrt(_mean((prediction.astype(np.float64) - reference) ** 2, where))


def _mean(error: Map, where: Mask | None) -> float:
    chosen = error if where is None else error[where]
    return float(chosen.mean()) if chosen.size else math.nan


def boundary(reference: Map) -> Mask:
    """Return the voxels of partial volume: those strictly between 0 and 1 in the reference."""
    band: Mask = (reference > 0) & (reference < 1)
    return band


def relative_volume_error(prediction: Map, reference: Map) -> float:
    """Return 100 (sum p - sum y) / sum y, above 0 for over-segmentation.

    NaN for a reference of less than one voxel in sum: a residue there is no volume to be a percentage of.
    """
    predicted, expected = (float(whole.sum(dtype=np.float64)) for whole in (prediction, reference))
    return 100 * (predicted - expected) / expected if expected >= 1 else math.nan


def soft_measures(
    prediction: Map, reference: Map, voxel_volume_mm3: float, *, unknown: Mask | None = None
) -> dict[str, float]:
    """Return the measures of one label in one case that need no surface, names with units.

    With an empty reference, boundary_mae and rve_percent are NaN, and dice and soft_dice are 0 if something
    was predicted, NaN if not. `unknown`: voxels that do not count, 0 in both maps.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must lie on one grid, got {prediction.shape} and {reference.shape}"
        )
    return {
        "dice": dice(prediction, reference),
        "soft_dice": soft_dice(prediction, reference),
        "mae": mean_absolute_error(prediction, reference, None if unknown is None else ~unknown),
        "boundary_mae": mean_absolute_error(prediction, reference, boundary(reference)),
        "volume_mm3": float(prediction.sum(dtype=np.float64)) * voxel_volume_mm3,
        "reference_volume_mm3": float(reference.sum(dtype=np.float64)) * voxel_volume_mm3,
        "rve_percent": relative_volume_error(prediction, reference),
    }


def case_measures(
    prediction: Map,
    reference: Map,
    spacing_mm: Spacing,
    *,
    surface_dice_tolerance_mm: float = 1.0,
    instances: InstanceMatches | None = None,
    calibration: ReliabilityCurve | None = None,
    unknown: Mask | None = None,
) -> dict[str, float]:
    """Return every measure of one label in one case, under the names and in the order of `MEASURES`.

    `mae` and `rmse` are means over all voxels of the image, most of them empty: they compare methods on the
    same images, not images of different fields of view. `instances` and `calibration` are those of the same
    maps, where they are known already. `unknown`: voxels that do not count, 0 in both maps. That values lie
    in [0, 1] without NaN is not checked.
    """
    check_grids(prediction, reference, spacing_mm)
    lengths_mm = axis_lengths(spacing_mm)
    calibration = calibration or reliability_curve(prediction, reference, lengths_mm, unknown=unknown)
    num_known = prediction.size if unknown is None else int(np.count_nonzero(~unknown))
    # with a margin: an object of one slice in a volume is no image of a plane
    box = bounding_box((prediction != 0) | (reference != 0), (1,) * prediction.ndim)
    predicted, expected = (np.asarray(whole[box], dtype=np.float64) for whole in (prediction, reference))
    computed = {
        **_voxel_measures(predicted, expected, voxel_volume(spacing_mm), num_known),
        **(instances or match_instances(predicted, expected)).measures(),
        **_surface_measures(
            predicted,
            expected,
            spacing_mm,
            surface_dice_tolerance_mm,
            None if unknown is None else unknown[box],
        ),
        "brier": calibration.brier_score,
        "ece": calibration.expected_calibration_error,
    }
    empty = {
        kind: {"prediction_empty": not (predicted > low).any(), "reference_empty": not (expected > low).any()}
        for kind, low in (("soft", 0.0), ("hard", HARD_THRESHOLD))
    }
    declared = {
        name: measure.empty.value(**empty[measure.empty.empty_if]) for name, measure in MEASURES.items()
    }
    return {name: computed[name] if value is None else value for name, value in declared.items()}


def _voxel_measures(
    prediction: Map, reference: Map, voxel_volume_mm3: float, num_known: int
) -> dict[str, float]:
    """Return the measures computed voxel by voxel, from the box that holds all values above 0.

    `num_known`: voxels of the whole image of which something is known.
    """
    soft = soft_measures(prediction, reference, voxel_volume_mm3)
    hard_prediction, hard_reference = (
        (whole > HARD_THRESHOLD).astype(float) for whole in (prediction, reference)
    )
    share = prediction.size / max(num_known, 1)
    return {
        **soft,
        "mae": soft["mae"] * share,
        "rmse": root_mean_square_error(prediction, reference) * math.sqrt(share),
        "boundary_rmse": root_mean_square_error(prediction, reference, boundary(reference)),
        "hard_volume_mm3": float(hard_prediction.sum()) * voxel_volume_mm3,
        "hard_reference_volume_mm3": float(hard_reference.sum()) * voxel_volume_mm3,
        "hard_rve_percent": relative_volume_error(hard_prediction, hard_reference),
        "prediction_is_empty": float(not hard_prediction.any()),
        "reference_is_empty": float(not hard_reference.any()),
    }


def _surface_measures(
    prediction: Map, reference: Map, spacing_mm: Spacing, tolerance_mm: float, unknown: Mask | None
) -> dict[str, float]:
    """Return the measures of surfaces, none if a mask is empty, and NaN if no surface of one is known."""
    check_tolerance(tolerance_mm)
    predicted, expected = prediction > HARD_THRESHOLD, reference > HARD_THRESHOLD
    if not (predicted.any() and expected.any()):
        return {}
    distances = surface_distances(predicted, expected, spacing_mm, unknown=unknown)
    if not distances.to_reference_mm.size:
        return dict.fromkeys(("asd_mm", "hd95_mm", "surface_dice"), math.nan)
    return {
        "asd_mm": distances.asd_mm(),
        "hd95_mm": distances.hd95_mm(),
        "surface_dice": distances.surface_dice(tolerance_mm),
    }


# Distances between surfaces


@dataclass(frozen=True)
class SurfaceDistances:
    """The distance from every surface voxel of one mask to the nearest of the other, (n,) and (m,)."""

    to_reference_mm: npt.NDArray[np.float64]
    to_prediction_mm: npt.NDArray[np.float64]

    def asd_mm(self) -> float:
        """Return the symmetric mean surface distance: the mean over all surface voxels of both masks.

        Source: Heimann et al. 2009 (ASSD). Tools that average the two directions' means differ slightly.
        """
        return float(np.concatenate([self.to_reference_mm, self.to_prediction_mm]).mean())

    def hd95_mm(self) -> float:
        """Return the 95th percentile of the Hausdorff distance: per direction, then the larger of the two.

        Source: Huttenlocher et al. 1993 (ranked directed distances). Tools that take the percentile of both
        directions pooled report at most this.
        """
        directions = (self.to_reference_mm, self.to_prediction_mm)
        return max(float(np.percentile(distances, 95)) for distances in directions)

    def surface_dice(self, tolerance_mm: float) -> float:
        """Return the share of the surface voxels of both masks that lie within the tolerance of the other."""
        check_tolerance(tolerance_mm)
        distances = np.concatenate([self.to_reference_mm, self.to_prediction_mm])
        return float((distances <= tolerance_mm + _ROUNDING_MM).mean())


def surface_distances(
    prediction: Mask, reference: Mask, spacing_mm: Spacing, *, unknown: Mask | None = None
) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks, both ways; none if one has no known surface.

    `unknown`: voxels, in neither mask, towards which there is no surface.

    Raises:
        ValueError: if shapes or spacing do not fit, or a mask is empty.
    """
    check_grids(prediction, reference, spacing_mm)
    if not (prediction.any() and reference.any()):
        raise ValueError("an empty mask has no surface to measure distances from")
    box, faces = bounding_box(prediction | reference, (1,) * prediction.ndim), _faces(prediction.shape)
    hidden = np.False_ if unknown is None else unknown[box]
    predicted, expected = (
        mask[box] & ~binary_erosion(mask[box] | hidden, faces, border_value=0)
        for mask in (prediction, reference)
    )
    if not (predicted.any() and expected.any()):
        return SurfaceDistances(np.empty(0), np.empty(0))
    return SurfaceDistances(
        to_reference_mm=distances_mm(expected, spacing_mm, predicted),
        to_prediction_mm=distances_mm(predicted, spacing_mm, expected),
    )


def _faces(shape: tuple[int, ...]) -> Mask:
    """Return a voxel and its face neighbours in an image of that shape, (3, 3, 3) in three dimensions."""
    faces: Mask = generate_binary_structure(len(shape), 1)
    for axis, there in enumerate(has_neighbours(shape)):
        if not there:
            faces[(slice(None),) * axis + ([0, 2],)] = False
    return faces


def check_tolerance(tolerance_mm: float) -> None:
    """Raise ValueError for a tolerance of surface Dice that is negative or not a number."""
    if not tolerance_mm >= 0:
        raise ValueError(f"the tolerance of surface Dice must be 0 mm or more, got {tolerance_mm}")
