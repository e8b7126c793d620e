"""Random changes of contrast, which make a network generalise to contrasts that it was not trained on.

The label stays the same to the last bit. Parameters are drawn per channel, from NumPy's generator, which
nnU-Net seeds in each worker. Images are z-scored, (channel, *space), and stay so, as the network expects it.
"""

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.inversion import InvertImageTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from torch.nn.functional import interpolate, leaky_relu, pad

from nnunet_softseg.training.augmentation.paper import (
    Movement,
    Range,
    check_settings,
    restore_statistics,
    unusable,
)

Layer = tuple[torch.Tensor, torch.Tensor]
"""Weights (out, in, *kernel) and biases (out,) of a convolution."""

Knots = NDArray[np.float64]

_TABLE_SIZE = 512
_RANGE = (0.005, 0.995)
"""Quantiles of an image that bound its range; a function is constant beyond them."""
_SMALLEST_STEP = 1e-6
_QUANTILES_FROM = 10_000
"""Quantiles of so many voxels, evenly spread, are near enough to those of all, and much sooner there."""
_CONVOLUTIONS = {2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


@dataclasses.dataclass(frozen=True)
class ContrastAugmentationSettings:
    """Probability and range of each change of contrast; a UserError names one that makes no sense.

    Attributes:
        p_changed: probability that anything below happens to a patch; the others keep the contrast that the
            network will see.
        p_inversion: probability of an image turned about its mean.
        p_convolution: of a random convolutional network in its place.
        convolution_sizes: kernel sizes to draw from, odd, in voxels.
        p_monotone: of a smooth increasing function of the intensity.
        p_non_monotone: of a smooth function that rises and falls.
        p_histogram: of another histogram, the order of the intensities kept.
        remap_knots: random values that a function goes through.
        share: range of the share of a convolution or function in its mix with the image.
        p_redistribution: of brightness and contrast of their own inside and outside the label.
        redistribution_gain: range of the factor on the contrast within a part.
        redistribution_shift: range of the shift of a part, in standard deviations of the image.
        p_thick_slices: of slices across a random axis.
        slice_thickness: range, in voxels.
    """

    p_changed: float = 0.5
    p_inversion: float = 0.2
    p_convolution: float = 0.2
    convolution_layers: int = 2
    convolution_channels: int = 2
    convolution_sizes: tuple[int, ...] = (1, 3)
    p_monotone: float = 0.2
    p_non_monotone: float = 0.2
    p_histogram: float = 0.2
    remap_knots: int = 4
    share: Range = (0.3, 1.0)
    p_redistribution: float = 0.3
    redistribution_gain: Range = (0.5, 1.5)
    redistribution_shift: Range = (-2.0, 2.0)
    p_thick_slices: float = 0.3
    slice_thickness: Range = (2.0, 6.0)

    def __post_init__(self) -> None:
        check_settings(self)
        if not (self.share[0] >= 0 and self.share[1] <= 1):
            raise unusable("share", "a range within [0, 1]", self.share)
        if self.slice_thickness[0] < 1:
            raise unusable("slice_thickness", "voxels, at least 1", self.slice_thickness)
        if not self.convolution_sizes or any(size < 1 or size % 2 == 0 for size in self.convolution_sizes):
            raise unusable("convolution_sizes", "odd numbers of voxels", self.convolution_sizes)
        for name, smallest in (("remap_knots", 2), ("convolution_layers", 1), ("convolution_channels", 1)):
            if getattr(self, name) < smallest:
                raise unusable(name, f"at least {smallest}", getattr(self, name))


# Arithmetic


def intensity_quantiles(image: torch.Tensor, fractions: Sequence[float]) -> torch.Tensor:
    """Return quantiles of an image, estimated on a part of its voxels where there are many."""
    values = image.flatten()[:: max(1, image.numel() // _QUANTILES_FROM)]
    return torch.quantile(values, torch.tensor(fractions, dtype=image.dtype, device=image.device))


def remap(image: torch.Tensor, knots: Sequence[float], values: Sequence[float]) -> torch.Tensor:
    """Return f(image), f smooth through (knot, value) and constant beyond the first and the last knot.

    f is a monotone cubic interpolant (Fritsch and Butland 1984). Knots are intensities, increasing.
    """
    grid = np.linspace(knots[0], knots[-1], _TABLE_SIZE)
    table = torch.as_tensor(PchipInterpolator(knots, values)(grid), dtype=image.dtype, device=image.device)
    place = (image - float(knots[0])) * ((_TABLE_SIZE - 1) / (float(knots[-1]) - float(knots[0])))
    place = place.clamp_(0, _TABLE_SIZE - 1)
    below = place.to(torch.int32).clamp_(max=_TABLE_SIZE - 2)
    return torch.lerp(table[below], table[below + 1], place - below)


def mix(changed: torch.Tensor, original: torch.Tensor, share: float) -> torch.Tensor:
    """Return the mix of a changed image and the original, with the original's mean and deviation."""
    return restore_statistics(torch.lerp(original, restore_statistics(changed, original), share), original)


def convolve(image: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """Return an image, (*space), through convolutions with leaky ReLU between; its border is replicated."""
    made = image[None, None]
    for number, (weights, biases) in enumerate(layers):
        margin = [length // 2 for length in reversed(weights.shape[2:]) for _ in range(2)]
        convolution = _CONVOLUTIONS[image.ndim]
        made = leaky_relu(made, 0.1) if number else made
        made = convolution(pad(made, margin, mode="replicate"), weights.to(made), biases.to(made))
    return made[0, 0]


def thick_slices(image: torch.Tensor, axis: int, thickness: float) -> torch.Tensor:
    """Return an image, (*space), as if acquired in slices: averaged across them, interpolated in between.

    Of the thickness in voxels, the nearest that divides the image into whole slices is taken.
    """
    length = image.shape[axis]
    number = max(1, round(length / thickness))
    lines = image.movedim(axis, -1)
    slices = interpolate(lines.reshape(1, -1, length), size=number, mode="area")
    return interpolate(slices, size=length, mode="linear").reshape(lines.shape).movedim(-1, axis)


def redistribute(
    image: torch.Tensor, soft_label: torch.Tensor, gains: Sequence[float], shifts: Sequence[float]
) -> torch.Tensor:
    """Return an image with brightness and contrast of its own in each part: every label, and the rest.

    y = sum over parts of w (m + gain (x - m) + shift s)

    with x the image, w the part's share of a voxel, m the part's mean weighted by w, s the standard deviation
    of the image. A voxel that belongs to a part by half is changed by half. Gains and shifts are those of the
    labels, in the order of soft_label (label, *space), then outside.
    """
    deviation = image.std(correction=0)
    changed = torch.zeros_like(image)
    for share, gain, shift in zip(parts(soft_label), gains, shifts, strict=True):
        mean = (share * image).sum() / share.sum().clamp(min=1e-6)
        changed += share * (mean + gain * (image - mean) + shift * deviation)
    return changed


def parts(soft_label: torch.Tensor) -> torch.Tensor:
    """Return the share of each label and of the background in each voxel, (label + 1, *space), sum 1."""
    labels = soft_label / soft_label.sum(0, keepdim=True).clamp(min=1)
    return torch.cat([labels, (1 - labels.sum(0, keepdim=True)).clamp(min=0)])


# Transforms


class ChannelTransform(ImageOnlyTransform):  # type: ignore[misc]
    """A change of each image channel with parameters of its own."""

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        """Return per channel what `draw` returns for it."""
        return {"channels": [self.draw(channel, data.get("regression_target")) for channel in data["image"]]}

    def draw(self, channel: torch.Tensor, soft_label: torch.Tensor | None) -> dict[str, Any]:
        """Return random parameters of `change`."""
        raise NotImplementedError

    def change(self, channel: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """Return a channel, (*space), changed."""
        raise NotImplementedError

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        pairs = zip(img, params["channels"], strict=True)
        return torch.stack([self.change(channel, **parameters) for channel, parameters in pairs])


@dataclasses.dataclass(eq=False, repr=False)
class FunctionRemap(ChannelTransform):
    """A smooth function of the intensity through random values at knots evenly spread over its range."""

    num_knots: int
    share: Range
    monotone: bool = True

    def draw(self, channel: torch.Tensor, soft_label: torch.Tensor | None) -> dict[str, Any]:
        """Return the function's knots and values, and its share."""
        values = np.random.uniform(0, 1, self.num_knots)
        return {
            "knots": self.place_knots(channel),
            "values": np.sort(values) if self.monotone else values,
            "share": float(np.random.uniform(*self.share)),
        }

    def place_knots(self, channel: torch.Tensor) -> Knots:
        """Return the intensities, increasing, at which the function's values are drawn."""
        low, high = intensity_quantiles(channel, _RANGE).tolist()
        return np.linspace(low, max(high, low + _SMALLEST_STEP), self.num_knots)

    def change(self, channel: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """Return the function of the channel, mixed with it."""
        made = remap(channel, parameters["knots"], parameters["values"])
        return mix(made, channel, parameters["share"])


class HistogramChange(FunctionRemap):
    """Another histogram, the order of intensities kept: between two knots lie as many voxels as elsewhere."""

    def place_knots(self, channel: torch.Tensor) -> Knots:
        """Return the intensities, increasing, at which the function's values are drawn."""
        fractions = np.linspace(*_RANGE, self.num_knots).tolist()
        knots = intensity_quantiles(channel, fractions).double().cpu().numpy()
        # Where one intensity is as frequent as that of an empty border, knots fall together.
        step = max(1e-3 * float(knots[-1] - knots[0]), _SMALLEST_STEP)
        spread: Knots = knots + step * np.arange(self.num_knots)
        return spread


@dataclasses.dataclass(eq=False, repr=False)
class RandomConvolution(ChannelTransform):
    """A small convolutional network with random weights, mixed with the image (Xu et al. 2021).

    Kernels are symmetric about their centre, so that edges stay where the label has them. Layers in a row:
    Ouyang et al. 2022.
    """

    num_layers: int
    num_channels: int
    sizes: Sequence[int]
    share: Range
    in_plane: bool = False
    """Nothing crosses the first axis, of a few thick slices."""

    def draw(self, channel: torch.Tensor, soft_label: torch.Tensor | None) -> dict[str, Any]:
        """Return the layers of the network and its share."""
        widths = [1, *[self.num_channels] * (self.num_layers - 1), 1]
        layers = [self._draw_layer(*pair, channel.ndim) for pair in pairwise(widths)]
        return {"layers": layers, "share": float(np.random.uniform(*self.share))}

    def _draw_layer(self, num_in: int, num_out: int, dimensions: int) -> Layer:
        size = int(np.random.choice(self.sizes))
        kernel = [1 if self.in_plane else size, *[size] * (dimensions - 1)]
        deviation = (num_in * math.prod(kernel)) ** -0.5
        weights = np.random.normal(0, deviation, (num_out, num_in, *kernel))
        biases = np.random.normal(0, 0.5, num_out)
        # The mean of two independent weights has 1 / sqrt(2) of their deviation.
        symmetric = (weights + np.flip(weights, tuple(range(2, 2 + dimensions)))) * 0.5**0.5
        return torch.from_numpy(symmetric).float(), torch.from_numpy(biases).float()

    def change(self, channel: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """Return what the network makes of the channel, mixed with it."""
        return mix(convolve(channel, parameters["layers"]), channel, parameters["share"])


@dataclasses.dataclass(eq=False, repr=False)
class ThickSlices(ChannelTransform):
    """Low resolution along one random axis, as of thick slices; thickness in voxels."""

    thickness: Range
    in_plane: bool = False
    """Not along the first axis, of slices that are thick already."""

    def draw(self, channel: torch.Tensor, soft_label: torch.Tensor | None) -> dict[str, Any]:
        """Return axis and thickness."""
        thickness = float(np.random.uniform(*self.thickness))
        return {"axis": int(np.random.randint(int(self.in_plane), channel.ndim)), "thickness": thickness}

    def change(self, channel: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """Return the channel in slices."""
        return thick_slices(channel, **parameters)


@dataclasses.dataclass(eq=False, repr=False)
class Redistribution(ChannelTransform):
    """Brightness and contrast of their own inside and outside of the soft label, which weighs them."""

    gain: Range
    shift: Range

    def draw(self, channel: torch.Tensor, soft_label: torch.Tensor | None) -> dict[str, Any]:
        """Return soft label, gains and shifts."""
        if soft_label is None:
            raise RuntimeError("no soft label to redistribute by: put this behind SplitSoftLabel")
        num_parts = len(soft_label) + 1
        gains, shifts = (np.random.uniform(*limits, num_parts).tolist() for limits in (self.gain, self.shift))
        return {"soft_label": soft_label, "gains": gains, "shifts": shifts}

    def change(self, channel: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """Return the channel redistributed."""
        return restore_statistics(redistribute(channel, **parameters), channel)


# The pipeline


def contrast_transforms(
    settings: ContrastAugmentationSettings, *, in_plane: bool = False
) -> list[BasicTransform]:
    """Return the transforms, each at its probability; slices come last, as in a scanner.

    With `in_plane`, nothing crosses the first axis, as the label does not.
    """
    knots, share = settings.remap_knots, settings.share
    layers, channels = settings.convolution_layers, settings.convolution_channels
    convolution = RandomConvolution(layers, channels, settings.convolution_sizes, share, in_plane)
    redistribution = Redistribution(settings.redistribution_gain, settings.redistribution_shift)
    return [
        RandomTransform(InvertImageTransform(1), settings.p_inversion),
        RandomTransform(convolution, settings.p_convolution),
        RandomTransform(FunctionRemap(knots, share), settings.p_monotone),
        RandomTransform(FunctionRemap(knots, share, monotone=False), settings.p_non_monotone),
        RandomTransform(HistogramChange(knots, share), settings.p_histogram),
        RandomTransform(redistribution, settings.p_redistribution),
        RandomTransform(ThickSlices(settings.slice_thickness, in_plane), settings.p_thick_slices),
    ]


def add_contrast_transforms(
    augmentation: ComposeTransforms, settings: ContrastAugmentationSettings
) -> ComposeTransforms:
    """Return an augmentation, nnU-Net's or the paper's, with the contrast transforms behind its spatial ones.

    There image and label lie as the network sees them; blur, noise and the rest come after, as in a scanner.
    Where the augmentation goes slice by slice, they do.
    """
    stock = list(augmentation.transforms)
    in_plane = any(
        isinstance(each, Convert2DTo3DTransform) or (isinstance(each, Movement) and each.in_plane)
        for each in stock
    )
    spatial = (SpatialTransform, Convert2DTo3DTransform, Movement)
    behind = max(number for number, transform in enumerate(stock) if isinstance(transform, spatial)) + 1
    changes = RandomTransform(
        ComposeTransforms(contrast_transforms(settings, in_plane=in_plane)), settings.p_changed
    )
    return ComposeTransforms([*stock[:behind], changes, *stock[behind:]])
