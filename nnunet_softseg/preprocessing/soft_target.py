"""The soft target: the soft label on the network's grid, where nnU-Net has brought the image.

nnU-Net transposes an image, crops it to what is not zero and resamples it. A soft label goes the same way
here, always by linear interpolation, never by nearest neighbour, and is stored beside nnU-Net's preprocessed
cases as `<data_identifier>_soft/<case>.b2nd`, (label, *space), float16, with a record inside it of what it
was made from.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import numpy.typing as npt

from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import (
    ONE_ORIENTATION,
    dataset_name,
    find_reader,
    load_json,
    nnunet_folder,
)
from nnunet_softseg.errors import UserError, examples, raise_first_error, short_name
from nnunet_softseg.io.atomic import make_folder, remove_abandoned, write_bytes
from nnunet_softseg.io.case_files import parse_numbered_name, soft_label_file
from nnunet_softseg.io.geometry import reader_affines
from nnunet_softseg.io.map_kind import content_findings
from nnunet_softseg.io.nifti import stored_values
from nnunet_softseg.io.same_grid import reader_geometry_findings, shape_findings
from nnunet_softseg.io.workers import map_jobs
from nnunet_softseg.metrics.label_shape import LabelShape, label_shape
from nnunet_softseg.preprocessing.center_crop import Box, kept_mass, network_box, superior_inferior_axis
from nnunet_softseg.preprocessing.model_plans import require_supported, versions
from nnunet_softseg.preprocessing.preprocessed_case import (
    GridPlan,
    PreprocessedCase,
    configuration_of,
    dataset_number,
    grid_plan,
    open_or_none,
    preprocessed_case_ids,
    read_preprocessed_case,
)
from nnunet_softseg.settings import CROP_LOSS_WARNING

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

RECORD_KEY = "nnunet_softseg"
"""Of the record, a dictionary, among the variable-length metadata of a soft target."""
FORMAT = 5
"""Soft targets of another format are made again. To be raised whenever the arithmetic here changes."""

CASES_PER_PROCESS = 10
"""A process takes as long to start as so many cases take: with fewer for each there are fewer processes."""

SoftTarget = npt.NDArray[np.float16]
_READ_IN_CHUNKS_OF = 1 << 20


# What is reported


@dataclass(frozen=True)
class CasePreparation:
    """How one case fared.

    Attributes:
        case_id: its name.
        prepared: its soft target was made now; False: it was up to date.
        kept_mass: per label, the fraction of its sum that lies in the box which the network sees; NaN: empty
            label.
        si_axis: array axis along S-I; None without the crop.
        shapes: per label; None: empty label.
        warnings: to be shown to the user.
    """

    case_id: str
    prepared: bool
    kept_mass: tuple[float, ...]
    si_axis: int | None
    shapes: tuple[LabelShape | None, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparationReport:
    """How a preparation went.

    Attributes:
        folder: with the soft targets.
        labels: in the order in which they are stacked.
        cases: by name.
        general_warnings: that belong to no single case.
    """

    folder: Path
    labels: tuple[int, ...]
    cases: tuple[CasePreparation, ...]
    general_warnings: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, each in one line."""
        return (*self.general_warnings, *(warning for case in self.cases for warning in case.warnings))

    @property
    def num_prepared(self) -> int:
        """How many soft targets were made; the others were up to date."""
        return sum(case.prepared for case in self.cases)

    def kept_mass_by_case(self) -> dict[str, list[float | None]]:
        """Return case -> fraction of each label in the crop; None for an empty one: JSON has no NaN."""
        return {
            case.case_id: [None if np.isnan(kept) else round(kept, 6) for kept in case.kept_mass]
            for case in self.cases
        }


# Arithmetic


def _shapes(target: SoftTarget, si_axis: int | None) -> tuple[LabelShape | None, ...]:
    return tuple(label_shape(label, si_axis or 0) for label in target)


