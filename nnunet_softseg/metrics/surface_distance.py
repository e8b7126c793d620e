"""Distances between the surfaces of two masks, in mm.

The surface of a mask is the set of *centres of its boundary voxels*, those with at least one face neighbour
outside of it, as all beyond the image is. Each counts once; tools that weight surface elements by their area
give somewhat other numbers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion

from nnunet_softseg.io.geometry import Spacing, bounding_box, check_grids, distances_mm

Mask = npt.NDArray[np.bool_]

# A distance of exactly the tolerance counts as within it, whatever rounding did to spacing and square root.
_ROUNDING_MM = 1e-6


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


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: Spacing) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks, both ways.

    Raises:
        ValueError: if shapes or spacing do not fit, or a mask is empty.
    """
    check_grids(prediction, reference, spacing_mm)
    if not (prediction.any() and reference.any()):
        raise ValueError("an empty mask has no surface to measure distances from")
    box = bounding_box(prediction | reference)
    predicted, expected = (
        mask[box] & ~binary_erosion(mask[box], border_value=0) for mask in (prediction, reference)
    )
    return SurfaceDistances(
        to_reference_mm=distances_mm(expected, spacing_mm, predicted),
        to_prediction_mm=distances_mm(predicted, spacing_mm, expected),
    )


def check_tolerance(tolerance_mm: float) -> None:
    """Raise ValueError for a tolerance of surface Dice that is negative or not a number."""
    if not tolerance_mm >= 0:
        raise ValueError(f"the tolerance of surface Dice must be 0 mm or more, got {tolerance_mm}")
