"""Intensities normalised by the schemes that nnU-Net's plans name, on NumPy arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import UserError

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
_LEAST_STD = 1e-8
_RGB_MAXIMUM = 255.0
FULL_INSTALLATION = "predict with the model's folder where nnU-Net is installed (pip install nnunet-softseg)"


def normalise(data: Image, mask: Mask | None, configuration: Any, intensities: Mapping[str, Any]) -> Image:
    """Return an image (channel, *space) normalised, each channel by its scheme; the array is written to.

    Args:
        data: not resampled yet.
        mask: (*space), of what is not zero around the subject, holes filled; None: no channel needs it.
        configuration: of the plans: `normalization_schemes` and `use_mask_for_norm`, one per channel.
        intensities: of the training's foreground, by the number of the channel.

    Raises:
        UserError: if a scheme is not one of nnU-Net's, and nnU-Net is not installed to look for it.
    """
    schemes: Sequence[str] = configuration.normalization_schemes
    for channel, scheme in enumerate(schemes[: len(data)]):
        within = mask if configuration.use_mask_for_norm[channel] else None
        known = intensities.get(str(channel), {})
        # Values near the end of float32 become NaN, here as in nnU-Net: a network has no answer to them.
        with np.errstate(over="ignore", invalid="ignore"):
            if scheme in SCHEMES:
                data[channel] = SCHEMES[scheme](data[channel], within, known)
            else:
                data[channel] = _by_another_scheme(scheme, data[channel], within, known)
    return data


def _by_another_scheme(scheme: str, image: Image, mask: Mask | None, intensities: Mapping[str, Any]) -> Image:
    """Return a channel normalised by a class that somebody has put into nnU-Net's folder."""
    try:
        import nnunetv2
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    except ImportError as error:
        raise UserError(
            f"normalisation {scheme} of the plans: expected nnU-Net here, which has it, found none: "
            f"{FULL_INSTALLATION}"
        ) from error
    folder = f"{nnunetv2.__path__[0]}/preprocessing/normalization"
    found = recursive_find_python_class(folder, scheme, "nnunetv2.preprocessing.normalization")
    if found is None:
        raise UserError(
            f"normalisation {scheme} of the plans: expected a class in nnU-Net's folder, found none: install "
            "it, or correct normalization_schemes"
        )
    # As nnU-Net marks what is outside of the mask.
    outside = np.zeros(image.shape, np.int8) if mask is None else np.where(mask, np.int8(0), np.int8(-1))
    scheme_of_plans = found(use_mask_for_norm=mask is not None, intensityproperties=dict(intensities))
    normalised: Image = scheme_of_plans.run(image, outside)
    return normalised


def _z_score(image: Image, mask: Mask | None) -> Image:
    if mask is None:
        mean, std = image.mean(), image.std()
        image -= mean
        image /= max(std, _LEAST_STD)
        return image
    values = image[mask]
    if not values.size:
        return image
    image[mask] = (values - values.mean()) / max(values.std(), _LEAST_STD)
    return image


def _ct(image: Image, intensities: Mapping[str, Any]) -> Image:
    """Clip to the training's 0.5 and 99.5 percentiles, and scale by its mean and standard deviation."""
    np.clip(image, intensities["percentile_00_5"], intensities["percentile_99_5"], out=image)
    image -= intensities["mean"]
    image /= max(intensities["std"], _LEAST_STD)
    return image


def _to_one(image: Image) -> Image:
    image -= image.min()
    image /= max(image.max(), _LEAST_STD)
    return image


def _colours_to_one(image: Image) -> Image:
    if not 0 <= image.min() <= image.max() <= _RGB_MAXIMUM:
        raise UserError(
            f"RGB images: expected values from 0 to 255, found {image.min():g} to {image.max():g}: convert "
            "them to 8 bits"
        )
    image /= _RGB_MAXIMUM
    return image


SCHEMES: Mapping[str, Callable[[Image, Mask | None, Mapping[str, Any]], Image]] = {
    "ZScoreNormalization": lambda image, mask, _: _z_score(image, mask),
    "CTNormalization": lambda image, _, intensities: _ct(image, intensities),
    "NoNormalization": lambda image, *_: image,
    "RescaleTo01Normalization": lambda image, *_: _to_one(image),
    "RGBTo01Normalization": lambda image, *_: _colours_to_one(image),
}
"""By nnU-Net's names."""
