"""Measures of a soft map against several raters who disagree (those of the CURVAS challenge, 2024).

The reference is not one mask: it is the share of raters who marked a voxel, and the volumes that they drew.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from nnunet_softseg.metrics.calibration import Map, reliability_curve
from nnunet_softseg.metrics.overlap import dice

THRESHOLDS = tuple(step / 10 for step in range(1, 10))


def threshold_dice(prediction: Map, reference: Map) -> float:
    """Return the mean over `THRESHOLDS` of the Dice of both maps above it, NaN if both are empty at all.

    Maps are of one shape, values in [0, 1], the reference the share of raters. A threshold above which both
    are empty says nothing and is left out.
    """
    scores = np.array([dice(prediction, reference, threshold) for threshold in THRESHOLDS])
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else np.nan


def calibration_error_per_rater(prediction: Map, masks: Sequence[Map], spacing_mm: Sequence[float]) -> float:
    """Return the expected calibration error against each rater's mask, averaged over the raters.

    Counted are the voxels near what any of them marked, the same for all, and every false one beyond.

    Args:
        prediction: soft map, values in [0, 1].
        masks: of the raters, 0 and 1, same shape; an empty one counts as one who saw nothing.
        spacing_mm: length of a voxel along each axis.
    """
    marked = np.max(masks, axis=0)
    errors = [
        reliability_curve(prediction, mask, spacing_mm, near=marked).expected_calibration_error
        for mask in masks
    ]
    return float(np.mean(errors))


def volume_crps(volume_mm3: float, raters_mm3: Sequence[float]) -> float:
    """Return the continuous ranked probability score of a volume, in mm3: 0 if all raters drew it.

    The raters' volumes stand for a normal distribution of their mean and standard deviation (n - 1); its
    closed form is that of Gneiting and Raftery 2007, eq. 21. Raters who agree leave the absolute error.

    Raises:
        ValueError: without raters.
    """
    if not len(raters_mm3):
        raise ValueError("volumes of the raters: expected one or more, found none: name the raters' masks")
    mean = float(np.mean(raters_mm3))
    spread = float(np.std(raters_mm3, ddof=1)) if len(raters_mm3) > 1 else 0.0
    if spread == 0:
        return abs(volume_mm3 - mean)
    place = (volume_mm3 - mean) / spread
    return float(spread * (place * (2 * norm.cdf(place) - 1) + 2 * norm.pdf(place) - 1 / np.sqrt(np.pi)))
