"""For `nnUNet_extTrainer`: the trainer of the installed package, which spawned workers can import."""

from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg

__all__ = ["nnUNetTrainerSoftSeg"]
