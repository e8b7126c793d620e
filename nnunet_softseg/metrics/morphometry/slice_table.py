"""A map -> a table with the size and shape of its structure in every slice."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.geometry import Box, bounding_box
from nnunet_softseg.io.nifti import classify, image_name, map_or_label, read_values
from nnunet_softseg.metrics.morphometry.centreline import SMOOTHING_MM, Centreline, fit_centreline
from nnunet_softseg.metrics.morphometry.levels import (
    Levels,
    disc_gaps,
    disc_points_mm,
    levels_from_discs,
    levels_from_image,
    levels_from_rootlets,
    levels_on_grid,
)
from nnunet_softseg.metrics.slice_frame import AMBIGUOUS_FROM_DEG, Floats, SliceFrame, slice_frame
from nnunet_softseg.settings import HARD_THRESHOLD

COLUMNS = {
    "slice": "index of the slice along the S-I axis of the stored array, from 0",
    "z_mm": "height of the structure's centre in the slice, scanner coordinates, mm; on the centreline "
    "where the slice is empty",
    "level": "vertebral level: 1-7 are C1-C7, 8-19 T1-T12, 20-24 L1-L5; empty if unknown; spinal level if "
    "rootlets are given: 1-8 are C1-C8, 9-20 T1-T12",
    "csa_mm2": "cross-sectional area of the soft map: area_mm2 times the cosine of tilt_deg, mm2; empty "
    "where the slice is",
    "csa_hard_mm2": "the same for the map > 0.5, mm2; empty where nothing is > 0.5",
    "area_mm2": "area in the plane of the slice: sum of the map's values times pixel area, mm2",
    "tilt_deg": "angle between the centreline and the slice's normal, degrees; empty for a single slice",
    "diameter_ap_mm": "of the ellipse with the map's second moments across the centreline: the principal "
    "axis nearer to A-P, mm",
    "diameter_rl_mm": "the principal axis nearer to R-L, mm",
    "eccentricity": "of that ellipse, 0 for a circle: sqrt(1 - (minor / major)^2)",
    "orientation_deg": "angle of its axis nearer to R-L against the slice's R-L (the scanner's, projected "
    "into slice and section), -45 to 45 degrees, above 0 if the right end is the more anterior one",
    "length_mm": "length of the centreline within the slice's thickness, mm",
    "csa_sct_normalised_mm2": "csa_mm2 divided by the slice's largest value, as the Spinal Cord Toolbox "
    "rescales every slice, for comparison, mm2",
    "flags": "end: first or last slice of the structure with an empty one beside it, may be filled in "
    "part. cut: values above 0.05 at the image's in-plane border. faint: nothing above 0.5. parts: more "
    "than one piece above 0.5. no_tilt: a single slice, no tilt known, csa_mm2 is area_mm2",
}
"""The columns of the table of slices, with units."""
REACH_MM = 3.0
"""How far rootlets may lie from the cord that they belong to."""
_CUT_ABOVE = 0.05


@dataclass(frozen=True)
class _Structure:
    """Non-zero part of a map: values of its bounding box, slices first, and place of the box."""

    values: npt.NDArray[np.float32]
    box: Box
    touches_border: npt.NDArray[np.bool_]


def slice_morphometry(
    image: nib.Nifti1Image,
    *,
    levels: nib.Nifti1Image | None = None,
    discs: nib.Nifti1Image | None = None,
    rootlets: nib.Nifti1Image | None = None,
    reach_mm: float = REACH_MM,
    label: int | None = None,
    smoothing_mm: float = SMOOTHING_MM,
) -> pd.DataFrame:
    """Return area and shape of a map's structure in each slice across S-I, in the order of the array.

    csa_mm2 = sum of the soft values x pixel area x cosine of the angle between centreline and slice normal.
    Nothing is rescaled: a slice of half the values has half the area (and, as they are relative, the same
    diameters). Diameters are those of the ellipse with the second moments of the soft values, seen along the
    centreline, without what voxels and slice thickness add to them; a map of only 0 and one other value is
    taken as drawn by hand, with nothing added. Length x area is volume.

    The image is a soft map, or a label map of which the value `label` is measured; axes in any order. For
    levels and discs see `levels.levels_on_grid` and `levels.disc_points_mm`, for rootlets, the numbers of
    their spinal levels on the map's grid, `levels.levels_from_rootlets`.

    Returns:
        `COLUMNS`, one row per slice; NaN (and not 0) where a slice is empty. `attrs["warnings"]`: lines.

    Raises:
        UserError: if the map is not what is expected, or the levels do not fit it.
    """
    name = image_name(image, "map")
    values = read_values(image, name)
    soft, findings = map_or_label(name, values, classify(values), label)
    warnings = [*map(str, findings)]
    frame = slice_frame(image.affine, name)
    if frame.tip_deg >= AMBIGUOUS_FROM_DEG:
        warnings.append(
            f"{name}: no array axis runs along S-I: the nearest, axis {frame.axis}, is {frame.tip_deg:.0f} "
            "degrees off; slices are those across it"
        )
    structure = _find_structure(soft, frame)
    if structure is None:
        table = pd.DataFrame(_empty_columns(frame, image.shape))
        warnings.append(f"{name}: empty, nothing above 0: all areas are NaN{_labels_there(image, label)}")
        line = None
    else:
        table, line = _measure(structure, frame, image.shape, smoothing_mm)
    if line is not None and not line.known:
        warnings.append(f"{name}: a single slice: no tilt is known, csa_mm2 is the area in the slice's plane")
    if sum(given is not None for given in (levels, discs, rootlets)) > 1:
        raise UserError(
            "levels: expected a level image, points at the discs or rootlets, found both or all: give one"
        )
    if levels is not None:
        level_name = image_name(levels, "level image")
        labels = levels_on_grid(levels, image, level_name)
        _set_levels(table, levels_from_image(labels, soft, frame.axis, level_name))
    elif discs is not None:
        disc_name = image_name(discs, "disc image")
        points = disc_points_mm(discs, frame, disc_name)
        if line is not None:
            centres_mm = frame.slice_centres_mm(image.shape)[:, 2]
            _set_levels(table, levels_from_discs(points, line, centres_mm, disc_name))
        warnings += disc_gaps(points, disc_name)
    elif rootlets is not None and line is not None:
        root_name = image_name(rootlets, "rootlets")
        marked = levels_on_grid(rootlets, image, root_name, otherwise="")
        found, doubts = levels_from_rootlets(marked, soft > HARD_THRESHOLD, frame, reach_mm, root_name)
        _set_levels(table, found)
        warnings += doubts
    table.attrs["warnings"] = warnings
    return table


def _labels_there(image: nib.Nifti1Image, label: int | None) -> str:
    if label is None:
        return ""
    there = [f"{value:g}" for value in np.unique(np.asarray(image.dataobj)) if value]
    return f"; label {label} does not occur, found {examples(there, 12) or 'none'}"


# Measuring


def _find_structure(soft: npt.NDArray[np.float32], frame: SliceFrame) -> _Structure | None:
    """Return the part of a map above 0, or None for an empty map."""
    ordered = soft.transpose(frame.axis, *frame.in_plane)
    box = bounding_box(ordered > 0)
    if not box[0].stop:
        return None
    border = np.zeros(len(ordered), dtype=bool)
    for edge in (ordered[:, 0], ordered[:, -1], ordered[:, :, 0], ordered[:, :, -1]):
        border |= (edge > _CUT_ABOVE).any(axis=1)
    return _Structure(np.clip(ordered[box], 0, 1), box, border[box[0]])


def _measure(
    structure: _Structure, frame: SliceFrame, shape: tuple[int, ...], smoothing_mm: float
) -> tuple[pd.DataFrame, Centreline]:
    mass, centres, covariance_mm2 = _moments_mm(structure, frame)
    inside = mass > 0
    line = fit_centreline(centres[inside], mass[inside], frame.spacing_mm, smoothing_mm)
    columns = _empty_columns(frame, shape, line)
    rows = structure.box[0]
    slopes = line.slopes(frame.slice_centres_mm(shape)[rows, 2])
    cosine = 1 / np.sqrt(1 + (slopes**2).sum(axis=1))
    measured = {
        "z_mm": frame.world_mm(centres)[:, 2],
        **_areas(structure, mass * frame.pixel_mm2, cosine, frame.pixel_mm2),
        "tilt_deg": np.degrees(np.arccos(cosine)) if line.known else np.full(len(mass), np.nan),
        **_diameters(structure, frame, covariance_mm2, slopes),
        "length_mm": frame.spacing_mm / cosine,
    }
    for column, numbers in measured.items():
        columns[column][rows][inside] = numbers[inside]
    flags = columns["flags"]
    flags[rows] = _flags(structure, inside, line.known, (rows.start == 0, rows.stop == len(flags)))
    return pd.DataFrame(columns), line


def line_through(values: npt.NDArray[np.float32], frame: SliceFrame) -> Centreline | None:
    """Return the centreline of a map in the order of its array, or None for an empty map."""
    structure = _find_structure(values, frame)
    if structure is None:
        return None
    mass, centres, _ = _moments_mm(structure, frame)
    return fit_centreline(centres[mass > 0], mass[mass > 0], frame.spacing_mm)


def _moments_mm(structure: _Structure, frame: SliceFrame) -> tuple[Floats, Floats, Floats]:
    """Return sum, centre in the frame (n, 3) and covariance in the slice (n, 2, 2), mm, of each slice."""
    mass, mean, covariance = _slice_moments(structure.values.astype(np.float64))
    index = np.empty((len(mass), 3))
    index[:, frame.axis] = np.arange(len(mass)) + structure.box[0].start
    index[:, frame.in_plane] = mean + [side.start for side in structure.box[1:]]
    steps = frame.in_plane_steps_mm
    return mass, frame.positions_mm(index), steps @ covariance @ steps.T


def _areas(structure: _Structure, area: Floats, cosine: Floats, pixel_mm2: float) -> dict[str, Floats]:
    hard = np.count_nonzero(structure.values > HARD_THRESHOLD, axis=(1, 2)) * pixel_mm2
    peak = structure.values.max(axis=(1, 2)).astype(np.float64)
    return {
        "csa_mm2": area * cosine,
        "csa_hard_mm2": np.where(hard > 0, hard, np.nan) * cosine,
        "area_mm2": area,
        "csa_sct_normalised_mm2": area * cosine / np.where(peak > 0, peak, np.nan),
    }


def _diameters(
    structure: _Structure, frame: SliceFrame, covariance_mm2: Floats, slopes: Floats
) -> dict[str, Floats]:
    above = structure.values[structure.values > 0]
    if (above < above.max()).any():  # partial volumes: values above 0 that differ from each other
        added = _partial_volume_covariance(frame.in_plane_steps_mm, slopes, frame.spacing_mm)
        covariance_mm2 = covariance_mm2 - added
    return _equivalent_ellipses(_across_the_line(covariance_mm2, slopes))


def _flags(
    structure: _Structure, inside: npt.NDArray[np.bool_], tilt_known: bool, at_ends: tuple[bool, bool]
) -> list[str]:
    # Beyond the image's own ends nothing is known to be empty: what leaves there fills its slices.
    beyond = np.concatenate([[at_ends[0]], inside, [at_ends[1]]])
    above = structure.values > HARD_THRESHOLD
    by_name = {
        "end": inside & ~(beyond[:-2] & beyond[2:]),
        "cut": structure.touches_border,
        "faint": inside & ~above.any(axis=(1, 2)),
        "parts": _pieces(above) > 1,
        "no_tilt": inside & (not tilt_known),
    }
    return [" ".join(name for name, there in by_name.items() if there[row]) for row in range(len(inside))]


# Section: diameters across the cord, from second moments in the plane of the slice


def _slice_moments(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return sum (n,), mean position (n, 2) and covariance (n, 2, 2) of each slice of values, in voxels.

    Values are (slices, i, j), not below 0; mean and covariance are NaN where a slice is empty.
    """
    i, j = (np.arange(size, dtype=np.float64) for size in values.shape[1:])
    along_i, along_j = values.sum(axis=2), values.sum(axis=1)
    mass = along_i.sum(axis=1)
    divisor = np.where(mass > 0, mass, np.nan)
    mean = np.stack([along_i @ i, along_j @ j], axis=1) / divisor[:, None]
    mixed = (values @ j) @ i
    square = np.array([[along_i @ i**2, mixed], [mixed, along_j @ j**2]]).transpose(2, 0, 1)
    covariance = square / divisor[:, None, None] - mean[:, :, None] * mean[:, None, :]
    return mass, mean, covariance


