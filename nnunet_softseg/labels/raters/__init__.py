"""Several raters of one image -> one soft label, and how well they agree.

Order: sources (files and content) -> fusion and agreement (arrays) -> case (one image) -> report
(tables) -> command (files or folders).
"""

from nnunet_softseg.labels.raters.command import FusionReport, fuse
from nnunet_softseg.labels.raters.fusion import FusionSettings

__all__ = ["FusionReport", "FusionSettings", "fuse"]
