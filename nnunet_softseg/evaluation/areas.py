"""The area of a case: over which slices it is a mean, and how far it is off.

Without levels, over the heights that all contrasts of a subject (in one session) share, in scanner
coordinates: areas of different levels say nothing about the method. Images that do not say where they
lie take no part: theirs is over their own slices. Only slices in which the reference exceeds 0.5 count. A
slice that a method leaves empty counts as 0 mm2: passed over, it would hide a failure.
"""

from collections.abc import Collection, Sequence

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


def mark_region(
    slices: pd.DataFrame, vert: Sequence[int] | None, nowhere: Collection[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Return the slices of all cases with the columns `in_region` and `csa_region`, and warnings.

    Without `vert` no levels are known. `nowhere` are the cases that do not say where they lie.
    """
    reference = slices[slices["method"] == REFERENCE]
    hard = reference["csa_hard_mm2"].notna()
    # Where the reference nowhere exceeds 0.5 in a case: its slices above 0.
    filled = hard | ~hard.groupby([reference[name] for name in _IMAGE]).transform("any")
    if vert is not None:
        region = filled & reference["level"].isin(list(vert)).to_numpy(dtype=bool)
        names: str | pd.Series[str] = level_name(vert)
        there = region.groupby(reference["case"]).any()
        without = sorted(there.index[~there])
        warning = f"{len(without)} cases have no slice of {names} and so no area: {examples(without)}"
        warnings = [warning] if without else []
        found = {
            case: {*rows.dropna()}
            for case, rows in reference["level"].where(region).groupby(reference["case"])
        }
        in_part = sorted(case for case, levels in found.items() if levels and levels != {*vert})
        shares = [f"{case} ({level_name(sorted(map(int, found[case])))})" for case in in_part]
        warning = f"{len(shares)} cases have a part of {names} only, and the area of that: {examples(shares)}"
        warnings += [warning] if shares else []
    else:
        region, names, warnings = _common_heights(reference, filled, nowhere)
    marked = reference[[*_IMAGE, "slice"]].assign(in_region=region, csa_region=names)
    return slices.merge(marked, on=[*_IMAGE, "slice"], how="left", validate="many_to_one"), warnings


def _common_heights(
    reference: pd.DataFrame, filled: "pd.Series[bool]", nowhere: Collection[str]
) -> tuple["pd.Series[bool]", "pd.Series[str]", list[str]]:
    heights = reference["z_mm"].where(filled & ~reference["case"].isin(list(nowhere)))
    together = ["subject", "session", "label"]
    ends = heights.groupby([reference[name] for name in (*together, "case")]).agg(["min", "max"])
    shared = ends.groupby(level=together).agg(low=("min", "max"), high=("max", "min"), n=("min", "count"))
    rows = shared.reindex(pd.MultiIndex.from_frame(reference[together])).set_axis(reference.index)
    several = (rows["n"] > 1).to_numpy()
    inside = heights.between(rows["low"] - _ROUNDING_MM, rows["high"] + _ROUNDING_MM).to_numpy()
    use_common = several & (rows["high"] - rows["low"] >= SHORTEST_COMMON_MM).to_numpy()
    # Thick slices may leave a case without a slice in the shared heights.
    some = pd.Series(inside & use_common, index=reference.index).groupby([reference[name] for name in _IMAGE])
    use_common &= some.transform("any").to_numpy()
    region = filled & (inside | ~use_common)
    names = pd.Series(np.where(use_common, COMMON, OWN), index=reference.index)
    apart = sorted(reference.loc[several & ~use_common, "subject"].unique())
    warning = (
        f"{len(apart)} subjects have contrasts that share less than {SHORTEST_COMMON_MM:g} mm, or no slice "
        f"there: their areas are means over different heights: {examples(apart)}; give --levels"
    )
    return region, names, [warning] if apart else []


def case_areas(slices: pd.DataFrame) -> pd.DataFrame:
    """Return method, case, label and the columns csa_* of `tables.CASE_COLUMNS`, from `mark_region`'s slices.

    NaN where the region is empty.
    """
    inside, who = slices[slices["in_region"]], ["method", *_IMAGE]
    filled = inside.assign(missed=inside["csa_mm2"].isna(), **inside[[*AREAS]].fillna(0.0))
    numbers = {"csa_slices": ("slice", "size"), "csa_missed_slices": ("missed", "sum")}
    means = filled.groupby(who).agg(**numbers, **{area: (area, "mean") for area in AREAS})
    images = slices.drop_duplicates(who)[[*who, "csa_region"]]
    table = images.merge(means.reset_index(), on=who, how="left")
    table[list(numbers)] = table[list(numbers)].fillna(0).astype(int)
    is_reference = table["method"] == REFERENCE
    reference = table[is_reference].set_index(_IMAGE)[[*AREAS]].add_prefix("reference_")
    table = table[~is_reference].merge(reference.reset_index(), on=_IMAGE, how="left")
    for area in AREAS:
        # An empty reference has no differences.
        expected = table[f"reference_{area}"].where(table[f"reference_{area}"] > 0)
        difference = table[area] - expected
        for unit, error in (("mm2", difference), ("percent", 100 * difference / expected)):
            name = f"{area.removesuffix('_mm2')}_error_{unit}"
            table = table.assign(**{name: error, f"abs_{name}": error.abs()})
    return table
