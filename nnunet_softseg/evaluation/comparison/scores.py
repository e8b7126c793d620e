"""The measures by which methods are ranked: title, unit, direction."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Score:
    """A measure with a better and a worse end.

    Attributes:
        title: for tables and axes, without the unit.
        unit: "" for a plain number.
        higher_is_better: else lower is.
        per_subject: it exists only for all contrasts of a subject together, not for a single case.
    """

    title: str
    unit: str
    higher_is_better: bool
    per_subject: bool = False


# Signed errors have no better end: they are ranked by their absolute values, and shown as a bias in the
# agreement.
SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "abs_csa_error_mm2": Score("Absolute CSA error", "mm2", False),
        "abs_csa_error_percent": Score("Absolute CSA error", "%", False),
        "std_csa_mm2": Score("STD of CSA over contrasts", "mm2", False, per_subject=True),
        "abs_csa_hard_error_mm2": Score("Absolute CSA error, binarised", "mm2", False),
        "abs_csa_hard_error_percent": Score("Absolute CSA error, binarised", "%", False),
        "std_csa_hard_mm2": Score("STD of CSA over contrasts, binarised", "mm2", False, per_subject=True),
        "dice": Score("Dice", "", True),
        "soft_dice": Score("Soft Dice", "", True),
        "mae": Score("MAE", "", False),
        "rmse": Score("RMSE", "", False),
        "boundary_mae": Score("Boundary MAE", "", False),
        "boundary_rmse": Score("Boundary RMSE", "", False),
        "brier": Score("Brier score", "", False),
        "ece": Score("Expected calibration error", "", False),
        "abs_rve_percent": Score("Absolute relative volume error", "%", False),
        "abs_hard_rve_percent": Score("Absolute relative volume error, binarised", "%", False),
        "asd_mm": Score("ASD", "mm", False),
        "hd95_mm": Score("HD95", "mm", False),
        "surface_dice": Score("Surface Dice", "", True),
        "seconds": Score("Inference time", "s", False),
    }
)
"""In the order of the leaderboard: the paper's two questions first."""

SIGNIFICANT = 0.05
"""A corrected p below this, with an interval that excludes 0, lets a difference hold."""
