"""Transforms that carry the soft label through nnU-Net's augmentation and hand it over as the target.

nnU-Net's loader knows an image and an integer segmentation. The soft label travels as extra image channels
out of the loader's hands (see `dataloading`), as batchgeneratorsv2's `regression_target` through the
augmentation, where every spatial transform moves it with linear interpolation, and as the "segmentation" into
the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch.nn.functional import interpolate

Scales = Sequence[Sequence[float]] | None


class SplitSoftLabel(BasicTransform):  # type: ignore[misc]
    """Turn the last channels of the image into the `regression_target`.

    Args:
        num_labels: how many channels, one per foreground label.
        keep_segmentation: keep the integer segmentation too; only nnU-Net's masked normalisation needs it.
    """

    def __init__(self, num_labels: int, keep_segmentation: bool = False) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.keep_segmentation = keep_segmentation

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return the dictionary with image (channel, *space) and regression_target (label, *space)."""
        stacked = data_dict.pop("image")
        data_dict["image"] = stacked[: -self.num_labels]
        data_dict["regression_target"] = stacked[-self.num_labels :]
        if not self.keep_segmentation:
            data_dict.pop("segmentation", None)
        return data_dict


class SoftTarget(BasicTransform):  # type: ignore[misc]
    """Hand the `regression_target` over as the target of the batch, averaged down for deep supervision.

    Args:
        deep_supervision_scales: per level the factor of each axis, 1 for the full resolution; None: one
            target only.
        hard_threshold: if given, the target is label > threshold (hard training), before averaging down.
    """

    def __init__(self, deep_supervision_scales: Scales, hard_threshold: float | None = None) -> None:
        super().__init__()
        self.deep_supervision_scales = deep_supervision_scales
        self.hard_threshold = hard_threshold

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return the dictionary with the soft target(s), float32 in [0, 1], under "segmentation".

        Raises:
            RuntimeError: if a transform before this one dropped the soft label.
        """
        target = data_dict.pop("regression_target", None)
        if target is None:
            raise RuntimeError(
                "an augmentation dropped the soft label: a transform that does not implement "
                "_apply_to_regr_target returns None for it; use one that does, or derive it from "
                "ImageOnlyTransform"
            )
        target = target.clamp(0, 1)
        if self.hard_threshold is not None:
            target = (target > self.hard_threshold).to(target.dtype)
        data_dict["segmentation"] = (
            target.contiguous()
            if self.deep_supervision_scales is None
            else average_down(target, self.deep_supervision_scales)
        )
        return data_dict


def average_down(target: torch.Tensor, scales: Sequence[Sequence[float]]) -> list[torch.Tensor]:
    """Return the target at each scale; a voxel of a coarse level is the mean of the voxels that it covers.

    Args:
        target: (label, *space), float.
        scales: per level the factor of each axis.
    """
    levels = []
    for scale in scales:
        size = [round(length * factor) for length, factor in zip(target.shape[1:], scale, strict=True)]
        full = size == list(target.shape[1:])
        levels.append(target.contiguous() if full else interpolate(target[None], size=size, mode="area")[0])
    return levels


def soft_transforms(
    augmentation: BasicTransform,
    num_labels: int,
    deep_supervision_scales: Scales,
    *,
    keep_segmentation: bool = False,
    hard_threshold: float | None = None,
) -> ComposeTransforms:
    """Return an augmentation of nnU-Net's, framed so that the soft label goes through it.

    Args:
        augmentation: built without deep supervision.
        num_labels: number of foreground labels.
        deep_supervision_scales: see `SoftTarget`.
        keep_segmentation: see `SplitSoftLabel`.
        hard_threshold: see `SoftTarget`.
    """
    return ComposeTransforms(
        [
            SplitSoftLabel(num_labels, keep_segmentation),
            augmentation,
            SoftTarget(deep_supervision_scales, hard_threshold),
        ]
    )
