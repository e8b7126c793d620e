"""Soft targets: the soft labels of a preprocessed dataset on the network's grid, made if missing or stale.

A soft label is cropped as nnU-Net does with its image, brought to the grid by `image_grid`, and stored beside
nnU-Net's cases as `<data_identifier>_soft/<case>.b2nd`, (label, *space), float16, with a record inside.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import (
    NnunetFolders,
    label_maps,
    label_scheme,
    one_orientation,
    soft_label_file,
)
from nnunet_softseg.errors import UserError, examples, raise_first_error, short_name
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.geometry import (
    array_orientation,
    reader_affines,
    reader_geometry_findings,
    reader_spacing_mm,
    shape_findings,
    sizes_agree,
)
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import (
    changed_keys,
    describe_source,
    load_json,
    make_folder,
    source_changed,
    write_bytes,
)
from nnunet_softseg.io.workers import try_jobs
from nnunet_softseg.preprocessing.center_crop import (
    Box,
    crop_axis,
    describe_patches,
    kept_mass,
    network_box,
)
from nnunet_softseg.preprocessing.image_grid import WAY_KEY, chosen_way, on_network_grid, way_errors
from nnunet_softseg.preprocessing.model_plans import (
    PreprocessedCase,
    PreprocessedDataset,
    configuration_of,
    missing_plans,
    open_or_none,
    versions,
)
from nnunet_softseg.preprocessing.output_scale import (
    LabelPeaks,
    LabelShape,
    choose_output_scale,
    keep_output_scales,
    label_peaks,
    label_shape,
    training_ranges,
)
from nnunet_softseg.settings import CROP_LOSS_WARNING, HARD_THRESHOLD, PLANS_KEY, SoftSegSettings

if TYPE_CHECKING:
    import blosc2

FORMAT = 12
"""Soft targets of another format are made again. To be raised whenever the arithmetic changes."""
RECORD_KEY = "nnunet_softseg"
"""Of the record, a dictionary, among the variable-length metadata of a soft target."""
DRAWN = 1024
"""So many voxels to centre patches on, of the known ones and of each label."""
_VOXELS = "<i4"

SoftTarget = npt.NDArray[np.float16]


# Files


def drawn_voxels(target: SoftTarget) -> list[npt.NDArray[np.int32]]:
    """Return voxels (voxel, *space) drawn at random: of those where a label is known, then of each label.

    Training patches are centred on them. The label is where it exceeds half of its largest value in the case:
    one that never exceeds 0.5, as where few raters agree, is found in as many patches as any other.
    """
    random = np.random.default_rng(0)
    drawn = []
    unknown = np.isnan(target)
    labelled = [label > HARD_THRESHOLD * label.max(initial=0) for label in np.where(unknown, 0, target)]
    for where in (~unknown.all(axis=0), *labelled):
        voxels = np.flatnonzero(where)
        if len(voxels) > DRAWN:
            voxels = voxels[random.integers(len(voxels), size=DRAWN)]
        drawn.append(np.stack(np.unravel_index(voxels, where.shape), axis=1).astype(_VOXELS))
    return drawn


def drawn_voxels_of_record(record: Mapping[str, Any], axes: int) -> list[npt.NDArray[np.int64]]:
    """Return `drawn_voxels` of a record, bytes there: parsing so many numbers takes longer than a patch."""
    stored = (np.frombuffer(voxels, _VOXELS) for voxels in record["drawn_voxels"])
    return [voxels.reshape(-1, axes).astype(np.int64) for voxels in stored]


def soft_target_folder(preprocessed_folder: Path) -> Path:
    """Return the folder of soft targets that belongs to nnU-Net's folder of preprocessed cases."""
    return preprocessed_folder.with_name(f"{preprocessed_folder.name}_soft")


def open_soft_target(folder: Path, case: str) -> "blosc2.NDArray":
    """Return a soft target (label, *space), float16, read where sliced; UserError: missing or broken."""
    file = folder / f"{case}.b2nd"
    array = open_or_none(file)
    if array is None:
        found = "a broken one" if file.is_file() else "none"
        raise UserError(
            f"{short_name(file)}: expected a soft target, found {found}: run nnunet-softseg prepare "
            "(trainers do it by themselves when they start)"
        )
    return array


def read_record(array: "blosc2.NDArray") -> dict[str, Any] | None:
    """Return the record of a soft target: sources, grid, versions, crop; None: it has none."""
    try:
        record: dict[str, Any] = array.schunk.vlmeta[RECORD_KEY]
    except Exception:  # a broken file fails in as many ways as there are layers in the format
        return None
    return record


