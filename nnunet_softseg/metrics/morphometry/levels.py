"""Level of each slice, from an image of levels, points at the discs, or rootlets; means over levels.

Vertebral levels are numbered as in the field: 1 to 7 are C1 to C7, 8 to 19 T1 to T12, 20 to 24 L1 to L5, then
S1. Of spinal levels, which rootlets mark, 8 is C8, and 9 to 20 are T1 to T12.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.geometry import VoxelGrid, distances_mm, turned
from nnunet_softseg.io.nifti import WHOLE_TOLERANCE, read_values
from nnunet_softseg.metrics.morphometry.centreline import Centreline
from nnunet_softseg.metrics.slice_frame import Floats, SliceFrame, slice_frame

LevelKind = Literal["vertebral", "spinal"]
_CERVICAL: dict[LevelKind, int] = {"vertebral": 7, "spinal": 8}
NAMES = {
    kind: tuple(
        f"{letter}{number + 1}"
        for letter, count in (("C", cervical), ("T", 12), ("L", 5), ("S", 5))
        for number in range(count)
    )
    for kind, cervical in _CERVICAL.items()
}
"""NAMES[kind][n - 1] is the name of level n."""
LAST_DISC = 26
"""Discs are 1 (top of C1) to 26 (below S1). Higher values mark other things, as 50 the brain stem."""
_LARGEST_LEVEL = 100
_TALLEST_DISC_MM = 12.0
# A disc marked in the middle of a slice divides below or above it by this, not by rounding.
_AT_DISC_MM = 0.01
_ROUNDING_MM = 1e-6
_BETWEEN = 0.5  # less than a voxel, more than none
_RANGE = re.compile(r"^([a-z]?\d+)(?:[:-]([a-z]?\d+))?$", re.IGNORECASE)

Levels = npt.NDArray[np.integer[Any]]

AVERAGED = (
    "csa_mm2",
    "csa_hard_mm2",
    "area_mm2",
    "tilt_deg",
    "diameter_ap_mm",
    "diameter_rl_mm",
    "eccentricity",
    "csa_sct_normalised_mm2",
)
_WITH_STD = AVERAGED[:2]
SUMMARY_COLUMNS = {
    "file": "the map",
    "levels": "C2, or C2-C3 for a set that was asked for; all: every slice",
    "level": "number of the level; empty for a set and for all",
    "num_slices": "slices of these levels that are not empty, also where the map is faint all over",
    "num_empty": "slices of these levels that are empty; they don't count in the means",
    "num_flagged": "slices among num_slices with a flag",
    "length_mm": "length of the centreline in num_slices, mm",
    **{f"{column}_mean": f"mean of {column} over those of num_slices that have it" for column in AVERAGED},
    **{f"{column}_std": f"standard deviation (ddof 1) of {column} over the same" for column in _WITH_STD},
    "csa_mm2": "csa_mm2_mean again, under the name that it has in the table of slices, mm2",
    "area_mm2": "area_mm2_mean again, in the plane of the slices, mm2",
}
"""The columns of the table of levels, with units."""


# Asking for levels


def parse_levels(wanted: int | str | Iterable[int | str], kind: LevelKind = "vertebral") -> tuple[int, ...]:
    """Return level numbers, ascending, from numbers, names and ranges: 2, "C2", "2:4", "C2:C4", "2,3".

    Raises:
        UserError: if something else is asked for.
    """
    parts = [wanted] if isinstance(wanted, int | str) else list(wanted)
    found = {
        level for part in parts for text in str(part).split(",") for level in _parse_range(text.strip(), kind)
    }
    if not found:
        raise UserError("levels: expected numbers, names or ranges such as 2 3, C2 C3 or 2:3, found none")
    return tuple(sorted(found))


def _parse_range(text: str, kind: LevelKind) -> range:
    match = _RANGE.match(text)
    first, last = (
        (_level_number(match[1], kind), _level_number(match[2] or match[1], kind)) if match else (None, None)
    )
    if first is None or last is None or last < first:
        raise UserError(
            f"level {text!r}: expected a number from 1 to {len(NAMES[kind])}, a name such as C2, or an "
            "ascending range such as 2:3"
        )
    return range(first, last + 1)


def _level_number(text: str, kind: LevelKind) -> int | None:
    names = NAMES[kind]
    if text.upper() in names:
        return names.index(text.upper()) + 1
    return int(text) if text.isdigit() and 1 <= int(text) <= len(names) else None


def level_name(levels: Sequence[int], kind: LevelKind = "vertebral") -> str:
    """Return `C2`, `C2-C3` or `C2+C4` for level numbers."""
    known = NAMES[kind]
    names = [known[level - 1] if 1 <= level <= len(known) else str(level) for level in levels]
    consecutive = list(levels) == list(range(levels[0], levels[0] + len(levels)))
    return f"{names[0]}-{names[-1]}" if len(levels) > 1 and consecutive else "+".join(names)


# From an image of levels


def levels_on_grid(
    image: nib.Nifti1Image,
    reference: nib.Nifti1Image,
    name: str,
    otherwise: str = ", or give points at the discs (--discs), which need no common grid",
) -> Levels:
    """Return the labels of a level image in the array order of the map; `otherwise`: another way out.

    An image of the same voxels in another orientation is turned. One of another grid is refused: levels are
    whole numbers, and no interpolation between C2 and C3 means anything.

    Raises:
        UserError: if the grids differ, or the values are no levels; `name` is that of the level image.
    """
    slice_frame(image.affine, name)
    labels, affine = turned(_whole_numbers(image, name), image.affine, reference.affine)
    expected, found = VoxelGrid.of(reference), VoxelGrid(labels.shape, affine)
    if not found.is_same(expected):
        raise UserError(
            f"{name}: expected the grid of the map, {expected}, found {found}: bring it to that grid by "
            f"nearest neighbour{otherwise}"
        )
    return labels


def _whole_numbers(image: nib.Nifti1Image, name: str) -> Levels:
    values = read_values(image, name)
    outside = (values < -WHOLE_TOLERANCE) | (values > _LARGEST_LEVEL + WHOLE_TOLERANCE)
    if values.dtype.kind == "f":
        outside |= np.abs(values - np.round(values)) > WHOLE_TOLERANCE
    if outside.any():
        raise UserError(
            f"{name}: expected whole numbers from 0 to {_LARGEST_LEVEL}, found "
            f"{examples([f'{value:g}' for value in np.unique(values[outside])])}: labels must not be "
            "interpolated, resample them by nearest neighbour"
        )
    return np.round(values).astype(np.uint8)


def levels_from_image(labels: Levels, soft: npt.NDArray[np.float32], axis: int, name: str) -> Levels:
    """Return the level of each slice: the label with the largest share of the structure in it, 0 for none.

    Where no label lies on the structure (labels drawn in the vertebrae, or an empty slice), the most
    frequent label of the slice counts. `name` is that of the level image.

    Raises:
        UserError: if the labels are single points.
    """
    across = tuple(other for other in range(labels.ndim) if other != axis)
    in_order, weights = labels.transpose(axis, *across), soft.transpose(axis, *across)
    in_slice = _votes(in_order, np.ones(1, dtype=np.float32))
    sizes = in_slice.sum(axis=0)
    if sizes.any() and not (sizes > 1).any():
        values = [str(value) for value in np.flatnonzero(sizes)]
        raise UserError(
            f"{name}: expected an image of levels, found single voxels (values {examples(values)}): give "
            "points at the discs with --discs"
        )
    on_it = _votes(in_order, weights)
    # Of equal shares, the first and so the superior level counts.
    return np.asarray(np.where(on_it.any(axis=1, keepdims=True), on_it, in_slice).argmax(axis=1))


def _votes(labels: Levels, weights: npt.NDArray[np.float32]) -> Floats:
    """Return the sum of the weights by slice (first axis) and label, (slices, 101); label 0 gets none."""
    votes = np.empty((len(labels), _LARGEST_LEVEL + 1))
    for row, (plane, weight) in enumerate(zip(labels, np.broadcast_to(weights, labels.shape), strict=True)):
        votes[row] = np.bincount(plane.ravel(), weight.ravel(), minlength=_LARGEST_LEVEL + 1)
    votes[:, 0] = 0
    return votes


# From points at the discs


def disc_points_mm(image: nib.Nifti1Image, frame: SliceFrame, name: str) -> dict[int, Floats]:
    """Return where each disc lies in the frame of the map's slices: disc -> (3,) in mm.

    The convention is that of the Spinal Cord Toolbox: disc n lies at the top of vertebra n, so 3 is C2/C3,
    and 1 the top of C1. A disc of several voxels counts by its centre. Values above 26 are other landmarks.
    The image may have any grid in the same scanner space.

    Raises:
        UserError: if the values are no discs, or fill whole levels; `name` is that of the disc image.
    """
    labels = _whole_numbers(image, name)
    points = {}
    for disc in (int(value) for value in np.unique(labels) if 1 <= value <= LAST_DISC):
        world = nib.affines.apply_affine(image.affine, np.argwhere(labels == disc))
        within = world @ frame.unit_vectors.T
        if np.ptp(within[:, 2]) > _TALLEST_DISC_MM:
            raise UserError(
                f"{name}: expected a point or a disc for each value, found value {disc} over "
                f"{np.ptp(within[:, 2]):.0f} mm along the cord: give an image of whole levels with --levels"
            )
        points[disc] = within.mean(axis=0)
    if not points:
        raise UserError(
            f"{name}: expected points with the numbers of discs, 1 to {LAST_DISC}, found none: 3 marks C2/C3"
        )
    return points


def disc_gaps(discs: Collection[int], name: str) -> list[str]:
    """Say which discs are missing between others, and the levels that nothing can be said of."""
    lacking = [disc for disc in range(min(discs), max(discs)) if disc not in discs]
    unknown = [level for level in range(min(discs), max(discs)) if {level, level + 1} & {*lacking}]
    if not lacking:
        return []
    missing = examples([str(disc) for disc in lacking], 6)
    return [f"{name}: disc {missing} is missing between others: {level_name(unknown)} cannot be told"]


def levels_from_discs(
    discs_mm: dict[int, Floats], centreline: Centreline, slices_mm: Floats, name: str
) -> Levels:
    """Return the level of each slice: vertebra n from disc n down to disc n + 1; 0 where one is not known.

    A slice that lies exactly at disc n belongs to vertebra n, below it. Each disc is projected to the
    nearest point of the centreline, so that one in front of a tilted cord divides it where a plane across the
    cord would. Slices are given by their position along the normal.

    Raises:
        UserError: if discs with higher numbers do not lie lower.
    """
    projected = {disc: centreline.nearest_mm(point) for disc, point in sorted(discs_mm.items())}
    numbers = list(projected)
    for upper, lower in pairwise(numbers):
        if projected[lower] >= projected[upper]:
            above_mm = projected[lower] - projected[upper]
            raise UserError(
                f"{name}: expected disc {lower} below disc {upper}, found it {above_mm:.1f} mm above: number "
                "discs from the top, 3 is C2/C3"
            )
    levels = np.zeros(len(slices_mm), dtype=np.int64)
    for disc in numbers:
        if disc + 1 in projected:
            below_top = slices_mm <= projected[disc] + _AT_DISC_MM
            levels[below_top & (slices_mm > projected[disc + 1] + _AT_DISC_MM)] = disc
    return levels


# From rootlets


def levels_from_rootlets(
    rootlets: Levels, cord: npt.NDArray[np.bool_], frame: SliceFrame, reach_mm: float, name: str
) -> tuple[Levels, list[str]]:
    """Return the spinal level of each slice, 0 for none, and what is odd.

    A level reaches from the first to the last slice in which its rootlets are within `reach_mm` of the cord,
    centre of voxel to centre of voxel. A slice of two levels belongs to the one with more rootlets in it.
    Rootlets, the numbers of their levels, and cord lie on one grid.

    Raises:
        UserError: if no rootlet is near the cord, or levels with higher numbers do not lie lower.
    """
    if not cord.any():
        return np.zeros(rootlets.shape[frame.axis], dtype=np.int64), [f"{name}: no cord above 0.5: no levels"]
    steps_mm, marked = frame.affine[:3, :3], rootlets > 0
    near = np.zeros(rootlets.shape, dtype=bool)
    if marked.any():
        near[marked] = distances_mm(cord, steps_mm, marked) <= reach_mm + _ROUNDING_MM
    in_slice = _votes(
        np.where(near, rootlets, 0).transpose(frame.axis, *frame.in_plane), np.ones(1, dtype=np.float32)
    )
    there = np.flatnonzero(in_slice.any(axis=0))
    if not there.size:
        found = f"{np.count_nonzero(marked)} voxels of rootlets, all farther away" if marked.any() else "none"
        raise UserError(
            f"{name}: expected rootlets within {reach_mm:g} mm of the cord, found {found}: look for a mix-up "
            "of files, or widen --reach-mm"
        )
    lost = [int(level) for level in np.unique(rootlets[marked]) if level not in there]
    warnings = [
        f"{name}: rootlets of {level_name([level], 'spinal')} are farther than {reach_mm:g} mm from the "
        "cord: no such level"
        for level in lost
    ]
    claims = np.zeros_like(in_slice)
    for level in there:
        rows = np.flatnonzero(in_slice[:, level])
        reached = slice(rows[0], rows[-1] + 1)
        # A slice between rootlets of a level, without any of its own, is still of that level.
        claims[reached, level] = np.maximum(in_slice[reached, level], _BETWEEN)
    _check_order(in_slice, there, frame.slice_centres_mm(rootlets.shape)[:, 2], name)
    several = np.count_nonzero(claims, axis=1) > 1
    if several.any():
        shared = [int(level) for level in np.flatnonzero(claims[several].any(axis=0))]
        warnings.append(
            f"{name}: {level_name(shared, 'spinal')} overlap in {np.count_nonzero(several)} slice(s): each "
            "goes to the level with more rootlets in it"
        )
    return np.asarray(claims.argmax(axis=1)), warnings


def _check_order(in_slice: Floats, levels: npt.NDArray[np.intp], slices_mm: Floats, name: str) -> None:
    middles = {int(level): float(np.average(slices_mm, weights=in_slice[:, level])) for level in levels}
    for upper, lower in pairwise(middles):
        if middles[lower] >= middles[upper]:
            upper_name, lower_name = level_name([upper], "spinal"), level_name([lower], "spinal")
            raise UserError(
                f"{name}: expected rootlets of {lower_name} below those of {upper_name}, found them "
                f"{middles[lower] - middles[upper]:.1f} mm above: number levels from the top, 8 is C8"
            )


# Slices -> levels


def mean_csa(
    table: pd.DataFrame, vert: int | str | Iterable[int | str] | None = None, column: str = "csa_mm2"
) -> float:
    """Return the mean over the slices of some levels, empty slices passed over; NaN if there are none.

    The table is that of one map; levels are given as `parse_levels` takes them, None: every slice.
    """
    rows = table if vert is None else table[table["level"].isin(parse_levels(vert))]
    return float(rows[column].mean())


def level_summary(
    table: pd.DataFrame,
    vert: Sequence[int] | None = None,
    kind: LevelKind = "vertebral",
    *,
    with_all: bool = True,
) -> pd.DataFrame:
    """Return one row per map and level, and one for the asked set, or `with_all` for all slices if none is.

    Columns are `SUMMARY_COLUMNS` and the means of those that the table has of single labels (`csa_mm2_gm`),
    NaN where all slices of a level are empty.
    """
    rows = []
    for file, slices in table.groupby("file", sort=False):
        there = sorted(int(level) for level in slices["level"].dropna().unique())
        parts = [(level_name([level], kind), [level]) for level in (there if vert is None else vert)]
        if vert is not None and len(vert) > 1:
            parts.append((level_name(vert, kind), list(vert)))
        for name, of_part in parts:
            row = _summarise(file, name, slices[slices["level"].isin(of_part)])
            rows.append({**row, "level": of_part[0] if len(of_part) == 1 else None})
        if vert is None and with_all:
            rows.append(_summarise(file, "all", slices))
    summary = pd.DataFrame(rows, columns=[*SUMMARY_COLUMNS, *label_columns(table)])
    summary["level"] = summary["level"].astype("Int64")
    return summary


def label_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of single labels, such as csa_mm2_gm, in a table of slices."""
    areas = ("csa_mm2", "csa_hard_mm2", "area_mm2")
    return [column for column in table.columns if column.startswith(tuple(f"{area}_" for area in areas))]


def _summarise(file: object, levels: str, slices: pd.DataFrame) -> dict[str, object]:
    measured = slices[slices["csa_mm2"].notna()]
    return {
        "file": file,
        "levels": levels,
        "num_slices": len(measured),
        "num_empty": len(slices) - len(measured),
        "num_flagged": int(np.count_nonzero(measured["flags"] != "")),
        "length_mm": measured["length_mm"].sum() if len(measured) else np.nan,
        **{f"{column}_mean": measured[column].mean() for column in AVERAGED},
        **{f"{column}_std": measured[column].std(ddof=1) for column in _WITH_STD},
        **{column: measured[column].mean() for column in ("csa_mm2", "area_mm2", *label_columns(slices))},
    }
