"""Quality control of a folder of predictions: `qc/index.html`, a picture of each case.

A picture shows a sagittal and an axial plane through the structure, as the image with the map's contours and
as the map over the image, and the area of every slice. Voxels are shown as they are, the right of the patient
on the left, anterior on the left. Of an image of one slice there is the axial plane alone.
"""

import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import nibabel as nib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from nnunet_softseg.datasets.raw_dataset import soft_label_files
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.case_record import WORDS, seriousness
from nnunet_softseg.io.case_files import PICTURES, SOFT_FOLDER, picture_file
from nnunet_softseg.io.formats import is_picture
from nnunet_softseg.io.geometry import bounding_box, turned
from nnunet_softseg.io.html import figure_as_webp, grey_levels, render_page, template, write_page
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import make_folder, replacing
from nnunet_softseg.io.workers import map_ahead
from nnunet_softseg.metrics.slice_frame import slice_areas
from nnunet_softseg.settings import HARD_THRESHOLD

CONTOURS = ("#00e0ff", "#ffb000", "#7cfc00", "#ff66c4", "#b28dff", "#ff5a36")
"""Of labels; the labels after these begin again."""
_DARK = ("#0072B2", "#B8860B", "#3f8f00", "#CC3399", "#5E3C99", "#D5421E")
_SAGITTAL, _AXIAL = 0, 2  # the axis across the plane
_SIDES = {_SAGITTAL: "AP", _AXIAL: "RL"}
_LEVELS, _WIDTHS = (0.1, HARD_THRESHOLD), (0.5, 1.2)
_VISIBLE = 0.02
_SAGITTAL_MARGIN_MM, _AXIAL_MARGIN_MM = 20.0, 8.0
_LEAST_SAGITTAL_MM, _LEAST_AXIAL_MM = 40.0, 24.0
_HEIGHT, _PLOT, _GAP, _FOOT = 3.2, 1.5, 0.05, 0.42  # in inches
_WIDEST = 3.2
_UNREADABLE = (UserError, OSError, EOFError, ValueError, zlib.error)  # PIL's error is an OSError

Array = npt.NDArray[np.float32]


# The page


@dataclass(frozen=True)
class _Case:
    """A case as the page shows it: its entry in softseg.json; address and size in pixels of its picture."""

    name: str
    entry: Mapping[str, Any]
    picture: str | None
    size: tuple[int, int]
    trouble: str

    @property
    def remedies(self) -> list[str]:
        """What to do about its flags."""
        flags = sorted(self.entry["flags"], key=seriousness)
        return list(dict.fromkeys(WORDS[flag][1] for flag in flags if flag in WORDS))

    @property
    def rank(self) -> tuple[bool, int, str]:
        """Sorts flagged cases to the top, the most serious first."""
        worst = min(map(seriousness, self.entry["flags"]), default=len(WORDS))
        return not self.entry["flags"], worst, self.name


def write_qc_page(
    folder: Path, entries: Mapping[str, Mapping[str, Any]], images: Mapping[str, Path], *, progress: bool
) -> Path:
    """Return `qc/index.html`, with a picture beside it of each case; a picture that is up to date is kept."""
    target = folder / PICTURES
    make_folder(target)

    def read(name: str) -> _Upright | None:
        return _read_new(folder, name, entries[name], images.get(name))

    # What is to be drawn of the next case is read meanwhile: half of the time is gzip's.
    ahead = zip(entries, map_ahead(read, [*entries], num_threads=1), strict=True)
    with tqdm(ahead, "pictures", len(entries), disable=not progress, unit="case") as bar:
        cases = [_case(folder, name, entries[name], shown) for name, shown in bar]
    cases.sort(key=lambda case: case.rank)
    context = {
        "style_of_page": Markup(template("qc.css")),
        "script_of_page": Markup(template("qc.js")),
        "cases": cases,
        "labels": list(dict.fromkeys(label for case in cases for label in case.entry["labels"])),
        "contours": CONTOURS,
    }
    page = target / "index.html"
    body = template("predictions.html")
    write_page(page, render_page("Predicted soft maps", body, context, images="'self' file:"))
    return page


def _read_new(folder: Path, name: str, entry: Mapping[str, Any], image: Path | None) -> "_Upright | None":
    """Return image and maps of a case; None if its picture is up to date."""
    file, maps = picture_file(folder, name), soft_label_files(folder / SOFT_FOLDER, name)
    if not maps:
        raise UserError("its soft maps are not there")
    if file.is_file() and file.stat().st_mtime_ns == _newest_ns(maps):
        return None
    return read_case(image, dict(zip(entry["labels"], maps, strict=True)))


