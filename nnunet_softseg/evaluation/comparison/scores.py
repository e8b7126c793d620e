"""The measures by which methods are ranked, in the order of the leaderboard."""

from collections.abc import Mapping

from nnunet_softseg.evaluation.tables import CASE_COLUMNS
from nnunet_softseg.metrics.measure_table import MEASURES, Measure

_MINUS = "\N{MINUS SIGN}"
_AREA_ERROR = f"|CSA of the prediction {_MINUS} CSA of the reference|"
_VOLUME_ERROR = f"|volume of the prediction {_MINUS} volume of the reference| in percent of the reference"
_SPREAD = f"standard deviation (n {_MINUS} 1) of a subject's CSA over contrasts"


def _of_areas(stem: str, maps: str, suffix: str) -> dict[str, Measure]:
    """Return the measures of the soft areas or of those above 0.5."""
    error, spread = f"Absolute CSA error{suffix}", f"STD of CSA over contrasts{suffix}"
    percent = f"{_AREA_ERROR} in percent of the reference, of both maps {maps}"
    return {
        f"abs_{stem}_error_mm2": Measure(f"{_AREA_ERROR}, of both maps {maps}", "mm2", 0.0, title=error),
        f"abs_{stem}_error_percent": Measure(percent, "%", 0.0, title=error),
        f"std_{stem}_mm2": Measure(f"{_SPREAD}, of the map {maps}", "mm2", 0.0, title=spread),
    }


_OVERLAP = ("dice", "soft_dice", "mae", "rmse", "boundary_mae", "boundary_rmse", "brier", "ece")
_INSTANCES = ("pq", "rq", "sq")
_SURFACE = ("asd_mm", "hd95_mm", "surface_dice")
_VOLUME = "Absolute relative volume error"
# Signed errors have no better end: ranked are their absolute values, and the agreement shows the bias.
SCORES: Mapping[str, Measure] = {
    **_of_areas("csa", "as given", ""),
    **_of_areas("csa_hard", "> 0.5", ", binarised"),
    **{name: MEASURES[name] for name in _OVERLAP},
    "abs_rve_percent": Measure(_VOLUME_ERROR, "%", 0.0, title=_VOLUME),
    "abs_hard_rve_percent": Measure(
        f"{_VOLUME_ERROR}, of maps > 0.5", "%", 0.0, title=f"{_VOLUME}, binarised"
    ),
    **{name: MEASURES[name] for name in _SURFACE},
    **{name: MEASURES[name] for name in _INSTANCES},
    "seconds": Measure(CASE_COLUMNS["seconds"], "s", 0.0, title="Inference time"),
}
"""The paper's two questions first: the area, and its dependence on the contrast."""
HEADLINES = ("abs_csa_error_mm2", "std_csa_mm2", "dice")
"""Measures that are tested, together with the primary one: is the area right, does it depend on the contrast,
do the maps overlap. All others are exploratory: among so many, one differs by chance."""
PRIMARY = HEADLINES[0]
"""The primary measure unless the user names another: soft maps are made for the area."""
PER_SUBJECT = tuple(name for name in SCORES if name.startswith("std_"))
"""Measures of all contrasts of a subject together: a single case has none."""


def role_of(measure: str, primary: str) -> str:
    """Return "primary", "headline" or "exploratory"."""
    if measure == primary:
        return "primary"
    return "headline" if measure in HEADLINES else "exploratory"
