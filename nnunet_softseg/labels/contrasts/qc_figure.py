"""Quality control picture of one subject: slices with their outlines, shifts and areas along the cord.

A column for each contrast: axial slices at the same heights, and a sagittal one. Pictures show the voxels as
they are, axial ones with the right of the patient on the left, sagittal ones with anterior on the left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from nnunet_softseg.errors import printable
from nnunet_softseg.io.html import grey_levels
from nnunet_softseg.labels.contrasts.alignment import Alignment, centres_of_mass
from nnunet_softseg.labels.contrasts.average import SoftGroundTruth
from nnunet_softseg.labels.contrasts.quality import Areas, ContrastQuality, SubjectQuality
from nnunet_softseg.labels.contrasts.volume import Floats, Volume, upright
from nnunet_softseg.settings import HARD_THRESHOLD

AXIAL_SIDE_MM = 25.0
AXIAL_PLACES = (0.85, 0.5, 0.15)
"""Heights of the axial slices, between the lowest and the highest one that all contrasts have."""
HARD_COLOUR, SOFT_COLOUR = "#ffb000", "#00e0ff"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#5E3C99", "#666666")
"""Of contrasts, in the order of the columns; distinct with every kind of colour vision."""
_WARNING_COLOUR = "#b3261e"
_SAGITTAL, _AXIAL = 0, 2  # the axis across the plane
_SIDES = {_SAGITTAL: "AP", _AXIAL: "RL"}
_SOFT_LEVELS = {_SAGITTAL: (HARD_THRESHOLD,), _AXIAL: (0.1, HARD_THRESHOLD, 0.9)}
_FINE = 4  # pixels per voxel in which the voxels' edges are followed
_ENDS_MM = 5.0
_SAGITTAL_MARGIN_MM = 16.0
_SAGITTAL_LEAST_WIDTH_MM = 45.0
_LEAST_SHIFT_MM, _LEAST_AREA_MM2 = 2.0, 10.0
_LONGEST_NAME = 20
# In inches
_LEAST_WIDTH, _LEAST_COLUMN, _WIDEST_COLUMN, _TALLEST_SAGITTAL = 9.0, 1.85, 2.4, 3.6
_TITLE, _GAP, _PLOT, _LEFT, _BOTTOM = 0.62, 0.05, 2.3, 0.5, 0.3
_PLOT_TITLES = (
    *("shift to the right, mm", "shift to anterior, mm"),
    *("area of hard masks, mm²", "area of soft labels, mm²", "mean area: ○ hard ● soft"),
)
_STYLE: Any = {
    "text.parse_math": False,  # a name may hold anything
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.edgecolor": "#8a949e",
    "grid.color": "#e3e7eb",
    "axes.axisbelow": True,
}


@dataclass(frozen=True, eq=False)
class _Column:
    """One contrast, upright; soft label and alignment are None if it took no part.

    `cord`: (3, n) voxel index of the cord's centre in each slice with a mask; without any, in the reference.
    """

    quality: ContrastQuality
    colour: str
    image: Volume | None
    hard: Volume
    soft: Volume | None
    alignment: Alignment | None
    areas: Areas
    cord: Floats

    @property
    def height_mm(self) -> Floats:
        """Scanner z of the cord's centres, (n,)."""
        return np.asarray(self.hard.to_world(self.cord)[2])

    def edges_mm(self, axis: int) -> Floats:
        """Both ends of the grid along an array axis, from the middle of the first voxel, (2,)."""
        return np.asarray(np.array([-0.5, self.hard.values.shape[axis] - 0.5]) * self.hard.voxel_mm[axis])

    def axial_slices(self, heights_mm: list[float]) -> dict[int, tuple[int, str]]:
        """Return row -> place in `cord` and caption of the axial slices, each of them once."""
        wanted = [(height, "") for height in heights_mm]
        if self.quality.warnings and self.quality.largest_shift_at_mm is not None:
            wanted.append((self.quality.largest_shift_at_mm, "largest shift"))
        rows: dict[int, tuple[int, str]] = {}
        row_of: dict[int, int] = {}  # of few thick slices, several heights lie in the same one
        for number, (height, caption) in enumerate(wanted):
            place = int(np.abs(self.height_mm - height).argmin())
            rows[row_of.setdefault(place, number)] = (place, caption)
        return rows


