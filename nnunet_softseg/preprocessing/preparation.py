"""Preparation of soft targets: made where they are missing or stale, stored beside nnU-Net's cases.

They are stored as `<data_identifier>_soft/<case>.b2nd`, (label, *space), float16, with a record inside it of
what it was made from.
"""

import os
import pickle
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np

from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import (
    ONE_ORIENTATION,
    dataset_name,
    find_reader,
    load_json,
    nnunet_folder,
)
from nnunet_softseg.datasets.soft_label import soft_label_file
from nnunet_softseg.errors import UserError, examples, raise_first_error, short_name
from nnunet_softseg.io.atomic import make_folder, remove_abandoned, write_bytes
from nnunet_softseg.io.case_names import parse_numbered_name
from nnunet_softseg.io.geometry import reader_affines, reader_geometry_findings, shape_findings
from nnunet_softseg.io.nifti import content_findings, stored_values
from nnunet_softseg.io.record import changed_keys, describe_source, source_changed
from nnunet_softseg.io.workers import map_jobs
from nnunet_softseg.metrics.label_shape import LabelShape, label_shape
from nnunet_softseg.preprocessing.center_crop import Box, kept_mass, network_box, superior_inferior_axis
from nnunet_softseg.preprocessing.model_plans import require_supported, versions
from nnunet_softseg.preprocessing.soft_target import (
    GridPlan,
    PreprocessedCase,
    SoftTarget,
    configuration_of,
    dataset_number,
    grid_plan,
    on_network_grid,
)
from nnunet_softseg.settings import CROP_LOSS_WARNING

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

RECORD_KEY = "nnunet_softseg"
"""Of the record, a dictionary, among the variable-length metadata of a soft target."""
FORMAT = 5
"""Soft targets of another format are made again. To be raised whenever the arithmetic changes."""
_PROPERTIES = {"shape_before_cropping", "bbox_used_for_cropping", "spacing"}


# Reports


@dataclass(frozen=True)
class CasePreparation:
    """Result of the preparation of one case.

    Attributes:
        case_id: its name.
        prepared: its soft target was made now; False: it was up to date.
        kept_mass: per label, the fraction of its sum in the box that the network sees; NaN: empty label.
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
    """Result of the preparation of a dataset.

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


# Files


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


def read_record(array: blosc2.NDArray) -> dict[str, Any] | None:
    """Return the record of a soft target: sources, grid, versions, crop; None: it has none."""
    try:
        record: dict[str, Any] = array.schunk.vlmeta[RECORD_KEY]
    except Exception:  # a broken file fails in as many ways as there are layers in the format
        return None
    return record


def _store(file: Path, target: SoftTarget, record: Mapping[str, Any], patch_size: Sequence[int]) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    blocks, chunks = comp_blosc2_params(target.shape, patch_size, target.itemsize)
    codec, shuffle = blosc2.Codec.LZ4HC, blosc2.Filter.SHUFFLE
    cparams = {"codec": codec, "clevel": 5, "filters": [shuffle], "nthreads": 1}
    array = blosc2.asarray(target, chunks=chunks, blocks=blocks, cparams=cparams)
    array.schunk.vlmeta[RECORD_KEY] = dict(record)
    # On a full disk, Blosc2 itself leaves half a file. Its frame in memory is, byte for byte, the file that
    # it would write.
    write_bytes(file, array.to_cframe())


def open_or_none(file: Path) -> blosc2.NDArray | None:
    """Return an array that is read from disk where it is sliced; None if its file is missing or broken."""
    # As nnU-Net does it: memory-mapped, except on Windows, where a mapped file cannot be replaced.
    mapping = {} if os.name == "nt" else {"mmap_mode": "r"}
    if not file.is_file():
        return None
    try:
        array = blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}, **mapping)
        _ = array.dtype  # parsed only when asked for
    except Exception:  # a broken file fails in as many ways as there are layers in the format
        return None
    return array


def preprocessed_case_ids(folder: Path) -> list[str]:
    """Return the cases in nnU-Net's folder of preprocessed cases, which may be missing, by name."""
    files = folder.glob("*.b2nd") if folder.is_dir() else ()
    return sorted(file.name.removesuffix(".b2nd") for file in files if not file.name.endswith("_seg.b2nd"))


