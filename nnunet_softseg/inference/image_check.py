"""What `predict` would say of images, before it runs: `nnunet-softseg check -i IMAGES [-m MODEL]`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_softseg.datasets.check import CheckReport, spacing_findings
from nnunet_softseg.datasets.raw_dataset import channel_names
from nnunet_softseg.errors import Finding, UserError
from nnunet_softseg.inference.case_record import WORDS, CaseRecord, Flag
from nnunet_softseg.inference.network_image import preprocess_files, volume_findings
from nnunet_softseg.inference.predict import ImageCase, find_cases, images_passed_over
from nnunet_softseg.inference.runtime import RuntimeModel
from nnunet_softseg.inference.trained_model import FileModel, load_predictor, open_any_model
from nnunet_softseg.io.formats import is_nifti
from nnunet_softseg.io.geometry import VoxelGrid, geometry_findings
from nnunet_softseg.io.nifti import (
    PER_VOLUME,
    StrPath,
    file_findings,
    load_nifti,
    not_finite,
    stored_values,
)
from nnunet_softseg.io.workers import try_jobs

_Said = tuple[list[Finding], tuple[float, ...] | None]
"""Findings about a case, and its voxel in mm along R-L, A-P, S-I."""


def check_images(
    source: StrPath,
    model: StrPath | None = None,
    num_processes: int = 4,
    *,
    trust_model: bool = False,
    progress: bool = True,
) -> CheckReport:
    """Return what is wrong with images to predict; each is read and, for a model, preprocessed.

    Args:
        source: an image, a folder, or a BIDS folder, as `predict` takes it.
        model: also say what does not fit it: channels, orientation, voxel sizes, field of view.
        num_processes: cases read at a time; with a model, one.
        trust_model: open a checkpoint that holds more than weights and numbers.
        progress: show a bar.

    Raises:
        UserError: if there is no image or no model of ours.
    """
    root, ending = Path(source), None
    if model is None:
        cases = find_cases(root, 1, file_ending=ending)
        outcomes = _look(_check_case, cases, num_processes, progress)
    else:
        with open_any_model(model, None, trusted=trust_model) as found:
            ending = found.dataset_json["file_ending"]
            cases = find_cases(root, len(channel_names(found.dataset_json)), file_ending=ending)
            of_model = RuntimeModel(found) if isinstance(found, FileModel) else load_predictor(found)
            outcomes = _look(partial(_check_for_model, of_model), cases, 0, progress)
    findings = [
        Finding(str(root), "files passed over", "images of one format", text, "see there", "warning")
        for text in images_passed_over(root, ending)
    ]
    spacings: dict[str, tuple[float, ...] | None] = {}
    for case, outcome in zip(cases, outcomes, strict=True):
        if isinstance(outcome, UserError):
            what, expected = "predict refuses it", "an image that fits"
            findings.append(Finding(case.case_id, what, expected, str(outcome), "see there"))
        else:
            findings += outcome[0]
            spacings[case.case_id] = outcome[1]
    findings += spacing_findings(spacings)
    errors = tuple(finding for finding in findings if finding.severity == "error")
    warnings = tuple(finding for finding in findings if finding.severity == "warning")
    command = f"nnunet-softseg check -i {source}" + (f" -m {model}" if model else "")
    return CheckReport(root.name, len(cases), errors, warnings, command)


def _look(check: Any, cases: Sequence[ImageCase], num_processes: int, progress: bool) -> list[Any]:
    options = {"num_processes": num_processes, "progress": progress, "description": "Checking images"}
    return try_jobs(check, cases, lambda case: case.case_id, **options)


def _check_case(case: ImageCase) -> _Said:
    """Return what any model would object to."""
    findings: list[Finding] = []
    for file in case.files:
        of_file = file_findings(file, colours=True, several=PER_VOLUME)
        if not of_file:
            image, values = load_nifti(file), stored_values(file)
            of_file = [*volume_findings(file, flat=False)] if is_nifti(file.name) else []
            of_file += geometry_findings(file, image)
            if not np.isfinite((values.min(), values.max())).all():
                of_file.append(not_finite(case.case_id, values))
            elif values.min() == values.max():
                what, found = WORDS[Flag.CONSTANT][0], f"{values.flat[0]:g} everywhere"
                of_file.append(Finding(case.case_id, what, "an image", found, "repair it", "warning"))
        findings += of_file
    broken = any(finding.severity == "error" for finding in findings)
    return findings, None if broken else VoxelGrid.of(load_nifti(case.files[0])).body_spacing_mm


def _check_for_model(of_model: Any, case: ImageCase) -> _Said:
    """Return what `predict` refuses or flags before the network sees the image."""
    files = list(map(str, case.files))
    _, properties = preprocess_files(files, of_model.plans_manager, of_model.configuration_manager)
    record, findings = CaseRecord.of(properties), []
    if record.flags:
        said = [WORDS[flag] for flag in record.flags]
        what, remedies = ", ".join(word for word, _ in said), dict.fromkeys(remedy for _, remedy in said)
        found, expected = "; ".join(record.warnings), "images like those of the training"
        findings = [Finding(case.case_id, what, expected, found, "; ".join(remedies), "warning")]
    return findings, VoxelGrid.of(load_nifti(case.files[0])).body_spacing_mm