def write_soft_target(
    file: Path, target: SoftTarget, record: Mapping[str, Any], patch_size: Sequence[int]
) -> None:
    """Write a soft target with its record, in chunks as nnU-Net's for that patch."""
    import blosc2
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    blocks, chunks = comp_blosc2_params(target.shape, patch_size, target.itemsize)
    shuffle = [blosc2.Filter.SHUFFLE]
    cparams = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": shuffle, "nthreads": 1}
    array = blosc2.asarray(target, chunks=chunks, blocks=blocks, cparams=cparams)
    array.schunk.vlmeta[RECORD_KEY] = dict(record)
    # On a full disk, Blosc2 itself leaves half a file. Its frame in memory is, byte for byte, the file that
    # it would write.
    write_bytes(file, array.to_cframe())


# Reports


@dataclass(frozen=True)
class CasePreparation:
    """Result of the preparation of one case; not `prepared`: its soft target was up to date.

    `kept_mass` is, per label, the fraction of its sum in the box that the network sees, NaN for an empty
    label, whose shape and peaks are None; `si_axis` is the array axis along S-I, None without the crop;
    `way_errors` are those of `image_grid.way_errors`, per label; `known` is, per label, the share of voxels
    that are not unknown.
    """

    case_id: str
    prepared: bool
    kept_mass: tuple[float, ...]
    si_axis: int | None
    shapes: tuple[LabelShape | None, ...]
    peaks: tuple[LabelPeaks | None, ...]
    way_errors: tuple[list[float] | None, ...]
    warnings: tuple[str, ...]
    known: tuple[float, ...]


