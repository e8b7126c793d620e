"""All measures of one case: its reference is read once, every method is held against it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd

from nnunet_softseg.datasets.raw_dataset import LabelScheme
from nnunet_softseg.errors import Finding, UserError
from nnunet_softseg.evaluation.maps import (
    LabelMap,
    Unknown,
    is_of_label,
    known_part,
    label_of,
    on_grid_of,
    read_stored,
)
from nnunet_softseg.io.case_files import Case, check_pattern
from nnunet_softseg.io.geometry import NOWHERE
from nnunet_softseg.io.nifti import load_nifti, stored_as
from nnunet_softseg.metrics.calibration import ReliabilityCurve, reliability_curve
from nnunet_softseg.metrics.instances import match_instances
from nnunet_softseg.metrics.morphometry import slice_morphometry
from nnunet_softseg.metrics.morphometry.levels import parse_levels
from nnunet_softseg.metrics.overlap import case_measures

REFERENCE = "reference"
"""Name of the reference in tables of areas and of cases; no method may have it."""
AREAS = ("csa_mm2", "csa_hard_mm2")
_PATHS = ("subjects", "levels", "images")


@dataclass(frozen=True)
class EvaluationSettings:
    """How predictions are found and measured.

    Attributes:
        labels: values to compare; None takes those that the references name, or 1.
        patterns: method -> path inside its folder, with {case}; methods without one are matched by name.
        subjects: TSV that says who the cases are, see `cases.read_case_table`.
        levels: image of vertebral levels, or a folder with one per case.
        vert: levels over which areas are means.
        images: folder of the images, for pictures in the report.
        resample: bring predictions on another grid to the reference's, linearly.
        surface_dice_tolerance_mm: how far apart two surfaces may lie and still agree.
        split_touching: count objects that touch one by one, see `metrics.instances.numbered_objects`.
    """

    labels: tuple[int, ...] | None = None
    patterns: Mapping[str, str] = field(default_factory=dict)
    reference_pattern: str | None = None
    subjects: Path | None = None
    levels: Path | None = None
    vert: tuple[int, ...] = (2, 3)
    images: Path | None = None
    resample: bool = False
    surface_dice_tolerance_mm: float = 1.0
    split_touching: bool = False
    num_processes: int = 2
    progress: bool = True

    @classmethod
    def from_arguments(
        cls,
        *,
        labels: int | Iterable[int] | None = None,
        patterns: Mapping[str, str] | None = None,
        reference_pattern: str | None = None,
        vert: int | str | Iterable[int | str] | None = None,
        **options: Any,
    ) -> "EvaluationSettings":
        """Return checked settings; paths may be text, the other options are attributes of this class.

        Raises:
            UserError: for levels without an image of them, or a pattern without {case}.
        """
        options |= {name: Path(options[name]) if options.get(name) else None for name in _PATHS}
        if vert is not None and options["levels"] is None:
            raise UserError("--vert: expected --levels with it, found none: say where the levels are")
        chosen = (labels,) if isinstance(labels, int) else tuple(labels or ()) or None
        if chosen and min(chosen) < 1:
            raise UserError(f"--label: expected values above 0, found {min(chosen)}: 0 is the background")
        tolerance = options.get("surface_dice_tolerance_mm", cls.surface_dice_tolerance_mm)
        if not tolerance >= 0:
            raise UserError(f"surface Dice: expected a tolerance of 0 mm or more, found {tolerance}")
        return cls(
            labels=chosen,
            patterns={method: check_pattern(pattern) for method, pattern in (patterns or {}).items()},
            reference_pattern=check_pattern(reference_pattern, ["case"]) if reference_pattern else None,
            vert=parse_levels(vert) if vert is not None else cls.vert,
            **options,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what decides about the numbers, as JSON can hold it."""
        paths = {name: str(getattr(self, name)) if getattr(self, name) else None for name in _PATHS}
        return {
            "labels": list(self.labels) if self.labels else None,
            "patterns": dict(self.patterns),
            "reference_pattern": self.reference_pattern,
            **paths,
            "vert": list(self.vert) if self.levels else None,
            "resample": self.resample,
            "surface_dice_tolerance_mm": self.surface_dice_tolerance_mm,
            "split_touching": self.split_touching,
        }