def _partial_volume_covariance(steps_mm: Floats, slopes: Floats, spacing_mm: float) -> Floats:
    """Return what averaging over voxels has added to the covariance of each section, (n, 2, 2) in mm2.

    A voxel that holds a share of the structure spreads it over its own width w, which adds w^2 / 12 along
    each of its axes; and over its slice's thickness h, in which a tilted line moves by slope h.

    Columns of `steps_mm` are the steps along the in-plane array axes; slopes, (n, 2), are the centreline's.
    """
    smear: Floats = slopes[:, :, None] * slopes[:, None, :] * spacing_mm**2 / 12
    return steps_mm @ steps_mm.T / 12 + smear


def _across_the_line(covariance_mm2: Floats, slopes: Floats) -> Floats:
    """Return the covariance in the plane perpendicular to the line, from that in the slice: (n, 2, 2).

    A slice cuts a tilted cord at an angle; its section is the slice's, seen along the line. The axes in the
    new plane are R-L made perpendicular to the line, and the one perpendicular to both.
    """
    tangent = np.column_stack([slopes, np.ones(len(slopes))])
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    right = np.array([1.0, 0.0, 0.0]) - tangent[:, :1] * tangent
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    seen = np.stack([right, np.cross(tangent, right)], axis=1)[:, :, :2]
    across: Floats = seen @ covariance_mm2 @ seen.transpose(0, 2, 1)
    return across


