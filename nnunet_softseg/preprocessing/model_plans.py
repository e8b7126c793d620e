"""Plans that a trainer saves with its model, and the label manager that they name."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import VANILLA, label_findings
from nnunet_softseg.datasets.soft_label import hard_label_map
from nnunet_softseg.errors import UserError, raise_first_error
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

_AXES_OF_2D = 2

Array = np.ndarray[Any, Any] | torch.Tensor


class SoftLabelManager(LabelManager):  # type: ignore[misc]
    """Labels of a soft model: one output per foreground label, no channel of the background.

    nnU-Net's "logits" are soft maps here: NormReLU has been applied before resampling. So the non-linearity
    is the identity, the label map is soft map > 0.5, and every channel is 0 outside of the crop.
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


LABEL_MANAGER = SoftLabelManager.__name__


def is_soft(plans: Mapping[str, Any]) -> bool:
    """Return whether a model with these plans puts out soft maps; our patches of nnU-Net ask this first."""
    return plans.get("label_manager") == LABEL_MANAGER and PLANS_KEY in plans


def soft_plans(plans: Mapping[str, Any], trainer: str, settings: SoftSegSettings) -> dict[str, Any]:
    """Return a copy of nnU-Net's plans that names our label manager, preprocessor and resampling.

    The preprocessed data stay those of the original.

    Args:
        plans: as nnU-Net planned them, which vanilla trainers use unchanged.
        trainer: class name.
        settings: of the trainer.
    """
    soft = deepcopy(dict(plans))
    soft["label_manager"] = LABEL_MANAGER
    for configuration in soft["configurations"].values():
        if "inherits_from" not in configuration or "preprocessor_name" in configuration:
            configuration["preprocessor_name"] = "SoftSegPreprocessor"
            configuration["resampling_fn_probabilities"] = "resample_soft_map"
            configuration["resampling_fn_probabilities_kwargs"] = {
                "core_threshold": settings.core_threshold,
                "support_threshold": settings.support_threshold,
            }
    soft[PLANS_KEY] = {
        "trainer": trainer,
        "settings": settings.as_dict(),
        "si_axis": None,
        "orientation": None,
        "versions": versions(),
    }
    return soft


def spacing_range(spacings_mm: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    """Return the smallest and largest spacing along each axis, for JSON; None for no case."""
    if not len(spacings_mm):
        return None
    table = np.asarray(spacings_mm, dtype=np.float64)
    return {"smallest": table.min(axis=0).tolist(), "largest": table.max(axis=0).tolist()}


def versions() -> dict[str, str]:
    """Return the versions that decide a result."""
    return {
        "nnunet_softseg": __version__,
        **{name: importlib.metadata.version(name) for name in ("nnunetv2", "torch")},
    }


def require_supported(
    plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any], *, center_crop: bool
) -> None:
    """Refuse what soft training cannot do yet, and name what can.

    Raises:
        UserError: for labels that `raw_dataset.label_findings` objects to (ignore, region-based), a cascade,
            or the fixed crop with a 2d configuration.
    """
    raise_first_error(label_findings(dataset_json["labels"]))
    dataset, entry = plans["dataset_name"], plans["configurations"].get(configuration, {})
    if entry.get("previous_stage") is not None:
        raise UserError(
            f"{configuration} of {dataset} is a cascade, which soft training does not support yet: "
            f"{VANILLA}, or use 3d_fullres or 3d_lowres"
        )
    if center_crop and len(entry.get("patch_size", ())) == _AXES_OF_2D:
        raise UserError(
            f"{configuration} of {dataset} is two-dimensional, expected a 3d configuration for the fixed "
            "patch: use 3d_fullres, or train nnUNetTrainerSoftSegSlidingWindow"
        )


def version_warning(plans: Mapping[str, Any]) -> str | None:
    """Return one line if the model was trained with another nnunet-softseg or nnU-Net than predicts here."""
    trained, here = plans.get(PLANS_KEY, {}).get("versions", {}), versions()
    different = [
        f"{name} {trained.get(name, 'unknown')} (here {here[name]})"
        for name in ("nnunet_softseg", "nnunetv2")
        if trained.get(name) != here[name]
    ]
    return f"the model was trained with {', '.join(different)}" if different else None
