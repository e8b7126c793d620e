"""Figure of the area along the cord, vertebral levels shaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from nnunet_softseg import __version__
from nnunet_softseg.io.results import replacing
from nnunet_softseg.metrics.morphometry.levels import LevelKind, level_name, mean_csa

MOST_PANELS = 24
_COLUMNS = 2
_LONGEST_TITLE = 60
_SOFT, _HARD = "#1f5fa8", "#d9822b"
_SHADES = ("#eef1f4", "#dde3e9")
_CHOSEN = ("#d3e8cb", "#e2f0dc")


def draw_csa(
    table: pd.DataFrame, path: Path, vert: Sequence[int] | None = None, kind: LevelKind = "vertebral"
) -> None:
    """Draw csa_mm2 and csa_hard_mm2 along S-I, one panel per map; `vert` in green, with their mean.

    The table is that of `csa`, with all slices.
    """
    maps = list(table.groupby("file", sort=False))
    shown = maps[:MOST_PANELS]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(7.2 * columns if columns > 1 else 8.5, 3.1 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, (file, slices) in zip(panels, shown, strict=False):
        _draw_panel(panel, str(file), slices.sort_values("z_mm"), vert, kind)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    highest = table[["csa_mm2", "csa_hard_mm2"]].max().max()
    panels[0].set_ylim(bottom=0, top=1.18 * float(highest) if highest > 0 else 1.0)
    panels[0].legend(loc="lower left", fontsize=8, framealpha=0.9)
    if len(maps) > len(shown):
        figure.suptitle(f"The first {len(shown)} of {len(maps)} maps", fontsize=10)
    details = {"Software": f"nnunet-softseg {__version__}"} if path.suffix.lower() == ".png" else {}
    with replacing(path) as aside:
        figure.savefig(aside, dpi=150, metadata=details)


def _draw_panel(
    panel: Any, title: str, slices: pd.DataFrame, vert: Sequence[int] | None, kind: LevelKind
) -> None:
    _shade_levels(panel, slices, vert, kind)
    soft, hard, z = slices["csa_mm2"], slices["csa_hard_mm2"], slices["z_mm"]
    panel.plot(z, hard, ".--", color=_HARD, lw=1, ms=3, label="map > 0.5", zorder=2)
    panel.plot(z, soft, ".-", color=_SOFT, lw=1.5, ms=4, label="soft", zorder=3)
    flagged = (slices["flags"] != "") & soft.notna()
    if flagged.any():
        panel.plot(z[flagged], soft[flagged], "o", color=_SOFT, mfc="white", ms=5, label="flagged", zorder=4)
    _draw_mean(panel, slices, vert, kind)
    # File names may hold anything: `$` is no formula here.
    panel.set_title(_shortened(title), fontsize=9, parse_math=False)
    panel.set_xlabel("z, mm (superior on the left)", fontsize=9)
    panel.set_ylabel("CSA across the cord, mm²", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    half = _half_spacing_mm(slices["z_mm"].to_numpy(dtype=float))
    panel.set_xlim(slices["z_mm"].max() + half, slices["z_mm"].min() - half)
    if not slices["csa_mm2"].notna().any():
        panel.text(0.5, 0.5, "empty map", transform=panel.transAxes, ha="center", fontsize=11)


def _shade_levels(panel: Any, slices: pd.DataFrame, vert: Sequence[int] | None, kind: LevelKind) -> None:
    name = {"transform": panel.get_xaxis_transform(), "ha": "center", "va": "top", "fontsize": 9}
    for number, (level, low, high) in enumerate(_bands(slices)):
        color = (_CHOSEN if vert and level in vert else _SHADES)[number % 2]
        panel.axvspan(low, high, color=color, linewidth=0, zorder=0)
        panel.text((low + high) / 2, 0.97, level_name([level], kind), color="#445", **name)


def _draw_mean(panel: Any, slices: pd.DataFrame, vert: Sequence[int] | None, kind: LevelKind) -> None:
    mean = mean_csa(slices, vert)
    if not vert or not np.isfinite(mean):
        return
    chosen = slices[slices["level"].isin(vert)]["z_mm"]
    panel.hlines(mean, chosen.min(), chosen.max(), color="#2f7d32", lw=2, alpha=0.7, zorder=1)
    panel.annotate(
        f"{level_name(list(vert), kind)}: {mean:.1f} mm²",
        ((chosen.min() + chosen.max()) / 2, mean),
        xytext=(0, -14),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=9,
        color="#2f7d32",
    )


def _bands(slices: pd.DataFrame) -> Iterator[tuple[int, float, float]]:
    """Give level, lowest and highest z in mm of each run of slices with one level."""
    z = slices["z_mm"].to_numpy(dtype=float)
    levels = slices["level"].fillna(0).to_numpy(dtype=int)
    half = _half_spacing_mm(z)
    starts = np.flatnonzero(np.diff(levels, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(levels)], strict=True):
        if levels[start]:
            yield int(levels[start]), z[start] - half, z[stop - 1] + half


def _half_spacing_mm(z: npt.NDArray[np.float64]) -> float:
    return float(np.median(np.diff(z))) / 2 if len(z) > 1 else 0.5


def _shortened(title: str) -> str:
    printable = "".join(character if character.isprintable() else "?" for character in title)
    return printable if len(printable) <= _LONGEST_TITLE else f"…{printable[1 - _LONGEST_TITLE :]}"
