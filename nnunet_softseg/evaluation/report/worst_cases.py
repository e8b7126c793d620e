"""The cases in which a method is furthest off, as pictures of a slice: image, maps and differences."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from PIL import Image

from nnunet_softseg.datasets.raw_dataset import LabelScheme
from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.cases import scheme_of
from nnunet_softseg.evaluation.comparison.result import Comparison
from nnunet_softseg.evaluation.maps import LabelMap, Unknown, known_part, on_grid_of, read_map
from nnunet_softseg.evaluation.measuring import REFERENCE, unknown_of
from nnunet_softseg.evaluation.report.wording import MINUS, number, quantity, shortened
from nnunet_softseg.io.formats import is_picture
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.html import WINDOW_PERCENTILES, picture
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import replacing
from nnunet_softseg.metrics.morphometry.levels import level_name
from nnunet_softseg.metrics.slice_frame import slice_frame

MOST_IN_A_LABEL = 8
MOST_ALTOGETHER = 24
MOST_OF_A_METHOD = 6
_KEPT_MAPS = 3
SIDE_PIXELS = 240
LEAST_SIDE_MM, MOST_SIDE_MM = 28.0, 90.0
MARGIN_MM = 7.0
MAP_COLOURS, DIFFERENCE_COLOURS = "magma", "RdBu_r"
_VISIBLE = 0.05

Plane = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Section:
    """The pictures of one slice, right of the patient on the left, anterior on top.

    Each is (SIDE_PIXELS, SIDE_PIXELS, 3), `side_mm` wide; without an image, `image_trouble` says why. Maps,
    and their differences map - reference, are by method.
    """

    image: Pixels | None
    image_trouble: str
    reference: Pixels
    maps: Mapping[str, Pixels]
    differences: Mapping[str, Pixels]
    side_mm: float

    def panels(self) -> Iterator[tuple[str, Pixels]]:
        """Give caption and pixels of each picture."""
        if self.image is not None:
            yield "image", self.image
        yield "reference", self.reference
        for method, pixels in self.maps.items():
            yield shortened(method), pixels
            yield f"{shortened(method)} {MINUS} reference", self.differences[method]

    def strip(self) -> Pixels:
        """Return all pictures in a row."""
        gap = np.full((SIDE_PIXELS, 6, 3), 255, np.uint8)
        return np.hstack([part for _, each in self.panels() for part in (each, gap)][:-1])


@dataclass(frozen=True)
class WorstCase:
    """A case in which a method is far off, and the method that is nearest in the same case.

    Errors of area and the slice (`where`) are in words; `trouble` says why there are no pictures.

    Attributes:
        number: its place within the label, from 1.
        slice_index: along the S-I axis of the reference's array; None if not known.
        other: the nearest method, or "" if there is none better.
    """

    number: int
    method: str
    case: str
    contrast: str
    slice_index: int | None
    other: str
    error: str
    other_error: str
    where: str
    section: Section | None
    trouble: str

    @property
    def panels(self) -> list[tuple[str, str]]:
        """Caption and data URI of each picture."""
        panels = self.section.panels() if self.section else ()
        return [(caption, picture(pixels)) for caption, pixels in panels]


def worst_cases(comparison: Comparison, label: int) -> Iterator[WorstCase]:
    """Give the worst cases of each method by absolute area error, the worst of all first."""
    rows = comparison.cases[comparison.cases["label"] == label]
    chosen = comparison.parameters.get("labels") is not None
    scheme = scheme_of(comparison.reference)
    how = {"chosen": chosen, "region": scheme.region_of(label)}

    @lru_cache(maxsize=_KEPT_MAPS)
    def read(whose: str, file: Path, case_id: str, unknown: Unknown | None = None) -> LabelMap:
        which = {"case_id": case_id, "told": whose in comparison.told}
        return read_map(file, label, tuple(comparison.labels), unknown=unknown, **which, **how)

    for place, (_, row) in enumerate(_chosen(rows, comparison).iterrows(), 1):
        nearest = _nearest(rows, row)
        where, index = _worst_slice(comparison.slices, row, label)
        section, trouble = None, ""
        try:
            section, index = _section(partial(read, case_id=row["case"]), scheme, row, nearest, index)
        except (UserError, OSError) as error:
            trouble = str(error)
        yield WorstCase(
            number=place,
            method=row["method"],
            case=row["case"],
            contrast=row["contrast"],
            slice_index=index,
            other="" if nearest is None else nearest["method"],
            error=_error_words(row),
            other_error="" if nearest is None else _error_words(nearest),
            where=where or ("" if index is None else f"slice {index}"),
            section=section,
            trouble=trouble,
        )


def save_strip(found: WorstCase, file: Path) -> str:
    """Write the pictures of a case in a row as PNG, and return the file's name; "" if it has none."""
    if found.section is None:
        return ""
    with replacing(file) as aside:
        Image.fromarray(found.section.strip()).save(aside, format="png")
    return file.name


