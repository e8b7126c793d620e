"""Several raters of one image -> one soft label, and how well they agree.

The way of the data: sources (which file is whose, what it holds) -> fusion and agreement (arrays) -> case
(one image, with its record) -> report (tables) -> command (files or folders).
"""

from nnunet_softseg.labels.raters.command import FusionReport, fuse
from nnunet_softseg.labels.raters.settings import FusionSettings

__all__ = ["FusionReport", "FusionSettings", "fuse"]
