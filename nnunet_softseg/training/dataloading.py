"""Soft target from disk to batch, through nnU-Net's own data loader and augmentation.

The soft target is stacked behind the channels of the image, both still on disk. The augmentation moves it as
batchgeneratorsv2's `regression_target`, linearly; in the batch it is the "segmentation".

Where voxels are unknown (NaN), the soft target has twice as many channels: labels, 0 where unknown, and the
weights of their voxels, 1 where known. Both are moved and averaged alike, and padding is unknown, with weight
0. After the augmentation a voxel of which half or more is known has weight 1 and the mean of what is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch.nn.functional import interpolate

from nnunet_softseg.preprocessing.center_crop import inside, network_box, patch_centres
from nnunet_softseg.preprocessing.image_grid import KNOWN
from nnunet_softseg.preprocessing.preparation import drawn_voxels_of_record, open_soft_target, read_record

Scales = Sequence[Sequence[float]] | None
_LEAST_WEIGHT = 1e-6  # less is rounding


class StackedCase:
    """Image and soft target of a case as one (channel + label, *space) array, read only where sliced.

    `weighted` adds the weights of the soft target's voxels, as many channels again.
    """

    def __init__(self, image: Any, soft_target: Any, *, weighted: bool = False) -> None:
        if tuple(image.shape[1:]) != tuple(soft_target.shape[1:]):
            raise ValueError(
                f"image and soft target must lie on one grid, got {tuple(image.shape[1:])} "
                f"and {tuple(soft_target.shape[1:])}"
            )
        self.image = image
        self.soft_target = soft_target
        self.weighted = weighted
        self.shape = (image.shape[0] + soft_target.shape[0] * (1 + weighted), *image.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, index: tuple[slice, ...]) -> npt.NDArray[np.float32]:
        """Return the patch, float32. Only slices of space are supported, all channels at once."""
        if index[0] != slice(None):
            raise IndexError(f"all channels are read at once, got the channel index {index[0]}")
        image, soft_target = self.image[index], self.soft_target[index]
        if self.weighted:
            known = ~np.isnan(soft_target)
            soft_target = np.concatenate([np.where(known, soft_target, 0), known])
        stacked = np.empty((self.shape[0], *image.shape[1:]), dtype=np.float32)
        stacked[: image.shape[0]] = image
        # PyTorch converts half precision with the processor's own instructions, NumPy without.
        torch.from_numpy(stacked[image.shape[0] :]).copy_(torch.from_numpy(soft_target))
        return stacked


@dataclass(frozen=True)
class SoftLabelDataset:
    """A dataset of nnU-Net's with the soft target stacked behind the channels of each image.

    The array axis along S-I is for the fixed crop; None: patches wherever nnU-Net puts them. `weighted`: the
    soft targets have unknown voxels, and patches are centred on known ones. For `keep_segmentation` see
    `SplitSoftLabel`.
    """

    dataset: Any
    soft_target_folder: Path
    patch_size: tuple[int, ...]
    si_axis: int | None
    keep_segmentation: bool
    weighted: bool

    @property
    def identifiers(self) -> list[str]:
        """Cases, as nnU-Net's loader asks for them."""
        return list(self.dataset.identifiers)

    def load_case(self, identifier: str) -> tuple[StackedCase, Any, Any, dict[str, Any]]:
        """Return (image and soft target, segmentation, first stage, properties) as nnU-Net's loader expects.

        The label map of the first stage is that of a cascade; None without one.
        """
        image, segmentation, previous, properties = self.dataset.load_case(identifier)
        soft_target = open_soft_target(self.soft_target_folder, identifier)
        case = StackedCase(image, soft_target, weighted=self.weighted)
        if not self.keep_segmentation:
            # Nothing looks at it: a view of a single 0 saves reading it. Not of the type that the loader
            # converts to: so it makes a patch of its own, which PyTorch may write to.
            segmentation = np.broadcast_to(np.int8(0), (1, *image.shape[1:]))
        centres = self._centres(image.shape[1:], soft_target)
        return case, segmentation, previous, {**properties, "class_locations": centres}

    def _centres(self, shape: tuple[int, ...], soft_target: Any) -> dict[int, npt.NDArray[np.int64]]:
        """Return where patches may be centred: on each label; with a fixed crop see `patch_centres`.

        Key 0 is anywhere known; without it, where all is known and there is no crop, nnU-Net draws patches
        anywhere by itself.
        """
        known, *voxels = drawn_voxels_of_record(read_record(soft_target) or {}, len(shape))
        if self.si_axis is None:
            keys = dict(enumerate(voxels, 1)) | ({0: known} if self.weighted else {})
            return {key: np.pad(rows, ((0, 0), (1, 0))) for key, rows in sorted(keys.items())}
        box = inside(network_box(shape, self.patch_size, self.si_axis), shape)
        start, stop = [part.start for part in box], [part.stop for part in box]
        known, *voxels = (
            rows[((rows >= start) & (rows < stop)).all(axis=1), self.si_axis] for rows in (known, *voxels)
        )
        of_labels = np.concatenate(voxels)
        return patch_centres(
            shape, self.patch_size, self.si_axis, of_labels, known if self.weighted else None
        )


