"""From a case on disk to a patch: nnU-Net's own data loader, given a dataset that adds the soft target.

The loader crops whatever `load_case` returns, draws patch centres from the case's "class locations" and knows
nothing of soft labels. So this dataset returns the image with the soft target stacked behind its channels,
both still on disk, and tells through the class locations where patches of the fixed crop may lie. Nothing of
the loader is changed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.preprocessing.center_crop import patch_centres
from nnunet_softseg.preprocessing.soft_target import open_soft_target


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

    Args:
        dataset: nnU-Net's dataset of preprocessed cases.
        soft_target_folder: with `<case>.b2nd` of every case.
        patch_size: of the configuration.
        si_axis: array axis along S-I, for the fixed crop; None: patches wherever nnU-Net puts them.
        keep_segmentation: read the integer segmentation as well.
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
