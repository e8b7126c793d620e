"""Variants of the trainers, a few lines each."""

import dataclasses
from typing import Any, ClassVar, cast

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_softseg.errors import UserError
from nnunet_softseg.network.backends import has_bfloat16
from nnunet_softseg.network.soft_loss import SoftDiceLoss, VoxelLoss
from nnunet_softseg.settings import SoftSegSettings
from nnunet_softseg.training.augmentation.contrast import (
    ContrastAugmentationSettings,
    add_contrast_transforms,
)
from nnunet_softseg.training.augmentation.on_device import augment_batch, for_device
from nnunet_softseg.training.dataloading import SoftTarget
from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg
from nnunet_softseg.training.training_log import print_progress

DEMO = dataclasses.replace(
    nnUNetTrainerSoftSeg.settings,
    initial_lr=4e-3,  # a short training of a small network takes larger steps
    num_epochs=10,
    iterations_per_epoch=70,
    validation_iterations_per_epoch=5,
    save_every=2,
)


class nnUNetTrainerSoftSegRawLoss(nnUNetTrainerSoftSeg):  # noqa: N801
    """Loss on the raw output, NormReLU after inference only, as in the code of Bedard et al. 2025."""

    normalise_in_loss = False


class nnUNetTrainerSoftSegSlidingWindow(nnUNetTrainerSoftSeg):  # noqa: N801
    """For anatomy off the centre: patches drawn as nnU-Net does, the whole image in tiles at inference."""

    settings = SoftSegSettings(center_crop=False)


class nnUNetTrainerSoftSegHardGT(nnUNetTrainerSoftSeg):  # noqa: N801
    """Trained on soft label > 0.5, everything else the same: hard_all of Bedard et al. 2025."""

    hard_target = True


class nnUNetTrainerSoftSegPaperAug(nnUNetTrainerSoftSeg):  # noqa: N801
    """With the augmentation of Bedard et al. 2025 in place of nnU-Net's."""

    settings = dataclasses.replace(nnUNetTrainerSoftSeg.settings, augmentation="paper")


class nnUNetTrainerSoftSegDice(nnUNetTrainerSoftSeg):  # noqa: N801
    """Soft Dice in place of the adaptive wing loss: soft_all_dice_loss of Bedard et al. 2025."""

    def voxel_loss(self) -> VoxelLoss:
        """Return the soft Dice loss."""
        return SoftDiceLoss()


class nnUNetTrainerSoftSegContrastAug(nnUNetTrainerSoftSeg):  # noqa: N801
    """Changes of contrast among the augmentation, for contrasts that were not trained on."""

    contrast_augmentation: ClassVar[ContrastAugmentationSettings] = ContrastAugmentationSettings()

    def on_train_start(self) -> None:
        """Keep the settings with the plans, and so with the model, then start."""
        self._entry["contrast_augmentation"] = dataclasses.asdict(self.contrast_augmentation)
        super().on_train_start()

    def get_training_transforms(self, *arguments: Any, **options: Any) -> BasicTransform:
        """Return the augmentation that the settings name, with changes of contrast in it."""
        split, augmentation, target = super().get_training_transforms(*arguments, **options).transforms
        settings = self.contrast_augmentation
        if self._partly_unknown:  # inside and outside of a label can be told apart nowhere else
            settings = dataclasses.replace(settings, p_redistribution=0.0)
        changed = add_contrast_transforms(augmentation, settings)
        return ComposeTransforms([split, changed, target])


class nnUNetTrainerSoftSegDeviceAug(nnUNetTrainerSoftSeg):  # noqa: N801
    """The same augmentation, on the device: the workers only load, so that few cores feed a fast GPU."""

    def get_training_transforms(self, *arguments: Any, **options: Any) -> BasicTransform:
        """Return the transforms of the workers: image and soft label handed over, larger than the patch."""
        if any(self.configuration_manager.use_mask_for_norm):
            # The mask does not travel to the device.
            raise UserError(
                f"{self.plans_manager.dataset_name}: expected images normalised as a whole, for augmentation "
                "on the device, found use_mask_for_norm: train nnUNetTrainerSoftSeg or "
                "nnUNetTrainerSoftSegContrastAug"
            )
        if self.is_cascaded:  # nor does the label map of the first stage
            raise UserError(
                f"{self.plans_manager.dataset_name}: expected a configuration without a previous stage, for "
                f"augmentation on the device, found {self.configuration_name}: train nnUNetTrainerSoftSeg or "
                "nnUNetTrainerSoftSegContrastAug"
            )
        split, augmentation, target = super().get_training_transforms(*arguments, **options).transforms
        self._on_device = ComposeTransforms([for_device(augmentation), target])
        return ComposeTransforms([split, SoftTarget(None)])

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Augment a batch on the device, then train on it as nnU-Net does."""
        images, soft_labels = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        return cast("dict[str, Any]", super().train_step(augment_batch(self._on_device, images, soft_labels)))


class nnUNetTrainerSoftSegContrastDeviceAug(  # noqa: N801
    nnUNetTrainerSoftSegDeviceAug, nnUNetTrainerSoftSegContrastAug
):
    """Changes of contrast among the augmentation, all of it on the device."""


class nnUNetTrainerSoftSegDemo(nnUNetTrainerSoftSeg):  # noqa: N801
    """nnUNetTrainerSoftSeg with few short epochs, for trying out on a CPU."""

    settings = DEMO


class nnUNetTrainerSoftSegReady(nnUNetTrainerSoftSeg):  # noqa: N801
    """The trainer of the ready model: patches anywhere in synthetic images, some of which hold no cord.

    One output scale for all cases, as a field of view may cut a cord to a sliver.
    """

    settings = dataclasses.replace(
        nnUNetTrainerSoftSeg.settings,
        center_crop=False,
        output_scale="fixed",
        initial_lr=2e-3,
        num_epochs=75,
        iterations_per_epoch=100,
        validation_iterations_per_epoch=5,
        save_every=2,
    )

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch; on a CPU in bfloat16, which takes half the time where the processor has it."""
        fast = self.device.type == "cpu" and has_bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            return cast("dict[str, Any]", super().train_step(batch))


class nnUNetTrainerDemo(nnUNetTrainer):  # type: ignore[misc]  # noqa: N801
    """Vanilla nnU-Net with as many short epochs as the soft demo, and no mirroring at test time."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature, which its checkpoints record
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = DEMO.num_epochs
        self.num_iterations_per_epoch = DEMO.iterations_per_epoch
        self.num_val_iterations_per_epoch = DEMO.validation_iterations_per_epoch
        self.save_every = DEMO.save_every

    def on_epoch_end(self) -> None:
        """Print how long the training will take, as the soft demo does."""
        super().on_epoch_end()
        print_progress(self)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Return nnU-Net's choice; predictions are not mirrored, like those of the soft demo."""
        choice: tuple[Any, ...] = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return choice
