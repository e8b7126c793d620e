"""A multiplicative bias field, as a receive coil makes it: exp of a polynomial of the place."""

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform

_SMALLEST_SD = 1e-7


class BiasField(ImageOnlyTransform):  # type: ignore[misc]
    """Multiply what lies above the smallest intensity by exp(sum of c_ijk z^i y^j x^k), i + j + k <= degree.

    z, y, x run from -1 to 1 over the patch; every coefficient is drawn anew, uniformly. All channels see one
    field. It acts on a signal that is 0 where there is nothing, while a z-scored image is 0 at its mean: so
    the field multiplies what lies above the smallest intensity, and each channel's mean and standard
    deviation are restored, as the z-score of an image that had this field to begin with would have it.

    Source: Bedard et al. 2025, section 3.4.

    Args:
        degree: of the polynomial.
        coefficients: smallest and largest.
    """

    def __init__(self, degree: int, coefficients: tuple[float, float]) -> None:
        super().__init__()
        self.degree = degree
        self.coefficients = coefficients

    def get_parameters(self, **data_dict: Any) -> dict[str, torch.Tensor]:
        """Return the coefficients, (degree + 1,) per axis of space; 0 where i + j + k > degree."""
        axes = data_dict["image"].ndim - 1
        drawn = torch.empty((self.degree + 1,) * axes).uniform_(*self.coefficients)
        powers = torch.meshgrid(*[torch.arange(self.degree + 1)] * axes, indexing="ij")
        return {"coefficients": torch.where(torch.stack(powers).sum(0) <= self.degree, drawn, 0)}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        field = polynomial(params["coefficients"].to(img.device), img.shape[1:]).exp_()
        for channel in img:
            mean, sd = channel.mean(), channel.std()
            channel.sub_(channel.amin()).mul_(field)
            mean_now, sd_now = channel.mean(), channel.std()
            channel.sub_(mean_now).mul_(sd / sd_now.clamp(min=_SMALLEST_SD)).add_(mean)
        return img


def polynomial(coefficients: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Return sum of c_ijk z^i y^j x^k on a grid of that shape, each coordinate from -1 to 1."""
    # One axis of powers at a time becomes one of space: each step is a small matrix product.
    values = coefficients
    for size in shape:
        place = torch.linspace(-1, 1, size, device=coefficients.device)
        powers = place[:, None] ** torch.arange(coefficients.shape[0], device=coefficients.device)
        values = torch.tensordot(values, powers, dims=([0], [1]))
    return values