def resample_linear(array: npt.NDArray[np.float32], shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return an array sampled linearly at the centres of the voxels of another grid over the same extent.

    This is the grid on which nnU-Net resamples images: sample i lies at (i + 0.5) * old / new - 0.5, clamped
    at the edges, without smoothing first. Along thick slices, where nnU-Net takes the nearest slice of the
    image, a label is still interpolated linearly.

    Args:
        array: three axes.
        shape: of the result.
    """
    if array.shape == tuple(shape):
        return np.ascontiguousarray(array)
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))[None, None]
    with torch.no_grad():
        resampled = torch.nn.functional.interpolate(
            tensor, size=tuple(int(size) for size in shape), mode="trilinear", align_corners=False
        )
    result: npt.NDArray[np.float32] = resampled[0, 0].numpy()
    return result


# Where things are


def soft_target_folder(preprocessed_folder: Path) -> Path:
    """Return the folder of soft targets that belongs to nnU-Net's folder of preprocessed cases."""
    return preprocessed_folder.with_name(f"{preprocessed_folder.name}_soft")


def open_soft_target(folder: Path, case: str) -> blosc2.NDArray:
    """Return a soft target (label, *space), float16, that is read from disk where it is sliced.

    Args:
        folder: from `soft_target_folder`.
        case: its name.

    Raises:
        UserError: if it is missing or broken.
    """
    file = folder / f"{case}.b2nd"
    array = open_or_none(file)
    if array is None:
        found = "a broken one" if file.is_file() else "none"
        raise UserError(
            f"{short_name(file)}: expected a soft target, found {found}: run nnunet-softseg prepare "
            "(trainers do it by themselves when they start)"
        )
    return array


# What is to be made


@dataclass(frozen=True)
class SoftTargetJob:
    """One soft target to be made or found up to date.

    Attributes:
        case: as preprocessed.
        plan: for its grid.
        sources: soft label files, one per label.
        output: the soft target's file.
        si_axis: array axis along S-I; None without the crop.
        box: which the network sees.
    """

    case: PreprocessedCase
    plan: GridPlan
    sources: tuple[Path, ...]
    output: Path
    si_axis: int | None
    box: Box

    def grid_record(self) -> dict[str, Any]:
        """Return all that decides the content of the soft target, but for the sources."""
        affines = reader_affines(self.case.geometry)
        return {
            "format": FORMAT,
            "labels": list(self.plan.labels),
            "reader": self.plan.reader,
            "transpose_forward": list(self.plan.transpose_forward),
            "shape_before_crop": list(self.case.shape_before_crop),
            "bbox": [list(side) for side in self.case.bbox],
            "spacing_mm": list(self.case.spacing_mm),
            "shape": list(self.case.shape),
            "affines": {name: affine.tolist() for name, affine in affines.items()},
        }


# Is it up to date?


def needs_preparing(job: SoftTargetJob) -> str:
    """Return why a soft target must be made, or "" if it is up to date.

    Sizes and times of the soft labels are compared first; where only a time differs (a copied dataset), the
    content. Where there is no softLabelsTr at all, as on a cluster that got the preprocessed data alone, the
    soft target stands as it is.
    """
    array = open_or_none(job.output)
    record = read_record(array) if array is not None else None
    if array is None or record is None:
        return "missing or broken"
    if tuple(array.shape) != (len(job.plan.labels), *job.case.shape) or array.dtype != np.float16:
        return "on another grid"
    grid = job.grid_record()
    if {key: record.get(key) for key in grid} != grid:
        return "made for another grid, or by another version"
    if not _soft_labels_at_hand(job):
        return ""
    unchanged = [_is_unchanged(*pair) for pair in zip(job.sources, record["sources"], strict=True)]
    return "" if all(unchanged) else "its soft label has changed"


def _soft_labels_at_hand(job: SoftTargetJob) -> bool:
    return job.sources[0].parent.is_dir()


def read_record(array: blosc2.NDArray) -> dict[str, Any] | None:
    """Return what a soft target says of its making: sources, grid, versions, crop; None: nothing."""
    try:
        record: dict[str, Any] = array.schunk.vlmeta[RECORD_KEY]
    except Exception:  # a broken file fails in as many ways as there are layers in the format
        return None
    return record


def _is_unchanged(file: Path, source: Mapping[str, Any]) -> bool:
    try:
        status = file.stat()
        if file.name != source["file"] or status.st_size != source["size"]:
            return False
        return bool(status.st_mtime_ns == source["mtime_ns"] or _sha256(file) == source["sha256"])
    except OSError:
        return False


def _describe_source(file: Path) -> dict[str, Any]:
    try:
        status = file.stat()
        digest = _sha256(file)
    except OSError as error:
        found = error.strerror or error
        raise UserError(
            f"{short_name(file)}: expected a soft label, found: {found}: make it readable"
        ) from error
    return {"file": file.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_READ_IN_CHUNKS_OF):
            digest.update(chunk)
    return digest.hexdigest()


# Making one


def _prepare_case(job: SoftTargetJob) -> CasePreparation | UserError:
    """Return how a case fared; an unusable soft label is an error of this case alone, and not raised."""
    try:
        # Described before they are read: a change in between makes the soft target stale, not wrong.
        sources = [_describe_source(file) for file in job.sources]
        target, warnings = _make_soft_target(job)
    except UserError as error:
        return error
    kept = tuple(float(fraction) for fraction in kept_mass(target, job.box))
    shapes = _shapes(target, job.si_axis)
    record = {
        **job.grid_record(),
        "versions": versions(),
        "case": job.case.case_id,
        "sources": sources,
        "box": [list(side) for side in job.box],
        "kept_mass": list(kept),
        "shapes": [shape and asdict(shape) for shape in shapes],
        "warnings": warnings,
    }
    _store(job, target, record)
    warnings += _crop_warnings(job, kept)
    return CasePreparation(job.case.case_id, True, kept, job.si_axis, shapes, tuple(warnings))


def _make_soft_target(job: SoftTargetJob) -> tuple[SoftTarget, list[str]]:
    target = np.empty((len(job.sources), *job.case.shape), dtype=np.float16)
    warnings: list[str] = []
    for channel, file in enumerate(job.sources):
        label = _read_for(job, file)
        findings = content_findings(file, stored_values(file))
        raise_first_error(findings)
        warnings += map(str, findings)
        label = np.clip(label, 0, 1, out=label).transpose(job.plan.transpose_forward)
        warnings += _lost_outside(job, label, channel)
        cropped = label[tuple(slice(start, stop) for start, stop in job.case.bbox)]
        target[channel] = np.clip(resample_linear(cropped, job.case.shape), 0, 1)
    return target, warnings


def _read_for(job: SoftTargetJob, file: Path) -> soft_label.SoftLabel:
    """Return a soft label after the checks without which it would train something else than meant."""
    label, properties = soft_label.read_soft_label(file, find_reader(job.plan.reader))
    shape = np.empty(3, dtype=int)
    shape[list(job.plan.transpose_forward)] = job.case.shape_before_crop
    raise_first_error(shape_findings(file, shape.tolist(), label.shape, "z, y, x"))
    raise_first_error(reader_geometry_findings(file, job.case.geometry, properties))
    return label


def _lost_outside(job: SoftTargetJob, label: soft_label.SoftLabel, channel: int) -> list[str]:
    """Say how much of a label lies where the image is zero all around: nnU-Net crops that away."""
    kept = float(kept_mass(label[None], job.case.bbox)[0])
    if not kept < 1 - CROP_LOSS_WARNING:  # NaN: an empty label
        return []
    return [
        f"case {job.case.case_id}: {1 - kept:.1%} of label {job.plan.labels[channel]} lies beyond the part "
        "of the image that is not zero, and nnU-Net crops that away: look at the image"
    ]


def _crop_warnings(job: SoftTargetJob, kept: Sequence[float]) -> list[str]:
    return [
        f"case {job.case.case_id}: the fixed patch loses {1 - fraction:.1%} of label {label} (it sees "
        f"{job.box} of shape {job.case.shape}): centre the image on the anatomy, or train "
        "nnUNetTrainerSoftSegSlidingWindow"
        for label, fraction in zip(job.plan.labels, kept, strict=True)
        if fraction < 1 - CROP_LOSS_WARNING
    ]


def _store(job: SoftTargetJob, target: SoftTarget, record: Mapping[str, Any]) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    blocks, chunks = comp_blosc2_params(target.shape, job.plan.patch_size, target.itemsize)
    cparams = {
        "codec": blosc2.Codec.LZ4HC,
        "clevel": 5,
        "filters": [blosc2.Filter.SHUFFLE],
        "nthreads": 1,
    }
    array = blosc2.asarray(target, chunks=chunks, blocks=blocks, cparams=cparams)
    array.schunk.vlmeta[RECORD_KEY] = dict(record)
    # On a full disk, Blosc2 itself leaves half a file. Its frame in memory is, byte for byte, the file that
    # it would write.
    write_bytes(job.output, array.to_cframe())


def _report_up_to_date(job: SoftTargetJob) -> CasePreparation:
    array = open_soft_target(job.output.parent, job.case.case_id)
    record = read_record(array) or {}
    box = tuple(tuple(side) for side in record["box"])
    # Configurations with different patches share the soft targets of one data identifier.
    kept = tuple(record["kept_mass"] if box == job.box else kept_mass(array[...], job.box).tolist())
    warnings = (*record["warnings"], *_crop_warnings(job, kept))
    shapes = tuple(shape and LabelShape.from_record(shape) for shape in record["shapes"])
    return CasePreparation(job.case.case_id, False, kept, job.si_axis, shapes, warnings)


# Making all


def prepare(
    dataset: int | str,
    configuration: str,
    plans_identifier: str = "nnUNetPlans",
    num_processes: int = 4,
    *,
    progress: bool = True,
    crop: bool = True,
) -> PreparationReport:
    """Make the soft targets of a preprocessed dataset where they are missing or stale.

    Args:
        dataset: id or name.
        configuration: of the plans, such as 3d_fullres.
        plans_identifier: name of the plans, such as nnUNetPlans.
        num_processes: at most, that prepare cases at once; 0 or 1, or few cases: in this process.
        progress: show a bar.
        crop: for the fixed centre-crop patch; measures what it keeps of each label.

    Raises:
        UserError: if soft labels or preprocessed data are missing, wrong or unsupported, or the disk is full.
    """
    name = dataset_name(dataset)
    preprocessed = nnunet_folder("nnUNet_preprocessed", name)
    plans_file = preprocessed / f"{plans_identifier}.json"
    if not plans_file.is_file():
        raise UserError(
            f"{plans_file}: expected plans, found none: run nnUNetv2_plan_and_preprocess -d "
            f"{dataset_number(name)} -c {configuration}, or name other plans (-p)"
        )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans_manager = PlansManager(load_json(plans_file))
    return prepare_soft_targets(
        nnunet_folder("nnUNet_raw", name),
        preprocessed / configuration_of(plans_manager, configuration).data_identifier,
        plans_manager,
        configuration,
        load_json(preprocessed / "dataset.json"),
        cases=None,
        num_processes=num_processes,
        progress=progress,
        crop=crop,
    )


def prepare_soft_targets(
    dataset_folder_raw: Path,
    preprocessed_folder: Path,
    plans_manager: "PlansManager",
    configuration_name: str,
    dataset_json: dict[str, Any],
    *,
    cases: Sequence[str] | None,
    num_processes: int,
    progress: bool,
    crop: bool = True,
) -> PreparationReport:
    """Make the soft targets of preprocessed cases where they are missing or stale.

    Args:
        dataset_folder_raw: nnUNet_raw/DatasetNNN_Name, with softLabelsTr.
        preprocessed_folder: nnUNet_preprocessed/DatasetNNN_Name/<data_identifier>.
        plans_manager: of the plans with which the cases were preprocessed.
        configuration_name: of these plans.
        dataset_json: of the dataset.
        cases: names of those wanted; None: all that are preprocessed.
        num_processes: that prepare cases at once; 0 or 1: in this process.
        progress: show a bar.
        crop: for the fixed centre-crop patch; measures what it keeps of each label.

    Raises:
        UserError: names every case that cannot be prepared; soft targets of the others are kept.
    """
    plan = _supported_plan(plans_manager, configuration_name, dataset_json, crop)
    jobs = _jobs(dataset_folder_raw, preprocessed_folder, plan, cases, crop=crop)
    folder = soft_target_folder(preprocessed_folder)
    make_folder(folder)
    remove_abandoned(folder)
    stale = [job for job in jobs if needs_preparing(job)]
    _require_soft_labels(stale)
    results = map_jobs(
        _prepare_case,
        stale,
        num_processes=num_processes,
        progress=progress and bool(stale),
        description="Preparing soft targets",
        initializer=_use_one_thread,
    )
    _raise_errors(results, len(jobs))
    made = {result.case_id: result for result in results if isinstance(result, CasePreparation)}
    reports = tuple(made.get(job.case.case_id) or _report_up_to_date(job) for job in jobs)
    return PreparationReport(folder, plan.labels, reports, _general_warnings(jobs, all_cases=cases is None))


def all_up_to_date(
    dataset_folder_raw: Path,
    preprocessed_folder: Path,
    plans_manager: "PlansManager",
    configuration_name: str,
    dataset_json: dict[str, Any],
    *,
    cases: Sequence[str] | None = None,
    crop: bool = True,
) -> bool:
    """Return whether `prepare_soft_targets` with the same arguments would find nothing to do.

    Raises:
        UserError: as there, if the preprocessed data are missing or wrong.
    """
    plan = _supported_plan(plans_manager, configuration_name, dataset_json, crop)
    jobs = _jobs(dataset_folder_raw, preprocessed_folder, plan, cases, crop=crop)
    return not any(needs_preparing(job) for job in jobs)


def _supported_plan(
    plans_manager: "PlansManager", configuration_name: str, dataset_json: dict[str, Any], crop: bool
) -> GridPlan:
    configuration_of(plans_manager, configuration_name)
    require_supported(plans_manager.plans, configuration_name, dataset_json, center_crop=crop)
    return grid_plan(plans_manager, configuration_name, dataset_json)


def _jobs(
    dataset_folder_raw: Path,
    preprocessed_folder: Path,
    plan: GridPlan,
    cases: Sequence[str] | None,
    *,
    crop: bool,
) -> list[SoftTargetJob]:
    if cases is None:
        cases = preprocessed_case_ids(preprocessed_folder)
    if not cases:
        raise UserError(
            f"{preprocessed_folder}: expected preprocessed cases, found none: run {plan.preprocess_command}"
        )
    soft_folder = dataset_folder_raw / soft_label.FOLDER
    output = soft_target_folder(preprocessed_folder)
    jobs = []
    for case_id in sorted(cases):
        case = read_preprocessed_case(preprocessed_folder, case_id, plan)
        si_axis = superior_inferior_axis(case.geometry, plan.transpose_forward) if crop else None
        box = network_box(case.shape, plan.patch_size, si_axis)
        sources = tuple(soft_label_file(soft_folder, case_id, label) for label in plan.labels)
        jobs.append(SoftTargetJob(case, plan, sources, output / f"{case_id}.b2nd", si_axis, box))
    _require_one_si_axis(jobs)
    return jobs


def _require_one_si_axis(jobs: Sequence[SoftTargetJob]) -> None:
    by_axis: dict[int | None, list[str]] = defaultdict(list)
    for job in jobs:
        by_axis[job.si_axis].append(job.case.case_id)
    if len(by_axis) > 1:
        found = "; ".join(f"axis {axis} in {examples(case_ids)}" for axis, case_ids in by_axis.items())
        raise UserError(
            f"{jobs[0].plan.dataset}: mixed orientations: expected superior-inferior along one array axis in "
            f"all cases, found {found}: {ONE_ORIENTATION}"
        )


def _require_soft_labels(stale: Sequence[SoftTargetJob]) -> None:
    if not stale:
        return
    case_ids = [job.case.case_id for job in stale]
    findings = soft_label.folder_findings(stale[0].sources[0].parent, case_ids, stale[0].plan.labels)
    raise_first_error(finding for finding in findings if finding.what != soft_label.EXTRA_FILE)


def _raise_errors(results: Sequence[CasePreparation | UserError], num_cases: int) -> None:
    errors = [str(result) for result in results if isinstance(result, UserError)]
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        raise UserError(
            f"soft labels of {len(errors)} of {num_cases} cases cannot be used: " + "; ".join(errors)
        )


def _general_warnings(jobs: Sequence[SoftTargetJob], *, all_cases: bool) -> tuple[str, ...]:
    folder = jobs[0].sources[0].parent
    if not folder.is_dir():
        return (
            f"{folder}: no soft labels here, so that soft targets are taken as they are: they may be out of "
            "date",
        )
    names = (parse_numbered_name(file.name) for file in folder.iterdir())
    extra = sorted({name[0] for name in names if name} - {job.case.case_id for job in jobs})
    if not extra or not all_cases:
        return ()
    return (
        f"{len(extra)} cases have soft labels but are not preprocessed ({examples(extra)}) and will not be "
        f"trained on: run {jobs[0].plan.preprocess_command}",
    )


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)