@mpl.rc_context(_STYLE)
def subject_figure(
    quality: SubjectQuality,
    images: Mapping[str, Volume],
    masks: Mapping[str, Volume],
    truth: SoftGroundTruth,
    areas: Mapping[str, Areas],
) -> Figure:
    """Return the picture of a subject; a contrast without an image is drawn on black."""
    reference_cord = centres_of_mass(upright(masks[truth.reference])).world
    columns = []
    for number, contrast in enumerate(quality.contrasts):
        name, hard = contrast.name, upright(masks[contrast.name])
        cord = centres_of_mass(hard).index
        if not cord.size:
            shape = np.array(hard.values.shape)[:, None]
            cord = np.clip(hard.to_index(reference_cord), 0, shape - 1.0)
            cord[2] = np.round(cord[2])
        image = upright(images[name]) if name in images else None
        soft = upright(truth.native[name]) if name in truth.native else None
        colour, alignment = COLOURS[number % len(COLOURS)], truth.contrasts.get(name)
        columns.append(_Column(contrast, colour, image, hard, soft, alignment, areas[name], cord))
    return _drawn(columns, quality.common_mm)


def _drawn(columns: list[_Column], common_mm: tuple[float, float] | None) -> Figure:
    """Return the picture; axial slices at heights that all contrasts have, else over the whole cord."""
    heights = np.concatenate([column.height_mm for column in columns if column.quality.left_out is None])
    span = float(heights.min()) - _ENDS_MM, float(heights.max()) + _ENDS_MM
    low, high = common_mm or span
    places = [low + place * (high - low) for place in AXIAL_PLACES]
    slices = [column.axial_slices(places) for column in columns]
    rows = 1 + max(max(of_column) for of_column in slices)
    lengths = [float(np.ptp(column.cord[1]) * column.hard.voxel_mm[1]) for column in columns]
    width_mm = max(_SAGITTAL_LEAST_WIDTH_MM, max(lengths) + 2 * _SAGITTAL_MARGIN_MM)
    figure, pictures, plots = _layout(len(columns), rows, (span[1] - span[0]) / width_mm)
    for number, (column, of_column) in enumerate(zip(columns, slices, strict=True)):
        axes = [figure.add_subplot(pictures[row, number]) for row in range(rows + 1)]
        _title(axes[0], column, reference=number == 0)
        for row, axis in enumerate(axes[:-1]):
            if row in of_column:
                _axial(axis, column, *of_column[row])
            else:
                axis.axis("off")
        _sagittal(axes[-1], column, span, width_mm)
    _plots([figure.add_subplot(plots[0, place]) for place in range(5)], columns, span)
    return figure


def _layout(columns: int, rows: int, sagittal_ratio: float) -> tuple[Figure, GridSpec, GridSpec]:
    """Return a figure, the grid of its pictures (axial rows, a sagittal one) and that of its plots."""
    side = float(np.clip(_LEAST_WIDTH / columns, _LEAST_COLUMN, _WIDEST_COLUMN))
    sagittal = min(side * sagittal_ratio, _TALLEST_SAGITTAL)
    pictures, plots = rows * (side + _GAP) + sagittal, _BOTTOM + _PLOT
    width, height = max(side * columns, _LEAST_WIDTH), _TITLE + pictures + 0.3 + plots
    figure = Figure(figsize=(width, height))
    upper = GridSpec(
        rows + 1, columns, figure, height_ratios=[*[side] * rows, sagittal],
        left=0.02 / width, right=1 - 0.02 / width, top=1 - _TITLE / height, bottom=(plots + 0.3) / height,
        wspace=_GAP / side, hspace=_GAP / side,
    )  # fmt: skip
    lower = GridSpec(
        1, 5, figure, left=_LEFT / width, right=1 - 0.1 / width, top=plots / height, bottom=_BOTTOM / height,
        wspace=0.12,
    )  # fmt: skip
    return figure, upper, lower


