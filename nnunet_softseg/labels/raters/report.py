"""Agreement as tables: tidy for a file, summed up for the terminal."""

from collections.abc import Sequence

import pandas as pd

from nnunet_softseg.labels.raters.case import FusedCase
from nnunet_softseg.labels.raters.sources import printable

COLUMNS = ("case_id", "label", "measure", "rater", "other_rater", "value")
_OF_RATER = ("volume_mm3", "sensitivity", "specificity")
_LOWEST = 3


def tidy_table(cases: Sequence[FusedCase]) -> pd.DataFrame:
    """Return one row per case, label, measure, and rater or pair; NaN where a measure has no value."""
    rows = [
        (case.case_id, label, measure.name, measure.rater, measure.other_rater, measure.value)
        for case in cases
        for label, measures in case.measures.items()
        for measure in measures
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def agreement_lines(cases: Sequence[FusedCase], margin_mm: float) -> list[str]:
    """Return how well the raters agree, in lines; means over the cases, if there are several.

    Args:
        cases: with their measures.
        margin_mm: within which kappa was taken.
    """
    lines = []
    for label, table in tidy_table(cases).groupby("label", dropna=False):
        several = table["case_id"].nunique() > 1
        title = [] if pd.isna(label) else [f"label {label:g}"]
        title += [f"means over {table['case_id'].nunique()} cases"] if several else []
        lines += ["", *([", ".join(title)] if title else []), *_label_lines(table, several, margin_mm)]
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
    wide = of_rater.pivot_table(
        index="rater", columns="measure", values="value", aggfunc="mean", sort=False, dropna=False
    )
    wide = wide[[name for name in _OF_RATER if name in wide]]
    dice = table[table["measure"] == "dice"]
    with_others = pd.concat([dice, dice.assign(rater=dice["other_rater"])])
    wide.insert(1, "dice_with_others", with_others.groupby("rater")["value"].mean())
    if several:
        volumes = of_rater[of_rater["measure"] == "volume_mm3"]
        wide.insert(0, "cases", volumes.groupby("rater")["value"].size())
    return wide.reset_index()


def _pair_table(pairs: pd.DataFrame, several: bool) -> pd.DataFrame:
    """Return one row per pair of raters: Dice, soft Dice of soft maps, the lowest over the cases."""
    named = pairs.assign(pair=pairs["rater"] + " - " + pairs["other_rater"])
    wide = named.pivot_table(
        index="pair", columns="measure", values="value", aggfunc="mean", sort=False, dropna=False
    )
    if several:
        dice = named[named["measure"] == "dice"]
        wide["lowest_dice"] = dice.groupby("pair")["value"].min()
    return wide.reset_index()


def _render(table: pd.DataFrame) -> str:
    formats = {name: "{:.1f}".format if name == "volume_mm3" else _number for name in table.columns[1:]}
    if "cases" in table:
        formats["cases"] = "{:.0f}".format
    names = [str(table.columns[0])]
    width = max(len(name) for name in [*table.iloc[:, 0], *names])
    left = {names[0]: f"{{:<{width}}}".format}
    return str(table.to_string(index=False, formatters={**formats, **left}, na_rep="-", justify="right"))


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.4f}"
