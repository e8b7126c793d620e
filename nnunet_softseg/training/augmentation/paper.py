"""Augmentation of Bedard et al. 2025, section 3.4.

Image and soft label move in one go, affinely and elastically, both with linear interpolation. What follows
changes intensities of z-scored patches: gamma and bias field keep mean and standard deviation, noise and
scaling last, as no z-score after them would undo them.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
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
from batchgeneratorsv2.transforms.utils.cropping import crop_tensor
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.functional import grid_sample

from nnunet_softseg.errors import UserError

Range = tuple[float, float]
_CHUNK_VOXELS, _CHUNKS = 2**18, 8
"""So many voxels at most, in so many parts at least, a patch is moved: places and values of a part fit into
the processor's cache, and of many labels most lie elsewhere."""
_REACH = 3.0
"""Standard deviations after which a Gaussian counts as over."""
_OUTSIDE = -1
"""nnU-Net's segmentation beyond the image."""
_NO_BLUR = 1e-3
"""Voxels; the kernel is then one voxel wide, and sigma = 0 is no number to divide by."""


def check_settings(settings: Any) -> None:
    """Raise a UserError for a probability (p_...) outside of [0, 1] or a range that runs backwards."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name.startswith("p_") and not 0 <= value <= 1:
            raise unusable(field.name, "a probability in [0, 1]", value)
        if field.type == Range and not value[0] <= value[1]:
            raise unusable(field.name, "a range (smallest, largest)", value)


def unusable(name: str, expected: str, found: object) -> UserError:
    """Return the error of a setting that makes no sense."""
    return UserError(f"augmentation: {name}: expected {expected}, got {found}: change the setting")


@dataclasses.dataclass(frozen=True)
class PaperAugmentation:
    """Probability and range of each transform, in their order; each draw is uniform.

    Attributes:
        p_affine: probability of rotation, scaling and translation, all together.
        rotation_deg: largest angle about each axis.
        scaling: 0.2: objects grow or shrink by up to 20 %, along each axis by itself.
        translation: largest shift, as a fraction of the patch's length along each axis.
        elastic_sigma, elastic_magnitude: voxels, see `elastic_lattice`.
        p_low_resolution: sampled down (nearest) and up again (linear), all axes alike.
        zoom: length after sampling down, as a fraction.
        p_gamma: intensity, scaled to [0, 1], to the power of gamma; mean and standard deviation are kept.
        p_bias_field: see `BiasField`.
        noise_sd: of Gaussian noise, in standard deviations of the image.
        smoothing_sigma: of a Gaussian, voxels, along each axis by itself.
        intensity_factor: multiplied by this, after the z-score.
        p_mirror: of each axis by itself.
    """

    p_affine: float = 0.9
    rotation_deg: float = 20.0
    scaling: float = 0.2
    translation: float = 0.1
    p_elastic: float = 0.5
    elastic_sigma: Range = (3.5, 5.5)
    elastic_magnitude: Range = (25.0, 35.0)
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


# The pipeline


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


# Intensities, and the mirror


class IndependentMirror(MirrorTransform):  # type: ignore[misc]
    """Mirror each axis by itself with probability p; the library's p is one half."""

    def __init__(self, axes: tuple[int, ...], p: float) -> None:
        super().__init__(axes)
        self.p = p

    def get_parameters(self, **data_dict: Any) -> dict[str, list[int]]:
        """Return the axes to be mirrored."""
        drawn = torch.rand(len(self.allowed_axes)) < self.p
        return {"axes": [axis for axis, mirrored in zip(self.allowed_axes, drawn, strict=True) if mirrored]}