# Pictures


def _title(axes: Axes, column: _Column, *, reference: bool) -> None:
    quality = column.quality
    head = printable(quality.name)
    if len(head) > _LONGEST_NAME:
        head = f"{head[: _LONGEST_NAME - 1]}…"
    lines = ["left out" if quality.left_out is not None else "", ""]
    if quality.agreement is not None:
        shift = "" if quality.largest_shift_mm is None else f", shift {quality.largest_shift_mm:.1f} mm"
        lines[0] = f"Dice {quality.agreement:.3f}{shift}"
    if quality.csa_before_mm2 is not None and quality.csa_after_mm2 is not None:
        lines[1] = f"CSA {quality.csa_before_mm2:.1f} → {quality.csa_after_mm2:.1f} mm²"
    place: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom", "ha": "center"}
    head += " (reference)" if reference else ""
    axes.annotate(head, (0.5, 1), (0, 25), color=column.colour, weight="bold", size=10, **place)
    ink = _WARNING_COLOUR if quality.reasons else "#3c4650"
    axes.annotate("\n".join(lines), (0.5, 1), (0, 3), color=ink, **place)


def _axial(axes: Axes, column: _Column, place: int, caption: str) -> None:
    rl, ap, index = column.cord[:, place]
    centre = np.array([rl, ap]) * column.hard.voxel_mm[:2]
    window = np.stack([centre - AXIAL_SIDE_MM / 2, centre + AXIAL_SIDE_MM / 2], axis=1)
    edges = [column.edges_mm(axis) for axis in (0, 1)]
    _plane(axes, column, (_AXIAL, round(index)), edges, window)
    text = f"z {column.height_mm[place]:.1f} mm" + (f", {caption}" if caption else "")
    axes.text(0.03, 0.03, text, color="w", size=7, transform=axes.transAxes)


def _sagittal(axes: Axes, column: _Column, span: tuple[float, float], width_mm: float) -> None:
    """Draw the plane of the cord's middle; its vertical axis is scanner z at the cord."""
    rl, ap = round(float(np.median(column.cord[0]))), (column.cord[1].min() + column.cord[1].max()) / 2
    middle = ap * column.hard.voxel_mm[1]
    slices = column.hard.values.shape[2]
    ends = column.hard.to_world(np.array([[rl, rl], [ap, ap], [-0.5, slices - 0.5]]))[2]
    window = np.array([[middle - width_mm / 2, middle + width_mm / 2], span])
    _plane(axes, column, (_SAGITTAL, rl), [column.edges_mm(1), ends], window)


def _plane(axes: Axes, column: _Column, plane: tuple[int, int], edges: list[Floats], window: Floats) -> None:
    """Draw a plane of the image, the edges of its mask's voxels, and the contours of its soft label.

    The plane: the axis across it and the index along that. Its edges, in mm along its two axes, and the
    window that is shown, (2, 2) lower and upper end in mm, which may reach beyond.
    """
    size = [length for axis, length in enumerate(column.hard.values.shape) if axis != plane[0]]
    step = [(edge[1] - edge[0]) / length for edge, length in zip(edges, size, strict=True)]
    part, extent, centres = [], [], []
    for edge, ends, length, width in zip(edges, window, size, step, strict=True):
        first, last = np.clip(np.floor((ends - edge[0]) / width), [0, 0], length - 1).astype(int)
        part.append(slice(first, last + 1))
        extent += [edge[0] + first * width, edge[0] + (last + 1) * width]
        centres.append(edge[0] + (np.arange(first, last + 1) + 0.5) * width)

    def shown(volume: Volume) -> npt.NDArray[np.float32]:
        return np.asarray(np.take(volume.values, plane[1], axis=plane[0])[tuple(part)].T)

    if column.image is not None:
        grey = grey_levels(shown(column.image))
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, origin="lower", extent=tuple(extent))
    edges_of_mask = _voxel_edges(shown(column.hard), extent)
    _contour(axes, edges_of_mask, (HARD_THRESHOLD,), colors=HARD_COLOUR, linewidths=1.5)
    if column.soft is not None:
        levels = _SOFT_LEVELS[plane[0]]
        widths = [1.0 if level == HARD_THRESHOLD else 0.5 for level in levels]
        grid = centres[0], centres[1], shown(column.soft)
        _contour(axes, grid, levels, colors=SOFT_COLOUR, linewidths=widths)
    for x, text in zip((0.04, 0.96), _SIDES[plane[0]], strict=True):
        axes.text(x, 0.5, text, color="w", size=7, ha="center", va="center", transform=axes.transAxes)
    axes.set(xlim=window[0][::-1], ylim=window[1], aspect="equal", xticks=[], yticks=[], facecolor="k")
    axes.spines[:].set_visible(bool(column.quality.reasons))
    axes.spines[:].set(color=_WARNING_COLOUR, linewidth=2)