@dataclass(frozen=True)
class PreparationReport:
    """Result of the preparation of a dataset: soft targets in a folder, labels as stacked, cases by name.

    `patches` says in words where the network's patches are, around the centre or anywhere, and why.
    """

    folder: Path
    labels: tuple[int, ...]
    cases: tuple[CasePreparation, ...]
    general_warnings: tuple[str, ...]
    patches: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, one line each."""
        return (*self.general_warnings, *(warning for case in self.cases for warning in case.warnings))

    @property
    def is_partly_unknown(self) -> bool:
        """Whether any label is unknown somewhere."""
        return any(share < 1 for case in self.cases for share in case.known)

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


def learn_labels(
    plans: dict[str, Any], names: Sequence[str], report: PreparationReport, settings: SoftSegSettings
) -> None:
    """Write into the plans of a model what it learns of the labels: shapes, output scales, the way back.

    The names are those of the labels, in the order of the report.
    """
    shapes = {name: [case.shapes[at] for case in report.cases] for at, name in enumerate(names)}
    peaks = {name: {case.case_id: case.peaks[at] for case in report.cases} for at, name in enumerate(names)}
    plans[PLANS_KEY]["training_shapes"] = {name: training_ranges(found) for name, found in shapes.items()}
    fixed_patch = all(case.si_axis is not None for case in report.cases)
    scales = {name: choose_output_scale(peaks[name], settings, fixed_patch=fixed_patch) for name in names}
    keep_output_scales(plans, scales)
    ways = [chosen_way([case.way_errors[at] for case in report.cases], settings) for at in range(len(names))]
    plans[PLANS_KEY][WAY_KEY] = dict(zip(names, ways, strict=True))


# One soft target


@dataclass(frozen=True)
class SoftTargetJob:
    """One soft target to be made or found up to date, and the box that the network sees.

    The label map tells where nothing is known; None where the dataset has no label to ignore.
    """

    case: PreprocessedCase
    dataset: PreprocessedDataset
    si_axis: int | None
    box: Box
    label_map: Path | None

    @property
    def soft_labels(self) -> list[Path]:
        """Soft label files, one per label."""
        folder = self.dataset.raw_folder / soft_label.FOLDER
        return [soft_label_file(folder, self.case.case_id, label) for label in self.dataset.labels]

    @property
    def sources(self) -> list[Path]:
        """All files that decide the values."""
        return self.soft_labels if self.label_map is None else [*self.soft_labels, self.label_map]

    @property
    def output(self) -> Path:
        """File of the soft target."""
        return soft_target_folder(self.dataset.folder) / f"{self.case.case_id}.b2nd"

    def grid_record(self) -> dict[str, Any]:
        """Return the request of the soft target: all that decides its values, but for the sources."""
        affines = reader_affines(self.case.geometry)
        return {
            "format": FORMAT,
            "labels": list(self.dataset.labels),
            "ignore": self.dataset.ignore,
            "reader": self.dataset.reader,
            "transpose_forward": list(self.dataset.transpose_forward),
            "shape_before_crop": list(self.case.shape_before_crop),
            "bbox": [list(side) for side in self.case.bbox],
            "spacing_mm": list(self.case.spacing_mm),
            "shape": list(self.case.shape),
            "affines": {name: affine.tolist() for name, affine in affines.items()},
        }


def is_up_to_date(job: SoftTargetJob) -> bool:
    """Return whether a soft target is stored, for this grid, and made from the soft labels as they are now.

    Without softLabelsTr, as on a cluster that got the preprocessed data alone, it stands as it is.
    """
    array = open_or_none(job.output)
    record = read_record(array) if array is not None else None
    if array is None or record is None or array.dtype != np.float16:
        return False
    if tuple(array.shape) != (len(job.dataset.labels), *job.case.shape):
        return False
    if changed_keys(record, job.grid_record()):
        return False
    if not job.sources[0].parent.is_dir():
        return True
    sources, recorded = job.sources, record["sources"]
    return len(sources) == len(recorded) and not any(map(source_changed, sources, recorded))


def _prepare_case(job: SoftTargetJob) -> None:
    """Make one soft target."""
    # Described before they are read: a change in between makes the soft target stale, not wrong.
    sources = [describe_source(file) for file in job.sources]
    target, errors, warnings = _make_soft_target(job)
    peaks = [label_peaks(label) for label in target]
    record = {
        **job.grid_record(),
        "versions": versions(),
        "case": job.case.case_id,
        "sources": sources,
        "box": [list(side) for side in job.box],
        "kept_mass": kept_mass(target, job.box).tolist(),
        "shapes": [shape and asdict(shape) for shape in _shapes(target, job.si_axis)],
        "si_axis": job.si_axis,
        "peaks": [found and asdict(found) for found in peaks],
        "known": [float(share) for share in (~np.isnan(target)).reshape(len(target), -1).mean(1)],
        "drawn_voxels": [voxels.tobytes() for voxels in drawn_voxels(target)],
        "way_errors": errors,
        "warnings": warnings,
    }
    write_soft_target(job.output, target, record, job.dataset.patch_size)


def _shapes(target: SoftTarget, si_axis: int | None) -> tuple[LabelShape | None, ...]:
    return tuple(label_shape(label, si_axis or 0) for label in target)


def _make_soft_target(job: SoftTargetJob) -> tuple[SoftTarget, list[list[float] | None], list[str]]:
    """Return soft target, `way_errors` per label and warnings; each soft label is checked first."""
    target = np.empty((len(job.dataset.labels), *job.case.shape), dtype=np.float16)
    image_shape = np.empty(3, dtype=int)
    image_shape[list(job.dataset.transpose_forward)] = job.case.shape_before_crop
    reader = soft_label.find_reader(job.dataset.reader)
    errors, warnings = [], list[str]()
    ignored = None
    if job.label_map is not None:
        ignored = soft_label.read_label_map(job.label_map, reader) == job.dataset.ignore
        raise_first_error(shape_findings(job.label_map, image_shape.tolist(), ignored.shape, "z, y, x"))
    for channel, file in enumerate(job.soft_labels):
        label, properties = soft_label.read_soft_label(file, reader)
        raise_first_error(shape_findings(file, image_shape.tolist(), label.shape, "z, y, x"))
        raise_first_error(reader_geometry_findings(file, job.case.geometry, properties))
        if array_orientation(job.case.geometry, job.dataset.transpose_forward):
            _require_sizes_of_affine(job, load_nifti(file))
        findings = soft_label.value_findings(file, soft_label.stored_soft_label(file))
        raise_first_error(findings)
        if ignored is not None:
            findings += soft_label.ignored_findings([file], [label], ignored)
            label[ignored] = np.nan
        label = np.clip(label, 0, 1, out=label).transpose(job.dataset.transpose_forward)
        warnings += [*map(str, findings), *_lost_outside(job, label, channel)]
        cropped = label[tuple(slice(*side) for side in job.case.bbox)]
        target[channel] = on_network_grid(cropped, job.case.shape)
        errors.append(way_errors(cropped, target[channel].astype(np.float32)))
    return target, errors, warnings


def _require_sizes_of_affine(job: SoftTargetJob, label: nib.Nifti1Image) -> None:
    """Refuse an image that nnU-Net has resampled by a pixdim that its affine contradicts."""
    stated = np.empty(3)
    stated[list(job.dataset.transpose_forward)] = job.case.spacing_mm
    reorients = "Reorient" in job.dataset.reader
    by_affine = reader_spacing_mm(stated.tolist(), label.affine, reorients=reorients)
    if label.ndim == len(stated) and not sizes_agree(stated.tolist(), by_affine):
        wanted, found = (" x ".join(f"{size:.4g}" for size in sizes) for sizes in (by_affine, stated))
        raise UserError(
            f"case {job.case.case_id}: expected voxels of {wanted} mm (z, y, x), as its affine says, found "
            f"it preprocessed with {found} mm of pixdim: mend its header as nnunet-softseg check "
            f"says (-d {job.dataset.name}), then run {job.dataset.preprocess_command}"
        )


def _lost_outside(job: SoftTargetJob, label: soft_label.SoftLabel, channel: int) -> list[str]:
    """Warn of a label outside of the non-zero part of the image, which nnU-Net crops away."""
    kept = float(kept_mass(label[None], job.case.bbox)[0])
    if not kept < 1 - CROP_LOSS_WARNING:  # NaN: an empty label
        return []
    label_value = job.dataset.labels[channel]
    return [
        f"case {job.case.case_id}: {1 - kept:.1%} of label {label_value} lies beyond the part "
        "of the image that is not zero, and nnU-Net crops that away: look at the image"
    ]


def _crop_warnings(job: SoftTargetJob, kept: Sequence[float]) -> list[str]:
    return [
        f"case {job.case.case_id}: the fixed patch loses {1 - fraction:.1%} of label {label} (it sees "
        f"{job.box} of shape {job.case.shape}): centre the image on the anatomy, or train "
        "nnUNetTrainerSoftSegSlidingWindow"
        for label, fraction in zip(job.dataset.labels, kept, strict=True)
        if fraction < 1 - CROP_LOSS_WARNING
    ]


def _report(job: SoftTargetJob, *, prepared: bool) -> CasePreparation:
    """Return the report of a case from the record of its soft target."""
    array = open_soft_target(job.output.parent, job.case.case_id)
    record = read_record(array) or {}
    box = tuple(tuple(side) for side in record["box"])
    # Configurations and trainers with different patches share the soft targets of one data identifier.
    kept = tuple(record["kept_mass"] if box == job.box else kept_mass(array[...], job.box).tolist())
    shapes = tuple(shape and LabelShape(**shape) for shape in record["shapes"])
    if record.get("si_axis", job.si_axis) != job.si_axis:
        shapes = _shapes(array[...], job.si_axis)
    warnings = (*record["warnings"], *_crop_warnings(job, kept))
    peaks = tuple(found and LabelPeaks(**found) for found in record["peaks"])
    ways, known = tuple(record["way_errors"]), tuple(record["known"])
    return CasePreparation(
        job.case.case_id, prepared, kept, job.si_axis, shapes, peaks, ways, warnings, known
    )


# All soft targets of a dataset


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
        dataset: id or name of a dataset in nnUNet_preprocessed.
        configuration: of the plans, such as 3d_fullres.
        plans_identifier: name of the plans.
        num_processes: cases made at a time.
        progress: show a bar.
        crop: measure how much of each label the fixed patch keeps, where there is one (`crop_axis`).

    Raises:
        UserError: if soft labels or preprocessed data are missing, wrong or unsupported, or the disk is full.
    """
    found, _, _ = preprocessed_dataset(dataset, configuration, plans_identifier, crop=crop)
    return prepare_soft_targets(found, num_processes=num_processes, progress=progress)


