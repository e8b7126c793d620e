"""`nnunet-softseg fuse`: a file per rater, or a folder per rater -> soft labels, with their agreement."""

import itertools
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nnunet_softseg.datasets.raw_dataset import soft_label_file
from nnunet_softseg.errors import UserError, examples, printable
from nnunet_softseg.io.case_files import list_files, parse_numbered_name
from nnunet_softseg.io.formats import ANY_FORMAT, NIFTI_ENDINGS, without_nifti_ending
from nnunet_softseg.io.nifti import StrPath
from nnunet_softseg.io.results import replacing, write_json
from nnunet_softseg.io.workers import as_user_error, try_jobs
from nnunet_softseg.labels.raters.agreement import agreement_lines, tidy_table
from nnunet_softseg.labels.raters.case import (
    MADE_BY,
    CaseJob,
    FusedCase,
    LabelTask,
    discard,
    fuse_case,
    load_fusion_record,
)
from nnunet_softseg.labels.raters.fusion import FusionSettings
from nnunet_softseg.labels.raters.sources import RaterFile, check_different, find_cases, rater_names

AGREEMENT = "agreement.csv"
RECORD = "fuse.json"


@dataclass(frozen=True)
class FusionReport:
    """Result of `fuse`: one case, or those of the folders; each warning names the cases that it is about."""

    output: Path
    settings: FusionSettings
    raters: tuple[str, ...]
    cases: tuple[FusedCase, ...]
    warnings: tuple[str, ...]

    @property
    def failures(self) -> tuple[FusedCase, ...]:
        """The cases that have no soft label."""
        return tuple(case for case in self.cases if case.failure is not None)

    @property
    def agreement(self) -> pd.DataFrame:
        """The agreement of the raters, see `tidy_table`."""
        return tidy_table({case.case_id: case.measures for case in self.cases})

    def as_text(self) -> str:
        """Return agreement and warnings in lines, for the terminal."""
        method = f"{'weighted ' if self.settings.weights else ''}{self.settings.method}"
        failed, kept = len(self.failures), sum(case.up_to_date for case in self.cases)
        lines = [
            f"{printable(self.output)}: {method} of {len(self.raters)} raters, "
            f"{len(self.cases) - failed - kept} fused, {kept} up to date, {failed} failed",
            *agreement_lines(self.agreement, self.settings.margin_mm),
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def fuse(
    inputs: Sequence[StrPath],
    output: StrPath,
    settings: FusionSettings | None = None,
    *,
    images: StrPath | None = None,
    label_maps: StrPath | None = None,
    strict: bool = False,
    overwrite: bool = False,
    num_processes: int = 1,
    progress: bool = True,
) -> FusionReport:
    """Fuse raters into the soft label of one image, or of all in their folders; return how well they agree.

    In folders, cases are matched by name. What an earlier call made of the same files is kept; a case that
    cannot be fused is reported (`FusionReport.failures`) and stops no other.

    Args:
        inputs: one NIfTI file per rater, or one folder per rater.
        output: NIfTI file, with a record of the same name in .json beside it; or a folder (softLabelsTr).
        settings: None: the plain mean.
        images: the image, or imagesTr, for grid and header; None: those of the first rater.
        label_maps: folder (labelsTr) for label maps, soft > 0.5; with folders only.
        strict: refuse what is otherwise a warning: a case that a rater or the images lack.
        overwrite: replace files that this command has not written.
        num_processes: cases at a time.
        progress: show a bar.

    Raises:
        UserError: for arguments or, of single files, content that does not fit; nothing is written then.
    """
    settings = settings or FusionSettings()
    paths, target = [Path(path) for path in inputs], Path(output)
    image = None if images is None else Path(images)
    are_folders = _check_inputs(paths, settings, image)
    if not are_folders:
        if label_maps is not None:
            raise UserError("--label-maps: expected folders as input, found files: give one folder per rater")
        return _fuse_files(paths, target, settings, image, overwrite=overwrite)
    folders = _Folders(paths, target, image, None if label_maps is None else Path(label_maps))
    jobs, warnings = _folder_jobs(folders, settings)
    if strict and warnings:
        more = f" (and {len(warnings) - 1} more of this kind)" if len(warnings) > 1 else ""
        raise UserError(f"--strict: {warnings[0]}{more}: add what is missing, or go on without --strict")
    _check_replaceable(jobs, overwrite, target)
    at_work = {"num_processes": num_processes, "progress": progress, "description": "Fusing raters"}
    results = try_jobs(fuse_case, jobs, lambda job: printable(job.case_id), **at_work)
    cases = [
        FusedCase(job.case_id, failure=str(result)) if isinstance(result, UserError) else result
        for job, result in zip(jobs, results, strict=True)
    ]
    for job, case in zip(jobs, cases, strict=True):
        if case.failure is not None:
            discard(job)
    warnings += _with_cases((warning, case.case_id) for case in cases for warning in case.warnings)
    warnings += _of_earlier_calls(jobs, target)
    report = FusionReport(target, settings, tuple(jobs[0].raters), tuple(cases), tuple(warnings))
    if len(report.failures) < len(cases) or (target / RECORD).is_file():
        _write_tables(report, jobs[0].raters, folders)
    return report


def _check_inputs(paths: Sequence[Path], settings: FusionSettings, images: Path | None) -> bool:
    """Return whether the inputs are folders; raise a UserError unless they are two or more of one kind."""
    for path in paths:
        if not path.exists():
            found = "a broken link" if path.is_symlink() else "nothing"
            raise UserError(f"{printable(path)}: expected a file or folder, found {found}: check the path")
    if len(paths) <= 1:
        found = "a list of 1" if paths else "none"
        raise UserError(f"-i: expected at least two raters, found {found}: one rater needs no fusion")
    folders = [path for path in paths if path.is_dir()]
    if folders and len(folders) < len(paths):
        file = next(path for path in paths if not path.is_dir())
        raise UserError(
            f"-i: expected files only, or folders only, found the folder {printable(folders[0])} and "
            f"the file {printable(file)}: give one of a kind per rater"
        )
    check_different(paths)
    if settings.weights is not None and len(settings.weights) != len(paths):
        raise UserError(
            f"--weights: expected {len(paths)} numbers, one per rater, found {len(settings.weights)}: give "
            "as many as -i"
        )
    if images is not None and not (images.is_dir() if folders else images.is_file()):
        kind, other, example = ("folder", "file", "imagesTr") if folders else ("file", "folder", "the image")
        found = f"a {other}" if images.exists() else "none"
        raise UserError(
            f"--images: expected a {kind}, as -i are {kind}s, found {found} ({printable(images)}): "
            f"give {example}"
        )
    return bool(folders)


def _fuse_files(
    paths: Sequence[Path], output: Path, settings: FusionSettings, image: Path | None, *, overwrite: bool
) -> FusionReport:
    shown = printable(output)
    if not output.name.endswith(NIFTI_ENDINGS) or output.name in NIFTI_ENDINGS or output.is_dir():
        raise UserError(
            f"-o: expected a file that ends in .nii.gz or .nii, found {shown}: name the soft label"
        )
    for path in filter(None, [*paths, image]):
        if output.exists() and output.samefile(path):
            raise UserError(f"-o: expected a new file, found the input {shown}: choose another name")
    labels = settings.labels or (None,)
    if len(labels) > 1:
        raise UserError(
            f"--labels: expected one label, as -o is one file, found {len(labels)}: call this once per "
            "label, or give a folder per rater"
        )
    raters = _weighted_raters(paths, settings)
    files = [RaterFile(name, path, None, printable(path)) for name, path in zip(raters, paths, strict=True)]
    tasks = (LabelTask(labels[0], tuple(files), output),)
    record = output.with_name(without_nifti_ending(output.name) + ".json")
    job = CaseJob(printable(output.name), tasks, raters, settings, image, None, record)
    _check_replaceable([job], overwrite)
    try:
        case = fuse_case(job)
    except Exception as error:
        raise as_user_error(error, shown) from error
    return FusionReport(output, settings, tuple(raters), (case,), case.warnings)


def _weighted_raters(paths: Sequence[Path], settings: FusionSettings) -> dict[str, float]:
    """Return name -> weight of each rater."""
    return dict(zip(rater_names(paths), settings.weights or (1.0,) * len(paths), strict=True))


@dataclass(frozen=True)
class _Folders:
    raters: Sequence[Path]
    output: Path
    images: Path | None
    label_maps: Path | None

    def __post_init__(self) -> None:
        self._check_output("-o", self.output)
        if self.label_maps is not None:
            self._check_output("--label-maps", self.label_maps)
            if self.label_maps.resolve() == self.output.resolve():
                raise UserError("--label-maps: expected another folder than -o, found the same: use labelsTr")

    def _check_output(self, name: str, folder: Path) -> None:
        shown = printable(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(
                f"{name}: expected a folder, as -i are folders, found the file {shown}: choose another"
            )
        for source in filter(None, [*self.raters, self.images]):
            if source.resolve() in (folder.resolve(), *folder.resolve().parents):
                raise UserError(
                    f"{name}: expected a folder outside of all inputs, found {shown} in {printable(source)}: "
                    "choose another"
                )


def _folder_jobs(folders: _Folders, settings: FusionSettings) -> tuple[list[CaseJob], list[str]]:
    """Return a job per case, and warnings about missing files."""
    images = None if folders.images is None else _images(folders.images)
    found = find_cases(folders.raters, settings.labels, images)
    warnings = []
    if images is not None:
        warnings += _unmatched(found, images)
        found = {case_id: files for case_id, files in found.items() if case_id in images}
    raters = _weighted_raters(folders.raters, settings)
    jobs = []
    for case_id, files in found.items():
        tasks = [
            LabelTask(label, of_label, soft_label_file(folders.output, case_id, label))
            for label, of_label in files.items()
        ]
        image = None if images is None else images[case_id]
        label_map = folders.label_maps / f"{case_id}.nii.gz" if folders.label_maps else None
        record = folders.output / f"{case_id}.json"
        jobs.append(CaseJob(case_id, tuple(tasks), raters, settings, image, label_map, record))
    if any(job.record.name == RECORD for job in jobs):
        raise UserError(
            f"case {Path(RECORD).stem}: expected another name, found that of the folder's record {RECORD}: "
            "rename it"
        )
    return jobs, [*warnings, *_missing(jobs)]


def _images(folder: Path) -> dict[str, Path]:
    """Return case -> its first channel."""
    listed = {"expected": "<case>_0000.nii.gz", "remedy": "give imagesTr"}
    images: dict[str, Path] = {}
    for path in list_files(folder, subfolders=False, formats=ANY_FORMAT, **listed).files:
        case_id, channel = parse_numbered_name(path.name) or ("", None)
        if channel == 0 and (other := images.setdefault(case_id, path)) != path:
            raise UserError(
                f"--images: expected one file per case and channel, found {printable(other.name)} and "
                f"{printable(path.name)} in {printable(folder)}: remove one"
            )
    if not images:
        raise UserError(
            f"--images: expected <case>_0000.nii.gz in {printable(folder)}, found none: give imagesTr"
        )
    return images


def _unmatched(found: Collection[str], images: Mapping[str, Path]) -> list[str]:
    without_image = [printable(case_id) for case_id in found if case_id not in images]
    without_rater = [printable(case_id) for case_id in images if case_id not in found]
    if len(without_image) == len(found):
        raise UserError(
            "no case has both an image and a rater: expected the same case ids, found raters' "
            f"{examples(without_image)} and images' {examples(without_rater)}: rename the raters' files to "
            "<case>.nii.gz, the images being <case>_0000.nii.gz"
        )
    left_out = {"no image": without_image, "no rater": without_rater}
    return [f"{reason}, left out: {_count(cases)}" for reason, cases in left_out.items() if cases]


def _missing(jobs: Sequence[CaseJob]) -> list[str]:
    """Return the cases that each rater lacks, as warnings."""
    wanted = sorted({task.label for job in jobs for task in job.tasks if task.label is not None})
    lacking = []
    for job in jobs:
        there = {(file.rater, task.label) for task in job.tasks for file in task.files}
        for label, rater in itertools.product(wanted, job.raters):
            if (rater, label) not in there:
                of_label = f", label {label}" if len(wanted) > 1 else ""
                lacking.append((f"{rater} has no file{of_label}", job.case_id))
    return _with_cases(lacking)


def _with_cases(warnings: Iterable[tuple[str, str]]) -> list[str]:
    """Return each warning of (warning, case) pairs once, with the cases that it is about."""
    about: dict[str, list[str]] = defaultdict(list)
    for warning, case_id in warnings:
        about[warning].append(printable(case_id))
    return [f"{warning}: {_count(case_ids)}" for warning, case_ids in about.items()]


def _count(cases: Sequence[str]) -> str:
    return f"{len(cases)} case{'' if len(cases) == 1 else 's'} ({examples(cases)})"


def _check_replaceable(jobs: Sequence[CaseJob], overwrite: bool, folder: Path | None = None) -> None:
    """Raise a UserError if another file is where the jobs will write, or the table of the folder."""
    if overwrite:
        return
    foreign = [
        target
        for job in jobs
        for target in [*job.targets, job.record]
        if (target.exists() or target.is_symlink()) and not job.is_ours(target)
    ]
    if folder and (folder / AGREEMENT).exists() and load_fusion_record(folder / RECORD) is None:
        foreign.append(folder / AGREEMENT)
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise UserError(
            f"{printable(foreign[0])}{more}: expected no file, or one of an earlier call of fuse, found "
            "another: move it, choose another -o, or give --overwrite"
        )


def _of_earlier_calls(jobs: Sequence[CaseJob], folder: Path) -> list[str]:
    """Return a warning of the cases that only an earlier call made."""
    others = sorted({*folder.glob("*.json")} - {job.record for job in jobs} - {folder / RECORD})
    if not (cases := [printable(file.stem) for file in others if load_fusion_record(file)]):
        return []
    found = f"made by an earlier call, not by this one, still in {printable(folder)}"
    return [f"{found}: remove them if they should not be there: {_count(cases)}"]


def _write_tables(report: FusionReport, raters: Mapping[str, float], folders: _Folders) -> None:
    record = {
        "made_by": MADE_BY,
        "method": report.settings.method,
        "weights": dict(raters) if report.settings.weights else None,
        "margin_mm": report.settings.margin_mm,
        "raters": dict(zip(raters, map(os.path.abspath, folders.raters), strict=True)),
        "images": None if folders.images is None else os.path.abspath(folders.images),
        "label_maps": None if folders.label_maps is None else os.path.abspath(folders.label_maps),
        "outputs": {AGREEMENT: None},
        "cases": [case.case_id for case in report.cases if case.failure is None],
        "failures": {case.case_id: case.failure for case in report.failures},
        "warnings": list(report.warnings),
    }
    write_json(report.output / RECORD, record)
    with replacing(report.output / AGREEMENT) as aside:
        report.agreement.to_csv(aside, index=False, errors="backslashreplace", lineterminator="\n")
