"""Settings of the soft ground truth."""

import math
from dataclasses import dataclass
from typing import Any

from nnunet_softseg.errors import UserError

HIGHEST = {
    "trim_mm": 200.0,
    "smooth_mm": 200.0,
    "max_shift_mm": math.inf,
    "max_jump_mm": math.inf,
    "min_agreement": 1.0,
}
"""Settings that are numbers, and the highest value of each; the lowest is 0."""


@dataclass(frozen=True)
class GroundTruthSettings:
    """How the masks of one subject become one soft label.

    Attributes:
        reference: contrast that the others are aligned to; another one takes its place where it is missing.
        contrasts: those that may contribute; None for all.
        trim_mm: length that is left out at either end of what a contrast but the reference covers.
        smooth_mm: standard deviation of the Gaussian along S-I that smooths the shifts; 0 for none.
        rotation: whether the slices are turned, too, about their S-I axis.
        box: whether a voxel is taken as the mean over its size, as of a thick slice; False: as its middle.
        max_shift_mm: a longer shift in any slice is implausible.
        max_jump_mm: a larger change of the shift from a slice of the contrast to the next is implausible.
        min_agreement: a lower Dice of a contrast against the average, both > 0.5, is implausible.
        leave_out_implausible: whether the average is made without the contrasts that are implausible.

    Raises:
        UserError: for a value out of its range.
    """

    reference: str = "T2w"
    contrasts: tuple[str, ...] | None = None
    trim_mm: float = 0.0
    smooth_mm: float = 0.0
    rotation: bool = False
    box: bool = True
    max_shift_mm: float = 10.0
    max_jump_mm: float = 3.0
    min_agreement: float = 0.75
    leave_out_implausible: bool = False

    def __post_init__(self) -> None:
        if not self.reference:
            raise UserError("the reference contrast must have a name, got ''")
        names: Any = self.contrasts
        if names is not None and (isinstance(names, str) or not names or len(set(names)) < len(names)):
            raise UserError(f"contrasts must be a list that names each one once, got {names!r}")
        for name, highest in HIGHEST.items():
            value = getattr(self, name)
            if not 0 <= value <= highest:  # false for NaN, too
                raise UserError(f"{name} must lie between 0 and {highest:g}, got {value:g}")
