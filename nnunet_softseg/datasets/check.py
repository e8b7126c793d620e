"""Faults of a raw dataset and its soft labels, found before hours of training are spent on it."""

import dataclasses
import itertools
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_softseg import __version__
from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.case_checks import CaseJob, CaseResult, check_case
from nnunet_softseg.datasets.raw_dataset import (
    SPLITS,
    NnunetFolders,
    TrainingCase,
    dataset_finding,
    dataset_json_findings,
    dataset_number,
    label_scheme,
    one_orientation,
    reader_name,
    soft_label_file,
    split_findings,
    training_cases,
)
from nnunet_softseg.errors import Finding, UserError, examples, short_name, unfit
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.formats import READERS, is_image, without_ending
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import load_json
from nnunet_softseg.io.workers import try_jobs

IMAGES, LABEL_MAPS = "imagesTr", "labelsTr"
UNLIKE_VOXELS = 3.0
"""Voxels are alike up to this ratio along each axis of the body."""
_FEWEST_TO_COMPARE, _FEW_CASES = 3, 0.05
_FEWEST_TO_COMPARE_CHANNELS, _MOST_CHANNELS = 4, 4
_FAR_OFF, _CLEARLY_NEARER = 3.0, 0.5
_LEAST_SPREAD = 0.05


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
    errors, warnings = (
        tuple(finding for finding in findings if finding.severity == severity)
        for severity in ("error", "warning")
    )
    is_flat = not errors and VoxelGrid.of(load_nifti(cases[0].images[0])).shape[2] == 1
    configuration = "2d" if is_flat else CheckReport.configuration
    return CheckReport(name, len(cases), errors, warnings, configuration=configuration)


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
    findings = [*place_findings(folder, cases), *unused_findings(folder, dataset_json, cases)]
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
    findings += _comparison_findings(cases, results, dataset_json)
    known = {case_id: result.known for case_id, result in zip(case_ids, results, strict=True) if result.known}
    findings += unknown_findings(jobs[0].scheme.names, known)
    if all(result.is_binary for result in results):
        what, expected, found = "every soft label is a mask", "some values between 0 and 1", "0 and 1 only"
        remedy = "nothing, if masks are meant; else make them again without threshold or nearest neighbour"
        findings.append(Finding(soft_label.FOLDER, what, expected, found, remedy, "warning"))
    findings += _preprocessed_findings(folder, planned, dataset_json, case_ids)
    return cases, findings


def _comparison_findings(
    cases: Sequence[TrainingCase], results: Sequence[CaseResult], dataset_json: Mapping[str, Any]
) -> list[Finding]:
    of_case = [*zip(cases, results, strict=True)]
    numbered = sorted(dataset_json["channel_names"].items(), key=lambda entry: int(entry[0]))
    channels = [str(name) for _, name in numbered]
    return [
        *orientation_findings(
            {case.case_id: result.orientation for case, result in of_case}, dataset_json["file_ending"]
        ),
        *spacing_findings({short_name(case.images[0]): result.spacing_mm for case, result in of_case}),
        *channel_findings({case.case_id: result.channels for case, result in of_case}, channels),
    ]


def _case_jobs(folder: Path, dataset_json: Mapping[str, Any], cases: Sequence[TrainingCase]) -> list[CaseJob]:
    scheme, num_channels = label_scheme(dataset_json), len(dataset_json["channel_names"])
    try:
        reader = reader_name(dataset_json, cases[0].images[0])
    except UserError:  # this image will be named among the findings; the others can still be looked at
        reader = READERS[dataset_json["file_ending"]][-1]
    jobs = []
    labels = folder / soft_label.FOLDER
    for case in cases:
        files = tuple(soft_label_file(labels, case.case_id, number) for number in scheme.numbers)
        jobs.append(CaseJob(case, files, scheme, reader, num_channels))
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
        in_raw = folder == raw_folder or f"{raw_folder}{os.sep}" in str(error)
        what = f"broken JSON in {'nnUNet_raw' if in_raw else 'nnUNet_preprocessed'}"
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
        what = "two files that differ, of which training reads that of nnUNet_preprocessed"
        remedy = "copy the right one over the other"
        findings.append(Finding(SPLITS, what, "one split", "two", remedy, "warning"))
    return findings


