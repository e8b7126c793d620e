"""What a perfect network would lose: soft targets in place of its raw output, through all that follows.

Output activation, clean-up, the way back to the image's grid, export and label map are those of a prediction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy import ndimage

from nnunet_softseg import __version__
from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import TrainingCase, label_scheme, soft_label_file, training_cases
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.case_record import CaseRecord
from nnunet_softseg.inference.export import export_prediction, keep_only
from nnunet_softseg.inference.soft_prediction import Image, Predictor, predict_soft_map
from nnunet_softseg.inference.validation import ValidatedMap
from nnunet_softseg.io.case_files import SOFT_FOLDER
from nnunet_softseg.io.geometry import bounding_box
from nnunet_softseg.io.results import load_record, make_folder, write_json
from nnunet_softseg.io.workers import map_jobs
from nnunet_softseg.metrics.overlap import boundary, mean_absolute_error
from nnunet_softseg.network.soft_map import Agreement
from nnunet_softseg.preprocessing.model_plans import PreprocessedDataset, soft_plans
from nnunet_softseg.preprocessing.output_scale import PEAK_TOLERANCE, describe, output_scales
from nnunet_softseg.preprocessing.preparation import (
    learn_labels,
    open_soft_target,
    prepare_soft_targets,
    preprocessed_dataset,
    soft_target_folder,
    use_one_thread,
)
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

RECORD = "simulation.json"
MISPLACED = 0.1
"""A grid that puts a larger share of a label's sum into other voxels is advised against, where images are
finer. Refuted by a label beyond this whose trained maps gain nothing by the images' own grid: lung nodules at
1 mm, 0.14, and grey matter of the cord at 1 mm, 0.23, gain; a cord at 1 mm, 0.03 and less, needs no finer."""


@dataclass(frozen=True)
class Loss:
    """What the map of one label in one case has lost, on the image's grid.

    Attributes:
        case_id: of the case.
        volume: of the soft label, in voxels.
        volume_error: of the map, a fraction of it; 0 where both are empty.
        peak_error: largest value of the map less that of the label.
        components: of the label (26 neighbours) that exceed 0.02.
        components_lost: of these, without any voxel above 0 in the map.
        boundary_mae: mean error of the voxels between 0 and 1; 0 where there is none.
        misplaced: half of the sum of |map - label|, a fraction of the volume; 0 where the label is empty.
    """

    case_id: str
    volume: float
    volume_error: float
    peak_error: float
    components: int
    components_lost: int
    boundary_mae: float
    misplaced: float


@dataclass(frozen=True)
class SimulationReport:
    """Losses of every case, by the name of the label; lines of what was chosen for the labels; advice.

    `warnings` are those of the preparation: what the soft targets had lost before.
    """

    output: Path
    losses: Mapping[str, Sequence[Loss]]
    chosen: Sequence[str]
    advice: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def as_text(self) -> str:
        """Return what a perfect network would lose, a line for each label."""
        lines = [
            f"{self.output}: maps of a perfect network with this dataset and these settings",
            *self.chosen,
        ]
        for name, losses in self.losses.items():
            errors, peaks = ([getattr(loss, of) for loss in losses] for of in ("volume_error", "peak_error"))
            worst, off = (losses[int(np.abs(values).argmax())] for values in (errors, peaks))
            lost, total = (
                sum(getattr(loss, of) for loss in losses) for of in ("components_lost", "components")
            )
            lines.append(
                f"{name}: volume {np.median(errors):+.2%} in the median, {worst.volume_error:+.2%} at worst "
                f"({worst.case_id}, {worst.volume:.4g} voxels); peak {off.peak_error:+.3f} at worst "
                f"({off.case_id}); {lost} of {total} components lost; boundary MAE "
                f"{np.mean([loss.boundary_mae for loss in losses]):.3f}"
            )
        return "\n".join([*lines, *self.advice])


def simulate(
    dataset: int | str,
    configuration: str,
    output: Path,
    *,
    trainer: str,
    settings: SoftSegSettings,
    plans_identifier: str = "nnUNetPlans",
    num_processes: int = 4,
    progress: bool = True,
) -> SimulationReport:
    """Write the maps that a perfect network would give, as `predict` writes them, and what they have lost.

    Args:
        dataset: id or name of a preprocessed dataset; its soft targets are made where they are missing.
        configuration: of the plans.
        output: folder, made if missing; empty, or of an earlier simulation.
        trainer: name, for softseg.json.
        settings: of the trainer.
        plans_identifier: name of the plans.
        num_processes: cases at a time.
        progress: show a bar.

    Raises:
        UserError: as `prepare`; if the folder holds something else.
    """
    if output.exists() and not (
        output.is_dir() and ((output / RECORD).is_file() or not any(output.iterdir()))
    ):
        raise UserError(
            f"--simulate {output}: expected an empty folder, or one of an earlier simulation, found other "
            "files: give another folder"
        )
    found, plans, dataset_json = preprocessed_dataset(
        dataset, configuration, plans_identifier, crop=settings.center_crop
    )
    report = prepare_soft_targets(found, num_processes=num_processes, progress=progress)
    plans = soft_plans(plans, trainer, settings)
    plans[PLANS_KEY]["si_axis"] = report.cases[0].si_axis
    names = PlansManager(plans).get_label_manager(dataset_json).scheme.names
    learn_labels(plans, names, report, settings)
    make_folder(output / SOFT_FOLDER)
    made_by = {
        "made_by": f"nnunet-softseg {__version__} check --simulate",
        "dataset": plans["dataset_name"],
        "configuration": configuration,
        "file_ending": dataset_json["file_ending"],
    }
    before = load_record(output / RECORD) or {}
    keep_only(output, (), before.get("file_ending", dataset_json["file_ending"]))  # none of before stays
    write_json(output / RECORD, made_by)
    raw = {case.case_id: case for case in training_cases(found.raw_folder, dataset_json)}
    jobs = [
        _Job(case.case_id, raw.get(case.case_id), found, plans, dataset_json, output) for case in report.cases
    ]
    losses = map_jobs(
        _simulate_case,
        jobs,
        num_processes=num_processes,
        progress=progress,
        description="Simulating a perfect network",
        initializer=use_one_thread,
    )
    by_label = dict(zip(names, zip(*losses, strict=True), strict=True))
    record = {name: [asdict(loss) for loss in of_label] for name, of_label in by_label.items()}
    write_json(output / RECORD, {**made_by, "warnings": report.warnings, "losses": record})
    chosen = describe(dict(zip(names, output_scales(plans, names), strict=True)))
    return SimulationReport(output, by_label, chosen, _advice(by_label, found, plans), report.warnings)


def _advice(
    losses: Mapping[str, Sequence[Loss]], dataset: PreprocessedDataset, plans: Mapping[str, Any]
) -> list[str]:
    """Return a line for each label that the grid smears, if the images have a finer one."""
    images, grid = plans["original_median_spacing_after_transp"], dataset.spacing_mm
    if len(grid) != len(images) or all(own >= size for own, size in zip(images, grid, strict=True)):
        return []
    lengths = [[f"{sizes[axis]:.3g}" for axis in plans["transpose_backward"]] for sizes in (grid, images)]
    shares = {
        name: float(np.mean([loss.misplaced for loss in of_label])) for name, of_label in losses.items()
    }
    return [
        f"{name}: {share:.0%} of it comes back in other voxels, as the grid of {' x '.join(lengths[0])} mm "
        f"is not that of the images, {' x '.join(lengths[1])} mm in the median: plan again with "
        f"-overwrite_target_spacing {' '.join(lengths[1])} -overwrite_plans_name NAME"
        for name, share in shares.items()
        if share > MISPLACED
    ]


@dataclass(frozen=True)
class _Job:
    case_id: str
    case: TrainingCase | None
    dataset: PreprocessedDataset
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    output: Path


class _PerfectNetwork(Predictor):
    """Its raw output is its input, the soft target, at the heights of the training."""

    tile_step, weighs_tiles, shows_progress = 0.5, True, False  # nnU-Net's

    def __init__(self, job: _Job, plans_manager: PlansManager) -> None:
        self.plans: Mapping[str, Any] = job.plans
        self.configuration = plans_manager.get_configuration(job.dataset.configuration)
        self.names: Sequence[str] = label_scheme(job.dataset_json).names
        scales = output_scales(self.plans, self.names)
        self.running_scale = np.array([1 if one.is_fixed else one.height for one in scales], np.float32)
        self.agreement = Agreement()

    @property
    def name(self) -> str:
        """As softseg.json calls it where nothing faster than torch is asked for."""
        return "torch float32"

    def run(self, patch: Image) -> Image:
        """Return the patch."""
        return patch

    def at_any_size(self) -> Callable[[Image], Image]:
        """Return a function that returns the image."""
        return lambda image: image


def _simulate_case(job: _Job) -> list[Loss]:
    """Write the maps of one case and return the loss of each label."""
    plans_manager = PlansManager(job.plans)
    properties = load_pickle(str(job.dataset.folder / f"{job.case_id}.pkl"))
    record = CaseRecord.of(properties)
    record.image_files = (str(job.case.images[0]),) if job.case else ()
    target = open_soft_target(soft_target_folder(job.dataset.folder), job.case_id)[...]
    network = _PerfectNetwork(job, plans_manager)
    soft_maps = predict_soft_map(network, np.nan_to_num(np.asarray(target, dtype=np.float32)), record)
    name = str(job.output / job.case_id)
    export_prediction(soft_maps, properties, plans_manager, job.dataset_json, name)
    return [_loss(job, label) for label in job.dataset.labels]


def _loss(job: _Job, label: int) -> Loss:
    folders = (job.output / SOFT_FOLDER, job.dataset.raw_folder / soft_label.FOLDER)
    soft_map, source_file = (soft_label_file(folder, job.case_id, label) for folder in folders)
    label_map = job.case.label_map if job.case and job.dataset.ignore is not None else None
    pair = ValidatedMap(job.case_id, str(label), soft_map, source_file, label_map, job.dataset.ignore)
    written, source = (values.astype(np.float64) for values in pair.values()[:2])
    box = bounding_box((source > 0) | (written > 0))  # of a large image, most is 0 in both
    written, source = written[box], source[box]
    volume, difference = float(source.sum()), float(written.sum() - source.sum())
    components, count = ndimage.label(source > 0, np.ones((3,) * source.ndim))
    peaks, left = np.zeros((2, count + 1))
    for of_component, values in ((peaks, source), (left, written)):
        np.maximum.at(of_component, components, values)
    counted = peaks[1:] > PEAK_TOLERANCE
    lost = counted & (left[1:] <= 0)
    return Loss(
        case_id=job.case_id,
        volume=volume,
        volume_error=difference / volume if volume else float(difference > 0),
        peak_error=float(written.max(initial=0) - source.max(initial=0)),
        components=int(counted.sum()),
        components_lost=int(lost.sum()),
        boundary_mae=float(np.nan_to_num(mean_absolute_error(written, source, boundary(source)))),
        misplaced=float(np.abs(written - source).sum()) / (2 * volume) if volume else 0.0,
    )
