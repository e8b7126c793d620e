"""Figure of the midsagittal plane: cord, lesions, and the bridges where they are narrowest."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunet_softseg import __version__
from nnunet_softseg.io.results import replacing
from nnunet_softseg.metrics.morphometry.lesions import Bridge, Lesions
from nnunet_softseg.metrics.morphometry.midsagittal import MidsagittalPlane
from nnunet_softseg.settings import HARD_THRESHOLD

_DORSAL, _VENTRAL, _LESION, _CORD = "#1f5fa8", "#c7521a", "#9b2335", "#445566"
_MARGIN_MM = 6.0
_TALLEST_IN = 11.0
_WIDTH_IN = 6.0


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
    details = {"Software": f"nnunet-softseg {__version__}"} if path.suffix.lower() == ".png" else {}
    with replacing(path) as aside:
        figure.savefig(aside, dpi=150, metadata=details)


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