@dataclass(eq=False, repr=False)
class SplitSoftLabel(BasicTransform):  # type: ignore[misc]
    """Turn the last channels of the image, those of the soft target, into the `regression_target`.

    Only nnU-Net's masked normalisation and cascades need the integer segmentation, too.
    """

    num_channels: int
    keep_segmentation: bool = False

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return the dictionary with image (channel, *space) and regression_target (label, *space)."""
        stacked = data_dict["image"]
        data_dict["image"] = stacked[: -self.num_channels]
        data_dict["regression_target"] = stacked[-self.num_channels :]
        if not self.keep_segmentation:
            data_dict.pop("segmentation", None)
        return data_dict


@dataclass(eq=False, repr=False)
class SoftTarget(BasicTransform):  # type: ignore[misc]
    """Hand the `regression_target` over as the target of the batch, averaged down for deep supervision.

    Scales are per level the factor of each axis, 1 for the full resolution; None: one target only. With a
    threshold, the target is label > threshold (hard training), before averaging down. `weighted`: half of the
    channels are weights; with label y and weight m, a coarse level has sum(y m) / sum(m), and mean(m).
    """

    deep_supervision_scales: Scales
    hard_threshold: float | None = None
    weighted: bool = False

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
        if self.weighted:
            target, known = mean_of_known(target).chunk(2)
            known = (known >= KNOWN).to(target.dtype)
            target = target * known
        if self.hard_threshold is not None:
            target = (target > self.hard_threshold).to(target.dtype)
        if self.weighted:
            target = torch.cat([target, known])
        if self.deep_supervision_scales is None:
            data_dict["segmentation"] = target.contiguous()
            return data_dict
        levels = average_down(target, self.deep_supervision_scales)
        data_dict["segmentation"] = [mean_of_known(level) for level in levels] if self.weighted else levels
        return data_dict


def mean_of_known(weighted: torch.Tensor) -> torch.Tensor:
    """Return (sum(y m) / sum(m), sum(m)) of averages (y m, m), both (2 label, *space); 0 where m is 0."""
    product, weight = weighted.chunk(2)
    return torch.cat([(product / weight.clamp(min=_LEAST_WEIGHT)).clamp(max=1), weight])


def average_down(target: torch.Tensor, scales: Sequence[Sequence[float]]) -> list[torch.Tensor]:
    """Return the target (label, *space) at each scale, the factor of each axis: means over its voxels."""
    levels: list[torch.Tensor] = []
    for scale in scales:
        size = [round(length * factor) for length, factor in zip(target.shape[1:], scale, strict=True)]
        before = levels[-1].shape[1:] if levels else target.shape[1:]
        # A mean of means, where all are of as many voxels.
        goes_on = levels and _divides(size, before) and _divides(before, target.shape[1:])
        levels.append(_means(levels[-1] if goes_on else target, size).contiguous())
    return levels


def _divides(size: Sequence[int], shape: Sequence[int]) -> bool:
    return not any(length % smaller for length, smaller in zip(shape, size, strict=True))


def _means(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return values (label, *space) averaged down to a size: where it divides theirs, by a sum per axis."""
    if not _divides(size, values.shape[1:]):
        return interpolate(values[None], size=list(size), mode="area")[0]
    for axis, smaller in enumerate(size, 1):
        factor = values.shape[axis] // smaller
        if factor > 1:  # a third of the cost of pooling
            shape = (*values.shape[:axis], smaller, factor, *values.shape[axis + 1 :])
            first, *others = values.reshape(shape).unbind(axis + 1)
            values = sum(others, first) / factor
    return values


def soft_transforms(
    augmentation: BasicTransform,
    num_labels: int,
    deep_supervision_scales: Scales,
    *,
    keep_segmentation: bool = False,
    hard_threshold: float | None = None,
    weighted: bool = False,
) -> ComposeTransforms:
    """Return an augmentation, built without deep supervision, between `SplitSoftLabel` and `SoftTarget`."""
    split = SplitSoftLabel(num_labels * (1 + weighted), keep_segmentation)
    target = SoftTarget(deep_supervision_scales, hard_threshold, weighted=weighted)
    return ComposeTransforms([split, augmentation, target])


def widen_zoom(augmentation: ComposeTransforms, largest_zoom: float) -> None:
    """Let nnU-Net's augmentation show structures at up to `largest_zoom` times their length.

    In a fixed patch the cord always takes about the same share, and a network that has never seen a larger
    one cuts a tumour down to it. In nnU-Net's patches, anywhere in the image, that share varies.
    """
    spatial = [each for each in augmentation.transforms if isinstance(each, SpatialTransform)]
    if not spatial:
        raise RuntimeError(
            "nnU-Net's augmentation has no SpatialTransform any more: largest_zoom has no place"
        )
    for transform in spatial:
        # batchgeneratorsv2 scales the sampling grid: the smaller the factor, the larger the structure.
        transform.scaling = (1 / largest_zoom, transform.scaling[1])
