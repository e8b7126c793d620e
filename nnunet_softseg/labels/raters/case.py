"""One case: raters' files -> soft labels, a label map and a record of what they were made from."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from nnunet_softseg import __version__
from nnunet_softseg.datasets.soft_label import hard_label_map, overlap_findings, write_soft_label
from nnunet_softseg.errors import Finding, UserError, examples, raise_first_error, short_name
from nnunet_softseg.io.atomic import make_folder, replacing
from nnunet_softseg.io.nifti import file_findings, load_nifti
from nnunet_softseg.labels.raters.agreement import Measure, agreement, is_soft
from nnunet_softseg.labels.raters.fusion import Mask, neighbourhood, staple, weighted_mean
from nnunet_softseg.labels.raters.record import CaseJob, FusedCase, LabelTask, begin, finish, kept, request_of
from nnunet_softseg.labels.raters.sources import (
    Content,
    RaterFile,
    Values,
    grid_findings,
    printable,
    rater_map,
    read_content,
)
from nnunet_softseg.settings import HARD_THRESHOLD


def try_fuse_case(job: CaseJob) -> FusedCase:
    """Return what became of a case, its failure included: one broken case does not stop the others."""
    try:
        return fuse_case(job)
    except UserError as error:
        return FusedCase(job.case_id, failure=str(error))


def fuse_case(job: CaseJob) -> FusedCase:
    """Write the soft labels of a case, its label map if wanted, and its record.

    What is there already, from the same files and settings, is kept.

    Raises:
        UserError: for files that don't fit; nothing is written then.
    """
    # Before the sources are read: one that is changed meanwhile makes the record stale, not wrong.
    request = request_of(job)
    there = kept(job, request)
    if there is not None:
        return there
    soft_labels, fused = _fuse_labels(job)
    for folder in {target.parent for target in [*job.targets, job.record]}:
        make_folder(folder)
    begin(job, request)
    reference = _reference(job)
    for task, soft_label in zip(job.tasks, soft_labels, strict=True):
        write_soft_label(task.output, soft_label, reference)
    if job.label_map:
        _write_label_map(job.label_map, soft_labels, [task.label or 1 for task in job.tasks], reference)
    finish(job, request, fused)
    return fused


# From files to soft labels


def _fuse_labels(job: CaseJob) -> tuple[list[Values], FusedCase]:
    """Return the soft label of each task, and what is to be said about the case."""
    reference = _reference(job)
    contents = _read_all(job, reference)
    soft_labels, measures, warnings = [], {}, _file_warnings(job, contents)
    for task in job.tasks:
        soft_label, of_label, more = _fuse_label(job, task, contents, load_nifti(reference).affine)
        soft_labels.append(soft_label)
        measures[task.label] = of_label
        warnings += more
    if overlap_findings([task.output for task in job.tasks], soft_labels):
        remedy = (
            " (each label has its own STAPLE; those of --method mean do not)"
            if job.settings.method == "staple"
            else ""
        )
        warnings.append(f"the labels overlap, their sum exceeds 1 in some voxels{remedy}")
    return soft_labels, FusedCase(job.case_id, measures, tuple(warnings))


def _reference(job: CaseJob) -> Path:
    return job.image or job.tasks[0].files[0].path


def _read_all(job: CaseJob, reference: Path) -> dict[Path, Content]:
    """Return what every file of the case holds, once it is known that all lie on one grid."""
    raise_first_error(file_findings(reference))
    shown = short_name(job.image) if job.image else job.tasks[0].files[0].shown
    contents = {}
    for path, file in _files(job).items():
        contents[path] = read_content(file)
        raise_first_error(grid_findings(file, reference, shown))
    return contents


def _files(job: CaseJob) -> dict[Path, RaterFile]:
    return {file.path: file for task in job.tasks for file in task.files}


def _fuse_label(
    job: CaseJob, task: LabelTask, contents: Mapping[Path, Content], affine: npt.NDArray[np.float64]
) -> tuple[Values, list[Measure], list[str]]:
    maps = {file.rater: rater_map(file, contents[file.path], task.label) for file in task.files}
    by_staple = job.settings.method == "staple"
    if by_staple:
        _check_masks(task, maps)
    spacing_mm, voxel_mm3 = _voxel(task.files[0], affine)
    masks = {rater: values > HARD_THRESHOLD for rater, values in maps.items()}
    region = neighbourhood(list(masks.values()), spacing_mm, job.settings.margin_mm)
    measures, warnings = agreement(maps, voxel_mm3, region), _map_warnings(job, task, maps)
    if by_staple and len(maps) > 1:
        soft_label, of_raters, more = _staple(job, task, masks, region)
        measures, warnings = [*measures, *of_raters], [*warnings, *more]
    else:
        soft_label = weighted_mean(list(maps.values()), _weights_at_hand(job, task))
    volume_mm3 = float(soft_label.sum(dtype=np.float64)) * voxel_mm3
    return soft_label, [*measures, Measure("fused_volume_mm3", "", "", volume_mm3)], warnings


def _staple(
    job: CaseJob, task: LabelTask, masks: Mapping[str, Mask], region: Mask
) -> tuple[Values, list[Measure], list[str]]:
    of_label = _of_label(task)
    try:
        result = staple(list(masks.values()), region)
    except UserError as error:
        raise UserError(f"{printable(job.case_id)}{of_label}: {error}") from error
    skills = list(zip(masks, result.sensitivity, result.specificity, strict=True))
    measures = [Measure("sensitivity", rater, "", sensitivity) for rater, sensitivity, _ in skills]
    measures += [Measure("specificity", rater, "", specificity) for rater, _, specificity in skills]
    warnings = [
        f"STAPLE finds {rater} worse than chance{of_label}: look at the masks, or use --method mean"
        for rater, sensitivity, specificity in skills
        if masks[rater].any() and sensitivity + specificity < 1
    ]
    if not result.converged:
        warnings.append(f"STAPLE did not converge{of_label}: do not trust it, use --method mean")
    return result.probability, measures, warnings


def _check_masks(task: LabelTask, maps: Mapping[str, Values]) -> None:
    for file in task.files:
        if is_soft(maps[file.rater]):
            count = int(np.count_nonzero((maps[file.rater] > 0) & (maps[file.rater] < 1)))
            finding = Finding(
                file.shown,
                "STAPLE takes masks only",
                "0 and 1",
                f"{count} voxels between them",
                "use --method mean: a threshold would throw their partial volume away",
            )
            raise UserError(str(finding))


def _weights_at_hand(job: CaseJob, task: LabelTask) -> list[float]:
    weights = [job.raters[file.rater] for file in task.files]
    if not any(weights):
        raters = ", ".join(file.rater for file in task.files)
        raise UserError(
            f"{printable(job.case_id)}{_of_label(task)}: expected a rater with a weight above 0, found only "
            f"{raters}: give them a weight, or leave the case out"
        )
    return weights


def _voxel(file: RaterFile, affine: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], float]:
    """Return the spacing (x, y, z) in mm and the volume in mm3 of a voxel."""
    spacing_mm = tuple(float(size) for size in voxel_sizes(affine))
    volume_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    if not (np.isfinite(affine).all() and volume_mm3 > 0):
        finding = Finding(
            file.shown,
            "voxels without volume",
            "a size above 0 mm along each axis",
            str(spacing_mm),
            "copy the header of the image",
        )
        raise UserError(str(finding))
    return spacing_mm, volume_mm3


# What is odd


def _file_warnings(job: CaseJob, contents: Mapping[Path, Content]) -> list[str]:
    """Say what label maps hold beside the labels that are fused, if nobody has chosen these."""
    fused = {task.label for task in job.tasks}
    if job.settings.labels is not None or None in fused:
        return []
    others = {label for path in _files(job) for label in contents[path].labels or ()} - fused
    if not others:
        return []
    shown = examples([str(label) for label in sorted(others)])
    return [f"labels that are not fused: {shown} (see --labels)"]


def _map_warnings(job: CaseJob, task: LabelTask, maps: Mapping[str, Values]) -> list[str]:
    of_label = _of_label(task)
    warnings = []
    if len(maps) == 1:
        warnings.append(f"only one rater{of_label}: the soft label is that file, and no agreement is known")
    if len(maps) == 2 and job.settings.method == "staple":  # noqa: PLR2004
        warnings.append(
            f"STAPLE of two raters cannot tell who is right{of_label}: --method mean may serve better"
        )
    drawn = {rater: bool(values.any()) for rater, values in maps.items()}
    if any(drawn.values()):
        warnings += [
            f"{rater} drew nothing{of_label}, others did"
            for rater, any_voxel in drawn.items()
            if not any_voxel
        ]
    else:
        warnings.append(f"nobody drew anything{of_label}")
    raters = list(maps)
    for place, rater in enumerate(raters):
        for other in raters[:place]:
            if drawn[rater] and np.array_equal(maps[rater], maps[other]):
                warnings.append(
                    f"{other} and {rater} are identical{of_label}: two raters, or one file copied?"
                )
    return warnings


def _of_label(task: LabelTask) -> str:
    return "" if task.label is None else f", label {task.label}"


# Label map


def _write_label_map(file: Path, soft_labels: list[Values], labels: list[int], reference: Path) -> None:
    image = load_nifti(reference)
    label_map = hard_label_map(soft_labels, labels)
    header = image.header.copy()
    header.set_data_dtype(label_map.dtype)
    header["cal_min"], header["cal_max"] = 0, 0
    header["descrip"] = f"soft label > 0.5, nnunet-softseg {__version__}".encode()
    with replacing(file) as aside:
        nib.Nifti1Image(label_map, image.affine, header).to_filename(aside)