@dataclasses.dataclass(eq=False, repr=False)
class FittingSigma:
    """Draw the width of a Gaussian for one axis, no wider than the axis can hold.

    The library's blur reflects the image at its borders, for which half its kernel, 3 sigma, must be
    shorter than the image. `sigma` is the smallest and the largest, in voxels.
    """

    sigma: Range

    def __call__(self, shape: Sequence[int], dim: int) -> float:
        """Return sigma for the axis `dim` of (channel, *space)."""
        widest = max((shape[dim] - 2) / 3, _NO_BLUR)
        return min(float(torch.empty(1).uniform_(*self.sigma).clamp(min=_NO_BLUR)), widest)


@dataclasses.dataclass(eq=False, repr=False)
class BiasField(ImageOnlyTransform):  # type: ignore[misc]
    """Bias field of a receive coil: image - smallest intensity, times exp(sum of c_ijk z^i y^j x^k).

    i + j + k <= degree; z, y, x run from -1 to 1 over the patch; every coefficient is drawn uniformly. All
    channels see one field. A coil multiplies a signal that is 0 in air, and a z-scored image is 0 at its
    mean: hence the smallest intensity as 0, and each channel's mean and standard deviation restored.

    Source: Bedard et al. 2025, section 3.4.
    """

    degree: int
    coefficients: Range

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


# Movement: affine and elastic


