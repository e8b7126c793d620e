"""Size and shape of a soft structure, slice by slice, in mm."""

from nnunet_softseg.metrics.morphometry.csa import csa, csa_overview
from nnunet_softseg.metrics.morphometry.levels import level_summary, mean_csa
from nnunet_softseg.metrics.morphometry.slice_table import COLUMNS, slice_morphometry
from nnunet_softseg.metrics.slice_frame import SliceAreas, slice_areas

__all__ = [
    "COLUMNS",
    "SliceAreas",
    "csa",
    "csa_overview",
    "level_summary",
    "mean_csa",
    "slice_areas",
    "slice_morphometry",
]
