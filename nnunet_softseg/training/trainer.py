"""Trainer on soft labels: hooks of nnU-Net's own trainer, everything else inherited."""

import contextlib
import gc
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module  # noqa: N813  a module, no class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import autocast, nn
from torch import distributed as dist
from torch.optim.lr_scheduler import LRScheduler

from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import SPLITS, fold_findings, label_scheme
from nnunet_softseg.errors import UserError, examples, raise_first_error, show_without_traceback
from nnunet_softseg.inference import nnunet_patches
from nnunet_softseg.inference.export import keep_only
from nnunet_softseg.inference.validation import VALIDATION, write_soft_summary
from nnunet_softseg.io.case_files import subjects_of
from nnunet_softseg.io.geometry import array_orientation
from nnunet_softseg.io.results import load_json, load_record, make_folder, replacing, write_json
from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss
from nnunet_softseg.network.of_plans import NetworkOfPlans, has_deep_supervision, running_scale, unwrapped
from nnunet_softseg.network.soft_loss import SoftSegLoss, VoxelLoss, known_part
from nnunet_softseg.network.soft_map import soft_map_of
from nnunet_softseg.preprocessing.center_crop import crop_axis
from nnunet_softseg.preprocessing.image_grid import WAY_KEY
from nnunet_softseg.preprocessing.model_plans import (
    PreprocessedDataset,
    explain_missing_plans,
    named_after_package,
    soft_plans,
    spacing_range,
)
from nnunet_softseg.preprocessing.output_scale import (
    OutputScale,
    describe,
    is_same_scale,
    keep_output_scales,
    output_scales,
    scales_of_before,
)
from nnunet_softseg.preprocessing.preparation import (
    PreparationReport,
    all_up_to_date,
    learn_labels,
    prepare_soft_targets,
    soft_target_folder,
)
from nnunet_softseg.settings import HARD_THRESHOLD, PLANS_KEY, SoftSegSettings
from nnunet_softseg.training.augmentation.paper import (
    PaperAugmentation,
    paper_transforms,
    previous_stage_transforms,
)
from nnunet_softseg.training.dataloading import SoftLabelDataset, soft_transforms, widen_zoom
from nnunet_softseg.training.training_log import (
    COARSE_SCALES,
    SoftSegLogger,
    online_measures,
    print_progress,
)

TRAINING_RECORD = "softseg_training.json"
"""Of what a fold was trained with, in its folder."""
_POLL_S = 5.0
_WHILE_WRITTEN = (0.1, 0.4, 1.5)
"""Seconds until a file is read again that another fold may be writing: nnU-Net writes its plans in place."""

nnunet_patches.install()
show_without_traceback(explain_missing_plans)