def read_preprocessed_case(folder: Path, case_id: str, plan: GridPlan) -> PreprocessedCase:
    """Return the transposition, crop and resampling of a case, checked against the plans.

    Args:
        folder: nnUNet_preprocessed/DatasetNNN_Name/<data_identifier>.
        case_id: its name.
        plan: by which it should have been preprocessed.

    Raises:
        UserError: if the case is missing, broken, or was preprocessed with other plans.
    """
    image = open_or_none(folder / f"{case_id}.b2nd")
    try:
        properties = pickle.loads((folder / f"{case_id}.pkl").read_bytes())
    except Exception:  # half a pickle fails in as many ways as there are types in it
        properties = {}
    if image is None or not properties.keys() >= _PROPERTIES:
        raise UserError(
            f"{folder.name}/{case_id}: expected a preprocessed case (.b2nd and .pkl), found none or a broken "
            f"one: run {plan.preprocess_command}"
        )
    case = PreprocessedCase(
        case_id,
        shape=tuple(int(size) for size in image.shape[1:]),
        shape_before_crop=tuple(int(size) for size in properties["shape_before_cropping"]),
        bbox=tuple((int(start), int(stop)) for start, stop in properties["bbox_used_for_cropping"]),
        spacing_mm=tuple(float(properties["spacing"][axis]) for axis in plan.transpose_forward),
        geometry={key: properties[key] for key in ("nibabel_stuff", "sitk_stuff") if key in properties},
    )
    _require_same_plans(case, plan, folder)
    return case


def _require_same_plans(case: PreprocessedCase, plan: GridPlan, folder: Path) -> None:
    place = f"{folder.name}/{case.case_id}"
    remedy = f"it was preprocessed with other plans: run {plan.preprocess_command}"
    expected = plan.shape_of(case)
    if case.shape != expected:
        raise UserError(f"{place}: expected shape {expected} by {plan.plans}, found {case.shape}: {remedy}")
    reader = _reader_that_kept(case.geometry)
    if reader not in (None, plan.reader):
        raise UserError(
            f"{place}: expected an image read by {plan.reader}, found one read by {reader}: {remedy}"
        )


def _reader_that_kept(geometry: Mapping[str, Any]) -> str | None:
    for key, mark, reader in (
        ("nibabel_stuff", "reoriented_affine", "NibabelIO"),
        ("sitk_stuff", "original_orientation", "SimpleITKIO"),
    ):
        if key in geometry:
            return f"{reader}WithReorient" if mark in geometry[key] else reader
    return None


# One soft target


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
        """Return the request of the soft target: all that decides its values, but for the sources."""
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


def is_up_to_date(job: SoftTargetJob) -> bool:
    """Return whether a soft target is stored, for this grid, and made from the soft labels as they are now.

    Sizes and times of the soft labels are compared first; where only a time differs (a copied dataset), the
    content. Where there is no softLabelsTr at all, as on a cluster that got the preprocessed data alone, the
    soft target stands as it is.
    """
    array = open_or_none(job.output)
    record = read_record(array) if array is not None else None
    if array is None or record is None or array.dtype != np.float16:
        return False
    if tuple(array.shape) != (len(job.plan.labels), *job.case.shape):
        return False
    if changed_keys(record, job.grid_record()):
        return False
    if not job.sources[0].parent.is_dir():
        return True
    return not any(source_changed(*pair) for pair in zip(job.sources, record["sources"], strict=True))


def _prepare_case(job: SoftTargetJob) -> UserError | None:
    """Make one soft target; the error of an unusable soft label is returned, as other cases go on."""
    try:
        # Described before they are read: a change in between makes the soft target stale, not wrong.
        sources = [describe_source(file) for file in job.sources]
        target, warnings = _make_soft_target(job)
    except UserError as error:
        return error
    shapes = [label_shape(label, job.si_axis or 0) for label in target]
    record = {
        **job.grid_record(),
        "versions": versions(),
        "case": job.case.case_id,
        "sources": sources,
        "box": [list(side) for side in job.box],
        "kept_mass": kept_mass(target, job.box).tolist(),
        "shapes": [shape and asdict(shape) for shape in shapes],
        "warnings": warnings,
    }
    _store(job.output, target, record, job.plan.patch_size)
    return None


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
        target[channel] = on_network_grid(label, job.case)
    return target, warnings


def _read_for(job: SoftTargetJob, file: Path) -> soft_label.SoftLabel:
    """Return a soft label after checks of its grid against the image."""
    label, properties = soft_label.read_soft_label(file, find_reader(job.plan.reader))
    shape = np.empty(3, dtype=int)
    shape[list(job.plan.transpose_forward)] = job.case.shape_before_crop
    raise_first_error(shape_findings(file, shape.tolist(), label.shape, "z, y, x"))
    raise_first_error(reader_geometry_findings(file, job.case.geometry, properties))
    return label


def _lost_outside(job: SoftTargetJob, label: soft_label.SoftLabel, channel: int) -> list[str]:
    """Warn of a label outside of the non-zero part of the image, which nnU-Net crops away."""
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


