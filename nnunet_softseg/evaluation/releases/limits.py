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


@dataclass(frozen=True)
class Limits:
    """Each is broken where the whole 95 % interval lies beyond it; None: not looked at.

    Attributes:
        bias_percent: of the mean difference new - old, in percent of the old mean area.
        bias_mm2: of the same in mm2.
        slope: of |Deming slope - 1|: how much more large areas change than small ones.
        contrast_std_mm2: of the growth of the STD of a subject's area over contrasts, mm2.
        lost_areas: how many areas of the old release the new one may fail to find.
    """

    bias_percent: float | None = BIAS_PERCENT
    bias_mm2: float | None = None
    slope: float | None = None
    contrast_std_mm2: float | None = None
    lost_areas: int | None = 0

    def broken(self, row: Mapping[str, Any]) -> list[str]:
        """Return the names of the limits that a row of the statistics breaks."""
        names = ("bias_percent", "bias_mm2", "slope", "contrast_std_mm2")
        centres = {"slope": 1.0}
        return [name for name in names if self._is_beyond(name, row, centres.get(name, 0.0))]

    def _is_beyond(self, name: str, row: Mapping[str, Any], centre: float) -> bool:
        limit = getattr(self, name)
        low, high = (row.get(f"{name}_{end}", math.nan) - centre for end in ("low", "high"))
        one_sided = name == "contrast_std_mm2"  # a smaller spread is no fault
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
