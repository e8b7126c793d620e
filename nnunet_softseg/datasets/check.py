"""Faults of a raw dataset and its soft labels, found before hours of training are spent on it."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_softseg import __version__
from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.case_checks import CaseJob, CaseResult, check_case
from nnunet_softseg.datasets.case_comparison import (
    SPLITS,
    channel_findings,
    orientation_findings,
    spacing_findings,
    split_findings,
    unknown_findings,
)
from nnunet_softseg.datasets.raw_dataset import (
    NnunetFolders,
    TrainingCase,
    dataset_finding,
    dataset_json_findings,
    dataset_number,
    label_scheme,
    reader_name,
    training_cases,
)
from nnunet_softseg.datasets.raw_files import place_findings, unused_findings
from nnunet_softseg.datasets.soft_label import soft_label_file
from nnunet_softseg.errors import Finding, UserError, short_name, unfit
from nnunet_softseg.io.formats import READERS
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import load_json
from nnunet_softseg.io.workers import try_jobs


@dataclass(frozen=True)
class CheckReport:
    """Errors (training would fail, or learn something else than meant) and warnings about a dataset.

    Of images to predict (`image_check.check_images`), `dataset` is the name of their folder. `configuration`
    is nnU-Net's that comes next: 2d for images of one slice.
    """

    dataset: str
    num_cases: int
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    command: str = ""
    configuration: str = "3d_fullres"

    @property
    def number(self) -> str:
        """Id of the dataset, as nnU-Net's commands take it."""
        return dataset_number(self.dataset)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it, with what made it."""
        made_by = {"nnunet_softseg": __version__, "python": platform.python_version()}
        command = self.command or f"nnunet-softseg check -d {self.dataset}"
        return {"made_by": made_by, **dataclasses.asdict(self), "command": command}

    def as_text(self) -> str:
        """Return the report in lines, errors first."""
        lines = [f"{self.dataset}: {self.num_cases} cases looked at"]
        for name, findings in (("error", self.errors), ("warning", self.warnings)):
            plural = "" if len(findings) == 1 else "s"
            lines.append(f"{len(findings)} {name}{plural}" + (":" if findings else ""))
            lines += [f"  {finding}" for finding in findings]
        return "\n".join(lines)


def check(dataset: int | str, num_processes: int = 4, *, progress: bool = True) -> CheckReport:
    """Return the faults of a raw dataset.

    Args:
        dataset: id or name of a dataset in nnUNet_raw.
        num_processes: cases read at a time.
        progress: show a bar.

    Raises:
        UserError: if there is no such dataset; all other faults are findings of the report.
    """
    folders = NnunetFolders.from_environment()
    name = folders.dataset_name(dataset)
    folder = folders.of_dataset("raw", name)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: expected a raw dataset, found no such folder: check nnUNet_raw and the id"
        )
    planned = folders.preprocessed / name if folders.preprocessed else folder  # not planned yet
    cases, findings = _cases_and_findings(folder, planned, num_processes, progress)
    errors = tuple(finding for finding in findings if finding.severity == "error")
    warnings = tuple(finding for finding in findings if finding.severity == "warning")
    is_flat = not errors and _num_slices(cases[0].images[0]) == 1
    report = CheckReport(name, len(cases), errors, warnings)
    return dataclasses.replace(report, configuration="2d") if is_flat else report


def _num_slices(image: Path) -> int:
    """Return the length of the last axis of space, (x, y, z) of the file."""
    return VoxelGrid.of(load_nifti(image)).shape[2]


def _cases_and_findings(
    folder: Path, planned: Path, num_processes: int, progress: bool
) -> tuple[tuple[TrainingCase, ...], list[Finding]]:
    try:
        dataset_json = load_json(folder / "dataset.json")
    except UserError as error:
        return (), [dataset_finding("unreadable", "JSON as nnU-Net describes it", str(error), "repair it")]
    findings = dataset_json_findings(dataset_json)
    if findings:  # files can only be told right from wrong by a dataset.json that is right
        return (), findings
    cases = training_cases(folder, dataset_json)
    findings = [*place_findings(folder), *unused_findings(folder, dataset_json, cases)]
    if not cases:
        expected = f"<case>_0000{dataset_json['file_ending']}"
        none = Finding(f"{folder.name}/imagesTr", "no training images", expected, "none", "add them")
        return (), [none, *findings]
    jobs = _case_jobs(folder, dataset_json, cases)
    options = {"num_processes": num_processes, "progress": progress, "description": "Checking cases"}
    outcomes = try_jobs(check_case, jobs, lambda job: job.case.case_id, **options)
    case_ids = [case.case_id for case in cases]
    results = [
        CaseResult([unfit(case_id, found)]) if isinstance(found, UserError) else found
        for case_id, found in zip(case_ids, outcomes, strict=True)
    ]
    if dataset_json["numTraining"] != len(cases):
        what, expected = "wrong number of cases", f"numTraining = {len(cases)}, the cases at hand"
        found, remedy = str(dataset_json["numTraining"]), "correct it, or look for lost images"
        findings.append(dataset_finding(what, expected, found, remedy, severity="warning"))
    findings += soft_label.folder_findings(folder / soft_label.FOLDER, case_ids, jobs[0].scheme.numbers)
    findings += soft_label.precision_findings(file for job in jobs for file in job.soft_files)
    findings += [finding for result in results for finding in result.findings]
    findings += _comparison_findings(dict(zip(cases, results, strict=True)), dataset_json)
    known = {case_id: result.known for case_id, result in zip(case_ids, results, strict=True) if result.known}
    findings += unknown_findings(jobs[0].scheme.names, known)
    if all(result.is_binary for result in results):
        what, expected, found = "every soft label is a mask", "some values between 0 and 1", "0 and 1 only"
        remedy = "nothing, if masks are meant; else make them again without threshold or nearest neighbour"
        findings.append(Finding(soft_label.FOLDER, what, expected, found, remedy, "warning"))
    findings += _preprocessed_findings(folder, planned, dataset_json, case_ids)
    return cases, findings


def _comparison_findings(
    results: Mapping[TrainingCase, CaseResult], dataset_json: Mapping[str, Any]
) -> list[Finding]:
    channels = [
        str(name) for _, name in sorted(dataset_json["channel_names"].items(), key=lambda n: int(n[0]))
    ]
    return [
        *orientation_findings({case.case_id: result.orientation for case, result in results.items()}),
        *spacing_findings(
            {short_name(case.images[0]): result.spacing_mm for case, result in results.items()}
        ),
        *channel_findings({case.case_id: result.channels for case, result in results.items()}, channels),
    ]


def _case_jobs(folder: Path, dataset_json: Mapping[str, Any], cases: Sequence[TrainingCase]) -> list[CaseJob]:
    scheme, num_channels = label_scheme(dataset_json), len(dataset_json["channel_names"])
    try:
        reader = reader_name(dataset_json, cases[0].images[0])
    except UserError:  # this image will be named among the findings; the others can still be looked at
        reader = READERS[dataset_json["file_ending"]][-1]
    jobs = []
    for case in cases:
        files = [
            soft_label_file(folder / soft_label.FOLDER, case.case_id, number) for number in scheme.numbers
        ]
        jobs.append(CaseJob(case, tuple(files), scheme, reader, num_channels))
    return jobs


def _preprocessed_findings(
    raw_folder: Path, folder: Path, dataset_json: Mapping[str, Any], case_ids: Sequence[str]
) -> list[Finding]:
    """Say whether splits and labels fit: of both folders, as a split in the raw one is there to be copied."""
    name, planned = raw_folder.name, folder / "dataset.json"
    try:
        findings = _split_findings([folder / SPLITS, raw_folder / SPLITS], case_ids)
        if planned.is_file() and load_json(planned)["labels"] != dataset_json["labels"]:
            what, expected = "labels have changed since planning", "those of nnUNet_raw"
            found, remedy = f"others in nnUNet_preprocessed/{name}", "run nnUNetv2_plan_and_preprocess again"
            findings.append(dataset_finding(what, expected, found, remedy, severity="warning"))
    except (UserError, KeyError, TypeError, AttributeError) as error:
        what = f"broken JSON in {'nnUNet_raw' if folder == raw_folder else 'nnUNet_preprocessed'}"
        findings = [Finding(name, what, "splits_final.json and dataset.json", str(error), "repair it")]
    return findings


def _split_findings(files: Sequence[Path], case_ids: Sequence[str]) -> list[Finding]:
    """Return the faults of the splits that are there, the first of which nnU-Net takes."""
    found = {file: load_json(file) for file in dict.fromkeys(files) if file.is_file()}
    if not found:
        return split_findings(None, case_ids)
    findings: list[Finding] = []
    for file, splits in found.items():
        name = f"{file.parents[1].name}/{file.parent.name}/{SPLITS}" if len(found) > 1 else SPLITS
        findings += split_findings(splits, case_ids, name)
    first, *others = found.values()
    if any(splits != first for splits in others):
        what, expected = (
            "two files that differ, of which training reads that of nnUNet_preprocessed",
            "one split",
        )
        remedy = "copy the right one over the other"
        findings.append(Finding(SPLITS, what, expected, "two", remedy, "warning"))
    return findings
