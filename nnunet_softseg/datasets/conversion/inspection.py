"""Faults and hashes of all sources, found before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_softseg.datasets.conversion.sources import SourceCase
from nnunet_softseg.datasets.soft_label import overlap_findings, unknown_voxels, value_findings
from nnunet_softseg.errors import Finding, UserError, examples, grouped, short_name, unfit
from nnunet_softseg.io.geometry import VoxelGrid, grid_findings
from nnunet_softseg.io.nifti import (
    MapKind,
    classify,
    file_findings,
    geometry_warnings,
    load_nifti,
    stored_values,
)
from nnunet_softseg.io.results import sha256
from nnunet_softseg.io.workers import try_jobs


@dataclass(frozen=True)
class Inspection:
    """Faults and hashes (none if there is an error) of one case; its soft labels that hold 0 and 1 only.

    `is_partly_unknown`: somewhere no label is known.
    """

    case_id: str
    errors: list[Finding]
    warnings: list[Finding] = field(default_factory=list)
    sha256: dict[Path, str] = field(default_factory=dict)
    masks: list[Path] = field(default_factory=list)
    is_partly_unknown: bool = False


def inspect_cases(cases: Sequence[SourceCase], *, num_processes: int, progress: bool) -> list[Inspection]:
    """Return faults and hashes of every case, in their order; a UserError if any case is not fit."""
    jobs = {"num_processes": num_processes, "progress": progress, "description": "Looking at cases"}
    inspections = [
        Inspection(case.case_id, [unfit(case.case_id, found)]) if isinstance(found, UserError) else found
        for case, found in zip(
            cases, try_jobs(inspect, cases, lambda case: case.case_id, **jobs), strict=True
        )
    ]
    broken = [inspection for inspection in inspections if inspection.errors]
    if broken:
        others = [inspection.case_id for inspection in broken[1:]]
        more = f" (so are {len(others)} other cases: {examples(others)})" if others else ""
        raise UserError(f"case {broken[0].case_id} is not fit: {broken[0].errors[0]}{more}")
    return inspections


def inspect(case: SourceCase) -> Inspection:
    """Return faults and hashes of one case."""
    files = (case.image, *case.soft_labels)
    findings = [finding for file in files for finding in file_findings(file)]
    if findings:
        return Inspection(case.case_id, findings)
    grid, soft_labels, masks = VoxelGrid.of(load_nifti(case.image)), [], []
    for file in case.soft_labels:
        soft_labels.append(stored_values(file))
        of_file = grid_findings(file, grid, VoxelGrid.of(load_nifti(file)))
        of_file += value_findings(file, soft_labels[-1])
        unknown = np.isnan(soft_labels[-1])
        if unknown.any():
            what, expected, found = "unknown voxels (NaN)", "values", f"{int(unknown.sum())} of them"
            remedy = (
                "nothing, if nobody looked there; vanilla trainers leave out voxels in which no label is "
            )
            remedy += "known (the label to ignore in labelsTr), and take this label for absent in others"
            of_file.append(Finding(short_name(file), what, expected, found, remedy, "warning"))
        if not of_file and classify(soft_labels[-1]).kind is MapKind.MASK:
            masks.append(file)
        findings += of_file
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        return Inspection(case.case_id, errors)
    findings += [*geometry_warnings(case.image), *overlap_findings(case.soft_labels, soft_labels)]
    hashes, unknown = {file: sha256(file) for file in files}, unknown_voxels(soft_labels)
    return Inspection(case.case_id, [], findings, hashes, masks, bool(unknown.any()))


def inspection_warnings(inspections: Sequence[Inspection]) -> list[str]:
    """Return one line for each kind of warning, with its files."""
    lines = grouped((found for inspection in inspections for found in inspection.warnings), len(inspections))
    masks = [file.name for inspection in inspections for file in inspection.masks]
    if masks:
        number = sum(bool(inspection.masks) for inspection in inspections)
        lines.append(
            f"{number} of {len(inspections)} cases: the soft label holds 0 and 1 only ({examples(masks)}): "
            "this is a mask; make soft labels (nnunet-softseg make-gt, fuse) or choose another --suffix, "
            "unless it is meant"
        )
    return lines
