"""The image of a case on the network's grid, of which only what is asked for is ever interpolated.

nnU-Net's preprocessing crops an image to the bounding box of what is not zero, normalises and resamples it,
all of it. Here the first two are nnU-Net's own, as they cost little; of the third only a box is done, with
the voxels around it that a spline needs. The values are those of nnU-Net's preprocessing of the whole image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
)

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.image_reading import MOST_VOXELS, check_content, naming, read_image
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box
from nnunet_softseg.preprocessing.resampling import (
    area_means,
    nearest,
    positions,
    resample_part,
    source_extent,
)

Image = npt.NDArray[np.floating[Any]]
_ORDER = 3
_DEFAULT = "resample_data_or_seg_to_shape"
_DEFAULT_KEYWORDS: Mapping[str, Any] = {"is_seg": False, "order": _ORDER, "order_z": 0}


class NetworkImage:
    """A case as nnU-Net would preprocess it, resampled where it is asked for.

    Attributes:
        shape: (*space) of the whole case on the network's grid.
        properties: nnU-Net's of the case, with what its preprocessing adds.
        constant: whether every channel holds one value only.
        whole_because: why the first request resamples the whole image; None: no request does.
    """

    def __init__(
        self,
        image: Image,
        properties: dict[str, Any],
        configuration_manager: Any,
        spacing_mm: Sequence[float],
    ) -> None:
        """Take what `from_files` and `from_array` have made.

        Args:
            image: (channel, *space), transposed, cropped and normalised by nnU-Net, on the grid it came on.
            properties: of the case.
            configuration_manager: nnU-Net's.
            spacing_mm: of the image, one per axis of space.

        Raises:
            UserError: if the case has no voxel on the network's grid.
        """
        self.properties = properties
        self._image = image
        self._configuration = configuration_manager
        target = list(configuration_manager.spacing)
        # A 2d configuration keeps the spacing between slices.
        self._spacings = list(spacing_mm), [*list(spacing_mm)[: len(spacing_mm) - len(target)], *target]
        shape = compute_new_shape(image.shape[1:], *self._spacings)
        self.shape: tuple[int, ...] = tuple(int(size) for size in shape)
        if not all(self.shape):
            raise UserError(
                f"the image has {_times(image.shape[1:])} voxels of {_times(self._spacings[0])} mm (without "
                f"its border of zeros), expected at least one of {_times(self._spacings[1])} mm along every "
                "axis: give an image that covers the structure, and look at its voxel sizes"
            )
        self.constant = all(_is_constant(channel) for channel in image)
        self.whole_because = _what_is_not_default(configuration_manager.configuration)
        self._whole: Image | None = None

    @classmethod
    def from_files(
        cls,
        image_files: Sequence[str],
        plans_manager: Any,
        configuration_manager: Any,
    ) -> "NetworkImage":
        """Return the case of image files, one per channel.

        Raises:
            UserError: if they cannot be predicted; see `image_reading.read_image`.
        """
        data, properties = read_image(image_files, plans_manager, configuration_manager)
        with naming(image_files):
            return cls._normalised(data, properties, plans_manager, configuration_manager)

    @classmethod
    def from_array(
        cls,
        data: Image,
        properties: dict[str, Any],
        plans_manager: Any,
        configuration_manager: Any,
    ) -> "NetworkImage":
        """Return the case of an array (channel, z, y, x) and its properties, as nnU-Net's reader gives them.

        The array stays as it is; the properties are completed as nnU-Net completes them.

        Raises:
            UserError: if the array holds NaN or infinity.
        """
        check_content(data)
        copy = np.array(data, dtype=np.float32)
        return cls._normalised(copy, properties, plans_manager, configuration_manager)

    @classmethod
    def _normalised(
        cls, data: Image, properties: dict[str, Any], plans_manager: Any, configuration_manager: Any
    ) -> "NetworkImage":
        """Transpose, crop and normalise as nnU-Net does; the array is written to."""
        axes = plans_manager.transpose_forward
        data = data.transpose(0, *(axis + 1 for axis in axes))
        masked = any(configuration_manager.use_mask_for_norm)
        # Filling the holes of the mask takes seconds, and does not change its bounding box.
        mask = create_nonzero_mask(data) if masked else None
        box = nonzero_box(data) if mask is None else get_bbox_from_mask(mask)
        slices = bounding_box_to_slice(box)
        properties["shape_before_cropping"] = data.shape[1:]
        properties["bbox_used_for_cropping"] = box
        data = data[(slice(None), *slices)]
        properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
        # As nnU-Net marks what is outside of the mask; without one no normalisation looks at it.
        inside_mask = np.True_ if mask is None else mask[slices]
        outside = np.where(inside_mask, np.int8(0), np.int8(-1))
        segmentation = np.broadcast_to(outside, data.shape[1:])[None]
        intensities = plans_manager.foreground_intensity_properties_per_channel
        data = DefaultPreprocessor(verbose=False)._normalize(
            data, segmentation, configuration_manager, intensities
        )
        spacing_mm = [properties["spacing"][axis] for axis in axes]
        return cls(data, properties, configuration_manager, spacing_mm)

    def extract(self, box: Box) -> torch.Tensor:
        """Return a box of the preprocessed case, 0 outside of the case.

        Args:
            box: (start, stop) per axis on the network's grid; may reach beyond the case.

        Returns:
            (channel, *size of the box) float32: nnU-Net's preprocessing of the whole image, to 1e-5 of the
            largest value around the box.

        Raises:
            UserError: if the box holds more voxels than can be worked on.
        """
        return torch.from_numpy(self._padded(box, self.shape))

    def own_slices(self, box: Box, axis: int) -> Image:
        """Return a box whose slices along one axis are the image's own: it is interpolated across that alone.

        Args:
            box: as for `extract`; along the axis it is all of the case, whatever it says.
            axis: that slices follow one another along.

        Returns:
            (channel, *size of the box, but for the axis) float32.

        Raises:
            UserError: as `extract`.
        """
        own = len(self.slice_positions(axis))
        return self._padded(_replaced(box, axis, (0, own)), _replaced(self.shape, axis, own))

    def slice_positions(self, axis: int) -> npt.NDArray[np.float64]:
        """Return where the image's own slices lie, in slices of the network's grid."""
        size = self.shape[axis]
        own = size if self.whole_because is not None else self._image.shape[1 + axis]
        return positions(size, own, (0, own))

    def interpolated(self, own_slices: Image, axis: int) -> Image:
        """Return slices as those of `own_slices`, whatever was done to each, interpolated along their axis.

        Without anything done to them, that is the box as `extract` gives it.

        Args:
            own_slices: (channel, *space).
            axis: that they follow one another along.
        """
        own, size = own_slices.shape[1 + axis], self.shape[axis]
        if own == size:
            return own_slices
        if axis == self._thick_axis():
            return own_slices.take(nearest(own, size, (0, size)), axis=1 + axis)
        shape = _replaced(own_slices.shape[1:], axis, size)
        box = tuple((0, length) for length in shape)
        starts = [0] * len(shape)
        result = np.empty((len(own_slices), *shape), np.float32)
        for into, part, channel in zip(result, own_slices, self._image, strict=True):
            values = resample_part(part, starts, part.shape, shape, box, order=_ORDER)
            np.clip(values, channel.min(), channel.max(), out=into)
        return result

    def _padded(self, box: Box, shape: tuple[int, ...]) -> Image:
        """Return a box of the case on a grid of that shape, 0 outside of the case."""
        size = tuple(stop - start for start, stop in box)
        if np.prod(size, dtype=np.float64) > MOST_VOXELS:
            raise UserError(
                f"the part of the image for the network has {_times(size)} voxels of "
                f"{_times(self._spacings[1])} mm, expected at most {MOST_VOXELS} in all: crop the image, and "
                "look at its voxel sizes"
            )
        result = np.zeros((len(self._image), *size), np.float32)
        within = tuple((part.start, part.stop) for part in inside(box, shape))
        if all(stop > start for start, stop in within):
            result[(slice(None), *inside_of_box(box, shape))] = self._part(within, shape)
        return result

    def _part(self, box: Box, shape: tuple[int, ...]) -> Image:
        """Return a box that lies inside the case, on a grid of that shape."""
        if self.whole_because is not None:
            if self._whole is None:
                self._whole = np.asarray(
                    self._configuration.resampling_fn_data(self._image, self.shape, *self._spacings)
                )
            return self._whole[(slice(None), *(slice(*extent) for extent in box))]
        if shape == self._image.shape[1:]:
            return self._image[(slice(None), *(slice(*extent) for extent in box))]
        axis = self._thick_axis()
        return np.stack([self._spline(channel, shape, box, axis) for channel in self._image])

    def _spline(self, channel: Image, shape: tuple[int, ...], box: Box, thick_axis: int | None) -> Image:
        """Return a box of one channel: a spline in all axes, or in-plane in the nearest slice."""
        if thick_axis is None:
            # As skimage.transform.resize does: a spline overshoots, but not the range of what it was given.
            values = self._unclipped(channel, shape, box)
            if shape != self.shape:  # own slices: once they are interpolated along their axis, too
                return values
            return np.clip(values, channel.min(), channel.max(), out=values)
        # Every slice that is wanted is interpolated once, on its own grid, and clipped to its own range.
        wanted = nearest(channel.shape[thick_axis], shape[thick_axis], box[thick_axis])
        extent = int(wanted[0]), int(wanted[-1]) + 1
        own_shape = _replaced(shape, thick_axis, channel.shape[thick_axis])
        values = self._unclipped(channel, own_shape, _replaced(box, thick_axis, extent))
        in_plane = tuple(axis for axis in range(channel.ndim) if axis != thick_axis)
        slices = channel.take(range(*extent), axis=thick_axis)
        lowest, highest = slices.min(axis=in_plane, keepdims=True), slices.max(axis=in_plane, keepdims=True)
        clipped: Image = np.clip(values, lowest, highest).take(wanted - wanted[0], axis=thick_axis)
        return clipped

    @staticmethod
    def _unclipped(channel: Image, shape: Sequence[int], box: Box) -> Image:
        sizes = zip(channel.shape, shape, box, strict=True)
        read = [source_extent(source, target, extent, _ORDER) for source, target, extent in sizes]
        part = channel[tuple(slice(*extent) for extent in read)]
        values = resample_part(part, [start for start, _ in read], channel.shape, shape, box, order=_ORDER)
        return values.astype(np.float32)

    def _thick_axis(self) -> int | None:
        """Return the axis along which nnU-Net takes the nearest slice instead of a spline."""
        keywords = self._configuration.configuration["resampling_fn_data_kwargs"]
        threshold = {
            name: value for name, value in keywords.items() if name == "separate_z_anisotropy_threshold"
        }
        separate, axis = determine_do_sep_z_and_axis(
            keywords.get("force_separate_z", False), *self._spacings, **threshold
        )
        return int(axis) if separate else None

    def coarse(self, stride: int | Sequence[int]) -> torch.Tensor:
        """Return the whole case averaged onto a coarser grid.

        Voxel j of the result is the mean of the image over voxels j * stride to (j + 1) * stride of the
        network's grid; what sticks out of the case is left out of the mean.

        Args:
            stride: in voxels of the network's grid, for all axes or one each.

        Returns:
            (channel, *ceil(shape / stride)) float32.
        """
        strides = np.broadcast_to(np.asarray(stride), len(self.shape))
        means = [
            area_means(source, -(-target // int(step)), int(step) * source / target).astype(np.float32)
            for source, target, step in zip(self._image.shape[1:], self.shape, strides, strict=True)
        ]
        return torch.stack([torch.from_numpy(_averaged(channel, means)) for channel in self._image])


def nonzero_box(data: Image) -> list[list[int]]:
    """Return [start, stop] per axis of the smallest box around what is not zero; all of it, if nothing is.

    Args:
        data: (channel, *space).
    """
    # Planes are looked at from every side, up to the first that is not zero: six, in most images.
    box: list[list[int]] = get_bbox_from_mask(data[0] if len(data) == 1 else (data != 0).any(axis=0))
    return box


def _is_constant(channel: Image) -> bool:
    """Return whether a channel holds one value only; it is looked at up to the first other one."""
    value = channel.flat[0]
    return not any((plane != value).any() for plane in channel)


def _averaged(channel: Image, means: Sequence[Image]) -> Image:
    """Return an array with one averaging matrix applied along each of its three axes."""
    first, second, third = means
    averaged: Image = np.tensordot(first, second @ (channel @ third.T), axes=1)
    return averaged


def _replaced(values: Sequence[Any], axis: int, value: Any) -> tuple[Any, ...]:
    return tuple(value if index == axis else old for index, old in enumerate(values))


def _what_is_not_default(configuration: Mapping[str, Any]) -> str | None:
    """Return what in the plans keeps a crop from being resampled as the whole image would be."""
    name, keywords = configuration["resampling_fn_data"], configuration["resampling_fn_data_kwargs"]
    if name != _DEFAULT:
        return f"resampling function {name}"
    for key, value in _DEFAULT_KEYWORDS.items():
        if keywords.get(key, value) != value:
            return f"resampling with {key} {keywords[key]}"
    return None


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