_Grid = tuple[Floats, Floats, npt.NDArray[Any]]  # places across and up, values


def _voxel_edges(hard: npt.NDArray[Any], extent: list[float]) -> _Grid:
    """Return a mask > 0.5 in small pixels, whose contour follows the edges of the voxels."""
    fine = np.kron(hard > HARD_THRESHOLD, np.ones((_FINE, _FINE)))
    across, up = (
        low + (np.arange(count) + 0.5) * (high - low) / count
        for count, low, high in zip(fine.shape[::-1], extent[::2], extent[1::2], strict=True)
    )
    return across, up, fine


def _contour(axes: Axes, grid: _Grid, levels: tuple[float, ...], **style: Any) -> None:
    values = grid[2]
    # A single row, as of an image of one slice, has no contour.
    if min(values.shape) > 1 and values.min() < levels[-1] and values.max() > levels[0]:
        axes.contour(*grid, levels, **style)


# Plots along the cord


def _plots(axes: list[Axes], columns: list[_Column], span: tuple[float, float]) -> None:
    right, anterior, before, after, means = axes
    for number, column in enumerate(columns):
        alignment, colour = column.alignment, column.colour
        if alignment is not None:
            for axis, shift in zip((right, anterior), alignment.shift_mm.T, strict=True):
                values = pd.Series(shift, alignment.height_mm)
                _line(axis, values, span, colour, ":")
                _line(axis, values.where(alignment.measured), span, colour)
            _line(before, column.areas.before, span, colour)
            _line(after, column.areas.after, span, colour)
        quality = column.quality
        csa = np.array([quality.csa_before_mm2, quality.csa_after_mm2], float)  # NaN for None
        means.plot(csa, [number, number], color=colour)
        means.plot(csa[0], number, "o", color=colour, markerfacecolor="w")
        means.plot(csa[1], number, "o", color=colour)
    for axis in (right, anterior):
        axis.axvline(0, color="#9aa5b1", linewidth=0.8, zorder=1)
    for axis, title in zip(axes, _PLOT_TITLES, strict=True):
        axis.grid(visible=True)
        axis.set(title=title, ylim=span)
        axis.tick_params(length=0, labelleft=axis is right)
    right.set_ylabel("z, mm")
    means.set(yticks=[], ylim=(len(columns) - 0.5, -0.5))
    _same_limits([right, anterior], _LEAST_SHIFT_MM)
    _same_limits([before, after], _LEAST_AREA_MM2)
    _same_limits([means], _LEAST_AREA_MM2)


def _line(
    axes: Axes, values: "pd.Series[float]", span: tuple[float, float], colour: str, style: str = "-"
) -> None:
    """Draw values by height."""
    shown = values[(values.index >= span[0]) & (values.index <= span[1])]
    marker, width = ("o" if shown.size == 1 else "", 1.2) if style == "-" else ("", 1)
    axes.plot(shown, shown.index, style, color=colour, linewidth=width, marker=marker, markersize=3)


def _same_limits(axes: list[Axes], least: float) -> None:
    """Give plots the same limits across, at least so far apart."""
    ends = np.array([axis.dataLim.intervalx for axis in axes])
    known = ends[np.isfinite(ends)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    room = max(least - (high - low), 0) / 2 + 0.06 * max(high - low, least)
    for axis in axes:
        axis.set_xlim(low - room, high + room)
