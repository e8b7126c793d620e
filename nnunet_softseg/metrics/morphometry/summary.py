"""From slices to levels: the mean area of C2-C3, and a table of all levels."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from nnunet_softseg.metrics.morphometry.levels import level_name, parse_levels

AVERAGED = (
    "csa_mm2",
    "csa_hard_mm2",
    "area_mm2",
    "tilt_deg",
    "diameter_ap_mm",
    "diameter_rl_mm",
    "eccentricity",
    "csa_sct_normalised_mm2",
)
SUMMARY_COLUMNS = {
    "file": "the map",
    "levels": "C2, or C2-C3 for a set that was asked for; all: every slice",
    "num_slices": "slices of these levels that are not empty",
    "num_empty": "slices of these levels that are empty; they don't count in the means",
    "num_flagged": "slices among num_slices with a flag",
    "length_mm": "length of the centreline in num_slices, mm",
    **{f"{column}_mean": f"mean of {column} over num_slices" for column in AVERAGED},
    **{
        f"{column}_std": f"standard deviation (ddof 1) of {column} over num_slices" for column in AVERAGED[:2]
    },
}
"""The columns of the table of levels, with units."""


def mean_csa(
    table: pd.DataFrame, vert: int | str | Iterable[int | str] | None = None, column: str = "csa_mm2"
) -> float:
    """Return the mean over the slices of some levels, empty slices passed over; NaN if there are none.

    Args:
        table: of one map, from `slice_morphometry`.
        vert: levels as `parse_levels` takes them, `(2, 3)` for C2-C3; None: every slice.
        column: another measure, such as csa_hard_mm2.
    """
    rows = table if vert is None else table[table["level"].isin(parse_levels(vert))]
    return float(rows[column].mean())


def level_summary(table: pd.DataFrame, vert: Sequence[int] | None = None) -> pd.DataFrame:
    """Return one row per map and level, and one for the asked set, or for all slices if none is asked for.

    Args:
        table: of `csa`, with a column `file`.
        vert: the levels of the set; also those of which rows are given.

    Returns:
        `SUMMARY_COLUMNS`; NaN where no slice of a level holds anything.
    """
    rows = []
    for file, slices in table.groupby("file", sort=False):
        there = sorted(int(level) for level in slices["level"].dropna().unique())
        chosen = there if vert is None else list(vert)
        rows += [_summarise(file, level_name([level]), slices[slices["level"] == level]) for level in chosen]
        if vert is None:
            rows.append(_summarise(file, "all", slices))
        elif len(vert) > 1:
            rows.append(_summarise(file, level_name(vert), slices[slices["level"].isin(vert)]))
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def _summarise(file: object, levels: str, slices: pd.DataFrame) -> dict[str, object]:
    measured = slices[slices["csa_mm2"].notna()]
    return {
        "file": file,
        "levels": levels,
        "num_slices": len(measured),
        "num_empty": len(slices) - len(measured),
        "num_flagged": int(np.count_nonzero(measured["flags"] != "")),
        "length_mm": measured["length_mm"].sum() if len(measured) else np.nan,
        **{f"{column}_mean": measured[column].mean() for column in AVERAGED},
        **{f"{column}_std": measured[column].std(ddof=1) for column in AVERAGED[:2]},
    }