def preprocessed_dataset(
    dataset: int | str, configuration: str, plans_identifier: str, *, crop: bool
) -> tuple[PreprocessedDataset, dict[str, Any], dict[str, Any]]:
    """Return a preprocessed dataset, its plans and its dataset.json; arguments and errors as of `prepare`."""
    folders = NnunetFolders.from_environment()
    name = folders.dataset_name(dataset)
    preprocessed = folders.of_dataset("preprocessed", name)
    plans_file = preprocessed / f"{plans_identifier}.json"
    if not plans_file.is_file():
        raise missing_plans(plans_file)
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans_manager = PlansManager(load_json(plans_file))
    data_identifier = configuration_of(plans_manager, configuration).data_identifier
    dataset_json = load_json(preprocessed / "dataset.json")
    scheme = label_scheme(dataset_json)
    found = PreprocessedDataset.of(
        plans_manager,
        configuration,
        scheme.numbers,
        ignore=scheme.ignore,
        raw_folder=folders.of_dataset("raw", name),
        folder=preprocessed / data_identifier,
        crop=crop,
    )
    return found, plans_manager.plans, dataset_json


def prepare_soft_targets(
    dataset: PreprocessedDataset, *, num_processes: int, progress: bool
) -> PreparationReport:
    """Make soft targets where missing or stale; a UserError names all cases that failed, others are kept."""
    jobs = _jobs(dataset)
    folder = soft_target_folder(dataset.folder)
    make_folder(folder)
    stale = [job for job in jobs if not is_up_to_date(job)]
    if stale:
        case_ids = [job.case.case_id for job in stale]
        raw_folder = dataset.raw_folder / soft_label.FOLDER
        findings = soft_label.folder_findings(raw_folder, case_ids, dataset.labels)
        raise_first_error(finding for finding in findings if finding.what != soft_label.EXTRA_FILE)
    results = try_jobs(
        _prepare_case,
        stale,
        lambda job: job.case.case_id,
        num_processes=num_processes,
        progress=progress and bool(stale),
        description="Preparing soft targets",
        initializer=use_one_thread,
    )
    errors = [str(error) for error in results if error]
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        raise UserError(
            f"soft labels of {len(errors)} of {len(jobs)} cases cannot be used: " + "; ".join(errors)
        )
    made = {job.case.case_id for job in stale}
    reports = tuple(_report(job, prepared=job.case.case_id in made) for job in jobs)
    patches = describe_patches(jobs[0].si_axis, dataset.patch_size, wanted=dataset.crop)
    return PreparationReport(folder, dataset.labels, reports, _general_warnings(dataset, jobs), patches)


