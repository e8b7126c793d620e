"""Faults of a raw dataset and its soft labels, found before hours of training are spent on it."""

import dataclasses
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import (
    ONE_ORIENTATION,
    VANILLA,
    TrainingCase,
    dataset_finding,
    dataset_json_findings,
    dataset_name,
    dataset_number,
    foreground_labels,
    nnunet_folder,
    reader_name,
    training_cases,
)
from nnunet_softseg.datasets.soft_label import soft_label_file
from nnunet_softseg.errors import Finding, UserError, examples, short_name, unfit
from nnunet_softseg.io.case_files import Case
from nnunet_softseg.io.geometry import (
    TWO_SIZES,
    VoxelGrid,
    array_orientation,
    geometry_findings,
    grid_findings,
    reader_geometry_findings,
    sizes_agree,
    sizes_in_file,
)
from nnunet_softseg.io.nifti import (
    MapKind,
    classify,
    content_findings,
    file_findings,
    load_nifti,
    stored_values,
)
from nnunet_softseg.io.results import load_json
from nnunet_softseg.io.workers import try_jobs

_READER_ORDER = (0, 1, 2)
_AGAIN = "write the file again"
UNLIKE_VOXELS = 3.0
"""Voxels are alike up to this ratio along each axis of the body."""
_FEWEST_TO_COMPARE, _FEW_CASES = 3, 0.05


