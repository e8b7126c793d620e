"""Several raters of one image -> one soft label, and how well they agree."""

from nnunet_softseg.labels.raters.command import FusionReport, fuse
from nnunet_softseg.labels.raters.fusion import FusionSettings

__all__ = ["FusionReport", "FusionSettings", "fuse"]