# Files and folders


def place_findings(folder: Path, cases: Sequence[TrainingCase]) -> list[Finding]:
    """Say which folders of a raw dataset have another name than nnU-Net's (labelsTR); no label maps.

    Where dataset.json lists the files, label maps may lie elsewhere.
    """
    of_maps = {case.label_map.parent for case in cases} or {folder / LABEL_MAPS}
    findings = []
    for name in (IMAGES, LABEL_MAPS, soft_label.FOLDER):
        alike = [
            path.name for path in folder.iterdir() if path.name.lower() == name.lower() and path.is_dir()
        ]
        if alike and name not in alike:
            where, remedy = f"{folder.name}/{alike[0]}", f"rename it to {name}"
            findings.append(Finding(where, "folder by another name", name, alike[0], remedy))
            of_maps -= {folder / name}
    for missing in sorted(of_maps):
        if not missing.is_dir():
            expected, found, remedy = "labelsTr/<case>, soft label > 0.5", "no such folder", "write them"
            where = f"{missing.parent.name}/{missing.name}"
            findings.append(Finding(where, "no label maps", expected, found, remedy))
    return findings


def unused_findings(
    folder: Path, dataset_json: Mapping[str, Any], cases: Sequence[TrainingCase]
) -> list[Finding]:
    """Name the images that nnU-Net cannot take, or takes for other channels, and the label maps of no case.

    Where dataset.json lists the files, nothing else is looked for.
    """
    if "dataset" in dataset_json:
        return []
    ending: str = dataset_json["file_ending"]
    used = {file for case in cases for file in (*case.images, case.label_map)}
    images = [file for file in _image_files(folder / IMAGES, ending) if file not in used]
    findings = [_image_finding(file, ending) for file in images]
    for case in cases:
        findings += _gap_findings(case, len(dataset_json["channel_names"]))
    maps = [short_name(file) for file in _image_files(folder / LABEL_MAPS, ending) if file not in used]
    if maps:
        what, expected = f"{len(maps)} label maps of no case", f"<case>{ending} of a case of {IMAGES}"
        remedy = "add or rename their images, or remove them"
        findings.append(Finding(LABEL_MAPS, what, expected, examples(maps), remedy, "warning"))
    return findings


def _image_files(folder: Path, ending: str) -> list[Path]:
    """Return the files with the ending of the dataset, in capitals or not, and all in formats of images."""
    files: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    shown = (file for file in files if not file.name.startswith("."))
    return sorted(file for file in shown if is_image(file.name) or file.name.lower().endswith(ending))


def _gap_findings(case: TrainingCase, num_channels: int) -> list[Finding]:
    """Say whether nnU-Net, which counts files, takes images for other channels: _0001, _0002 for 0 and 1."""
    numbers = [named[1] for file in case.images if (named := parse_numbered_name(file.name))]
    counted = [*range(len(numbers))]
    if numbers == counted or len(numbers) > num_channels:
        return []
    expected, found = (", ".join(f"_{number:04d}" for number in each) for each in (counted, numbers))
    what, remedy = "channels are not numbered from 0 on", "add what is missing, or rename"
    return [Finding(short_name(case.images[0]), what, expected, found, remedy)]


def _image_finding(file: Path, ending: str) -> Finding:
    """Return why an image is of no case: no channel number, which nnU-Net dies of, or another ending."""
    stem = without_ending(file.name)
    name = stem if parse_numbered_name(file.name) else f"{stem}_0000"
    if not file.name.endswith(ending):
        found = file.name[len(stem) :]
        way = "rename it to" if found.lower() == ending else "write it again as"
        what = "nnU-Net leaves this image out, as file_ending of dataset.json is another"
        return Finding(short_name(file), what, ending, found, f"{way} {name}{ending}", "warning")
    expected, remedy = f"<case>_<channel, 4 digits>{ending}", f"rename it to {name}{ending}"
    return Finding(short_name(file), "no channel in its name", expected, file.name, remedy)


