"""Agreement of raters: Dice of each pair, Fleiss' kappa of all; tables for a file and the terminal."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_softseg.errors import printable
from nnunet_softseg.io.geometry import bounding_box
from nnunet_softseg.labels.raters.fusion import Map, Mask
from nnunet_softseg.metrics.overlap import dice, soft_dice
from nnunet_softseg.settings import HARD_THRESHOLD

COLUMNS = ["case_id", "label", "measure", "rater", "other_rater", "value"]
_OF_RATER = ("volume_mm3", "sensitivity", "specificity")
_LOWEST = 3


class RaterMeasure(NamedTuple):
    """One number of a rater, a pair, or all (no rater); NaN where there is none, as for two empty masks."""

    name: str
    rater: str = ""
    other_rater: str = ""
    value: float = math.nan


Measures = Mapping[int | None, list[RaterMeasure]]
"""The measures of a case by label; None: that of single files."""


def agreement(maps: Mapping[str, Map], voxel_volume_mm3: float, region: Mask) -> list[RaterMeasure]:
    """Return the volume of each rater, Dice of each pair (> 0.5), their mean, and Fleiss' kappa.

    With soft maps among them, the soft Dice of each pair, too; of two masks it is the same as Dice. Maps are
    rater -> values in [0, 1], all of one shape; kappa is taken over the region, see `fusion.neighbourhood`.
    """
    drawn = [(values > HARD_THRESHOLD)[region] for values in maps.values()]
    box = bounding_box(np.logical_or.reduce([values > 0 for values in maps.values()]))
    maps = {rater: values[box] for rater, values in maps.items()}
    volumes = {rater: float(values.sum(dtype=np.float64)) for rater, values in maps.items()}
    measures = [RaterMeasure("volume_mm3", rater, "", volumes[rater] * voxel_volume_mm3) for rater in maps]
    pairs = list(itertools.combinations(maps, 2))
    overlaps = [dice(maps[first], maps[second]) for first, second in pairs]
    measures += [RaterMeasure("dice", *pair, value) for pair, value in zip(pairs, overlaps, strict=True)]
    if any(((values > 0) & (values < 1)).any() for values in maps.values()):
        soft = [soft_dice(maps[first], maps[second]) for first, second in pairs]
        measures += [RaterMeasure("soft_dice", *pair, value) for pair, value in zip(pairs, soft, strict=True)]
    if pairs:
        known = [value for value in overlaps if not math.isnan(value)]
        mean = sum(known) / len(known) if known else math.nan
        measures += [RaterMeasure("mean_dice", value=mean), RaterMeasure("fleiss_kappa", value=kappa(drawn))]
    return measures


def kappa(masks: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Return Fleiss' kappa of several masks, one row of voxels per rater; NaN if all voxels are of one kind.

    Source:
        Fleiss, Psychological Bulletin 76(5), 1971, by statsmodels.
    """
    from statsmodels.stats.inter_rater import fleiss_kappa  # takes a second to import

    foreground: npt.NDArray[np.int64] = np.stack(masks).sum(axis=0, dtype=np.int64)
    if not foreground.any() or (foreground == len(masks)).all():
        return math.nan
    return float(fleiss_kappa(np.stack([len(masks) - foreground, foreground], axis=1), method="fleiss"))


# Tables: tidy for a file, summed up for the terminal


def tidy_table(cases: Mapping[str, Measures]) -> pd.DataFrame:
    """Return one row per case, label, measure, and rater or pair; NaN where a measure has no value."""
    rows = [
        (case_id, label, *measure)
        for case_id, by_label in cases.items()
        for label, measures in by_label.items()
        for measure in measures
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def agreement_lines(tidy: pd.DataFrame, margin_mm: float) -> list[str]:
    """Return the agreement of the raters, in lines; means over the cases, if there are several."""
    lines = []
    for label, table in tidy.groupby("label", dropna=False):
        number = table["case_id"].nunique()
        title = [] if pd.isna(label) else [f"label {label:g}"]
        title += [f"means over {number} cases"] if number > 1 else []
        lines += ["", *filter(None, [", ".join(title)]), *_label_lines(table, number > 1, margin_mm)]
    return lines


def _label_lines(table: pd.DataFrame, several: bool, margin_mm: float) -> list[str]:
    lines = [_render(_rater_table(table, several))]
    pairs = table[table["measure"].isin(("dice", "soft_dice"))]
    means = table.groupby("measure")["value"].mean()
    overall = f"fused volume {means['fused_volume_mm3']:.1f} mm3"
    if not pairs.empty:
        lines += ["", _render(_pair_table(pairs, several)), ""]
        overall += (
            f", mean pairwise Dice (> 0.5) {_number(means['mean_dice'])}, Fleiss' kappa "
            f"{_number(means['fleiss_kappa'])} (within {margin_mm:g} mm of the masks)"
        )
    lines.append(overall)
    lowest = table[table["measure"] == "mean_dice"].dropna().nsmallest(_LOWEST, "value")
    if several and not lowest.empty:
        worst = ", ".join(f"{printable(row.case_id)} ({_number(row.value)})" for row in lowest.itertuples())
        lines.append(f"lowest mean Dice: {worst}")
    return lines


def _rater_table(table: pd.DataFrame, several: bool) -> pd.DataFrame:
    """Return one row per rater: cases, volume, mean Dice with the others, and what STAPLE thinks of them."""
    of_rater = table[table["measure"].isin(_OF_RATER)]
    wide = _means(of_rater, "rater")
    wide = wide[[name for name in _OF_RATER if name in wide]]
    dice = table[table["measure"] == "dice"]
    with_others = pd.concat([dice, dice.assign(rater=dice["other_rater"])])
    wide.insert(1, "dice_with_others", with_others.groupby("rater")["value"].mean())
    if several:
        wide.insert(0, "cases", table[table["measure"] == "volume_mm3"].groupby("rater")["value"].size())
    return wide.reset_index()


def _pair_table(pairs: pd.DataFrame, several: bool) -> pd.DataFrame:
    """Return one row per pair of raters: Dice, soft Dice of soft maps, the lowest over the cases."""
    named = pairs.assign(pair=pairs["rater"] + " - " + pairs["other_rater"])
    wide = _means(named, "pair")
    if several:
        wide["lowest_dice"] = named[named["measure"] == "dice"].groupby("pair")["value"].min()
    return wide.reset_index()


def _means(table: pd.DataFrame, of: str) -> pd.DataFrame:
    """Return the mean of each measure, a column, of each rater or pair, a row."""
    return table.pivot_table(
        index=of, columns="measure", values="value", aggfunc="mean", sort=False, dropna=False
    )


def _render(table: pd.DataFrame) -> str:
    formats = {name: "{:.1f}".format if name == "volume_mm3" else _number for name in table.columns[1:]}
    if "cases" in table:
        formats["cases"] = "{:.0f}".format
    first = str(table.columns[0])
    formats[first] = f"{{:<{max(map(len, [first, *table[first]]))}}}".format
    return str(table.to_string(index=False, formatters=formats, na_rep="-", justify="right"))


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.4f}"
