"""Images with a known truth: an analytic cord in six MRI contrasts, and its exact share of each voxel.

The way of the data: anatomy (mm) and neck -> grid (voxels) -> partial volume -> scanner (image) and truth ->
acquisition (one image with all that is known about it) -> bids (the folder).
"""

from nnunet_softseg.phantom.acquisition import PhantomSpec, Simulated, simulate
from nnunet_softseg.phantom.anatomy import Anatomy, straight_cylinder
from nnunet_softseg.phantom.bids import TRUTH, TRUTH_SUFFIX, phantom
from nnunet_softseg.phantom.contrasts import CONTRAST_NAMES, CONTRASTS
from nnunet_softseg.phantom.partial_volume import cord_fraction

__all__ = [
    "CONTRASTS",
    "CONTRAST_NAMES",
    "TRUTH",
    "TRUTH_SUFFIX",
    "Anatomy",
    "PhantomSpec",
    "Simulated",
    "cord_fraction",
    "phantom",
    "simulate",
    "straight_cylinder",
]