@dataclass(frozen=True)
class CheckReport:
    """Errors (training would fail, or learn something else than meant) and warnings about a dataset."""

    dataset: str
    num_cases: int
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    @property
    def number(self) -> str:
        """Id of the dataset, as nnU-Net's commands take it."""
        return dataset_number(self.dataset)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it, with what made it."""
        made_by = {"nnunet_softseg": __version__, "python": platform.python_version()}
        command = f"nnunet-softseg check -d {self.dataset}"
        return {"made_by": made_by, "command": command, **dataclasses.asdict(self)}

    def as_text(self) -> str:
        """Return the report in lines, errors first."""
        lines = [f"{self.dataset}: {self.num_cases} cases looked at"]
        for name, findings in (("error", self.errors), ("warning", self.warnings)):
            plural = "" if len(findings) == 1 else "s"
            lines.append(f"{len(findings)} {name}{plural}" + (":" if findings else ""))
            lines += [f"  {finding}" for finding in findings]
        return "\n".join(lines)


@dataclass(frozen=True)
class _CaseJob:
    case: TrainingCase
    soft_files: tuple[Path, ...]
    labels: tuple[int, ...]
    reader: str
    num_channels: int


@dataclass(frozen=True)
class _CaseResult:
    findings: list[Finding]
    orientation: str | None = None
    is_binary: bool = False
    spacing_mm: tuple[float, ...] | None = None


def check(dataset: int | str, num_processes: int = 4, *, progress: bool = True) -> CheckReport:
    """Return the faults of a raw dataset.

    Args:
        dataset: id or name of a dataset in nnUNet_raw.
        num_processes: cases read at a time.
        progress: show a bar.

    Raises:
        UserError: if there is no such dataset; all other faults are findings of the report.
    """
    name = dataset_name(dataset)
    folder = nnunet_folder("nnUNet_raw", name)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: expected a raw dataset, found no such folder: check nnUNet_raw and the id"
        )
    cases, findings = _cases_and_findings(folder, num_processes, progress)
    errors = tuple(finding for finding in findings if finding.severity == "error")
    return CheckReport(name, len(cases), errors, tuple(f for f in findings if f.severity == "warning"))


def _cases_and_findings(
    folder: Path, num_processes: int, progress: bool
) -> tuple[tuple[TrainingCase, ...], list[Finding]]:
    try:
        dataset_json = load_json(folder / "dataset.json")
    except UserError as error:
        return (), [dataset_finding("unreadable", "JSON as nnU-Net describes it", str(error), "repair it")]
    findings = dataset_json_findings(dataset_json)
    if findings:  # files can only be told right from wrong by a dataset.json that is right
        return (), findings
    cases = training_cases(folder, dataset_json)
    if not cases:
        expected = f"<case>_0000{dataset_json['file_ending']}"
        return (), [Finding(f"{folder.name}/imagesTr", "no training images", expected, "none", "add them")]
    jobs = _case_jobs(folder, dataset_json, cases)
    options = {"num_processes": num_processes, "progress": progress, "description": "Checking cases"}
    outcomes = try_jobs(_check_case, jobs, lambda job: job.case.case_id, **options)
    case_ids = [case.case_id for case in cases]
    results = [
        _CaseResult([unfit(case_id, found)]) if isinstance(found, UserError) else found
        for case_id, found in zip(case_ids, outcomes, strict=True)
    ]
    if dataset_json["numTraining"] != len(cases):
        what, expected = "wrong number of cases", f"numTraining = {len(cases)}, the cases at hand"
        found, remedy = str(dataset_json["numTraining"]), "correct it, or look for lost images"
        findings.append(dataset_finding(what, expected, found, remedy, severity="warning"))
    findings += soft_label.folder_findings(folder / soft_label.FOLDER, case_ids, jobs[0].labels)
    findings += [finding for result in results for finding in result.findings]
    orientations = [result.orientation for result in results]
    findings += orientation_findings(dict(zip(case_ids, orientations, strict=True)))
    images = [short_name(case.images[0]) for case in cases]
    spacings = [result.spacing_mm for result in results]
    findings += spacing_findings(dict(zip(images, spacings, strict=True)))
    if all(result.is_binary for result in results):
        what, expected, found = "every soft label is a mask", "some values between 0 and 1", "0 and 1 only"
        remedy = "nothing, if masks are meant; else make them again without threshold or nearest neighbour"
        findings.append(Finding(soft_label.FOLDER, what, expected, found, remedy, "warning"))
    findings += _preprocessed_findings(folder, dataset_json, case_ids)
    return cases, findings


def _case_jobs(
    folder: Path, dataset_json: Mapping[str, Any], cases: Sequence[TrainingCase]
) -> list[_CaseJob]:
    labels, num_channels = foreground_labels(dataset_json), len(dataset_json["channel_names"])
    try:
        reader = reader_name(dataset_json, cases[0].images[0])
    except UserError:  # this image will be named among the findings; the others can still be looked at
        reader = "NibabelIO"
    jobs = []
    for case in cases:
        files = [soft_label_file(folder / soft_label.FOLDER, case.case_id, label) for label in labels]
        jobs.append(_CaseJob(case, tuple(files), labels, reader, num_channels))
    return jobs


def _check_case(job: _CaseJob) -> _CaseResult:
    findings, properties = _image_findings(job)
    orientation = None if properties is None else array_orientation(properties, _READER_ORDER)
    soft_labels = []
    for file in filter(Path.is_file, job.soft_files):  # `folder_findings` names the others
        of_file, values = _soft_label_findings(file, job, properties)
        findings += of_file
        if values is not None and not _has_error(of_file):
            soft_labels.append(values)
    if len(soft_labels) < len(job.soft_files):
        soft_labels = []
    findings += soft_label.overlap_findings(job.soft_files, soft_labels)
    findings += _label_map_findings(job, properties is not None, soft_labels)
    kinds = {classify(values).kind for values in soft_labels}
    is_binary = bool(kinds) and kinds <= {MapKind.MASK, MapKind.EMPTY}
    spacing_mm = None if properties is None else VoxelGrid.of(load_nifti(job.case.images[0])).body_spacing_mm
    return _CaseResult(findings, orientation, is_binary, spacing_mm)


def _image_findings(job: _CaseJob) -> tuple[list[Finding], dict[str, Any] | None]:
    """Return the faults of an image, and the reader's properties of it; None: unreadable."""
    name, findings = short_name(job.case.images[0]), []
    if len(job.case.images) != job.num_channels:
        expected, found = f"{job.num_channels}, as channel_names", str(len(job.case.images))
        findings.append(Finding(name, "wrong number of channels", expected, found, "add or remove files"))
    broken = [finding for image in job.case.images for finding in file_findings(image)]
    if broken:
        return findings + broken, None
    try:
        _, properties = soft_label.read_image(job.case.images, soft_label.find_reader(job.reader))
    except UserError as error:
        return [*findings, Finding(name, "unreadable image", "a NIfTI file", str(error), _AGAIN)], None
    for file in job.case.images:
        findings += [*_geometry_findings(file), *_intensity_findings(file)]
    return findings, properties


