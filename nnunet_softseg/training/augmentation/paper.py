"""Augmentation of Bedard et al. 2025, section 3.4.

Image and label move together; what follows changes intensities of z-scored patches: gamma and bias field
keep mean and standard deviation, noise and scaling last, as no z-score after them would undo them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_softseg.training.augmentation.movement import (
    Movement,
    MovementRanges,
    Range,
    check_settings,
    unusable,
)

_NO_BLUR = 1e-3
"""Voxels; the kernel is then one voxel wide, and sigma = 0 is no number to divide by."""


@dataclasses.dataclass(frozen=True)
class PaperAugmentation(MovementRanges):
    """Probability and range of each transform, in their order, after the movement; each draw is uniform.

    Attributes:
        p_low_resolution: sampled down (nearest) and up again (linear), all axes alike.
        zoom: length after sampling down, as a fraction.
        p_gamma: intensity, scaled to [0, 1], to the power of gamma; mean and standard deviation are kept.
        p_bias_field: see `BiasField`.
        noise_sd: of Gaussian noise, in standard deviations of the image.
        smoothing_sigma: of a Gaussian, voxels, along each axis by itself.
        intensity_factor: multiplied by this, after the z-score.
        p_mirror: of each axis by itself.
    """

    p_low_resolution: float = 0.25
    zoom: Range = (0.5, 1.0)
    p_gamma: float = 0.5
    gamma: Range = (0.5, 3.0)
    p_bias_field: float = 0.3
    bias_field_degree: int = 3
    bias_field_coefficients: Range = (0.0, 0.5)
    p_noise: float = 0.1
    noise_sd: Range = (0.0, 0.1)
    p_smoothing: float = 0.1
    smoothing_sigma: Range = (0.0, 2.0)
    p_intensity_scaling: float = 0.15
    intensity_factor: Range = (0.75, 2.0)
    p_mirror: float = 0.3

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 <= self.scaling < 1:
            raise unusable("scaling", "a fraction in [0, 1)", self.scaling)

    def initial_patch_size(self, patch_size: Sequence[int], *, in_plane: bool = False) -> list[int]:
        """Return the size of the patch to load, so that rotated and shrunk patches hold no padding.

        As nnU-Net reckons it for its own angles and scales. Translation is not counted: it may bring in 0.
        """
        angle = math.radians(self.rotation_deg)
        initial = [
            int(n) for n in get_patch_size(list(patch_size), angle, angle, angle, (1 - self.scaling, 1))
        ]
        return [int(patch_size[0]), *initial[1:]] if in_plane else initial


def paper_transforms(
    settings: PaperAugmentation,
    patch_size: Sequence[int],
    *,
    mirror_axes: Sequence[int],
    in_plane: bool = False,
    masked_channels: Sequence[int] = (),
) -> ComposeTransforms:
    """Return the augmentation, to be put into `soft_transforms`.

    `in_plane` leaves the first axis as it is, for patches of a few thick slices; masked channels are set to 0
    beyond the image, by nnU-Net's segmentation.
    """
    transforms: list[BasicTransform] = [
        Movement(patch_size, settings, in_plane=in_plane),
        *_intensity_transforms(settings, ignore_axes=(0,) if in_plane else None),
        IndependentMirror(tuple(mirror_axes), settings.p_mirror),
    ]
    if masked_channels:
        mask = MaskImageTransform(list(masked_channels), channel_idx_in_seg=0, set_outside_to=0)
        transforms.append(mask)
    return ComposeTransforms(transforms)


def previous_stage_transforms(labels: Sequence[int]) -> list[BasicTransform]:
    """Return nnU-Net's transforms that end the augmentation in the second stage of a cascade.

    The label map of the first stage becomes a channel of the image per label, in training with faults.
    """
    stock = nnUNetTrainer.get_training_transforms(
        (1, 1, 1), 0, None, (), False, is_cascaded=True, foreground_labels=labels
    ).transforms
    first = next(at for at, each in enumerate(stock) if isinstance(each, MoveSegAsOneHotToDataTransform))
    last: list[BasicTransform] = stock[first:]
    return last


def _intensity_transforms(
    settings: PaperAugmentation, ignore_axes: tuple[int, ...] | None
) -> list[BasicTransform]:
    low_resolution = SimulateLowResolutionTransform(
        settings.zoom, synchronize_channels=False, synchronize_axes=True, ignore_axes=ignore_axes
    )
    gamma = GammaTransform(
        settings.gamma, p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
    )
    # What the library calls a variance it uses as a standard deviation.
    noise = GaussianNoiseTransform(settings.noise_sd, p_per_channel=1, synchronize_channels=False)
    bias_field = BiasField(settings.bias_field_degree, settings.bias_field_coefficients)
    brightness = MultiplicativeBrightnessTransform(settings.intensity_factor, synchronize_channels=False)
    return [
        RandomTransform(low_resolution, settings.p_low_resolution),
        RandomTransform(gamma, settings.p_gamma),
        RandomTransform(bias_field, settings.p_bias_field),
        RandomTransform(noise, settings.p_noise),
        RandomTransform(GaussianBlurTransform(FittingSigma(settings.smoothing_sigma)), settings.p_smoothing),
        RandomTransform(brightness, settings.p_intensity_scaling),
    ]


class IndependentMirror(MirrorTransform):  # type: ignore[misc]
    """Mirror each axis by itself with probability p; the library's p is one half."""

    def __init__(self, axes: tuple[int, ...], p: float) -> None:
        super().__init__(axes)
        self.p = p

    def get_parameters(self, **data_dict: Any) -> dict[str, list[int]]:
        """Return the axes to be mirrored."""
        drawn = torch.rand(len(self.allowed_axes)) < self.p
        return {"axes": [axis for axis, mirrored in zip(self.allowed_axes, drawn, strict=True) if mirrored]}


