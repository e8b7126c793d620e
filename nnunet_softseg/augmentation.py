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
from torch.nn.functional import avg_pool2d, avg_pool3d, interpolate, max_pool2d, max_pool3d

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


class RemoveStructure(BasicTransform):  # type: ignore[misc]
    """Now and then take the labelled structure out of a patch, so that its absence is learned too.

    Every image of a cord dataset has a cord in its middle. A network that never saw one without answers
    noise, or a neck whose cord is missing, with a confident cord. So a patch is emptied: either its
    structure, with a margin, is painted over with what lies elsewhere in the patch, or all of it becomes
    smooth noise. Its soft label becomes 0 everywhere.

    Args:
        probability: that a patch is emptied.
        noise_share: of the emptied patches, how many become noise.
        margin: largest width in voxels around the structure that is painted over too.
    """

    def __init__(self, probability: float, noise_share: float = 0.25, margin: int = 6) -> None:
        super().__init__()
        self.probability = probability
        self.noise_share = noise_share
        self.margin = margin

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw whether, how, and with what margin."""
        return {
            "remove": bool(torch.rand(1) < self.probability),
            "noise": bool(torch.rand(1) < self.noise_share),
            "margin": int(torch.randint(1, self.margin + 1, (1,))),
            "coarseness": int(torch.randint(1, 5, (1,))),
        }

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return the dictionary with an emptied image and a zero regression_target, or as it was."""
        if not params["remove"]:
            return data_dict
        image, target = data_dict["image"], data_dict["regression_target"]
        emptied = (
            _smooth_noise(image, params["coarseness"])
            if params["noise"]
            else _painted_over(image, target, params["margin"])
        )
        if emptied is not None:
            data_dict["image"], data_dict["regression_target"] = emptied, torch.zeros_like(target)
        return data_dict


def _smooth_noise(image: torch.Tensor, coarseness: int) -> torch.Tensor:
    size = [max(length // coarseness, 1) for length in image.shape[1:]]
    coarse = torch.randn(1, image.shape[0], *size)
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    noise = interpolate(coarse, size=image.shape[1:], mode=mode, align_corners=False)[0]
    return noise * image.std() + image.mean()


def _painted_over(image: torch.Tensor, target: torch.Tensor, margin: int) -> torch.Tensor | None:
    """Return the image with its structure replaced by what lies half a patch away; None if that is too."""
    dims = image.ndim - 1
    structure = (target > 0).any(dim=0, keepdim=True).float()
    cover = _soft_edge(_widened(structure, margin))
    for axis in sorted(range(1, dims + 1), key=lambda _: float(torch.rand(1))):
        shift = int(image.shape[axis] * (0.4 + 0.2 * float(torch.rand(1))))
        if not (torch.roll(structure, shift, axis) * cover).any():
            return image * (1 - cover) + torch.roll(image, shift, axis) * cover
    return None


def _widened(mask: torch.Tensor, margin: int) -> torch.Tensor:
    """Return a (1, *space) mask grown by a box, axis by axis: at once it takes a hundred times as long."""
    pool = {2: max_pool2d, 3: max_pool3d}[mask.ndim - 1]
    for axis in range(mask.ndim - 1):
        width = [2 * margin + 1 if other == axis else 1 for other in range(mask.ndim - 1)]
        mask = pool(mask[None], width, stride=1, padding=[size // 2 for size in width])[0]
    return mask


def _soft_edge(mask: torch.Tensor) -> torch.Tensor:
    smooth = {2: avg_pool2d, 3: avg_pool3d}[mask.ndim - 1]
    return smooth(mask[None], 3, stride=1, padding=1, count_include_pad=False)[0]


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
    absent_fraction: float = 0.0,
) -> ComposeTransforms:
    """Return an augmentation of nnU-Net's, framed so that the soft label goes through it.

    Args:
        augmentation: built without deep supervision.
        num_labels: number of foreground labels.
        deep_supervision_scales: see `SoftTarget`.
        keep_segmentation: see `SplitSoftLabel`.
        hard_threshold: see `SoftTarget`.
        absent_fraction: of the patches, how many `RemoveStructure` empties.
    """
    return ComposeTransforms(
        [
            SplitSoftLabel(num_labels, keep_segmentation),
            augmentation,
            *([RemoveStructure(absent_fraction)] if absent_fraction else []),
            SoftTarget(deep_supervision_scales, hard_threshold),
        ]
    )