def _newest_ns(files: Iterable[Path]) -> int:
    return max(file.stat().st_mtime_ns for file in files)


def _case(folder: Path, name: str, entry: Mapping[str, Any], shown: "Future[_Upright | None]") -> _Case:
    file = picture_file(folder, name)
    try:
        upright = shown.result()
        drawn = None if upright is None else figure_as_webp(case_figure(upright))
    except _UNREADABLE as error:
        return _Case(name, entry, None, (0, 0), " ".join(str(error).split()))
    if drawn is not None:
        _write_picture(file, drawn, _newest_ns(soft_label_files(folder / SOFT_FOLDER, name)))
    try:
        with Image.open(file) as picture:
            return _Case(name, entry, quote(file.name), picture.size, "")
    except _UNREADABLE as error:
        return _Case(name, entry, None, (0, 0), " ".join(str(error).split()))


def _write_picture(file: Path, content: bytes, time_ns: int) -> None:
    """Write a picture with the time of its maps, by which it is known as theirs, whatever the clock says."""
    with replacing(file) as aside:
        aside.write_bytes(content)
        os.utime(aside, ns=(time_ns, time_ns))


# The picture of a case


@dataclass(frozen=True, eq=False)
class _Upright:
    """Image and maps with axes in the order R-L, A-P, S-I, growing to R, A and S; no image: zeros.

    `total` is the largest value of all maps in each voxel, `box` the part of it above 0 (of length 0 if there
    is none), `voxel_mm` the size of a voxel along the axes, `has_sides` whether those of the body are known.
    """

    image: npt.NDArray[Any]
    maps: Mapping[str, Array]
    total: Array
    box: tuple[slice, ...]
    affine: npt.NDArray[np.float64]
    voxel_mm: tuple[float, ...]
    has_sides: bool = True

    def fullest(self, axis: int) -> int:
        """Return the index along an axis at which the maps' sum is largest; of empty maps the middle."""
        mass = self.total[self.box].sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64)
        return int(self.box[axis].start + mass.argmax() if mass.size else self.total.shape[axis] // 2)

    def window(self, axis: int, margin_mm: float, least_mm: float) -> tuple[float, float]:
        """Return the extent of the maps along an axis with a margin, in mm; of empty maps all there is."""
        whole = self.total.shape[axis] * self.voxel_mm[axis]
        low, high = (end * self.voxel_mm[axis] for end in (self.box[axis].start, self.box[axis].stop))
        is_seen = high > low
        low, high = (low, high) if is_seen else (0.0, whole)
        half = max((high - low) / 2 + margin_mm * is_seen, least_mm / 2)
        return (low + high) / 2 - half, (low + high) / 2 + half


def read_case(image: Path | None, maps: Mapping[str, Path]) -> _Upright:
    """Return the image of a case (None: zeros) and the soft map of each label, by name."""
    files = {name: load_nifti(file) for name, file in maps.items()}
    upright = {
        name: turned(np.asarray(file.dataobj, np.float32), file.affine, np.eye(4))
        for name, file in files.items()
    }
    affine = next(iter(upright.values()))[1]
    values = {name: each for name, (each, _) in upright.items()}
    total = reduce(np.maximum, values.values())
    grey: npt.NDArray[Any] = np.zeros_like(total)
    if image is not None and image.is_file():
        file = nib.funcs.squeeze_image(load_nifti(image))
        if file.shape[:3] == next(iter(files.values())).shape:
            grey = turned(_grey(file), file.affine, np.eye(4))[0]
    voxel_mm = tuple(map(float, nib.affines.voxel_sizes(affine)))
    has_sides = not any(is_picture(file.name) for file in maps.values())
    return _Upright(grey, values, total, bounding_box(total > 0), affine, voxel_mm, has_sides)


def _grey(file: nib.Nifti1Image) -> npt.NDArray[Any]:
    """Return the values of an image, of one in colours their mean."""
    values = np.asanyarray(file.dataobj)
    return values.mean(axis=-1) if values.ndim > 3 else values  # noqa: PLR2004


@mpl.rc_context({"text.parse_math": False, "font.size": 8.0, "axes.titlesize": 8.0})
def case_figure(shown: _Upright) -> Figure:
    """Return the picture of a case."""
    square = _squared(*(shown.window(axis, _AXIAL_MARGIN_MM, _LEAST_AXIAL_MM) for axis in (0, 1)))
    if shown.total.shape[_AXIAL] == 1:
        figure, axes = _layout([(_HEIGHT, _HEIGHT, 0)] * 2)
        _draw_pair(axes, shown, _AXIAL, square)
        return figure
    across = shown.window(1, _SAGITTAL_MARGIN_MM, _LEAST_SAGITTAL_MM)
    up = 0.0, shown.total.shape[2] * shown.voxel_mm[2]
    inches = min(_HEIGHT / up[1], _WIDEST / (across[1] - across[0]))
    size = (across[1] - across[0]) * inches, up[1] * inches, (_HEIGHT - up[1] * inches) / 2
    side = (_HEIGHT - _GAP) / 2
    figure, axes = _layout([size, size, (_PLOT, *size[1:]), (side, side, side + _GAP), (side, side, 0)])
    _draw_pair(axes[:2], shown, _SAGITTAL, (across, up))
    _draw_areas(axes[2], shown, up)
    _draw_pair(axes[3:], shown, _AXIAL, square)
    return figure


_Span = tuple[float, float]


def _squared(*spans: _Span) -> tuple[_Span, ...]:
    """Return spans with the same middles, all as long as the longest."""
    half = max(high - low for low, high in spans) / 2
    return tuple(((low + high) / 2 - half, (low + high) / 2 + half) for low, high in spans)


def _layout(boxes: list[tuple[float, float, float]]) -> tuple[Figure, list[Axes]]:
    """Return a figure with a row of axes: width, height and distance from below of each, in inches.

    The last of five stands under the one before it.
    """
    lefts = [_GAP]
    for width, _, _ in boxes:
        lefts.append(lefts[-1] + width + (3 * _GAP if width == _PLOT else _GAP))
    if len(boxes) > 2:  # noqa: PLR2004  the axial pair
        lefts[-2:] = [lefts[-3], lefts[-2]]
    size = lefts[-1], _HEIGHT + _FOOT
    figure = Figure(figsize=size)
    return figure, [
        figure.add_axes((left / size[0], (_FOOT + below) / size[1], width / size[0], height / size[1]))
        for left, (width, height, below) in zip(lefts, boxes, strict=False)
    ]


def _draw_pair(axes: list[Axes], shown: _Upright, axis: int, window: tuple[_Span, ...]) -> None:
    """Draw a plane twice, with contours and with the maps over it; across is R-L or A-P, seen from there."""
    index = shown.fullest(axis)
    across, up = (other for other in range(3) if other != axis)
    size = [shown.total.shape[other] * shown.voxel_mm[other] for other in (across, up)]
    place: Any = {"origin": "lower", "extent": (0, size[0], 0, size[1]), "interpolation": "nearest"}
    cut: tuple[Any, ...] = (*(slice(None),) * axis, index)
    grey = grey_levels(np.asarray(shown.image[cut], np.float32).T)
    for panel in axes:
        panel.imshow(grey, cmap="gray", vmin=0, vmax=255, **place)
        panel.set(xlim=window[0][::-1], ylim=window[1], aspect="auto", xticks=[], yticks=[], facecolor="k")
        for x, text in zip((0.04, 0.96), _SIDES[axis], strict=True) if shown.has_sides else ():
            panel.text(x, 0.5, text, color="w", size=7, ha="center", va="center", transform=panel.transAxes)
    grid = [(np.arange(shown.total.shape[each]) + 0.5) * shown.voxel_mm[each] for each in (across, up)]
    for number, values in enumerate(shown.maps.values()):
        plane = values[cut].T
        # A single row, as of an image of one slice, has no contour.
        if min(plane.shape) > 1 and plane.max() > _LEVELS[0] > plane.min():
            axes[0].contour(
                *grid, plane, _LEVELS, colors=CONTOURS[number % len(CONTOURS)], linewidths=_WIDTHS
            )
    plane = shown.total[cut].T
    colours = mpl.colormaps["magma"](np.clip(plane, 0, 1))
    colours[..., 3] = np.where(plane > _VISIBLE, 0.9, 0)
    axes[1].imshow(colours, **place)


def _draw_areas(axes: Axes, shown: _Upright, up: _Span) -> None:
    """Draw the area of every map in each slice, beside the sagittal plane; not corrected for tilt."""
    heights = (np.arange(shown.total.shape[2]) + 0.5) * shown.voxel_mm[2]
    for number, values in enumerate(shown.maps.values()):
        area = slice_areas(nib.Nifti1Image(values[shown.box[:2]], shown.affine)).area_mm2
        axes.plot(np.nan_to_num(area), heights, ".-", color=_DARK[number % len(_DARK)], lw=1, ms=2.5)
    axes.set(ylim=up, xlabel="area, mm²", yticks=[])
    axes.set_xlim(left=0)
    axes.grid(visible=True, color="#e3e7eb")