class FittingSigma:
    """Draw the width of a Gaussian for one axis, no wider than the axis can hold.

    The library's blur reflects the image at its borders, for which half its kernel, 3 sigma, must be
    shorter than the image. `sigma` is the smallest and the largest, in voxels.
    """

    def __init__(self, sigma: Range) -> None:
        self.sigma = sigma

    def __call__(self, shape: Sequence[int], dim: int) -> float:
        """Return sigma for the axis `dim` of (channel, *space)."""
        widest = max((shape[dim] - 2) / 3, _NO_BLUR)
        return min(float(torch.empty(1).uniform_(*self.sigma).clamp(min=_NO_BLUR)), widest)


class BiasField(ImageOnlyTransform):  # type: ignore[misc]
    """Bias field of a receive coil: image - smallest intensity, times exp(sum of c_ijk z^i y^j x^k).

    i + j + k <= degree; z, y, x run from -1 to 1 over the patch; every coefficient is drawn uniformly. All
    channels see one field. A coil multiplies a signal that is 0 in air, and a z-scored image is 0 at its
    mean: hence the smallest intensity as 0, and each channel's mean and standard deviation restored.

    Source: Bedard et al. 2025, section 3.4.
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
        changed = [restore_statistics((channel - channel.amin()) * field, channel) for channel in img]
        return torch.stack(changed)


def polynomial(coefficients: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Return sum of c_ijk z^i y^j x^k on a grid of that shape, each coordinate from -1 to 1."""
    # One axis of powers at a time becomes one of space: each step is a small matrix product.
    values = coefficients
    for size in shape:
        place = torch.linspace(-1, 1, size, device=coefficients.device)
        powers = place[:, None] ** torch.arange(coefficients.shape[0], device=coefficients.device)
        values = torch.tensordot(values, powers, dims=([0], [1]))
    return values


def restore_statistics(changed: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Return an image with the mean and the standard deviation of another; without contrast: that mean."""
    deviation, mean = torch.std_mean(changed, correction=0)
    wanted_deviation, wanted_mean = torch.std_mean(original, correction=0)
    gain = torch.where(deviation > 1e-6 * (1 + mean.abs()), wanted_deviation / deviation, 0)
    return (changed - mean) * gain + wanted_mean
