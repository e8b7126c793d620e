"""Figures: area along the cord, levels shaded; midsagittal plane with the narrowest tissue bridges."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from nnunet_softseg import __version__
from nnunet_softseg.errors import printable
from nnunet_softseg.io.results import replacing
from nnunet_softseg.metrics.morphometry.lesions import Bridge, Lesions, MidsagittalPlane
from nnunet_softseg.metrics.morphometry.levels import LevelKind, level_name, mean_csa
from nnunet_softseg.settings import HARD_THRESHOLD

MOST_PANELS = 24
_COLUMNS = 2
_LONGEST_TITLE = 60
_SOFT, _HARD = "#1f5fa8", "#d9822b"
_SHADES = ("#eef1f4", "#dde3e9")
_CHOSEN = ("#d3e8cb", "#e2f0dc")
_DORSAL, _VENTRAL, _LESION, _CORD = "#1f5fa8", "#c7521a", "#9b2335", "#445566"
_MARGIN_MM = 6.0
_TALLEST_IN = 11.0
_WIDTH_IN = 6.0


# Area along the cord


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
    _save(figure, path)


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
    line = printable(title)
    return line if len(line) <= _LONGEST_TITLE else f"…{line[1 - _LONGEST_TITLE :]}"


# Midsagittal plane


def draw_bridges(lesions: Lesions, path: Path) -> None:
    """Draw the plane of `measure_lesions`, anterior on the left, with both bridges of every lesion.

    The contours are those of the maps at 0.5 in the plane, the lines those that the table measures.
    """
    figure = Figure(figsize=(_WIDTH_IN, _WIDTH_IN), layout="constrained")
    panel = figure.subplots()
    if lesions.plane is None:
        panel.text(0.5, 0.5, "no lesion", transform=panel.transAxes, ha="center", fontsize=11)
        panel.set_axis_off()
    else:
        _draw_plane(panel, lesions, lesions.plane)
        for number, (dorsal, ventral) in lesions.bridges.items():
            _draw_bridge(panel, lesions, dorsal, _DORSAL, f"lesion {number}, dorsal")
            _draw_bridge(panel, lesions, ventral, _VENTRAL, f"lesion {number}, ventral")
        panel.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8, frameon=False)
        left, right, low, high = _window(lesions)
        panel.set(xlim=(right, left), ylim=(low, high), xlabel="A-P, mm (anterior on the left)")
        panel.set_ylabel("S-I, mm")
        height = _WIDTH_IN * max(0.6, (high - low) / (right - left) * 0.6)
        figure.set_figheight(min(_TALLEST_IN, height))
    _save(figure, path)


def _draw_plane(panel: Any, lesions: Lesions, plane: MidsagittalPlane) -> None:
    image = lesions.image
    cord, lesion = plane.of_map(image.cord).T, plane.of_map(image.lesion).T
    _, anterior_mm, superior_mm = image.grid.spacing_mm
    along, up = np.arange(cord.shape[1]) * anterior_mm, np.arange(cord.shape[0]) * superior_mm
    half = np.array([-0.5, 0.5])
    extent = (*(along[[0, -1]] + half * anterior_mm), *(up[[0, -1]] + half * superior_mm))
    panel.imshow(
        cord - 0.6 * np.minimum(lesion, cord),
        origin="lower",
        extent=extent,
        cmap="Greys",
        vmin=0,
        vmax=2,
        interpolation="nearest",
    )
    for values, color in ((cord, _CORD), (lesion, _LESION)):
        if (values > HARD_THRESHOLD).any():
            panel.contour(along, up, values, [HARD_THRESHOLD], colors=color, linewidths=1.2)
    panel.plot([], [], color=_CORD, label="cord")
    panel.plot([], [], color=_LESION, label="lesion")
    panel.set_title(f"Midsagittal plane (R-L index {plane.position:.2f})", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_bridge(panel: Any, lesions: Lesions, bridge: Bridge, color: str, name: str) -> None:
    _, anterior_mm, superior_mm = lesions.image.grid.spacing_mm
    at = bridge.slice * superior_mm
    line = np.array([bridge.begin, bridge.end]) * anterior_mm
    panel.plot(line, [at, at], "|-", color=color, lw=2.2, ms=9, label=f"{name}: {bridge.width_mm:.2f} mm")


def _window(lesions: Lesions) -> tuple[float, float, float, float]:
    """Return the part to show, mm: the cord's width along A-P, the lesions' slices, and a margin."""
    image = lesions.image
    _, anterior_mm, superior_mm = image.grid.spacing_mm
    hurt = np.flatnonzero((image.lesion > HARD_THRESHOLD).any(axis=(0, 1)))
    part = slice(hurt[0], hurt[-1] + 1)
    whole = np.flatnonzero((image.cord[:, :, part] > HARD_THRESHOLD).any(axis=(0, 2)))
    left, right = whole[[0, -1]] * anterior_mm + np.array([-_MARGIN_MM, _MARGIN_MM])
    low, high = hurt[[0, -1]] * superior_mm + np.array([-_MARGIN_MM, _MARGIN_MM])
    return float(left), float(right), float(low), float(high)


def _save(figure: Figure, path: Path) -> None:
    details = {"Software": f"nnunet-softseg {__version__}"} if path.suffix.lower() == ".png" else {}
    with replacing(path) as aside:
        figure.savefig(aside, dpi=150, metadata=details)
