"""The limits beyond which a difference between two releases counts as drift.

No published limit exists. The defaults are a choice: measurements.md says what they catch and what they let
pass.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_softseg.errors import UserError
from nnunet_softseg.io.results import load_json

BIAS_PERCENT = 1.0
CONTRAST_BIAS_PERCENT = 2.5
"""Two trainings of one model on a phantom differed by up to 1.7 % in single contrasts. Refuted by releases
that differ by more there, and by less over all contrasts, and which nobody would call another measure."""


@dataclass(frozen=True)
class Limits:
    """Each is broken where the whole 95 % interval lies beyond it; None: not looked at.

    Attributes:
        bias_percent: of the mean difference new - old, in percent of the old mean area; where there are
            several contrasts, of the mean over all of them.
        contrast_bias_percent: of the same of each contrast, where there are several; at least bias_percent.
        bias_mm2: of the same in mm2, of each contrast and of all.
        slope: of |Deming slope - 1|: how much more large areas change than small ones.
        contrast_std_mm2: of the growth of the STD of a subject's area over contrasts, mm2.
        lost_areas: how many areas of the old release the new one may fail to find.
    """

    bias_percent: float | None = BIAS_PERCENT
    contrast_bias_percent: float | None = CONTRAST_BIAS_PERCENT
    bias_mm2: float | None = None
    slope: float | None = None
    contrast_std_mm2: float | None = None
    lost_areas: int | None = 0

    def of_bias(self, *, one_of_several: bool) -> tuple[str, float | None]:
        """Return name and value of the limit of a bias in percent: of one contrast of several, or of all."""
        if not one_of_several:
            return "bias_percent", self.bias_percent
        limit = self.contrast_bias_percent
        return "contrast_bias_percent", None if limit is None else max(limit, self.bias_percent or 0)

    def broken(self, row: Mapping[str, Any], *, one_of_several: bool = False) -> list[str]:
        """Return the names of the limits that a row of the statistics breaks.

        Args:
            row: of a contrast and level, or of a level over all contrasts.
            one_of_several: whether it is of one contrast of several.
        """
        name, limit = self.of_bias(one_of_several=one_of_several)
        rest = ("bias_mm2", "slope", "contrast_std_mm2")
        limits = {name: ("bias_percent", limit)} | {each: (each, getattr(self, each)) for each in rest}
        return [each for each, (measure, limit) in limits.items() if _is_beyond(limit, measure, row)]


def _is_beyond(limit: float | None, measure: str, row: Mapping[str, Any]) -> bool:
    centre = 1.0 if measure == "slope" else 0.0
    low, high = (row.get(f"{measure}_{end}", math.nan) - centre for end in ("low", "high"))
    one_sided = measure == "contrast_std_mm2"  # a smaller spread is no fault
    return limit is not None and bool(low > limit or (high < -limit and not one_sided))


def read_limits(file: Path) -> Limits:
    """Return limits from a JSON file with some of the names of `Limits`; null switches one off.

    Raises:
        UserError: if it cannot be read, a name is unknown, or a value is no number of 0 or more.
    """
    content = load_json(file)
    known = [field.name for field in dataclasses.fields(Limits)]
    if not isinstance(content, dict) or set(content) - set(known):
        found = sorted(set(content) - set(known)) if isinstance(content, dict) else content
        raise UserError(
            f"{file}: expected limits named {', '.join(known)}, found {found}: rename or remove it"
        )
    for name, value in content.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value < math.inf):
            raise UserError(f"{file}: {name}: expected a number of 0 or more, or null, found {value!r}")
    return Limits(**content)