def _report(job: SoftTargetJob, *, prepared: bool) -> CasePreparation:
    """Return the report of a case from the record of its soft target."""
    array = open_soft_target(job.output.parent, job.case.case_id)
    record = read_record(array) or {}
    box = tuple(tuple(side) for side in record["box"])
    # Configurations with different patches share the soft targets of one data identifier.
    kept = tuple(record["kept_mass"] if box == job.box else kept_mass(array[...], job.box).tolist())
    warnings = (*record["warnings"], *_crop_warnings(job, kept))
    shapes = tuple(shape and LabelShape.from_record(shape) for shape in record["shapes"])
    return CasePreparation(job.case.case_id, prepared, kept, job.si_axis, shapes, warnings)


# All soft targets of a dataset


@dataclass(frozen=True)
class PreprocessedDataset:
    """A dataset as nnU-Net preprocessed it, for one configuration.

    Attributes:
        raw_folder: nnUNet_raw/DatasetNNN_Name, with softLabelsTr.
        folder: nnUNet_preprocessed/DatasetNNN_Name/<data_identifier>.
        plans_manager: of the plans with which the cases were preprocessed.
        configuration: of these plans, by name.
        dataset_json: of the dataset.
        crop: for the fixed centre-crop patch.
    """

    raw_folder: Path
    folder: Path
    plans_manager: "PlansManager"
    configuration: str
    dataset_json: Mapping[str, Any]
    crop: bool = True


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
    made = PreprocessedDataset(
        nnunet_folder("nnUNet_raw", name),
        preprocessed / configuration_of(plans_manager, configuration).data_identifier,
        plans_manager,
        configuration,
        load_json(preprocessed / "dataset.json"),
        crop,
    )
    return prepare_soft_targets(made, num_processes=num_processes, progress=progress)


def prepare_soft_targets(
    dataset: PreprocessedDataset,
    *,
    cases: Sequence[str] | None = None,
    num_processes: int,
    progress: bool,
) -> PreparationReport:
    """Make the soft targets of preprocessed cases where they are missing or stale.

    Args:
        dataset: as preprocessed.
        cases: names of those wanted; None: all that are preprocessed.
        num_processes: that prepare cases at once; 0 or 1: in this process.
        progress: show a bar.

    Raises:
        UserError: names every case that cannot be prepared; soft targets of the others are kept.
    """
    jobs = _jobs(dataset, cases)
    folder = soft_target_folder(dataset.folder)
    make_folder(folder)
    remove_abandoned(folder)
    stale = [job for job in jobs if not is_up_to_date(job)]
    _require_soft_labels(stale)
    results = map_jobs(
        _prepare_case,
        stale,
        num_processes=num_processes,
        progress=progress and bool(stale),
        description="Preparing soft targets",
        initializer=_use_one_thread,
    )
    _raise_errors([str(error) for error in results if error], len(jobs))
    made = {job.case.case_id for job in stale}
    reports = tuple(_report(job, prepared=job.case.case_id in made) for job in jobs)
    warnings = _general_warnings(jobs, all_cases=cases is None)
    return PreparationReport(folder, jobs[0].plan.labels, reports, warnings)


def all_up_to_date(dataset: PreprocessedDataset, cases: Sequence[str] | None = None) -> bool:
    """Return whether `prepare_soft_targets` would find nothing to do.

    Raises:
        UserError: as there, if the preprocessed data are missing or wrong.
    """
    return all(is_up_to_date(job) for job in _jobs(dataset, cases))


def _jobs(dataset: PreprocessedDataset, cases: Sequence[str] | None) -> list[SoftTargetJob]:
    plan = grid_plan(dataset.plans_manager, dataset.configuration, dataset.dataset_json)
    require_supported(
        dataset.plans_manager.plans, dataset.configuration, dataset.dataset_json, center_crop=dataset.crop
    )
    if cases is None:
        cases = preprocessed_case_ids(dataset.folder)
    if not cases:
        raise UserError(
            f"{dataset.folder}: expected preprocessed cases, found none: run {plan.preprocess_command}"
        )
    soft_folder = dataset.raw_folder / soft_label.FOLDER
    output = soft_target_folder(dataset.folder)
    jobs = []
    for case_id in sorted(cases):
        case = read_preprocessed_case(dataset.folder, case_id, plan)
        si_axis = superior_inferior_axis(case.geometry, plan.transpose_forward) if dataset.crop else None
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


def _raise_errors(errors: Sequence[str], num_cases: int) -> None:
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        raise UserError(
            f"soft labels of {len(errors)} of {num_cases} cases cannot be used: " + "; ".join(errors)
        )


def _general_warnings(jobs: Sequence[SoftTargetJob], *, all_cases: bool) -> tuple[str, ...]:
    folder = jobs[0].sources[0].parent
    if not folder.is_dir():
        found = "no soft labels here, so that soft targets are taken as they are: they may be out of date"
        return (f"{folder}: {found}",)
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
