"""The cases in which a method is furthest off, as pictures: image, reference, prediction, difference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.comparison.result import Comparison
from nnunet_softseg.evaluation.maps import LabelMap, on_grid_of, read_map
from nnunet_softseg.evaluation.measuring import REFERENCE
from nnunet_softseg.evaluation.report.slice_picture import Section, section_of
from nnunet_softseg.evaluation.report.wording import number, quantity
from nnunet_softseg.io.atomic import replacing
from nnunet_softseg.io.html import picture
from nnunet_softseg.metrics.morphometry.levels import level_name

MOST_IN_A_LABEL = 8
MOST_ALTOGETHER = 24
MOST_OF_A_METHOD = 6
_KEPT_MAPS = 3
_PICTURE_QUALITY = 85


@dataclass(frozen=True)
class WorstCase:
    """A case in which a method is far off, and the method that is nearest in the same case.

    Attributes:
        number: its place within the label, from 1.
        method: that is far off.
        case: name.
        contrast: "" if not known.
        slice_index: along the S-I axis of the reference's array; None if not known.
        other: the nearest method, or "" if there is none better.
        error: of the area, in words.
        other_error: likewise of the other.
        where: which slice, in words.
        section: pictures of this slice, or None.
        trouble: why there are none, "" if there are.
    """

    number: int
    method: str
    case: str
    contrast: str
    slice_index: int | None
    other: str
    error: str
    other_error: str
    where: str
    section: Section | None
    trouble: str

    @property
    def panels(self) -> list[tuple[str, str]]:
        """Caption and data URI of each picture."""
        panels = self.section.panels() if self.section else ()
        return [(caption, picture(pixels, _PICTURE_QUALITY)) for caption, pixels in panels]


def worst_cases(comparison: Comparison, label: int) -> Iterator[WorstCase]:
    """Give the worst cases of each method by absolute area error, the worst of all first."""
    rows = comparison.cases[comparison.cases["label"] == label]
    chosen = comparison.parameters.get("labels") is not None
    read = _reader(label, tuple(comparison.labels), chosen=chosen)
    for place, (_, row) in enumerate(_chosen(rows, comparison).iterrows(), 1):
        nearest = _nearest(rows, row)
        where, index = _worst_slice(comparison.slices, row, label)
        section, trouble = None, ""
        try:
            section, index = _section(read, row, nearest, index)
        except (UserError, OSError) as error:
            trouble = str(error)
        yield WorstCase(
            number=place,
            method=row["method"],
            case=row["case"],
            contrast=row["contrast"],
            slice_index=index,
            other="" if nearest is None else nearest["method"],
            error=_error_words(row),
            other_error="" if nearest is None else _error_words(nearest),
            where=where or ("" if index is None else f"slice {index}"),
            section=section,
            trouble=trouble,
        )


def save_strip(found: WorstCase, file: Path) -> str:
    """Write the pictures of a case in a row as PNG, and return the file's name; "" if it has none.

    Raises:
        UserError: if that cannot be done.
    """
    if found.section is None:
        return ""
    with replacing(file) as aside:
        Image.fromarray(found.section.strip()).save(aside, format="png")
    return file.name


def _chosen(rows: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """Return the worst cases of each method: no method's failures hide behind those of another."""
    share = MOST_ALTOGETHER // len(comparison.labels)
    most = min(MOST_IN_A_LABEL, max(share, 2))
    per_method = min(max(most // len(comparison.methods), 1), MOST_OF_A_METHOD)
    order = ["abs_csa_error_mm2", "dice", "case"]
    rows = rows[rows["abs_csa_error_mm2"].notna() | rows["dice"].notna()]
    ranked = rows.sort_values(order, ascending=[False, True, True], kind="stable")
    return ranked.groupby("method", sort=False).head(per_method).head(max(most, per_method))


def _nearest(rows: pd.DataFrame, row: "pd.Series[Any]") -> "pd.Series[Any] | None":
    """Return the method with the smallest error in the same case, if that is another."""
    same = rows[(rows["case"] == row["case"])].sort_values(
        ["abs_csa_error_mm2", "dice"], ascending=[True, False], kind="stable"
    )
    nearest = same.iloc[0]
    return None if nearest["method"] == row["method"] else nearest


def _worst_slice(slices: pd.DataFrame, row: "pd.Series[Any]", label: int) -> tuple[str, int | None]:
    """Return the slice, of those that count for the area, in which it is furthest off, and words on it."""
    of_case = slices[(slices["case"] == row["case"]) & (slices["label"] == label)]
    of_case = of_case[of_case["in_region"]] if of_case["in_region"].any() else of_case
    areas = of_case.pivot(index="slice", columns="method", values="csa_mm2")
    if row["method"] not in areas or REFERENCE not in areas or not len(areas):
        return "", None
    areas = areas.fillna(0.0)
    index = int((areas[row["method"]] - areas[REFERENCE]).abs().idxmax())
    there = of_case[of_case["slice"] == index].iloc[0]
    level = "" if pd.isna(there["level"]) else f", {level_name([int(there['level'])])}"
    words = (
        f"slice {index} (z = {number(there['z_mm'])} mm{level}): "
        f"{quantity(areas.loc[index, row['method']], 'mm2')} against "
        f"{quantity(areas.loc[index, REFERENCE], 'mm2')} in the reference"
    )
    return words, index


def _error_words(row: "pd.Series[Any]") -> str:
    error = row["csa_error_mm2"]
    if pd.isna(error):
        return f"no area; Dice {quantity(row['dice'], '')}"
    sign = "+" if error > 0 else ""
    return f"{sign}{quantity(error, 'mm2')}; Dice {quantity(row['dice'], '')}"


def _reader(label: int, labels: Sequence[int], *, chosen: bool) -> Any:
    """Return a function that reads a map and remembers the last few."""

    @lru_cache(maxsize=_KEPT_MAPS)
    def read(file: str) -> LabelMap:
        return read_map(Path(file), label, labels, chosen=chosen)

    return read


def _section(
    read: Any, row: "pd.Series[Any]", nearest: "pd.Series[Any] | None", index: int | None
) -> tuple[Section, int]:
    if not row["reference"] or not row["prediction"]:
        raise UserError(f"{row['case']}: expected paths of its maps, found none")
    reference = read(row["reference"])
    shown = [row] if nearest is None else [row, nearest]
    maps: Mapping[str, LabelMap] = {
        each["method"]: on_grid_of(read(each["prediction"]), reference, resample=True)[0] for each in shown
    }
    return section_of(reference, maps, Path(row["image"]) if row["image"] else None, index)
