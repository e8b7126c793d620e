"""Variants of the trainers, a few lines each."""

import dataclasses
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_softseg.soft_loss import SoftDiceLoss, VoxelLoss
from nnunet_softseg.trainer import nnUNetTrainerSoftSeg

DEMO = dataclasses.replace(
    nnUNetTrainerSoftSeg.settings,
    initial_lr=4e-3,  # a short training of a small network takes larger steps
    num_epochs=10,
    iterations_per_epoch=70,
    validation_iterations_per_epoch=5,
    save_every=2,
)


class nnUNetTrainerSoftSegHardGT(nnUNetTrainerSoftSeg):  # noqa: N801
    """Trained on soft label > 0.5, everything else the same: hard_all of Bedard et al. 2025."""

    hard_target = True


class nnUNetTrainerSoftSegDice(nnUNetTrainerSoftSeg):  # noqa: N801
    """Soft Dice in place of the adaptive wing loss: soft_all_dice_loss of Bedard et al. 2025."""

    def voxel_loss(self) -> VoxelLoss:
        """Return the soft Dice loss."""
        return SoftDiceLoss()


class nnUNetTrainerSoftSegDemo(nnUNetTrainerSoftSeg):  # noqa: N801
    """nnUNetTrainerSoftSeg with few short epochs, for trying out on a CPU."""

    settings = DEMO


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

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Return nnU-Net's choice; predictions are not mirrored, like those of the soft demo."""
        choice: tuple[Any, ...] = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return choice
