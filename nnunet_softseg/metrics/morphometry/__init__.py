"""The size and shape of a soft structure, slice by slice, in mm.

The way of the data: slice frame (where slices lie) -> centreline (how they tilt) -> section (moments ->
diameters) -> levels (which vertebra) -> slice table (one map) -> summary (per level) and picture -> csa (the
command).
"""

from nnunet_softseg.metrics.morphometry.csa import csa, csa_overview
from nnunet_softseg.metrics.morphometry.slice_areas import SliceAreas, slice_areas
from nnunet_softseg.metrics.morphometry.slice_table import COLUMNS, slice_morphometry
from nnunet_softseg.metrics.morphometry.summary import level_summary, mean_csa

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