def _chosen(rows: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """Return the worst cases of each method: no method's failures hide behind those of another."""
    share = MOST_ALTOGETHER // len(comparison.labels)
    most = min(MOST_IN_A_LABEL, max(share, 2))
    per_method = min(max(most // len(comparison.methods), 1), MOST_OF_A_METHOD)
    order = ["abs_csa_error_mm2", "dice", "case"]
    rows = rows[rows["abs_csa_error_mm2"].notna() | rows["dice"].notna()]
    ranked = rows.sort_values(order, ascending=[False, True, True], kind="stable")
    return ranked.groupby("method", sort=False).head(per_method)


def _nearest(rows: pd.DataFrame, row: "pd.Series[Any]") -> "pd.Series[Any] | None":
    """Return the method with the smallest error in the same case, if that is another."""
    order = ["abs_csa_error_mm2", "dice"]
    same = rows[rows["case"] == row["case"]]
    nearest = same.sort_values(order, ascending=[True, False], kind="stable").iloc[0]
    return None if nearest["method"] == row["method"] else nearest


def _worst_slice(slices: pd.DataFrame, row: "pd.Series[Any]", label: int) -> tuple[str, int | None]:
    """Return the slice, of those that count for the area, in which it is furthest off, and words on it."""
    of_case = slices[(slices["case"] == row["case"]) & (slices["label"] == label)]
    of_case = of_case[of_case["in_region"]] if of_case["in_region"].any() else of_case
    areas = of_case.pivot(index="slice", columns="method", values="csa_mm2")
    if row["method"] not in areas or REFERENCE not in areas or not len(areas):
        return "", None
    areas = areas.fillna(0.0)
    index = int((areas[row["method"]] - areas[REFERENCE]).abs().idxmax())
    there = of_case[of_case["slice"] == index].iloc[0]
    level = "" if pd.isna(there["level"]) else f", {level_name([int(there['level'])])}"
    words = (
        f"slice {index} (z = {number(there['z_mm'])} mm{level}): "
        f"{quantity(areas.loc[index, row['method']], 'mm2')} against "
        f"{quantity(areas.loc[index, REFERENCE], 'mm2')} in the reference"
    )
    return words, index


def _error_words(row: "pd.Series[Any]") -> str:
    error = row["csa_error_mm2"]
    sign = "+" if error > 0 else ""
    area = "no area" if pd.isna(error) else f"{sign}{quantity(error, 'mm2')}"
    return f"{area}; Dice {quantity(row['dice'], '')}"


def _section(
    read: Callable[..., LabelMap],
    scheme: LabelScheme,
    row: "pd.Series[Any]",
    nearest: "pd.Series[Any] | None",
    index: int | None,
) -> tuple[Section, int]:
    """Return the pictures of a case and the index of their slice, unknown voxels blank in all of them."""
    if not row["reference"] or not row["prediction"]:
        raise UserError(f"{row['case']}: expected paths of its maps, found none")
    file = Path(row["reference"])
    reference = read(REFERENCE, file, unknown=unknown_of(file, row["case"], scheme))
    files = {each["method"]: Path(each["prediction"]) for each in (row, nearest) if each is not None}
    maps = {
        method: known_part(on_grid_of(read(method, file), reference, resample=True)[0], reference)
        for method, file in files.items()
    }
    return section_of(reference, maps, Path(row["image"]) if row["image"] else None, index)


def section_of(
    reference: LabelMap, maps: Mapping[str, LabelMap], image: Path | None, index: int | None
) -> tuple[Section, int]:
    """Return the pictures of a slice, and its index along the S-I axis of the reference.

    The maps (by method) lie on the grid of the reference. Without an index it is the slice in which the first
    of them differs most.
    """
    frame = slice_frame(reference.affine, str(reference.file))
    if index is None:
        difference = np.abs(next(iter(maps.values())).values - reference.values)
        index = int(difference.sum(axis=frame.in_plane).argmax())
    planes = {name: _plane(each.as_nifti(), frame.axis, index) for name, each in maps.items()}
    reference_plane = _plane(reference.as_nifti(), frame.axis, index)
    upright = nib.as_closest_canonical(reference.as_nifti())
    right, anterior = (float(size) for size in nib.affines.voxel_sizes(upright.affine)[:2])
    window = _Window.around((anterior, right), [reference_plane, *planes.values()])
    expected = window.cut(reference_plane)
    pictures, differences = {}, {}
    for name, plane in planes.items():
        found = window.cut(plane)
        pictures[name] = _coloured(found, MAP_COLOURS, 0, 1)
        differences[name] = _coloured(found - expected, DIFFERENCE_COLOURS, -1, 1)
    shown, trouble = _image_plane(image, reference, frame.axis, index)
    grey = None
    if shown is not None:
        square = window.cut(shown)
        low, high = (float(end) for end in np.percentile(square, WINDOW_PERCENTILES))
        grey = _coloured(square, "gray", low, max(high, low + 1e-6))
    expected_picture = _coloured(expected, MAP_COLOURS, 0, 1)
    return Section(grey, trouble, expected_picture, pictures, differences, window.side_mm), index


def colour_bar(name: str) -> Pixels:
    """Return the colours of a map from its lowest to its highest value, (14, 200, 3)."""
    return _coloured(np.tile(np.linspace(0, 1, 200, dtype=np.float32), (14, 1)), name, 0, 1)


def _plane(image: nib.Nifti1Image, axis: int, index: int) -> Plane:
    """Return a slice: rows from anterior to posterior, columns from the patient's right to the left."""
    place = tuple(slice(index, index + 1) if each == axis else slice(None) for each in range(3))
    upright = nib.as_closest_canonical(image.slicer[place])
    return np.asarray(upright.dataobj, dtype=np.float32)[:, :, 0].T[::-1, ::-1]


@dataclass(frozen=True)
class _Window:
    """A square around all that is to be seen, in mm from the corner of the plane's first voxel."""

    spacing_mm: tuple[float, float]
    top_left_mm: tuple[float, float]
    side_mm: float

    @classmethod
    def around(cls, spacing: tuple[float, float], planes: list[Plane]) -> "_Window":
        visible = np.any([plane > _VISIBLE for plane in planes], axis=0)
        ends = [
            (np.flatnonzero(visible.any(axis=1 - axis)) if visible.any() else np.arange(visible.shape[axis]))
            for axis in (0, 1)
        ]
        low, high = (np.multiply([found[n] - n for found in ends], spacing) for n in (0, -1))
        side = float(np.clip((high - low).max() + 2 * MARGIN_MM, LEAST_SIDE_MM, MOST_SIDE_MM))
        top, left = (low + high) / 2 - side / 2
        return cls(spacing, (float(top), float(left)), side)

    def cut(self, plane: Plane) -> Plane:
        """Return the square as pixels, (SIDE_PIXELS, SIDE_PIXELS); 0 outside of the image."""
        # Nearest neighbour on purpose: the voxels and their values are what is to be seen.
        centres = (np.arange(SIDE_PIXELS) + 0.5) * self.side_mm / SIDE_PIXELS
        index = [
            np.floor((start + centres) / step).astype(int)
            for start, step in zip(self.top_left_mm, self.spacing_mm, strict=True)
        ]
        inside = [(found >= 0) & (found < size) for found, size in zip(index, plane.shape, strict=True)]
        clipped = [np.clip(found, 0, size - 1) for found, size in zip(index, plane.shape, strict=True)]
        return np.where(np.outer(*inside), plane[np.ix_(*clipped)], 0).astype(np.float32)


def _coloured(plane: Plane, colours: str, low: float, high: float) -> Pixels:
    scaled = np.clip((plane - low) / (high - low), 0, 1)
    return np.asarray(colormaps[colours](scaled, bytes=True), dtype=np.uint8)[..., :3].copy()


def _image_plane(file: Path | None, reference: LabelMap, axis: int, index: int) -> tuple[Plane | None, str]:
    """Return a slice of the image, or why there is none: a report is not worth less without it."""
    if file is None:
        return None, "no image given"
    try:
        image = nib.funcs.squeeze_image(load_nifti(file))
        placed = reference.has_place and not is_picture(file.name)
        same = VoxelGrid.of(image).is_same(reference.grid) if placed else image.shape == reference.grid.shape
        if not same:
            return None, "the image lies on another grid"
        return np.nan_to_num(_plane(image, axis, index)), ""
    except (UserError, OSError, EOFError, ValueError, zlib.error) as error:
        return None, " ".join(str(error).split())
