"""Settings of the soft ground truth."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from nnunet_softseg.errors import UserError


@dataclasses.dataclass(frozen=True)
class GroundTruthSettings:
    """How the masks of one subject become one soft label.

    Attributes:
        reference: contrast that the others are aligned to; another one takes its place where it is missing.
        contrasts: those that may contribute; None for all that there are.
        trim_mm: length that is left out at either end of what a contrast covers along S-I.
        smooth_mm: standard deviation of the Gaussian along S-I that smooths the shifts; 0 for none.
        rotation: whether the slices are turned, too, about their S-I axis.
        box: whether a thick slice is taken as the mean over its thickness, which it is; False takes it as a
            point in its middle.
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
        _check_names(self.contrasts)
        for name, highest in (("trim_mm", 200.0), ("smooth_mm", 200.0)):
            _check_range(name, getattr(self, name), 0.0, highest)
        for name in ("max_shift_mm", "max_jump_mm"):
            _check_range(name, getattr(self, name), 0.0, math.inf)
        _check_range("min_agreement", self.min_agreement, 0.0, 1.0)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return dataclasses.asdict(self)


def _check_names(contrasts: Sequence[str] | None) -> None:
    if contrasts is None:
        return
    if isinstance(contrasts, str) or not contrasts or len(set(contrasts)) < len(contrasts):
        raise UserError(f"contrasts must be a list that names each one once, got {contrasts!r}")


def _check_range(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:  # false for NaN, too
        raise UserError(f"{name} must lie between {lowest:g} and {highest:g}, got {value:g}")