def _equivalent_ellipses(covariance_mm2: Floats) -> dict[str, Floats]:
    """Return columns of the ellipse of each covariance (n, 2, 2); NaN where a section is too small.

    An ellipse of semi-axis a has the variance a^2 / 4.
    """
    usable = np.asarray(np.isfinite(covariance_mm2).all(axis=(1, 2)))
    variance, vectors = np.linalg.eigh(np.where(usable[:, None, None], covariance_mm2, np.eye(2)))
    # Rounding of an exact 0 in a single voxel counts as 0, too.
    usable &= variance[:, 0] > 1e-9  # noqa: PLR2004
    variance = np.where(usable[:, None], variance, np.nan)
    nearer = np.abs(vectors[:, 0, :]).argmax(axis=1)
    rows = np.arange(len(variance))
    right, anterior = vectors[rows, :, nearer].T
    orientation = np.where(usable, np.degrees(np.arctan(anterior / right)), np.nan)
    return {
        "diameter_rl_mm": 4 * np.sqrt(variance[rows, nearer]),
        "diameter_ap_mm": 4 * np.sqrt(variance[rows, 1 - nearer]),
        "eccentricity": np.sqrt(1 - variance[:, 0] / variance[:, 1]),
        "orientation_deg": orientation,
    }


def _pieces(above: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the number of separate pieces in each slice, corners joined."""
    joined = np.zeros((3, 3, 3), dtype=bool)
    joined[1] = True
    numbered, count = ndimage.label(above, joined)
    places = ndimage.find_objects(numbered, count)
    return np.bincount([place[0].start for place in places], minlength=len(above))


def _empty_columns(
    frame: SliceFrame, shape: tuple[int, ...], line: Centreline | None = None
) -> dict[str, Any]:
    positions = frame.slice_centres_mm(shape)
    if line is not None:
        positions = line.points_mm(positions[:, 2])
    return {column: np.full(len(positions), np.nan) for column in COLUMNS} | {
        "slice": np.arange(len(positions)),
        "z_mm": frame.world_mm(positions)[:, 2],
        "level": pd.array([pd.NA] * len(positions), dtype="Int64"),
        "flags": [""] * len(positions),
    }


def _set_levels(table: pd.DataFrame, levels: Levels) -> None:
    table["level"] = pd.array(levels, dtype="Int64")
    table.loc[table["level"] == 0, "level"] = pd.NA