def all_up_to_date(dataset: PreprocessedDataset) -> bool:
    """Return whether `prepare_soft_targets` would find nothing to do; UserError: wrong preprocessed data."""
    return all(is_up_to_date(job) for job in _jobs(dataset))


def _jobs(dataset: PreprocessedDataset) -> list[SoftTargetJob]:
    case_ids = dataset.case_ids()
    if not case_ids:
        raise UserError(
            f"{dataset.folder}: expected preprocessed cases, found none: run {dataset.preprocess_command}"
        )
    jobs, of_cases = [], _label_maps(dataset, case_ids)
    for case in map(dataset.read_case, case_ids):
        how = (case.geometry, dataset.transpose_forward, dataset.patch_size)
        si_axis = crop_axis(*how, wanted=dataset.crop)
        box = network_box(case.shape, dataset.patch_size, si_axis)
        jobs.append(SoftTargetJob(case, dataset, si_axis, box, of_cases.get(case.case_id)))
    by_axis: dict[int | None, list[str]] = defaultdict(list)
    for job in jobs:
        by_axis[job.si_axis].append(job.case.case_id)
    if len(by_axis) > 1:
        found = "; ".join(f"axis {axis} in {examples(case_ids)}" for axis, case_ids in by_axis.items())
        raise UserError(
            f"{dataset.name}: mixed orientations: expected superior-inferior along one array axis in "
            f"all cases, found {found}: {one_orientation(_dataset_json(dataset)['file_ending'])}"
        )
    return jobs


def _label_maps(dataset: PreprocessedDataset, case_ids: Sequence[str]) -> dict[str, Path]:
    """Return case -> label map, in a dataset with a label to ignore."""
    if dataset.ignore is None:
        return {}
    return label_maps(dataset.raw_folder, _dataset_json(dataset), case_ids)


def _dataset_json(dataset: PreprocessedDataset) -> dict[str, Any]:
    raw, copied = (folder / "dataset.json" for folder in (dataset.raw_folder, dataset.folder.parent))
    found: dict[str, Any] = load_json(raw if raw.is_file() else copied)
    return found


def _general_warnings(dataset: PreprocessedDataset, jobs: Sequence[SoftTargetJob]) -> tuple[str, ...]:
    folder = dataset.raw_folder / soft_label.FOLDER
    if not folder.is_dir():
        found = "no soft labels here, so that soft targets are taken as they are: they may be out of date"
        return (f"{folder}: {found}",)
    precision = soft_label.precision_findings(file for job in jobs for file in job.soft_labels)
    others = set(folder.iterdir()) - {source for job in jobs for source in job.sources}
    names = (parse_numbered_name(file.name) for file in others)
    extra = sorted({name[0] for name in names if name} - {job.case.case_id for job in jobs})
    coarse = tuple(map(str, precision))
    if not extra:
        return coarse
    return (
        *coarse,
        f"{len(extra)} cases have soft labels but are not preprocessed ({examples(extra)}) and will not be "
        f"trained on: run {dataset.preprocess_command}",
    )


def use_one_thread() -> None:
    """Let torch compute in one thread in this process."""
    import torch

    torch.set_num_threads(1)