class nnUNetTrainerSoftSeg(NetworkOfPlans, nnUNetTrainer):  # type: ignore[misc]  # noqa: N801
    """Train on soft labels: NormReLU, adaptive wing loss, Adam with cosine annealing, fixed centre patch.

    Source: Bedard et al. 2025. The settings are a class attribute; a variant is a subclass with others. Those
    of a training have the seed of the environment variable NNUNET_SOFTSEG_SEED, where it is set.
    """

    settings: SoftSegSettings = SoftSegSettings()
    normalise_in_loss: ClassVar[bool] = True
    """NormReLU between raw output and loss (the paper's text); False: none there (its code)."""
    hard_target: ClassVar[bool] = False
    """Train on soft label > 0.5."""
    paper_augmentation: ClassVar[PaperAugmentation] = PaperAugmentation()
    """Used where the settings ask for it."""
    enable_deep_supervision: bool
    my_init_kwargs: dict[str, Any]
    _best_ema: float | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature, which its checkpoints record
    ) -> None:
        label_scheme(dataset_json)  # labels that do not fit together are told before anything starts
        self.settings = self.settings.with_environment(os.environ)
        plans = soft_plans(plans, type(self).__name__, self.settings)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay
        self.num_epochs = self.settings.num_epochs
        self.num_iterations_per_epoch = self.settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.validation_iterations_per_epoch
        self.save_every = self.settings.save_every
        self.logger.local_logger = SoftSegLogger(self.logger.local_logger.verbose)
        self._empty_epochs: npt.NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        self._split: tuple[list[str], list[str]] | None = None
        self._partly_unknown = False
        name = named_after_package(configuration)
        self.my_init_kwargs = {**self.my_init_kwargs, "configuration": name}

    # The network

    def initialize(self) -> None:
        """Make the network as nnU-Net does, of the seed: fine-tuning does so before training starts."""
        self._set_seed()
        super().initialize()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the coarse outputs of a network that has some."""
        if has_deep_supervision(self.network):
            super().set_deep_supervision_enabled(enabled)

    # The data

    @property
    def _entry(self) -> dict[str, Any]:
        """Entry of ours in the plans, which are saved with the model."""
        return cast("dict[str, Any]", self.plans_manager.plans[PLANS_KEY])

    @property
    def si_axis(self) -> int | None:
        """Array axis along S-I of the preprocessed cases, for the fixed crop; None without it."""
        return cast("int | None", self._entry["si_axis"])

    def on_train_start(self) -> None:
        """Prepare the soft targets where they are missing or stale, then start as nnU-Net does."""
        self._require_previous_stage()
        self.require_network_class()  # told now, not after the preparation
        self._set_seed()
        if self._paper_augmentation:
            self._entry["paper_augmentation"] = asdict(self.paper_augmentation)
        self._record_geometry()
        self.do_split()  # a mistake in it is told now, not after the preparation
        report = self._prepare_soft_targets()
        self._partly_unknown = report.is_partly_unknown
        if self._partly_unknown:
            self._require_annotations(report)
        if self._partly_unknown or self.si_axis is not None:
            # Every patch is drawn from the table of centres that the dataset gives; see `dataloading`.
            self.oversample_foreground_percent = 1.0
        self._learn_labels(report)
        if self.local_rank == 0:
            make_folder(Path(self.output_folder))
            record = {**self._entry, "kept_label_mass": report.kept_mass_by_case()}
            write_json(Path(self.output_folder) / TRAINING_RECORD, record)
        self._keep_training_cases(self.do_split()[0])  # folds that started together have written theirs since
        super().on_train_start()
        if self.local_rank == 0:  # while this one made its network, too
            self._keep_training_cases(self.do_split()[0])
            write_json(Path(self.output_folder_base) / "plans.json", self.plans_manager.plans)
        fixed = [scale.is_fixed for scale in self._output_scales]
        self.loss.fixed = torch.tensor(fixed, device=self.device) if any(fixed) else None
        coarse_scales = self.logger.local_logger.my_fantastic_logging[COARSE_SCALES]
        self.loss.start_coarse_scales(coarse_scales[-1] if coarse_scales else None)

    def _require_previous_stage(self) -> None:
        """Raise a UserError if the first stage of a cascade has not predicted every case of this fold."""
        if not self.is_cascaded:
            return
        folder = Path(self.folder_with_segs_from_previous_stage)
        training, validation = self.do_split()
        cases = sorted({*training, *validation})
        missing = [case for case in cases if not (folder / f"{case}.b2nd").is_file()]
        if not missing:
            return
        stage, name = self.configuration_manager.previous_stage_name, type(self).__name__
        models = folder.parents[2].glob(f"*__{self.plans_manager.plans_name}__{stage}")
        within = Path(folder.parent.name, folder.name)
        others = [model.name.partition("__")[0] for model in models if (model / within).is_dir()]
        by_others = [other for other in sorted(others) if other != name]
        hint = f" (there are those of {', '.join(by_others)}, another trainer)" if by_others else ""
        raise UserError(
            f"{self.configuration_name} of {self.plans_manager.dataset_name}: expected predictions of the "
            f"first stage, {stage}, for {len(cases)} cases in {folder}, found none of "
            f"{examples(missing)}{hint}: train all folds of {stage} with {name} first"
        )

    def _learn_labels(self, report: PreparationReport) -> None:
        """Keep figures of the labels with the plans, choose the output scale of each, and say so."""
        names, settings = self.label_manager.scheme.names, self.settings
        kept = self._kept_entry().get("output_scales", {})
        if self.current_epoch and not kept:  # half trained by an earlier version
            settings = replace(settings, output_scale="case")
        learn_labels(self.plans_manager.plans, names, report, settings)
        chosen = dict(zip(names, self._output_scales, strict=True))
        if self.hard_target:
            chosen = {name: replace(scale, height=1.0) for name, scale in chosen.items()}
        if kept and self.current_epoch:
            chosen = scales_of_before(kept, settings)
        elif kept:
            self._require_scales_of_other_folds(chosen, kept)
        keep_output_scales(self.plans_manager.plans, chosen)
        for line in describe(chosen):
            self.print_to_log_file(line)
        ways = "; ".join(f"{name} {way}" for name, way in self._entry[WAY_KEY].items())
        self.print_to_log_file(
            f"patches: {report.patches}; maps on the image's grid: {ways}; to overrule these: settings of "
            f"{type(self).__name__}"
        )

    def _require_scales_of_other_folds(
        self, chosen: Mapping[str, OutputScale], kept: Mapping[str, Any]
    ) -> None:
        """Raise a UserError if other folds of the model were trained on another output scale: it has one."""
        own, model = Path(self.output_folder), Path(self.output_folder_base)
        trained = sorted({file.parent.name for file in model.glob("fold_*/checkpoint_*.pth")} - {own.name})
        for name, scale in chosen.items():
            before = OutputScale(**kept.get(name, {}))
            if trained and not is_same_scale(scale, before):
                told, found = (f"{one.output_scale}, height {one.height:.3g}" for one in (before, scale))
                raise UserError(
                    f"{model}: expected labels that choose the output scale of {name} that "
                    f"{examples(trained)} was trained on ({told}), found another ({found}), as labels or "
                    "settings have changed: "
                    f"remove {examples(trained)} and train all folds, or restore the labels and settings"
                )

    @property
    def _output_scales(self) -> list[OutputScale]:
        return output_scales(self.plans_manager.plans, self.label_manager.scheme.names)

    def _kept_entry(self) -> dict[str, Any]:
        """Return ours in the plans that a training before this process has saved beside the model."""
        saved = Path(self.output_folder_base) / "plans.json"
        if not saved.is_file():
            return {}
        for pause in _WHILE_WRITTEN:
            with contextlib.suppress(UserError):
                return cast("dict[str, Any]", load_json(saved).get(PLANS_KEY, {}))
            time.sleep(pause)
        return cast("dict[str, Any]", load_json(saved).get(PLANS_KEY, {}))

    def _require_annotations(self, report: PreparationReport) -> None:
        """Raise a UserError if a label is unknown in all cases that this fold trains on."""
        training, _ = self.do_split()
        known = [case.known for case in report.cases if case.case_id in set(training)]
        of_label = zip(self.label_manager.scheme.names, zip(*known, strict=True), strict=True)
        never = [name for name, shares in of_label if not any(shares)]
        if never:
            raise UserError(
                f"{self.plans_manager.dataset_name}, fold {self.fold}: expected annotated voxels of each "
                f"label in the {len(training)} training cases, found none of {', '.join(never)}: choose "
                "another fold, or annotate more"
            )

    def _set_seed(self) -> None:
        """Seed this process, if a seed is set; a resumed training does not draw its first patches again."""
        if self.settings.seed is None:
            return
        drawn = np.random.SeedSequence([self.settings.seed, self.current_epoch, self.local_rank])
        first, second, third = drawn.generate_state(3).tolist()
        random.seed(first)
        np.random.seed(second)
        torch.manual_seed(third)

    def _prepare_soft_targets(self) -> PreparationReport:
        """Let rank 0 prepare, the others wait for its files: a large dataset would time a barrier out."""
        dataset = self._dataset
        while self.local_rank != 0 and not all_up_to_date(dataset):
            time.sleep(_POLL_S)
        processes = max(1, get_allowed_n_proc_DA())
        report = prepare_soft_targets(dataset, num_processes=processes, progress=True)
        for warning in report.warnings:
            self.print_to_log_file(f"WARNING: {warning}")
        if self.is_ddp:
            dist.barrier()
        return report

    @property
    def _dataset(self) -> PreprocessedDataset:
        return PreprocessedDataset.of(
            self.plans_manager,
            self.configuration_name,
            self.label_manager.scheme.numbers,
            ignore=self.label_manager.ignore_label,
            raw_folder=self._raw_folder,
            folder=Path(self.preprocessed_dataset_folder),
            crop=self.settings.center_crop,
        )

    @property
    def _raw_folder(self) -> Path:
        """Of the dataset; it need not exist, as on a cluster with preprocessed data and soft targets only."""
        folder: str = nnUNet_raw.get() if nnUNet_raw.is_set() else "nnUNet_raw"
        return Path(folder) / str(self.plans_manager.dataset_name)

    def _record_geometry(self) -> None:
        """Keep the orientation of the cases' axes and the range of spacings with the plans."""
        case = next(iter(sorted(Path(self.preprocessed_dataset_folder).glob("*.pkl"))), None)
        if case is None:
            raise UserError(
                f"no preprocessed case in {self.preprocessed_dataset_folder}: run nnUNetv2_preprocess -d "
                f"{self.plans_manager.dataset_name} -c {self.configuration_name} "
                f"-plans_name {self.plans_manager.plans_name} first"
            )
        properties, transpose = load_pickle(str(case)), self.plans_manager.transpose_forward
        how = (properties, transpose, self.configuration_manager.patch_size)
        self._entry["orientation"] = array_orientation(properties, transpose)
        self._entry["si_axis"] = crop_axis(*how, wanted=self.settings.center_crop)
        fingerprint = Path(self.preprocessed_dataset_folder_base) / "dataset_fingerprint.json"
        spacings = load_json(fingerprint)["spacings"] if fingerprint.is_file() else []
        self._entry["training_spacing_mm"] = spacing_range(spacings)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split; the cases that each fold is trained on are kept with the plans."""
        if self._split is None:
            self._split = self._checked_split()
            self._keep_training_cases(self._split[0])
        return self._split

    def _checked_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split; a UserError for a fold that cannot be trained on."""
        if self.fold != "all":
            file = Path(self.preprocessed_dataset_folder_base) / SPLITS
            splits = load_json(file) if file.is_file() else None
            raise_first_error(fold_findings(self.fold, splits, subjects_of(self._dataset.case_ids())))
        training, validation = super().do_split()
        return training, validation

    def _keep_training_cases(self, training: Sequence[str]) -> None:
        """Keep the cases of this fold with the plans, beside those that other folds have written by now.

        Each fold has a record of its own; of folds that started together, the plans may lack some.
        """
        model = Path(self.output_folder_base)
        before = load_record(model / "plans.json", PLANS_KEY) or {PLANS_KEY: {}}
        known = dict(before[PLANS_KEY].get("training_cases", {}))
        for file in model.glob(f"fold_*/{TRAINING_RECORD}"):
            fold = file.parent.name.removeprefix("fold_")
            of_folds = (load_record(file, "training_cases") or {"training_cases": {}})["training_cases"]
            known |= {fold: of_folds[fold]} if fold in of_folds else {}
        self._entry["training_cases"] = {**known, str(self.fold): sorted(map(str, training))}

    def get_tr_and_val_datasets(self) -> tuple[SoftLabelDataset, SoftLabelDataset]:
        """Return nnU-Net's two datasets with the soft target behind the image."""
        folder = soft_target_folder(Path(self.preprocessed_dataset_folder))
        patch_size = tuple(self.configuration_manager.patch_size)
        masked = any(self.configuration_manager.use_mask_for_norm)
        training, validation = (
            SoftLabelDataset(
                dataset,
                folder,
                patch_size,
                si_axis=self.si_axis,
                keep_segmentation=masked,
                weighted=self._partly_unknown,
            )
            for dataset in super().get_tr_and_val_datasets()
        )
        return training, validation

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Return nnU-Net's choice, without mirroring at test time: eight passes gain too little."""
        rotation, in_plane, initial, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        self.inference_allowed_mirroring_axes = None
        if self._paper_augmentation:
            patch_size = self.configuration_manager.patch_size
            initial = self.paper_augmentation.initial_patch_size(patch_size, in_plane=in_plane)
        return rotation, in_plane, initial, mirror_axes

    @property
    def _paper_augmentation(self) -> bool:
        return self.settings.augmentation == "paper"

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's two loaders, their workers seeded."""
        gc.collect()  # in a forked worker, freeing an OpenVINO network of this process would hang or abort
        with _seeded_workers():
            return cast("tuple[Any, Any]", super().get_dataloaders())

    def get_training_transforms(
        self,
        patch_size: Sequence[int],
        rotation_for_DA: Any,  # noqa: N803
        deep_supervision_scales: Any,
        mirror_axes: Any,
        do_dummy_2d_data_aug: bool,
        **options: Any,
    ) -> BasicTransform:
        """Return nnU-Net's augmentation or the paper's, with the soft label carried through it."""
        if self._paper_augmentation:
            augmentation = paper_transforms(
                self.paper_augmentation,
                patch_size,
                mirror_axes=mirror_axes,
                in_plane=do_dummy_2d_data_aug,
                masked_channels=np.flatnonzero(self.configuration_manager.use_mask_for_norm).tolist(),
            )
            if self.is_cascaded:
                of_first_stage = previous_stage_transforms(self.label_manager.foreground_labels)
                augmentation = ComposeTransforms([*augmentation.transforms, *of_first_stage])
        else:
            augmentation = nnUNetTrainer.get_training_transforms(
                patch_size, rotation_for_DA, None, mirror_axes, do_dummy_2d_data_aug, **options
            )
            if self.si_axis is not None and self.settings.largest_zoom is not None:
                widen_zoom(augmentation, self.settings.largest_zoom)
        return self._frame(augmentation, deep_supervision_scales)

    def get_validation_transforms(self, deep_supervision_scales: Any, **options: Any) -> BasicTransform:
        """Return nnU-Net's validation transforms, with the soft label carried through them."""
        return self._frame(nnUNetTrainer.get_validation_transforms(None, **options), deep_supervision_scales)

    def _frame(self, augmentation: BasicTransform, scales: Any) -> BasicTransform:
        return soft_transforms(
            augmentation,
            len(self.label_manager.scheme.names),
            scales,
            keep_segmentation=self.is_cascaded or any(self.configuration_manager.use_mask_for_norm),
            hard_threshold=HARD_THRESHOLD if self.hard_target else None,
            weighted=self._partly_unknown,
        )

    # The optimisation

    def voxel_loss(self) -> VoxelLoss:
        """Return the loss between prediction and target; a variant overrides this."""
        settings = self.settings
        return AdaptiveWingLoss(reduction=settings.loss_reduction, adaptive=settings.adaptive_exponent)

    def _build_loss(self) -> nn.Module:
        if self.enable_deep_supervision and not has_deep_supervision(self.network):
            # nnU-Net asks this attribute for the targets of each resolution.
            self.enable_deep_supervision = False
            name = type(unwrapped(self.network)).__name__
            self.print_to_log_file(f"{name} has no deep supervision: trained at full resolution alone")
        weights = None
        if self.enable_deep_supervision:
            halving = 0.5 ** np.arange(len(self._get_deep_supervision_scales()))
            weights = list(halving / halving.sum())
        return SoftSegLoss(
            self.voxel_loss(),
            running_scale(self.network),
            level_weights=weights,
            normalise=self.normalise_in_loss,
            floor_fraction=self.settings.floor_fraction,
            momentum=self.settings.reference_momentum,
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return Adam and cosine annealing to 0 (Bedard et al. 2025, section 3.4), or nnU-Net's SGD."""
        if self.settings.optimizer == "sgd":
            return cast("tuple[torch.optim.Optimizer, LRScheduler]", super().configure_optimizers())
        optimizer = adam([*self.network.parameters()], self.initial_lr, self.weight_decay)
        return optimizer, CosineSchedule(optimizer, self.initial_lr, self.num_epochs)

    # Online validation

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the loss and the sums behind the soft measures of one batch, at full resolution."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        levels = [level.to(self.device, non_blocking=True) for level in target]
        with autocast("cuda") if self.device.type == "cuda" else contextlib.nullcontext():
            output = self.network(data)
            loss = self.loss(output, levels)
        raw = output[0] if isinstance(output, list | tuple) else output
        raw, known, _ = known_part(raw, levels[0])
        running = running_scale(self.network).to(raw.device)
        soft_map = soft_map_of(raw, running, self._output_scales, self.settings.floor_fraction)
        sums = online_measures(soft_map, known)
        return {"loss": loss.detach().cpu().numpy(), **sums}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log nnU-Net's measures and the soft ones; stop a run whose network has gone silent."""
        super().on_validation_epoch_end(val_outputs)
        collated = collate_outputs(val_outputs)
        sums = {name: np.sum(collated[name], 0) for name in SoftSegLogger.SUMS}
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, sums)
            sums = {name: np.sum([of_rank[name] for of_rank in gathered], 0) for name in sums}
        self.logger.local_logger.log_soft_measures(sums, self.current_epoch)
        self._watch_for_collapse(sums)

    def _watch_for_collapse(self, sums: dict[str, Any]) -> None:
        """Stop the run after too many epochs in a row that show a label and have no output on it."""
        shown, found = sums["target_sum"] > 0, sums["overlap_sum"] > 0
        self._empty_epochs = np.where(shown, np.where(found, 0, self._empty_epochs + 1), self._empty_epochs)
        if (silent := np.flatnonzero(self._empty_epochs >= self.settings.collapse_patience)).size:
            names = ", ".join(self.label_manager.scheme.names[label] for label in silent)
            raise UserError(
                f"training stopped at epoch {self.current_epoch}: for {self._empty_epochs.max()} epochs the "
                f"network has put out nothing where {names} is (the largest raw output is not above 0 "
                f"there), and it will not recover. Look at {self.output_folder}/progress.png; check the "
                "labels with nnunet-softseg check, then train again with a smaller learning rate "
                f"(now {self.initial_lr})"
            )

    def on_epoch_end(self) -> None:
        """Print the soft measures beside nnU-Net's, and how long the training will take."""
        self.logger.local_logger.log(COARSE_SCALES, self.loss.coarse_scales, self.current_epoch)
        for name, values in self.logger.local_logger.latest_soft_measures().items():
            self.print_to_log_file(name, [round(float(value), 4) for value in np.atleast_1d(values)])
        if self._best_ema is not None and np.isnan(self._best_ema):
            self._best_ema = None  # whatever comes after an epoch without a Dice is better
        super().on_epoch_end()
        print_progress(self)

    def save_checkpoint(self, filename: str) -> None:
        """Save a checkpoint all at once: killed meanwhile, a training goes on from the one before."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)  # which writes nothing
            return
        with replacing(Path(filename)) as aside, aside.open("wb") as stream:
            # Given its name, PyTorch would write it into the file.
            super().save_checkpoint(stream)

    # Final validation

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the validation cases as `nnUNetv2_predict` would, and measure the soft maps too."""
        self._record_geometry()
        kept = self._kept_entry()
        before = kept.get("output_scales")
        if before and "output_scales" not in self._entry:  # of a training before this process
            keep_output_scales(self.plans_manager.plans, scales_of_before(before, self.settings))
        for key in (WAY_KEY, "training_shapes"):
            self._entry.setdefault(key, kept.get(key, {}))
        _, validated = self.do_split()
        predictions = Path(self.output_folder) / VALIDATION
        if self.local_rank == 0:  # a training by another split may have left others there
            keep_only(predictions, validated, self.dataset_json["file_ending"])
        of_all_folds = self._entry["training_cases"]
        # What other folds were trained on, this one has not seen.
        self._entry["training_cases"] = {str(self.fold): of_all_folds[str(self.fold)]}
        super().perform_actual_validation(save_probabilities)
        self._entry["training_cases"] = of_all_folds
        soft_labels = self._raw_folder / soft_label.FOLDER
        if self.local_rank == 0 and soft_labels.is_dir():
            write_soft_summary(predictions, soft_labels, self.dataset_json)


