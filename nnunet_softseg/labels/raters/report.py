"""Agreement as tables: tidy for a file, summed up for the terminal."""

from collections.abc import Sequence

import pandas as pd

from nnunet_softseg.labels.raters.case import FusedCase
from nnunet_softseg.labels.raters.sources import printable

COLUMNS = ["case_id", "label", "measure", "rater", "other_rater", "value"]
_OF_RATER = ("volume_mm3", "sensitivity", "specificity")
_LOWEST = 3


def tidy_table(cases: Sequence[FusedCase]) -> pd.DataFrame:
    """Return one row per case, label, measure, and rater or pair; NaN where a measure has no value."""
    rows = [
        (case.case_id, label, *measure)
        for case in cases
        for label, measures in case.measures.items()
        for measure in measures
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def agreement_lines(cases: Sequence[FusedCase], margin_mm: float) -> list[str]:
    """Return the agreement of the raters, in lines; means over the cases, if there are several."""
    lines = []
    for label, table in tidy_table(cases).groupby("label", dropna=False):
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
