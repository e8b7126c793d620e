"""The plans that a trainer saves beside its model: nnU-Net's, with our label manager, preprocessor and resampling named."""

import importlib.metadata
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nnunet_softseg import __version__
from nnunet_softseg.errors import UserError
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

LABEL_MANAGER = "SoftLabelManager"


def is_soft(plans: Mapping[str, Any]) -> bool:
    """Return whether a model with these plans puts out soft maps; all of our patches of nnU-Net ask this first."""
    return plans.get("label_manager") == LABEL_MANAGER and PLANS_KEY in plans


def soft_plans(plans: Mapping[str, Any], trainer: str, settings: SoftSegSettings) -> dict[str, Any]:
    """Return a copy of nnU-Net's plans that names our parts; the preprocessed data stay those of the original.

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
        UserError: for an ignore label, region-based labels, a cascade, or the fixed crop with a 2d configuration.
    """
    dataset = plans["dataset_name"]
    labels = dataset_json["labels"]
    vanilla = "train it with nnUNetTrainer"
    if "ignore" in labels:
        raise UserError(
            f"{dataset}/dataset.json has an ignore label, which soft training does not support yet: {vanilla}"
        )
    if any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values()):
        raise UserError(
            f"{dataset}/dataset.json has region-based labels, which soft training does not support yet: {vanilla}"
        )
    entry = plans["configurations"].get(configuration, {})
    if entry.get("previous_stage") is not None:
        raise UserError(
            f"{configuration} of {dataset} is a cascade, which soft training does not support yet: {vanilla}, or use 3d_fullres "
            "or 3d_lowres"
        )
    if center_crop and len(entry.get("patch_size", (0, 0, 0))) == 2:
        raise UserError(
            f"{configuration} of {dataset} is two-dimensional, expected a 3d configuration for the fixed patch: use 3d_fullres, "
            "or train nnUNetTrainerSoftSegSlidingWindow"
        )