def adam(
    parameters: Sequence[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Adam:
    """Return Adam, fused where torch can: one pass over the weights."""
    try:
        return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay, fused=True)
    except RuntimeError:  # a device, or an older torch, without that kernel
        return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay)


class CosineSchedule(LRScheduler):
    """Cosine annealing to 0; nnU-Net hands the epoch over, so a resumed run goes on exactly."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, num_epochs: int) -> None:
        self.initial_lr = initial_lr
        self.num_epochs = num_epochs
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate of an epoch; without one, of the epoch after the last."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rate = 0.5 * self.initial_lr * (1 + math.cos(math.pi * self.last_epoch / self.num_epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr: list[Any] = [rate] * len(self.optimizer.param_groups)


@contextlib.contextmanager
def _seeded_workers() -> Iterator[None]:
    """Give each worker of nnU-Net's loaders made in this context a seed, drawn from NumPy's state.

    Without, NumPy's random numbers differ from run to run, and PyTorch's, which decide whether a transform is
    applied, are the same in all workers, as each starts from a copy of its parent's state.
    """
    original = trainer_module.NonDetMultiThreadedAugmenter

    def with_seeds(*args: Any, **kwargs: Any) -> Any:
        kwargs["seeds"] = np.random.randint(2**31, size=kwargs["num_processes"]).tolist()
        return original(*args, **kwargs)

    trainer_module.NonDetMultiThreadedAugmenter = with_seeds
    try:
        yield
    finally:
        trainer_module.NonDetMultiThreadedAugmenter = original