def _geometry_findings(file: Path) -> list[Finding]:
    """Return the doubts about an image's geometry; gross ones, by which training would go, are errors."""
    image = load_nifti(file)
    gross = not sizes_agree(sizes_in_file(file, image), VoxelGrid.of(image).spacing_mm)
    return [
        dataclasses.replace(doubt, severity="error") if gross and doubt.what == TWO_SIZES else doubt
        for doubt in geometry_findings(file, image)
    ]


def _intensity_findings(file: Path) -> list[Finding]:
    name, image = short_name(file), stored_values(file)
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        found = f"{bad} voxels that are not"
        return [Finding(name, "NaN or infinite intensities", "finite values", found, "replace them")]
    if not image.any():
        return [Finding(name, "image is all zero", "an image", "only zeros", "remove the case", "warning")]
    return []


def _soft_label_findings(
    file: Path, job: _CaseJob, properties: Mapping[str, Any] | None
) -> tuple[list[Finding], npt.NDArray[np.float32] | None]:
    """Return the faults of a soft label, and its values (x, y, z); None: unreadable."""
    findings = file_findings(file)
    if findings:
        return findings, None
    try:
        _, seen = soft_label.read_image([file], soft_label.find_reader(job.reader))
    except UserError as error:
        return [Finding(short_name(file), "unreadable soft label", "a NIfTI file", str(error), _AGAIN)], None
    if properties is not None:
        findings = _grid_findings(file, job.case.images[0])
        findings = findings or reader_geometry_findings(file, properties, seen)
    values = stored_values(file)
    return findings + content_findings(file, values), values


def _label_map_findings(
    job: _CaseJob, image_is_right: bool, soft_labels: Sequence[npt.NDArray[np.float32]]
) -> list[Finding]:
    file = job.case.label_map
    if not file.is_file():
        what, remedy = "label map is missing", "write it as soft label > 0.5"
        return [Finding(short_name(file), what, "the integer labels", "none", remedy)]
    findings = file_findings(file)
    if findings or not image_is_right:
        return findings
    # nnU-Net takes the array alone: training would be right, but a viewer shows the map in the wrong place.
    findings = [
        dataclasses.replace(finding, severity="warning") if finding.what.startswith("affine") else finding
        for finding in _grid_findings(file, job.case.images[0])
    ]
    if soft_labels and not _has_error(findings):
        label_map = stored_values(file)
        findings += soft_label.label_map_findings(file, label_map, soft_labels, job.labels)
    return findings


def _grid_findings(file: Path, image: Path) -> list[Finding]:
    return grid_findings(file, VoxelGrid.of(load_nifti(image)), VoxelGrid.of(load_nifti(file)))


