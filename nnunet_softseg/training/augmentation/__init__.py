"""What happens to a patch between the loader and the network, with a label that stays soft.

Soft frame (the label in and out of batchgeneratorsv2) -> whichever augmentation stands inside it.
"""

from nnunet_softseg.training.augmentation.soft_frame import (
    SoftTarget,
    SplitSoftLabel,
    average_down,
    soft_transforms,
)

__all__ = ["SoftTarget", "SplitSoftLabel", "average_down", "soft_transforms"]
