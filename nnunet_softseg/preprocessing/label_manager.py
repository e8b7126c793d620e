"""The label manager that the plans of a soft model name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_softseg.datasets.raw_dataset import LabelScheme, hard_label_map, label_scheme

Array = np.ndarray[Any, Any] | torch.Tensor


class SoftLabelManager(LabelManager):  # type: ignore[misc]
    """Labels of a soft model: one output per foreground label or region, no channel of the background.

    nnU-Net's "logits" are soft maps here: NormReLU has been applied before resampling. `scheme` names the
    labels in the order of the channels, and how their map is painted.
    """

    def __init__(self, label_dict: Any, regions_class_order: Any, *options: Any, **more: Any) -> None:
        labels = {"labels": label_dict, "regions_class_order": regions_class_order}
        self.scheme: LabelScheme = label_scheme(labels)
        super().__init__(label_dict, regions_class_order, *options, **more)

    @property
    def num_segmentation_heads(self) -> int:
        """One channel per foreground label or region; the background has none."""
        return len(self.scheme.names)

    @property
    def has_ignore_label(self) -> bool:
        """False: nnU-Net's loader, which asks, would draw patches by a table that nnU-Net's cases have.

        Unknown voxels come with the soft target, and the patches that must see known ones have a table of
        their own; `ignore_label` is the value of the label map, as ever.
        """
        return False

    def apply_inference_nonlin(self, logits: Array) -> torch.Tensor:
        """Return the soft maps as they are, as a float32 tensor."""
        return torch.as_tensor(logits).float()

    def convert_probabilities_to_segmentation(self, predicted_probabilities: Array) -> Array:
        """Return the integer label map of soft maps, by `hard_label_map`.

        They are (label, *space), or in nnU-Net's layout, whose background says nothing more.
        """
        if not self.scheme.has_regions and len(predicted_probabilities) == self.num_segmentation_heads + 1:
            predicted_probabilities = predicted_probabilities[1:]
        if predicted_probabilities.shape[0] != self.num_segmentation_heads:
            raise ValueError(
                f"expected {self.num_segmentation_heads} soft maps, one per foreground label "
                f"{self.scheme.names}, got {predicted_probabilities.shape[0]} channels"
            )
        if isinstance(predicted_probabilities, torch.Tensor):
            soft_maps = predicted_probabilities.cpu().numpy()
            return torch.from_numpy(hard_label_map(soft_maps, self.scheme.painted))
        return hard_label_map(predicted_probabilities, self.scheme.painted)

    def revert_cropping_on_probabilities(
        self, predicted_probabilities: Array, bbox: list[list[int]], original_shape: Sequence[int]
    ) -> Array:
        """Return the soft maps (label, *space) of a crop on the whole grid, 0 outside of the crop."""
        zeros: Any = torch.zeros if isinstance(predicted_probabilities, torch.Tensor) else np.zeros
        full = zeros((len(predicted_probabilities), *original_shape), dtype=predicted_probabilities.dtype)
        reverted: Array = insert_crop_into_image(full, predicted_probabilities, bbox)
        return reverted
