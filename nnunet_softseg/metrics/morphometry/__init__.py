"""Size and shape of a soft structure, slice by slice, in mm."""

from nnunet_softseg.metrics.morphometry.csa import csa, csa_overview
from nnunet_softseg.metrics.morphometry.levels import level_summary, mean_csa
from nnunet_softseg.metrics.morphometry.slice_table import COLUMNS, slice_morphometry

__all__ = [
    "COLUMNS",
    "csa",
    "csa_overview",
    "level_summary",
    "mean_csa",
    "slice_morphometry",
]