# Cases held against each other


def orientation_findings(orientations: Mapping[str, str | None], file_ending: str) -> list[Finding]:
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
        return [dataset_finding(what, expected, _groups(by_axis), one_orientation(file_ending))]
    if len(by_letters) > 1:
        what, expected = "cases point in different directions", "one orientation"
        remedy = f"the network will see some of them flipped or turned: {one_orientation(file_ending)}"
        return [dataset_finding(what, expected, _groups(by_letters), remedy, severity="warning")]
    return []


def _groups(cases_by_group: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{group} in {examples(cases)}" for group, cases in sorted(cases_by_group.items()))


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


def channel_findings(
    appearances: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str]
) -> list[Finding]:
    """Name the cases whose channels look like the others' in another order: a flag, as statistics err.

    `appearances` are numbers per case and channel (see `case_checks.CaseResult`), `names` those of channels.
    """
    whole = {case: rows for case, rows in appearances.items() if len(rows) == len(names) and all(rows)}
    cases = {case: np.array(rows) for case, rows in whole.items()}
    shapes = {rows.shape for rows in cases.values()}
    if len(cases) < _FEWEST_TO_COMPARE_CHANNELS or len(shapes) > 1 or not 1 < len(names) <= _MOST_CHANNELS:
        return []
    findings = []
    for case_id, rows in cases.items():
        others = np.stack([other for name, other in cases.items() if name != case_id])
        usual = np.median(others, axis=0)
        spread = np.maximum(np.median(np.abs(others - usual), axis=0), _LEAST_SPREAD)
        # channel of the case, of others
        far = np.sqrt((((rows[:, None] - usual) / spread) ** 2).mean(axis=2))
        orders = itertools.permutations(range(len(names)))
        best = min(orders, key=lambda order: float(far[range(len(names)), order].mean()))
        as_named, as_best = far.diagonal().mean(), far[range(len(names)), best].mean()
        if as_named > _FAR_OFF and as_best < _CLEARLY_NEARER * as_named:
            what = "channels look like those of other cases in another order"
            expected, remedy = (
                f"{', '.join(names)} as in the others",
                "look at them, and rename the files if so",
            )
            swapped = [f"channel {at} like {names[like]}" for at, like in enumerate(best) if at != like]
            found = ", ".join(swapped)
            findings.append(Finding(case_id, what, expected, found, remedy, "warning"))
    return findings


def unknown_findings(names: Sequence[str], known: Mapping[str, Sequence[float]]) -> list[Finding]:
    """Say where labels are unknown, and which are unknown everywhere.

    Args:
        names: of the labels.
        known: case -> share of voxels in which each label is known.
    """
    partly = [case_id for case_id, shares in known.items() if min(shares, default=1.0) < 1]
    if not partly:
        return []
    of_label = zip(names, zip(*known.values(), strict=True), strict=True)
    never = [name for name, shares in of_label if not any(shares)]
    if never:
        expected, found = "some known voxels of each label", f"none of {', '.join(never)} in any case"
        remedy = "write values for what was annotated (NaN, and the label to ignore, mean unknown)"
        return [Finding(soft_label.FOLDER, "nothing is annotated", expected, found, remedy)]
    found = f"{1 - np.mean([known[case_id] for case_id in partly]):.1%} of them unknown in {examples(partly)}"
    remedy = "nothing, if nobody looked there; write 0 where the label is absent (0/0 gives NaN, too)"
    what = f"labels are unknown in parts of {len(partly)} cases"
    return [Finding(soft_label.FOLDER, what, "voxels that were annotated", found, remedy, "warning")]
