"""How well one soft map agrees with another, voxel by voxel.

Everything takes plain arrays of one label on one grid. NaN says that a measure has no value there: see
`soft_measures`.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.floating[Any]]


def dice(prediction: Map, reference: Map, threshold: float = 0.5) -> float:
    """Return the Dice coefficient of what lies above the threshold; NaN if that is nothing in both."""
    predicted, expected = prediction > threshold, reference > threshold
    total = int(predicted.sum()) + int(expected.sum())
    return 2 * int((predicted & expected).sum()) / total if total else math.nan


def soft_dice(prediction: Map, reference: Map) -> float:
    """Return 2 sum(min(p, y)) / (sum p + sum y), which is 1 only for equal maps; NaN if both are empty.

    The minimum in place of the product makes it right for soft labels: a soft map agrees fully with itself.
    """
    total = float(prediction.sum(dtype=np.float64) + reference.sum(dtype=np.float64))
    return 2 * float(np.minimum(prediction, reference).sum(dtype=np.float64)) / total if total else math.nan


def mean_absolute_error(prediction: Map, reference: Map, where: npt.NDArray[np.bool_] | None = None) -> float:
    """Return the mean of |p - y|, over all voxels or those of a mask; NaN for an empty mask."""
    error = np.abs(prediction.astype(np.float64) - reference)
    if where is not None:
        error = error[where]
    return float(error.mean()) if error.size else math.nan


def boundary(reference: Map) -> npt.NDArray[np.bool_]:
    """Return the voxels of partial volume: those strictly between 0 and 1 in the reference."""
    band: npt.NDArray[np.bool_] = (reference > 0) & (reference < 1)
    return band


def relative_volume_error(prediction: Map, reference: Map) -> float:
    """Return 100 (sum p - sum y) / sum y, above 0 for over-segmentation; NaN for an empty reference."""
    expected = float(reference.sum(dtype=np.float64))
    return 100 * (float(prediction.sum(dtype=np.float64)) - expected) / expected if expected else math.nan


def soft_measures(prediction: Map, reference: Map, voxel_volume_mm3: float) -> dict[str, float]:
    """Return all measures of one label in one case, names with units.

    Args:
        prediction: any shape, values in [0, 1].
        reference: the same shape.
        voxel_volume_mm3: of the grid.

    Returns:
        dice, soft_dice, mae, boundary_mae, volume_mm3, reference_volume_mm3, rve_percent. With an empty
        reference, boundary_mae and rve_percent are NaN, and dice and soft_dice are 0 if something was
        predicted, NaN if not.

    Raises:
        ValueError: if the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must lie on one grid, got {prediction.shape} and {reference.shape}"
        )
    return {
        "dice": dice(prediction, reference),
        "soft_dice": soft_dice(prediction, reference),
        "mae": mean_absolute_error(prediction, reference),
        "boundary_mae": mean_absolute_error(prediction, reference, boundary(reference)),
        "volume_mm3": float(prediction.sum(dtype=np.float64)) * voxel_volume_mm3,
        "reference_volume_mm3": float(reference.sum(dtype=np.float64)) * voxel_volume_mm3,
        "rve_percent": relative_volume_error(prediction, reference),
    }
