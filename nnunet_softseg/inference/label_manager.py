"""One output channel per foreground label, background where none is above the threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_softseg.datasets.soft_label import hard_label_map

Array = np.ndarray[Any, Any] | torch.Tensor


class SoftLabelManager(LabelManager):  # type: ignore[misc]
    """What nnU-Net asks about labels, answered for soft maps.

    nnU-Net's "logits" are soft maps here: NormReLU has been applied before resampling. So the non-linearity
    is the identity, the label map is soft map > 0.5, and what lies outside the crop is 0 in every channel.
    """

    @property
    def num_segmentation_heads(self) -> int:
        """One channel per foreground label; the background has none."""
        return len(self.foreground_labels)

    def apply_inference_nonlin(self, logits: Array) -> torch.Tensor:
        """Return the soft maps as they are, as a float32 tensor."""
        return torch.as_tensor(logits).float()

    def convert_probabilities_to_segmentation(self, predicted_probabilities: Array) -> Array:
        """Return the integer label map: the label of the largest channel where that exceeds 0.5, else 0.

        Args:
            predicted_probabilities: (label, *space) soft maps in [0, 1].

        Raises:
            ValueError: if the number of channels is not the number of foreground labels.
        """
        if predicted_probabilities.shape[0] != self.num_segmentation_heads:
            raise ValueError(
                f"expected {self.num_segmentation_heads} soft maps, one per foreground label "
                f"{self.foreground_labels}, got {predicted_probabilities.shape[0]} channels"
            )
        if isinstance(predicted_probabilities, torch.Tensor):
            soft_maps = predicted_probabilities.cpu().numpy()
            return torch.from_numpy(hard_label_map(soft_maps, self.foreground_labels))
        return hard_label_map(predicted_probabilities, self.foreground_labels)

    def convert_logits_to_segmentation(self, predicted_logits: Array) -> Array:
        """Return the integer label map of soft maps; see `convert_probabilities_to_segmentation`."""
        return self.convert_probabilities_to_segmentation(predicted_logits)

    def revert_cropping_on_probabilities(
        self, predicted_probabilities: Array, bbox: list[list[int]], original_shape: Sequence[int]
    ) -> Array:
        """Return the soft maps on the uncropped grid, 0 outside of the crop.

        Args:
            predicted_probabilities: (label, *space) soft maps of the crop.
            bbox: (start, stop) per axis of the crop.
            original_shape: of the uncropped image.
        """
        shape = (predicted_probabilities.shape[0], *original_shape)
        full: Array
        if isinstance(predicted_probabilities, torch.Tensor):
            full = torch.zeros(shape, dtype=predicted_probabilities.dtype)
        else:
            full = np.zeros(shape, dtype=predicted_probabilities.dtype)
        reverted: Array = insert_crop_into_image(full, predicted_probabilities, bbox)
        return reverted
