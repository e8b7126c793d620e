"""For `nnUNet_extTrainer`: the trainer of the installed package, which spawned workers can import."""

from nnunet_softseg.training.variants import nnUNetTrainerSoftSegReady

__all__ = ["nnUNetTrainerSoftSegReady"]
