"""Variants of the trainers, a few lines each."""

import dataclasses
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_softseg.trainer import nnUNetTrainerSoftSeg

DEMO = dataclasses.replace(
    nnUNetTrainerSoftSeg.settings,
    initial_lr=4e-3,  # a short training of a small network takes larger steps
    num_epochs=10,
    iterations_per_epoch=70,
    validation_iterations_per_epoch=5,
    save_every=2,
)


class nnUNetTrainerSoftSegDemo(nnUNetTrainerSoftSeg):  # noqa: N801
    """nnUNetTrainerSoftSeg with few short epochs, for trying out on a CPU."""

    settings = DEMO


class nnUNetTrainerDemo(nnUNetTrainer):  # type: ignore[misc]  # noqa: N801
    """Vanilla nnU-Net with as many short epochs as the soft demo."""

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