def _has_error(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def orientation_findings(orientations: Mapping[str, str | None]) -> list[Finding]:
    """Compare the cases' orientations: one letter of R, L, A, P, S, I per array axis; None: unknown."""
    by_axis: dict[str, list[str]] = defaultdict(list)
    by_letters: dict[str, list[str]] = defaultdict(list)
    for case_id, letters in orientations.items():
        if letters:
            axis = next(axis for axis, letter in enumerate(letters) if letter in "SI")
            by_axis[f"axis {axis}"].append(case_id)
            by_letters[letters].append(case_id)
    if len(by_axis) > 1:
        what, expected = "mixed orientations", "superior-inferior along one array axis in all cases"
        return [dataset_finding(what, expected, _groups(by_axis), ONE_ORIENTATION)]
    if len(by_letters) > 1:
        what, expected = "cases point in different directions", "one orientation"
        remedy = f"the network will see some of them flipped or turned: {ONE_ORIENTATION}"
        return [dataset_finding(what, expected, _groups(by_letters), remedy, severity="warning")]
    return []


def spacing_findings(spacings: Mapping[str, tuple[float, ...] | None]) -> list[Finding]:
    """Say which images have voxels that hardly any other has: mm along R-L, A-P and S-I; None: unknown."""
    known = {name: spacing for name, spacing in spacings.items() if spacing}
    if len(known) < _FEWEST_TO_COMPARE:
        return []
    sizes = np.log(np.array(list(known.values())))
    alike = (np.abs(sizes[:, None] - sizes[None]).max(axis=2) <= np.log(UNLIKE_VOXELS)).sum(axis=1)
    expected = f"within {UNLIKE_VOXELS:g} times {_listed(np.exp(np.median(sizes, axis=0)))} mm along R, A, S"
    remedy = "look whether its header is in mm; nothing, if such images are meant to be there"
    return [
        Finding(name, "voxels unlike those of the others", expected, f"{_listed(own)} mm", remedy, "warning")
        for (name, own), number in zip(known.items(), alike, strict=True)
        if number <= max(1, _FEW_CASES * len(known))
    ]


def _listed(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def _groups(cases_by_group: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{group} in {examples(cases)}" for group, cases in sorted(cases_by_group.items()))


def _preprocessed_findings(
    raw_folder: Path, dataset_json: Mapping[str, Any], case_ids: Sequence[str]
) -> list[Finding]:
    """Say whether splits and plans fit; nnU-Net copies splits from the raw folder when it plans."""
    name = raw_folder.name
    try:
        folder = nnunet_folder("nnUNet_preprocessed", name)
    except UserError:
        folder = raw_folder  # not planned yet
    candidates = (place / "splits_final.json" for place in (folder, raw_folder))
    splits = next(filter(Path.is_file, candidates), None)
    planned = folder / "dataset.json"
    try:
        findings = split_findings(load_json(splits) if splits else None, case_ids)
        if planned.is_file() and load_json(planned)["labels"] != dataset_json["labels"]:
            what, expected = "labels have changed since planning", "those of nnUNet_raw"
            found, remedy = f"others in nnUNet_preprocessed/{name}", "run nnUNetv2_plan_and_preprocess again"
            findings.append(dataset_finding(what, expected, found, remedy, severity="warning"))
    except (UserError, KeyError, TypeError, AttributeError) as error:
        what = f"broken JSON in {'nnUNet_raw' if folder == raw_folder else 'nnUNet_preprocessed'}"
        findings = [Finding(name, what, "splits_final.json and dataset.json", str(error), "repair it")]
    return findings + _cascade_findings(folder)


def split_findings(splits: Any, case_ids: Sequence[str]) -> list[Finding]:
    """Say whether a subject falls on both sides of a split, and whether splits name unknown cases.

    splits_final.json holds {"train": cases, "val": cases} per fold; None: nnU-Net splits by case.
    """
    file, remedy = "splits_final.json", "write one grouped by subject"
    if splits is None:
        repeated = sorted(name for name, number in Counter(_subjects(case_ids)).items() if number > 1)
        if not repeated:
            return []
        what, expected = "nnU-Net will put one subject on both sides of its splits", "a split by subject"
        found = f"none yet, and several cases of {examples(repeated)}"
        return [Finding(file, what, expected, found, remedy, "warning")]
    findings = []
    for fold, split in enumerate(splits):
        unknown = sorted({*split["train"], *split["val"]} - set(case_ids))
        if unknown:
            what, expected = f"fold {fold} names unknown cases", "cases of imagesTr"
            findings.append(Finding(file, what, expected, examples(unknown), "correct or remove the file"))
        both = sorted({*_subjects(split["train"])} & {*_subjects(split["val"])})
        if both:
            what, expected = f"fold {fold} validates on subjects that it trains on", "each on one side"
            findings.append(Finding(file, what, expected, examples(both), remedy, "warning"))
    return findings


def _subjects(case_ids: Iterable[str]) -> list[str]:
    return [Case.from_name(case_id).subject for case_id in case_ids]


def _cascade_findings(folder: Path) -> list[Finding]:
    findings = []
    for file in sorted(folder.glob("*.json")):
        try:
            configurations = load_json(file)["configurations"]
        except (UserError, KeyError, TypeError):  # not plans
            continue
        for name, configuration in configurations.items():
            if configuration.get("previous_stage") is not None:
                what, expected = "plans hold a cascade", "configurations without a previous stage"
                found, remedy = f"{name}, not supported yet", f"use 3d_fullres or 3d_lowres, or {VANILLA}"
                findings.append(Finding(file.name, what, expected, found, remedy, "warning"))
    return findings
