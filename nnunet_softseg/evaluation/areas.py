"""The area of a case: over which slices it is a mean, and how far it is off.

Where levels are known, the region is C2-C3 or the levels asked for. Else it is the heights that all contrasts
of a subject (in one session) share, in scanner coordinates: an area that differs between two contrasts
because they show different levels says nothing about the method. Only slices in which the reference exceeds
0.5 count. A slice of the region that a method leaves empty counts as 0 mm2: passed over, it would hide a
failure.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.errors import examples
from nnunet_softseg.evaluation.measuring import AREAS, REFERENCE
from nnunet_softseg.metrics.morphometry.levels import level_name

COMMON, OWN = "common heights", "own slices"
SHORTEST_COMMON_MM = 10.0
"""Contrasts of a subject that share less than this are measured over their own slices."""
_ROUNDING_MM = 1e-3
_IMAGE = ["case", "label"]


def mark_region(slices: pd.DataFrame, vert: Sequence[int] | None) -> tuple[pd.DataFrame, list[str]]:
    """Return the slices with the columns `in_region` and `csa_region`, and warnings.

    Args:
        slices: of all cases, with method, case, subject, session, contrast, label, slice, z_mm, level,
            csa_mm2, csa_hard_mm2.
        vert: levels, or None if no levels are known.
    """
    reference = slices[slices["method"] == REFERENCE]
    filled = _filled(reference)
    if vert is not None:
        region = filled & reference["level"].isin(list(vert)).to_numpy(dtype=bool)
        names = pd.Series(level_name(vert), index=reference.index)
        warnings = _without_levels(reference, region, level_name(vert))
    else:
        region, names, warnings = _common_heights(reference, filled)
    marked = reference[[*_IMAGE, "slice"]].assign(in_region=region, csa_region=names)
    return slices.merge(marked, on=[*_IMAGE, "slice"], how="left", validate="many_to_one"), warnings


def _filled(reference: pd.DataFrame) -> "pd.Series[bool]":
    """Return the slices where the reference exceeds 0.5; where it nowhere does in a case, those above 0."""
    hard = reference["csa_hard_mm2"].notna()
    anywhere = hard.groupby([reference[name] for name in _IMAGE]).transform("any")
    return hard | ~anywhere


def _without_levels(reference: pd.DataFrame, region: "pd.Series[bool]", wanted: str) -> list[str]:
    there = region.groupby(reference["case"]).any()
    without = sorted(there.index[~there])
    if not without:
        return []
    return [f"{len(without)} cases have no slice of {wanted} and so no area: {examples(without)}"]


def _common_heights(
    reference: pd.DataFrame, filled: "pd.Series[bool]"
) -> tuple["pd.Series[bool]", "pd.Series[str]", list[str]]:
    heights = reference["z_mm"].where(filled)
    ends = heights.groupby([reference[name] for name in ("subject", "session", "label", "case")]).agg(
        ["min", "max"]
    )
    shared = ends.groupby(level=["subject", "session", "label"]).agg(
        low=("min", "max"), high=("max", "min"), n=("min", "count")
    )
    rows = shared.reindex(pd.MultiIndex.from_frame(reference[["subject", "session", "label"]]))
    wide_enough = (rows["high"] - rows["low"] >= SHORTEST_COMMON_MM).to_numpy()
    several = (rows["n"] > 1).to_numpy()
    inside = (heights.to_numpy() >= rows["low"].to_numpy() - _ROUNDING_MM) & (
        heights.to_numpy() <= rows["high"].to_numpy() + _ROUNDING_MM
    )
    use_common = several & wide_enough
    # Thick slices may leave a case without a slice in the shared heights.
    some = pd.Series(inside & use_common, index=reference.index).groupby([reference[name] for name in _IMAGE])
    use_common &= some.transform("any").to_numpy()
    region = filled & (inside | ~use_common)
    names = pd.Series(np.where(use_common, COMMON, OWN), index=reference.index)
    apart = sorted(reference.loc[several & ~use_common, "subject"].unique())
    warnings = [
        f"{len(apart)} subjects have contrasts that share less than {SHORTEST_COMMON_MM:g} mm: their areas "
        f"are means over different heights: {examples(apart)}; give --levels"
    ]
    return region, names, warnings if apart else []


def case_areas(slices: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method, case and label: areas of prediction and reference, and their differences.

    Args:
        slices: of `mark_region`.

    Returns:
        method, case, label, csa_region, csa_slices, csa_missed_slices, csa_mm2, reference_csa_mm2,
        csa_error_mm2, csa_error_percent, abs_csa_error_mm2, abs_csa_error_percent, and the same with
        csa_hard. NaN where the region is empty.
    """
    inside = slices[slices["in_region"]]
    empty = inside["csa_mm2"].isna()
    filled = inside.assign(missed=empty, **{area: inside[area].fillna(0.0) for area in AREAS})
    groups = filled.groupby(["method", *_IMAGE])
    means = groups.agg(
        csa_slices=("slice", "size"),
        csa_missed_slices=("missed", "sum"),
        **{area: (area, "mean") for area in AREAS},
    )
    images = slices.drop_duplicates(["method", *_IMAGE])[["method", *_IMAGE, "csa_region"]]
    table = images.merge(means.reset_index(), on=["method", *_IMAGE], how="left")
    counts = ["csa_slices", "csa_missed_slices"]
    table[counts] = table[counts].fillna(0).astype(int)
    is_reference = table["method"] == REFERENCE
    reference = table.loc[is_reference, [*_IMAGE, *AREAS]].rename(
        columns={area: f"reference_{area}" for area in AREAS}
    )
    table = table[~is_reference].merge(reference, on=_IMAGE, how="left")
    return table.assign(**_errors(table))


def _errors(table: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of differences; an empty reference has none in percent, nor one of a hard area."""
    columns: dict[str, Any] = {}
    for area in AREAS:
        stem = area.removesuffix("_mm2")
        expected = table[f"reference_{area}"].where(table[f"reference_{area}"] > 0)
        error = table[area] - expected
        columns |= {
            f"{stem}_error_mm2": error,
            f"{stem}_error_percent": 100 * error / expected,
            f"abs_{stem}_error_mm2": error.abs(),
            f"abs_{stem}_error_percent": (100 * error / expected).abs(),
        }
    return columns