@dataclass(frozen=True)
class CaseJob:
    """One case to be measured by a worker: references by label, predictions by method and label.

    The scheme tells what regions are made of, and which value of a label map means unknown; `told` are the
    methods, and `REFERENCE`, of whose files a pattern told the label.
    """

    case: Case
    references: Mapping[int, Path]
    predictions: Mapping[str, Mapping[int, Path]]
    settings: EvaluationSettings
    scheme: LabelScheme
    levels: Path | None = None
    told: Collection[str] = ()

    def file_of(self, whose: str, label: int) -> Path:
        """Return the file of a method, or of `REFERENCE`, that has a label."""
        return (self.references if whose == REFERENCE else self.predictions[whose])[label]


@dataclass(frozen=True)
class MeasuredCase:
    """Measures of one case.

    `rows` has one per label and method: names of `measure_table.MEASURES`, method, label, kind, resampled,
    prediction, reference. `slices` has one per label, method (and `REFERENCE`) and slice of the reference.
    `instances` has one per label, method and object. `reliability`: (method, label) -> curve. `doubts` are
    about its files, see `LabelMap`; `has_place`: heights of its slices compare with those of other images.
    """

    case: Case
    rows: list[dict[str, Any]]
    slices: pd.DataFrame
    instances: pd.DataFrame
    reliability: dict[tuple[str, int], ReliabilityCurve]
    doubts: tuple[Finding, ...]
    has_place: bool


def measure_case(job: CaseJob) -> MeasuredCase:
    """Return all measures of one case; a `UserError` names the file that cannot be used."""
    stored: dict[Path, LabelMap] = {}
    rows, slices, instances, reliability = [], [], [], {}
    doubts: dict[Finding, None] = {}
    levels = load_nifti(job.levels) if job.levels else None
    for label, reference_file in job.references.items():
        unknown = unknown_of(reference_file, job.case.case_id, job.scheme)
        reference = _read(job, REFERENCE, label, stored, unknown)
        doubts |= dict.fromkeys(reference.doubts)
        table = _slice_areas(reference, levels)
        extent = table["csa_mm2"].notna()
        slices.append(_tidy(table, extent, label, REFERENCE, table))
        for method, files in job.predictions.items():
            given = _read(job, method, label, stored)
            doubts |= dict.fromkeys(given.doubts)
            prediction, resampled = on_grid_of(given, reference, resample=job.settings.resample)
            prediction = known_part(prediction, reference)
            pair, grid = (prediction.values, reference.values), reference.grid
            split = tuple(grid.spacing_mm) if job.settings.split_touching else None
            matches = match_instances(*pair, split_touching=split)
            instances.append(matches.table(grid.affine).assign(method=method, label=label))
            curve = reliability_curve(*pair, grid.spacing_mm, unknown=reference.unknown)
            reliability[method, label] = curve
            measures = case_measures(
                *pair,
                grid.steps_mm,
                surface_dice_tolerance_mm=job.settings.surface_dice_tolerance_mm,
                instances=matches,
                calibration=curve,
                unknown=reference.unknown,
            )
            who = {"method": method, "label": label, "kind": given.kind, "resampled": resampled}
            files_used = {"prediction": str(files[label]), "reference": str(reference_file)}
            rows.append({**who, **measures, **files_used})
            slices.append(_tidy(_slice_areas(prediction, None), extent, label, method, table))
    nowhere = any(doubt.what == NOWHERE for doubt in doubts)
    has_place = not nowhere and all(each.has_place for each in stored.values())
    of_slices, of_objects = (pd.concat(each, ignore_index=True) for each in (slices, instances))
    return MeasuredCase(job.case, rows, of_slices, of_objects, reliability, (*doubts,), has_place)


def _read(
    job: CaseJob, whose: str, label: int, stored: dict[Path, LabelMap], unknown: Unknown | None = None
) -> LabelMap:
    """Return one label of a method or of `REFERENCE`; a label map of several labels is read once."""
    file, case_id, told = job.file_of(whose, label), job.case.case_id, whose in job.told
    if file not in stored:
        stored[file] = read_stored(file, unknown, soft=is_of_label(file, label, case_id, told=told))
    labels, chosen = tuple(job.references), job.settings.labels is not None
    region = job.scheme.region_of(label)
    return label_of(stored[file], label, labels, case_id=case_id, told=told, chosen=chosen, region=region)


def unknown_of(reference: Path, case_id: str, scheme: LabelScheme) -> Unknown:
    """Return what marks unknown voxels of a reference: of softLabelsTr the label map in labelsTr, too."""
    folder = reference.parent
    beside = stored_as(folder.parent / folder.name.replace("softLabels", "labels"), case_id)
    there = scheme.ignore is not None and folder.name.startswith("softLabels") and beside.is_file()
    return Unknown(scheme.ignore, beside if there else None)


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
