"""All measures of one case: its reference is read once, every method is held against it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd

from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.maps import LabelMap, StoredMap, label_of, on_grid_of, read_stored
from nnunet_softseg.io.case_names import Case
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.metrics.calibration import ReliabilityCurve, reliability_curve
from nnunet_softseg.metrics.morphometry import slice_morphometry
from nnunet_softseg.metrics.overlap import case_measures

REFERENCE = "reference"
"""The reference's own name in tables of areas; no method may have it."""
AREAS = ("csa_mm2", "csa_hard_mm2")


@dataclass(frozen=True)
class CaseJob:
    """What a worker needs to measure one case.

    Attributes:
        case: who it is.
        references: label -> file.
        predictions: method -> label -> file.
        levels: image of vertebral levels, or None.
        chosen_labels: the user named the labels, see `maps.label_of`.
        resample: bring predictions of another grid to the reference's.
        surface_dice_tolerance_mm: of surface Dice.
    """

    case: Case
    references: Mapping[int, Path]
    predictions: Mapping[str, Mapping[int, Path]]
    levels: Path | None = None
    chosen_labels: bool = False
    resample: bool = False
    surface_dice_tolerance_mm: float = 1.0


@dataclass(frozen=True)
class MeasuredCase:
    """What was measured of one case.

    Attributes:
        rows: one per label and method: names of `measure_table.MEASURES`, and method, label, kind, resampled,
            prediction, reference.
        slices: a row per label, method (and `REFERENCE`) and slice of the reference: method, label, slice,
            z_mm, level, csa_mm2, csa_hard_mm2.
        reliability: (method, label) -> curve.
    """

    case: Case
    rows: list[dict[str, Any]]
    slices: pd.DataFrame
    reliability: dict[tuple[str, int], ReliabilityCurve]


def measure_case(job: CaseJob) -> MeasuredCase:
    """Return all measures of one case.

    Raises:
        UserError: if a file cannot be used; the message names it.
    """
    stored: dict[Path, StoredMap] = {}
    rows, slices, reliability = [], [], {}
    levels = load_nifti(job.levels) if job.levels else None
    for label, reference_file in job.references.items():
        reference = _read(job, reference_file, label, stored)
        table = _slice_areas(reference, levels)
        extent = table["csa_mm2"].notna()
        slices.append(_tidy(table, extent, label, REFERENCE, table))
        for method, files in job.predictions.items():
            given = _read(job, files[label], label, stored)
            prediction, resampled = on_grid_of(given, reference, resample=job.resample)
            rows.append(
                {
                    "method": method,
                    "label": label,
                    "kind": given.kind,
                    **case_measures(
                        prediction.values,
                        reference.values,
                        reference.spacing_mm,
                        surface_dice_tolerance_mm=job.surface_dice_tolerance_mm,
                    ),
                    "resampled": resampled,
                    "prediction": str(files[label]),
                    "reference": str(reference_file),
                }
            )
            reliability[method, label] = reliability_curve(
                prediction.values, reference.values, reference.spacing_mm
            )
            slices.append(_tidy(_slice_areas(prediction, None), extent, label, method, table))
    return MeasuredCase(job.case, rows, pd.concat(slices, ignore_index=True), reliability)


def _read(job: CaseJob, file: Path, label: int, stored: dict[Path, StoredMap]) -> LabelMap:
    """Return one label of a file; a label map of several labels is read once."""
    if file not in stored:
        stored[file] = read_stored(file)
    return label_of(stored[file], label, tuple(job.references), chosen=job.chosen_labels)


def _slice_areas(label_map: LabelMap, levels: nib.Nifti1Image | None) -> pd.DataFrame:
    try:
        return slice_morphometry(label_map.as_nifti(), levels=levels)
    except UserError as error:
        # An image in memory has no name.
        raise UserError(f"{label_map.file}: {error}") from error


def _tidy(
    table: pd.DataFrame, extent: "pd.Series[bool]", label: int, method: str, reference: pd.DataFrame
) -> pd.DataFrame:
    """Return the slices of the reference's extent; height and level are the reference's for all methods."""
    chosen = reference.loc[extent, ["slice", "z_mm", "level"]].assign(method=method, label=label)
    return chosen.assign(**{area: table.loc[extent, area] for area in AREAS})