class Movement(BasicTransform):  # type: ignore[misc]
    """Cut the patch out of the middle of a larger one, moved: every voxel is interpolated once, see `sample`.

    `in_plane` keeps the first axis as it is, for patches of a few thick slices.
    """

    def __init__(
        self, patch_size: Sequence[int], ranges: PaperAugmentation, *, in_plane: bool = False
    ) -> None:
        super().__init__()
        self.patch_size = tuple(int(length) for length in patch_size)
        self.ranges = ranges
        self.in_plane = in_plane

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Return matrix and offset, patch -> image, in voxels about their centres, and the elastic lattice.

        All three are None where nothing moves; the lattice alone where nothing is deformed.
        """
        affine = bool(torch.rand(1) < self.ranges.p_affine)
        elastic = bool(torch.rand(1) < self.ranges.p_elastic)
        if not affine and not elastic:
            return {"matrix": None, "offset": None, "lattice": None}
        dim = len(self.patch_size)
        matrix, offset = self._affine() if affine else (torch.eye(dim), torch.zeros(dim))
        return {"matrix": matrix, "offset": offset, "lattice": self._lattice() if elastic else None}

    def _affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        dim = len(self.patch_size)
        largest = math.radians(self.ranges.rotation_deg)
        angles = torch.empty(dim if dim == 3 else 1).uniform_(-largest, largest)  # noqa: PLR2004  axes of space
        scales = 1 + torch.empty(dim).uniform_(-self.ranges.scaling, self.ranges.scaling)
        shift = torch.empty(dim).uniform_(-self.ranges.translation, self.ranges.translation)
        if self.in_plane:
            angles[1:], scales[0], shift[0] = 0, 1, 0
        return pull_back(angles, scales, shift * torch.tensor(self.patch_size))

    def _lattice(self) -> "ElasticLattice":
        sigma = float(torch.empty(1).uniform_(*self.ranges.elastic_sigma))
        magnitude = float(torch.empty(1).uniform_(*self.ranges.elastic_magnitude))
        lattice = elastic_lattice(self.patch_size, sigma, magnitude)
        if self.in_plane:
            lattice.nodes[0] = 0
        return lattice

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return the dictionary with image, regression_target and segmentation of the patch."""
        sources = {
            name: data_dict[name]
            for name in ("image", "regression_target", "segmentation")
            if data_dict.get(name) is not None
        }
        moved = self._cut(sources) if params["matrix"] is None else sample(sources, self.patch_size, **params)
        data_dict.update(moved)
        return data_dict

    def _cut(self, sources: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        cut = {}
        for name, source in sources.items():
            centre = [length // 2 for length in source.shape[1:]]
            value = {"value": _OUTSIDE if name == "segmentation" else 0}
            cut[name] = crop_tensor(source, centre, self.patch_size, pad_mode="constant", pad_kwargs=value)
        return cut


@dataclasses.dataclass(frozen=True)
class ElasticLattice:
    """A smooth displacement: the sum of Gaussians at the nodes of a lattice, each times the node's vector.

    Nodes are (dim, *nodes per axis), voxels; weights per axis (length of the patch, nodes): the Gaussians.
    """

    nodes: torch.Tensor
    weights: tuple[torch.Tensor, ...]


def pull_back(
    angles: torch.Tensor, scales: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrix and offset that lead from a voxel of the result to its place in the image.

    Objects are scaled, (dim,), 2: twice as long; then rotated about the axes 0, 1, 2 in turn, (3,) radians,
    in 2d (1,); then shifted, (dim,) voxels. The result, (dim, dim) and (dim,), in voxels about the centres.
    """
    dim = len(scales)
    rotation = torch.eye(dim)
    # The plane that turns about axis 0 is that of the axes 1 and 2, and so on; in 2d there is only one.
    planes = [(1, 2), (2, 0), (0, 1)] if dim == 3 else [(0, 1)]  # noqa: PLR2004  axes of space
    for angle, (first, second) in zip(angles.tolist(), planes, strict=True):
        turn = torch.eye(dim)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        rotation = turn @ rotation
    matrix = torch.diag(1 / scales) @ rotation.T
    return matrix, -matrix @ shift


def elastic_lattice(patch_size: Sequence[int], sigma: float, magnitude: float) -> ElasticLattice:
    """Return a random displacement as strong and as smooth as the paper's.

    There, uniform noise in [-1, 1] at every voxel is smoothed with a Gaussian (`sigma`, voxels) and
    multiplied by `magnitude`. So `magnitude` is not the displacement: that has a standard deviation of
    magnitude sqrt(1/3) (2 sqrt(pi) sigma)^(-dim/2), between 0.2 and 0.5 voxels for the paper's numbers.
    Here the noise lies at every sigma-th voxel instead, drawn from a normal distribution that is as much
    wider as it is sparser: the same variance and correlation, at a hundredth of the cost.
    """
    dim = len(patch_size)
    weights = tuple(_gaussians(length, sigma) for length in patch_size)
    sd = magnitude * math.sqrt(sigma**dim / 3)  # a uniform draw from [-1, 1] has a variance of 1/3
    return ElasticLattice(sd * torch.randn(dim, *(weight.shape[1] for weight in weights)), weights)


def _gaussians(length: int, sigma: float) -> torch.Tensor:
    number = math.ceil((length - 1) / sigma + 2 * _REACH) + 1
    nodes = (length - 1) / 2 + sigma * (torch.arange(number) - (number - 1) / 2)
    distance = torch.arange(length)[:, None] - nodes
    return torch.exp(-(distance**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))


def sample(
    sources: Mapping[str, torch.Tensor],
    patch_size: Sequence[int],
    *,
    matrix: torch.Tensor,
    offset: torch.Tensor,
    lattice: ElasticLattice | None,
) -> dict[str, torch.Tensor]:
    """Return the moved patch of each source: linear, zeros beyond; the "segmentation" nearest, -1 beyond.

    Sources are (channel, *space), all of one shape of space; for the rest see `sampling_grids`.
    """
    shape, device = next((source.shape[1:], source.device) for source in sources.values())
    moved = {
        name: torch.zeros((len(source), *patch_size), dtype=source.dtype, device=device)
        for name, source in sources.items()
    }
    # The outside of a segmentation becomes the 0 that grid_sample pads with.
    readable = {
        name: (source - _OUTSIDE).float() if name == "segmentation" else source
        for name, source in sources.items()
    }
    grids = sampling_grids(patch_size, shape, matrix=matrix, offset=offset, lattice=lattice, device=device)
    labels = readable.get("regression_target")
    # On a GPU, to ask which labels a part reaches would cost more than it saves.
    filled = rows_above_0(labels) if labels is not None and device.type == "cpu" else None
    for rows, grid in grids:
        for name, source in readable.items():
            mode = "nearest" if name == "segmentation" else "bilinear"
            reached = slice(None)
            if name == "regression_target" and filled is not None:
                reached = channels_reached(filled, grid, shape[0])
            values = grid_sample(source[reached][None], grid[None], mode, "zeros", align_corners=False)[0]
            moved[name][reached, rows] = values + _OUTSIDE if name == "segmentation" else values
    if "regression_target" in moved:
        moved["regression_target"].clamp_(0, 1)  # weights that sum to 1 to within a rounding error
    return moved


def rows_above_0(source: torch.Tensor) -> torch.Tensor:
    """Return the first and the last row, along the first axis of space, in which a channel is not 0.

    (2, channel), of a source (channel, *space) without negative values. Of a channel that is 0 all over the
    first lies behind the last.
    """
    above = source.flatten(2).amax(2) > 0
    length = above.shape[1]
    row = torch.arange(length)
    return torch.stack([torch.where(above, row, length).amin(1), torch.where(above, row, -1).amax(1)])


def channels_reached(rows: torch.Tensor, grid: torch.Tensor, length: int) -> slice:
    """Return the channels, from first to last, that a grid for `grid_sample` reaches; all others are 0 there.

    It is one channel at least. `rows` are those of `rows_above_0`, of so many.
    """
    least, largest = ((place + 1) * length / 2 - 0.5 for place in grid[..., -1].aminmax())
    # A voxel counts at places less than 1 away from it; another 1 is far above any rounding.
    reached = torch.nonzero((rows[0] < largest + 2) & (rows[1] > least - 2))[:, 0].tolist() or [0]
    return slice(reached[0], reached[-1] + 1)  # a view: chosen one by one, they would be copied


def sampling_grids(
    patch_size: Sequence[int],
    image_shape: Sequence[int],
    *,
    matrix: torch.Tensor,
    offset: torch.Tensor,
    lattice: ElasticLattice | None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield rows of the patch (along its first axis) and their places in the image, as grid_sample has it.

    The place of a voxel v, from the patch's centre, is matrix (v + displacement(v)) + offset, from the
    image's. Grids are (rows, *rest of the patch, dim), 2 for the length of the image, the last axis first.
    """
    dim = len(patch_size)
    scale = 2 / torch.tensor(image_shape, dtype=torch.float32)
    matrix, offset = (scale[:, None] * matrix).to(device), (scale * offset).to(device)
    # (length, dim): what each axis of the patch adds to the place.
    steps = [
        (torch.arange(length, device=device) - (length - 1) / 2)[:, None] * matrix[:, axis]
        for axis, length in enumerate(patch_size)
    ]
    if lattice is not None:
        nodes = torch.tensordot(matrix, lattice.nodes.to(device), dims=1)
        weights = [weight.to(device) for weight in lattice.weights]
    per_chunk = max(1, min(_CHUNK_VOXELS // math.prod(patch_size[1:]), math.ceil(patch_size[0] / _CHUNKS)))
    for start in range(0, patch_size[0], per_chunk):
        rows = slice(start, min(start + per_chunk, patch_size[0]))
        grid = torch.empty((rows.stop - rows.start, *patch_size[1:], dim), device=device)
        for axis in range(dim):
            place = offset[axis] + steps[0][rows, axis]
            for step in steps[1:]:
                place = place[..., None] + step[:, axis]
            if lattice is not None:
                place = place + _displacement(nodes[axis], [weights[0][rows], *weights[1:]])
            grid[..., dim - 1 - axis] = place
        yield rows, grid


def _displacement(nodes: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return one component of the displacement, (*space): one axis of nodes after the other becomes space."""
    for weight in weights:
        nodes = torch.tensordot(nodes, weight, dims=([0], [1]))
    return nodes
