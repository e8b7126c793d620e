"""Every way in which a dataset can be wrong, found before hours are spent on it."""

import dataclasses
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg import __version__, soft_label
from nnunet_softseg.center_crop import array_orientation
from nnunet_softseg.errors import UserError
from nnunet_softseg.finding import Finding, short_name
from nnunet_softseg.raw_dataset import (
    NIFTI_ENDINGS,
    NIFTI_READERS,
    VANILLA,
    TrainingCase,
    dataset_name,
    find_reader,
    foreground_labels,
    load_json,
    nnunet_folder,
    reader_name,
    training_cases,
)
from nnunet_softseg.workers import map_jobs

ONE_ORIENTATION = (
    'set "overwrite_image_reader_writer": "NibabelIOWithReorient" in dataset.json, then run nnUNetv2_plan_and_preprocess again'
)
_READER_ORDER = (0, 1, 2)


@dataclass(frozen=True)
class CheckReport:
    """What was found wrong with a dataset.

    Attributes:
        dataset: its name.
        num_cases: that were looked at.
        errors: training would fail, or learn something else than meant.
        warnings: legal, but worth a look.
    """

    dataset: str
    num_cases: int
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it, with what made it."""
        made_by = {"nnunet_softseg": __version__, "python": platform.python_version()}
        command = f"nnunet-softseg check -d {self.dataset}"
        return {"made_by": made_by, "command": command, **dataclasses.asdict(self)}

    def as_text(self) -> str:
        """Return the report in lines, errors first."""
        lines = [f"{self.dataset}: {self.num_cases} cases"]
        for title, findings in (("errors", self.errors), ("warnings", self.warnings)):
            lines += [f"{len(findings)} {title}" + (":" if findings else "")]
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
    case_id: str
    findings: tuple[Finding, ...]
    orientation: str | None = None
    is_binary: bool = False


def check(dataset: int | str, num_processes: int = 4, *, progress: bool = True) -> CheckReport:
    """Return all that is wrong with a dataset in nnUNet_raw and with its soft labels.

    Args:
        dataset: id or name.
        num_processes: that read cases at once.
        progress: show a bar.

    Raises:
        UserError: if there is no such dataset. Whatever is wrong inside it is a finding.
    """
    name = dataset_name(dataset)
    folder = nnunet_folder("nnUNet_raw", name)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a raw dataset, found no such folder: check nnUNet_raw and the id")
    findings, num_cases = _raw_findings(folder, num_processes, progress)
    errors = tuple(finding for finding in findings if finding.severity == "error")
    warnings = tuple(finding for finding in findings if finding.severity == "warning")
    return CheckReport(name, num_cases, errors, warnings)


def _raw_findings(folder: Path, num_processes: int, progress: bool) -> tuple[list[Finding], int]:
    try:
        dataset_json = load_json(folder / "dataset.json")
    except UserError as error:
        return [_dataset_finding("cannot be read", "JSON of nnU-Net's dataset format", str(error), "repair it")], 0
    findings = dataset_json_findings(dataset_json)
    if findings:  # files can only be told right from wrong by a dataset.json that is right
        return findings, 0
    cases = training_cases(folder, dataset_json)
    if not cases:
        expected = f"<case>_0000{dataset_json['file_ending']}"
        return [Finding(f"{folder.name}/imagesTr", "no training images", expected, "none", "add images")], 0
    labels = foreground_labels(dataset_json)
    findings += _number_findings(dataset_json, cases)
    findings += soft_label.folder_findings(folder / soft_label.FOLDER, [case.case_id for case in cases], labels)
    try:
        reader = reader_name(dataset_json, cases[0].images[0])
    except UserError:  # the first image is broken and is named below; the others can still be looked at
        reader = dataset_json.get("overwrite_image_reader_writer", "NibabelIO")
    results = _look_at_cases(folder, dataset_json, cases, reader, num_processes=num_processes, progress=progress)
    findings += [finding for result in results for finding in result.findings]
    findings += orientation_findings({result.case_id: result.orientation for result in results})
    findings += _binary_findings(results)
    findings += _preprocessed_findings(folder.name, dataset_json, [case.case_id for case in cases])
    return findings, len(cases)


# dataset.json


def dataset_json_findings(dataset_json: Any) -> list[Finding]:
    """Say what is wrong with dataset.json, and what of it soft training does not support."""
    if not isinstance(dataset_json, Mapping):
        return [_dataset_finding("not a JSON object", "{...}", type(dataset_json).__name__, "rewrite it")]
    missing = [key for key in ("labels", "channel_names", "numTraining", "file_ending") if key not in dataset_json]
    if missing:
        remedy = "add them, see nnU-Net's documentation/dataset_format.md"
        return [_dataset_finding("keys are missing", "all that nnU-Net needs", f"no {', '.join(missing)}", remedy)]
    return [*_label_findings(dataset_json["labels"]), *_format_findings(dataset_json)]


def _label_findings(labels: Any) -> list[Finding]:
    what = "labels that soft training cannot use"
    if not isinstance(labels, Mapping):
        expected = '{"background": 0, "name": 1, ...}'
        return [_dataset_finding(what, expected, repr(labels), "rewrite it")]
    if "ignore" in labels:
        found = f"an ignore label ({labels['ignore']}), not supported yet"
        return [_dataset_finding(what, "no ignore label", found, f"remove it, or {VANILLA}")]
    regions = [name for name, value in labels.items() if isinstance(value, list | tuple)]
    if regions:
        found = f"region-based labels ({', '.join(map(str, regions))}), not supported yet"
        return [_dataset_finding(what, "one integer per label", found, f"give one integer each, or {VANILLA}")]
    values = list(labels.values())
    if not all(isinstance(value, int) for value in values) or labels.get("background") != 0:
        expected = '"background": 0 and integers'
        return [_dataset_finding(what, expected, repr(dict(labels)), "correct them")]
    if sorted(values) != list(range(len(values))) or len(values) == 1:
        expected = "consecutive values 0, 1, ... with at least one label above 0"
        return [_dataset_finding(what, expected, repr(sorted(values)), "renumber them, in labelsTr and names too")]
    return []


def _format_findings(dataset_json: Mapping[str, Any]) -> list[Finding]:
    ending = dataset_json["file_ending"]
    reader = dataset_json.get("overwrite_image_reader_writer", "None")
    remedy = f"convert the images to NIfTI, or {VANILLA}"
    if ending not in NIFTI_ENDINGS:
        return [_dataset_finding("images are not NIfTI", " or ".join(NIFTI_ENDINGS), repr(ending), remedy)]
    if reader not in ("None", *NIFTI_READERS):
        return [_dataset_finding("not a NIfTI reader", ", ".join(NIFTI_READERS), repr(reader), remedy)]
    return []


def _number_findings(dataset_json: Mapping[str, Any], cases: Sequence[TrainingCase]) -> list[Finding]:
    if dataset_json["numTraining"] == len(cases):
        return []
    expected, found = f"numTraining = {len(cases)}, the cases at hand", str(dataset_json["numTraining"])
    return [_dataset_finding("wrong number of cases", expected, found, "correct it, or look for lost images", "warning")]


def _dataset_finding(what: str, expected: str, found: str, remedy: str, severity: Any = "error") -> Finding:
    return Finding("dataset.json", what, expected, found, remedy, severity)


# Cases


def _look_at_cases(
    folder: Path,
    dataset_json: Mapping[str, Any],
    cases: Sequence[TrainingCase],
    reader: str,
    *,
    num_processes: int,
    progress: bool,
) -> list[_CaseResult]:
    labels = foreground_labels(dataset_json)
    soft_folder = folder / soft_label.FOLDER
    jobs = []
    for case in cases:
        files = tuple(soft_label.soft_label_file(soft_folder, case.case_id, label) for label in labels)
        jobs.append(_CaseJob(case, files, labels, reader, len(dataset_json["channel_names"])))
    return map_jobs(
        _look_at_case, jobs, num_processes=num_processes, progress=progress, description="Checking cases"
    )


def _look_at_case(job: _CaseJob) -> _CaseResult:
    findings, properties = _image_findings(job)
    complete = True
    for file in job.soft_files:
        if file.is_file():  # a missing one is named by the look at the folder
            of_file = _soft_label_findings(file, job, properties)
            findings += of_file
            complete &= not any(finding.severity == "error" for finding in of_file)
        else:
            complete = False
    findings += _label_map_findings(job, properties is not None, complete)
    orientation = array_orientation(properties, _READER_ORDER) if properties else None
    is_binary = False
    if complete:
        soft_labels = [_in_file_order(file) for file in job.soft_files]
        findings += soft_label.overlap_findings(job.soft_files, soft_labels)
        is_binary = all(bool(np.isin(array, (0, 1)).all()) for array in soft_labels)
    return _CaseResult(job.case.case_id, tuple(findings), orientation, is_binary)


def _image_findings(job: _CaseJob) -> tuple[list[Finding], dict[str, Any] | None]:
    """Return what is wrong with an image, and the properties that the reader gave with it (None: unreadable)."""
    name = short_name(job.case.images[0])
    findings = []
    if len(job.case.images) != job.num_channels:
        expected, found = f"{job.num_channels} (channel_names)", str(len(job.case.images))
        findings.append(Finding(name, "wrong number of channels", expected, found, "add or remove channel files"))
    broken = [
        finding
        for image in job.case.images
        for finding in soft_label.file_findings(image)
        if finding.severity == "error"
    ]
    if broken:
        return findings + broken, None
    try:
        image, properties = soft_label.read_image(job.case.images, find_reader(job.reader))
    except UserError as error:
        again = "write the file again"
        return [*findings, Finding(name, "unreadable image", "a NIfTI file", str(error), again)], None
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        found = f"{bad} voxels that are not"
        findings.append(Finding(name, "NaN or infinite intensities", "finite values", found, "replace them"))
    elif not image.any():
        findings.append(Finding(name, "image is all zero", "an image", "only zeros", "remove the case", "warning"))
    return findings, properties


def _soft_label_findings(file: Path, job: _CaseJob, properties: Mapping[str, Any] | None) -> list[Finding]:
    findings = soft_label.file_findings(file)
    if findings:
        return findings
    try:
        array, seen = soft_label.read_soft_label(file, find_reader(job.reader))
    except UserError as error:
        again = "write the file again"
        return [Finding(short_name(file), "unreadable soft label", "a NIfTI file", str(error), again)]
    if properties is not None:
        findings += _geometry_findings(file, job.case.images[0])
        findings = findings or soft_label.reader_geometry_findings(file, properties, seen)
    return findings + soft_label.content_findings(file, array)


def _geometry_findings(file: Path, image: Path) -> list[Finding]:
    reference: Any = nib.load(image)
    label: Any = nib.load(file)
    return soft_label.shape_findings(file, reference.shape, label.shape) or soft_label.affine_findings(
        file, reference.affine, label.affine
    )


def _label_map_findings(job: _CaseJob, image_is_right: bool, soft_labels_are_right: bool) -> list[Finding]:
    file = job.case.label_map
    if not file.is_file():
        remedy = "write it as soft label > 0.5"
        return [Finding(short_name(file), "label map is missing", "the integer labels", "none", remedy)]
    findings = soft_label.file_findings(file)
    if findings or not image_is_right:
        return findings
    geometry = _geometry_findings(file, job.case.images[0])
    if geometry and geometry[0].what.startswith("affine"):
        # nnU-Net reads the array alone here, so that training is right; a viewer would show it in the wrong place.
        geometry = [dataclasses.replace(geometry[0], severity="warning")]
    if soft_labels_are_right and not any(finding.severity == "error" for finding in geometry):
        soft_labels = [_in_file_order(soft_file) for soft_file in job.soft_files]
        geometry += soft_label.label_map_findings(file, _in_file_order(file), soft_labels, job.labels)
    return geometry


def _in_file_order(file: Path) -> npt.NDArray[np.float32]:
    image: Any = nib.load(file)
    return np.asarray(image.dataobj, dtype=np.float32)


# The dataset as a whole


def orientation_findings(orientations: Mapping[str, str | None]) -> list[Finding]:
    """Say whether all cases lie the same way in their arrays.

    Args:
        orientations: case -> one letter of R, L, A, P, S, I per array axis, None where it is unknown.
    """
    by_axis: dict[int, list[str]] = defaultdict(list)
    by_letters: dict[str, list[str]] = defaultdict(list)
    for case_id, letters in orientations.items():
        if letters:
            by_axis[next(axis for axis, letter in enumerate(letters) if letter in "SI")].append(case_id)
            by_letters[letters].append(case_id)
    if len(by_axis) > 1:
        what, expected = "mixed orientations", "superior-inferior along one array axis in all cases"
        found = "; ".join(f"axis {axis} in {_examples(by_axis[axis])}" for axis in sorted(by_axis))
        return [_dataset_finding(what, expected, found, ONE_ORIENTATION)]
    if len(by_letters) > 1:
        what, expected = "cases point in different directions", "one orientation"
        found = "; ".join(f"{letters} in {_examples(by_letters[letters])}" for letters in sorted(by_letters))
        remedy = f"the network will see some of them flipped or turned: {ONE_ORIENTATION}"
        return [_dataset_finding(what, expected, found, remedy, "warning")]
    return []


def _examples(cases: Sequence[str], most: int = 3) -> str:
    more = f" and {len(cases) - most} more" if len(cases) > most else ""
    return ", ".join(cases[:most]) + more


def _binary_findings(results: Sequence[_CaseResult]) -> list[Finding]:
    if not results or not all(result.is_binary for result in results):
        return []
    remedy = "make the soft labels again without threshold or nearest-neighbour resampling, or go on if masks are meant"
    return [
        Finding(
            soft_label.FOLDER,
            "every soft label is a mask",
            "some fractions between 0 and 1",
            "0 and 1 only",
            remedy,
            "warning",
        )
    ]


def _preprocessed_findings(name: str, dataset_json: Mapping[str, Any], case_ids: Sequence[str]) -> list[Finding]:
    """Return what is odd in nnUNet_preprocessed, where there is such a folder already: splits, plans, labels."""
    try:
        folder = nnunet_folder("nnUNet_preprocessed", name)
    except UserError:
        return split_findings(None, case_ids)
    findings = []
    splits: Any = None
    try:
        if (folder / "splits_final.json").is_file():
            splits = load_json(folder / "splits_final.json")
        findings += split_findings(splits, case_ids)
        if (folder / "dataset.json").is_file() and load_json(folder / "dataset.json")["labels"] != dataset_json["labels"]:
            what, expected = "labels have changed since planning", "those of nnUNet_raw"
            found = f"others in nnUNet_preprocessed/{name}"
            remedy = "run nnUNetv2_plan_and_preprocess again"
            findings.append(_dataset_finding(what, expected, found, remedy, "warning"))
    except (UserError, KeyError, TypeError, AttributeError) as error:
        findings.append(Finding(name, "broken file in nnUNet_preprocessed", "JSON", str(error), "write it again"))
    return findings + _cascade_findings(folder)


def split_findings(splits: Any, case_ids: Sequence[str]) -> list[Finding]:
    """Say whether a subject falls on both sides of a split, and whether splits name unknown cases.

    Args:
        splits: content of splits_final.json, a list of {"train": cases, "val": cases}; None: nnU-Net will split by case.
        case_ids: of the dataset. `sub-<label>` at the start of a case names its subject, as in BIDS.
    """
    by_hand = "write splits_final.json grouped by subject (nnunet-softseg convert does)"
    if splits is None:
        repeated = sorted(subject for subject, count in _count_by_subject(case_ids).items() if count > 1)
        if not repeated:
            return []
        expected, found = "a split by subject", f"none yet, and several cases of {_examples(repeated)}"
        what = "nnU-Net will put cases of one subject on both sides of its splits"
        return [Finding("splits_final.json", what, expected, found, by_hand, "warning")]
    findings = []
    for fold, split in enumerate(splits):
        unknown = sorted({*split["train"], *split["val"]} - set(case_ids))
        if unknown:
            what, expected = f"fold {fold} names unknown cases", "cases of imagesTr"
            findings.append(Finding("splits_final.json", what, expected, _examples(unknown), "correct or remove it"))
        both = sorted(_count_by_subject(split["train"]).keys() & _count_by_subject(split["val"]).keys())
        if both:
            what, expected = f"fold {fold} validates on subjects that it trains on", "each subject on one side"
            finding = Finding("splits_final.json", what, expected, _examples(both), by_hand, "warning")
            findings.append(finding)
    return findings


def _count_by_subject(case_ids: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for case_id in case_ids:
        match = re.match(r"sub-[A-Za-z0-9]+", case_id)
        if match:
            counts[match.group()] += 1
    return counts


def _cascade_findings(folder: Path) -> list[Finding]:
    findings = []
    for file in sorted(folder.glob("*lans*.json")):
        try:
            configurations = load_json(file)["configurations"]
        except (UserError, KeyError, TypeError):
            continue
        for name, configuration in configurations.items():
            if configuration.get("previous_stage") is not None:
                expected = "a configuration without a previous stage"
                found = f"{name}, not supported yet"
                remedy = f"use 3d_fullres or 3d_lowres, or {VANILLA}"
                findings.append(Finding(file.name, "plans hold a cascade", expected, found, remedy, "warning"))
    return findings
