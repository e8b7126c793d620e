"""Calibration of a model: per label a monotone map from soft map to soft label, applied on request.

It is kept in the plans beside the model, which go wherever the model goes: archives, predictors of nnU-Net.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.case_record import PredictionOptions
from nnunet_softseg.metrics.calibration import IsotonicMap
from nnunet_softseg.settings import PLANS_KEY

CALIBRATION = "calibration"
"""Of the calibration among our entries of the plans, and of what softseg.json says of it."""
_FORMAT = 1
_KNOTS = "labels"

Map = npt.NDArray[np.float32]


def keep_calibration(
    plans: Mapping[str, Any], maps: Mapping[str, IsotonicMap], folds: Sequence[str], num_cases: int
) -> None:
    """Write the maps of all labels, by name, into the plans of a model, and of which cases they come."""
    plans[PLANS_KEY][CALIBRATION] = {
        "format": _FORMAT,
        "version": __version__,
        "folds": list(folds),
        "num_cases": num_cases,
        _KNOTS: {name: asdict(of_label) for name, of_label in maps.items()},
    }


def options_that_decide(options: PredictionOptions, plans: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that decide the values of a prediction, with the calibration that is applied."""
    names = ("localize", "largest_piece", "discard_implausible")
    return {
        **{name: getattr(options, name) for name in names},
        CALIBRATION: plans[PLANS_KEY].get(CALIBRATION) if options.calibrate else None,
    }


def kept_calibration(plans: Mapping[str, Any], names: Sequence[str]) -> list[IsotonicMap]:
    """Return the map of each label of a model.

    Raises:
        UserError: if the model has no calibration, or one of another version or other labels.
    """
    kept = plans[PLANS_KEY].get(CALIBRATION)
    remedy = "run nnunet-softseg calibrate -m MODEL, or predict without --calibrate"
    if kept is None:
        raise UserError(
            "--calibrate: expected a calibration in the model's plans.json, found none (training a fold "
            f"removes it): {remedy}"
        )
    try:
        of_format, knots = kept["format"], kept[_KNOTS]
        maps = {name: IsotonicMap(tuple(of["x"]), tuple(of["y"])) for name, of in knots.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"--calibrate: expected the calibration in plans.json as it was written, found: {error}: {remedy}"
        ) from error
    if of_format != _FORMAT:
        raise UserError(
            f"--calibrate: expected a calibration of format {_FORMAT}, found {of_format}, made by "
            f"nnunet-softseg {kept.get('version')} (here {__version__}): {remedy}"
        )
    if list(maps) != list(names):
        raise UserError(
            f"--calibrate: expected a calibration of the model's labels, {', '.join(names)}, found one of "
            f"{', '.join(maps)}: {remedy}"
        )
    return list(maps.values())


def is_calibrated(plans: Mapping[str, Any], options: PredictionOptions) -> bool:
    """Return whether maps are calibrated: asked for, and there; the final validation of a fold never is."""
    return options.calibrate and CALIBRATION in plans[PLANS_KEY]


def calibrated(soft_maps: Map, names: Sequence[str], plans: Mapping[str, Any]) -> Map:
    """Return soft maps (label, *space) on the image's grid calibrated; what is 0 stays 0."""
    maps = kept_calibration(plans, names)
    return np.stack([of_label(soft_map) for of_label, soft_map in zip(maps, soft_maps, strict=True)])


def described(plans: Mapping[str, Any], options: PredictionOptions) -> dict[str, Any] | None:
    """Return what softseg.json says of the calibration of its maps; None: they are as the network says."""
    if not is_calibrated(plans, options):
        return None
    return {key: value for key, value in plans[PLANS_KEY][CALIBRATION].items() if key != _KNOTS}
