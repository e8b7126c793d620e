"""The plans that a trainer saves beside its model: nnU-Net's, with our parts named in them."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import VANILLA, label_findings
from nnunet_softseg.errors import UserError, raise_first_error
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

LABEL_MANAGER = "SoftLabelManager"
_AXES_OF_2D = 2


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
