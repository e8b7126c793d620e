"""Soft target from disk to batch, through nnU-Net's own data loader and augmentation.

The soft target is stacked behind the channels of the image, both still on disk. The augmentation moves it as
batchgeneratorsv2's `regression_target`, linearly; in the batch it is the "segmentation".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch.nn.functional import interpolate

from nnunet_softseg.preprocessing.center_crop import patch_centres
from nnunet_softseg.preprocessing.soft_target import open_soft_target

Scales = Sequence[Sequence[float]] | None


class StackedCase:
    """Image and soft target of a case as one (channel + label, *space) array, read only where sliced."""

    def __init__(self, image: Any, soft_target: Any) -> None:
        if tuple(image.shape[1:]) != tuple(soft_target.shape[1:]):
            raise ValueError(
                f"image and soft target must lie on one grid, got {tuple(image.shape[1:])} "
                f"and {tuple(soft_target.shape[1:])}"
            )
        self.image = image
        self.soft_target = soft_target
        self.shape = (image.shape[0] + soft_target.shape[0], *image.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, index: tuple[slice, ...]) -> npt.NDArray[np.float32]:
        """Return the patch, float32. Only slices of space are supported, all channels at once."""
        if index[0] != slice(None):
            raise IndexError(f"all channels are read at once, got the channel index {index[0]}")
        image, soft_target = self.image[index], self.soft_target[index]
        stacked = np.empty((self.shape[0], *image.shape[1:]), dtype=np.float32)
        stacked[: image.shape[0]] = image
        stacked[image.shape[0] :] = soft_target
        return stacked


class SoftLabelDataset:
    """A dataset of nnU-Net's with the soft target stacked behind the channels of each image.

    The array axis along S-I is for the fixed crop; None: patches wherever nnU-Net puts them. For
    `keep_segmentation` see `SplitSoftLabel`.
    """

    def __init__(
        self,
        dataset: Any,
        soft_target_folder: Path,
        patch_size: tuple[int, ...],
        *,
        si_axis: int | None,
        keep_segmentation: bool = False,
    ) -> None:
        self.dataset = dataset
        self.soft_target_folder = soft_target_folder
        self.patch_size = patch_size
        self.si_axis = si_axis
        self.keep_segmentation = keep_segmentation
        self.identifiers: list[str] = dataset.identifiers

    def load_case(self, identifier: str) -> tuple[StackedCase, Any, None, dict[str, Any]]:
        """Return (image and soft target, segmentation, None, properties), as nnU-Net's loader expects."""
        image, segmentation, _, properties = self.dataset.load_case(identifier)
        case = StackedCase(image, open_soft_target(self.soft_target_folder, identifier))
        if not self.keep_segmentation:
            # Nothing looks at it: a view of a single 0 saves reading it. Not of the type that the loader
            # converts to: so it makes a patch of its own, which PyTorch may write to.
            segmentation = np.broadcast_to(np.int8(0), (1, *image.shape[1:]))
        if self.si_axis is not None:
            labelled = [
                rows[:, 1 + self.si_axis] for rows in properties["class_locations"].values() if len(rows)
            ]
            foreground_si = np.concatenate(labelled) if labelled else np.empty(0, dtype=np.int64)
            centres = patch_centres(image.shape[1:], self.patch_size, self.si_axis, foreground_si)
            properties = {**properties, "class_locations": centres}
        return case, segmentation, None, properties


class SplitSoftLabel(BasicTransform):  # type: ignore[misc]
    """Turn the last channels of the image, one per foreground label, into the `regression_target`.

    Only nnU-Net's masked normalisation needs the integer segmentation, too.
    """

    def __init__(self, num_labels: int, keep_segmentation: bool = False) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.keep_segmentation = keep_segmentation

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return the dictionary with image (channel, *space) and regression_target (label, *space)."""
        stacked = data_dict["image"]
        data_dict["image"] = stacked[: -self.num_labels]
        data_dict["regression_target"] = stacked[-self.num_labels :]
        if not self.keep_segmentation:
            data_dict.pop("segmentation", None)
        return data_dict


class SoftTarget(BasicTransform):  # type: ignore[misc]
    """Hand the `regression_target` over as the target of the batch, averaged down for deep supervision.

    Scales are per level the factor of each axis, 1 for the full resolution; None: one target only. With a
    threshold, the target is label > threshold (hard training), before averaging down.
    """

    def __init__(self, deep_supervision_scales: Scales, hard_threshold: float | None = None) -> None:
        super().__init__()
        self.deep_supervision_scales = deep_supervision_scales
        self.hard_threshold = hard_threshold

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return the dictionary with the soft target(s), float32 in [0, 1], under "segmentation"."""
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
    """Return the target (label, *space) at each scale, the factor of each axis: means over its voxels."""
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
    """Return an augmentation, built without deep supervision, between `SplitSoftLabel` and `SoftTarget`."""
    split = SplitSoftLabel(num_labels, keep_segmentation)
    return ComposeTransforms([split, augmentation, SoftTarget(deep_supervision_scales, hard_threshold)])
