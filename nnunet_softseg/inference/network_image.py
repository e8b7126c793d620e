"""The image of a case on the network's grid, read and preprocessed, of which only a box is ever interpolated.

nnU-Net's preprocessing crops an image to the bounding box of its nonzero voxels, normalises and resamples it,
all of it. Here the first two are nnU-Net's own, as they cost little; of the third only a box is done, with
the voxels around it that a spline needs. The values are those of nnU-Net's preprocessing of the whole image.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.errors import Finding, UserError, raise_first_error, short_name
from nnunet_softseg.inference.case_record import (
    CONSTANT,
    KEY,
    CaseRecord,
    Flag,
    Flagged,
    flag_orientation,
    flag_spacing,
)
from nnunet_softseg.inference.recentring import WholeImage
from nnunet_softseg.io.formats import is_nifti, is_picture
from nnunet_softseg.io.geometry import array_orientation, reader_spacing_mm
from nnunet_softseg.io.nifti import PER_VOLUME, geometry_warnings, load_nifti, stream_findings, three_axes
from nnunet_softseg.io.readers import is_known, read_channels, reads_to_the_end
from nnunet_softseg.preprocessing.center_crop import Box, inside, inside_of_box, network_box
from nnunet_softseg.preprocessing.normalisation import normalise
from nnunet_softseg.preprocessing.resampling import (
    nearest,
    new_shape,
    positions,
    resample_part,
    source_extent,
    thick_axis,
)
from nnunet_softseg.settings import PLANS_KEY

Image = npt.NDArray[np.floating[Any]]
LabelMap = npt.NDArray[np.integer[Any]]
MOST_VOXELS = 2**29
"""800 x 800 x 800, 2 GB as float32: more than any scan of a spine."""
_VOLUME, _SLICE = 3, 2
_ORDER = 3
_DEFAULT = "resample_data_or_seg_to_shape"
_DEFAULT_KEYWORDS: Mapping[str, Any] = {"is_seg": False, "order": _ORDER, "order_z": 0}


# A case


def preprocess_files(
    image_files: Sequence[str], plans_manager: Any, configuration_manager: Any
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Return image (channel, *space) float32, of the box in the record, and properties of a case to predict.

    The managers are nnU-Net's; files, and what is raised, are those of `read_image`. The properties are
    nnU-Net's, with the record, which keeps the paths.
    """
    started = time.perf_counter()
    read_whole = functools.partial(
        NetworkImage.from_files, tuple(image_files), plans_manager, configuration_manager
    )
    image = read_whole()
    image.properties[KEY] = record = CaseRecord(
        image_files=tuple(map(str, image_files)), read_whole=read_whole
    )
    with error_prefix(image_files):
        box = _network_box(image, plans_manager, configuration_manager)
    doubts = (str(doubt) for file in image_files for doubt in geometry_warnings(Path(file)))
    record.add_flags(Flagged(Flag.HEADER, doubt) for doubt in doubts)
    record.seconds["preprocess"] = time.perf_counter() - started
    return box, image.properties


def preprocess_array(
    data: Image, properties: dict[str, Any], plans_manager: Any, configuration_manager: Any
) -> tuple[Image, dict[str, Any]]:
    """Return (image, properties) of an array (channel, z, y, x); as `preprocess_files`.

    Raises:
        UserError: if the S-I axis is not the one of training, or the image holds NaN or infinity.
    """
    of_model = plans_manager, configuration_manager
    # Without the record of another array, which may be left over in its properties.
    own = {key: value for key, value in properties.items() if key != KEY}
    image = NetworkImage.from_array(data, properties, *of_model)
    image.properties[KEY] = CaseRecord(
        read_whole=functools.partial(NetworkImage.from_array, data, own, *of_model)
    )
    return _network_box(image, plans_manager, configuration_manager), image.properties


def on_network_box(
    label_map: LabelMap, properties: dict[str, Any], plans_manager: Any, configuration_manager: Any
) -> LabelMap:
    """Return (1, *space) of a label map (z, y, x), as the reader gives it, on the box of a preprocessed case.

    It is 0 outside of the case, whose properties have the record with the box.

    Raises:
        UserError: if the label map lies on another grid than the image.
    """
    turned = label_map.transpose(plans_manager.transpose_forward)
    expected = tuple(properties["shape_before_cropping"])
    if turned.shape != expected:
        raise UserError(
            f"expected a label map on the grid of the image, {_times(expected)} voxels, found "
            f"{_times(turned.shape)}: predict the first stage of the same image"
        )
    cropped = turned[tuple(slice(*extent) for extent in properties["bbox_used_for_cropping"])]
    spacings = _spacings(properties, plans_manager, configuration_manager)
    record = CaseRecord.of(properties)
    box, shape = record.box or (), record.network_shape or ()
    on_grid = configuration_manager.resampling_fn_seg(cropped[None], shape, *spacings)
    result = np.zeros([1, *(stop - start for start, stop in box)], on_grid.dtype)
    result[(slice(None), *inside_of_box(box, shape))] = on_grid[(slice(None), *inside(box, shape))]
    return result


def _network_box(
    image: "NetworkImage", plans_manager: Any, configuration_manager: Any
) -> npt.NDArray[np.float32]:
    """Return the box of a case that the network sees, and note it in the record."""
    record = CaseRecord.of(image.properties)
    entry = plans_manager.plans.get(PLANS_KEY, {})
    record.add_flags(_orientation_flags(image.properties, plans_manager))
    record.add_flags(flag_spacing(image.properties["spacing"], entry.get("training_spacing_mm")))
    record.add_flags([CONSTANT] if image.constant else [])
    box = network_box(image.shape, configuration_manager.patch_size, entry.get("si_axis"))
    record.network_shape, record.box, record.resampled_whole = image.shape, box, image.whole_because
    return image.extract(box)


def _orientation_flags(properties: dict[str, Any], plans_manager: Any) -> list[Flagged]:
    """Refuse an image whose S-I axis is another than in training; flag one that points the other way."""
    entry = plans_manager.plans.get(PLANS_KEY, {})
    orientation = array_orientation(properties, plans_manager.transpose_forward)
    trained: str | None = entry.get("orientation")
    axis = entry.get("si_axis")
    if orientation and trained and axis is not None and orientation[axis] not in "SI":
        raise UserError(
            f"the image has its axes along {orientation}, but the model was trained with {trained} "
            f"(S-I on axis {axis}): reorient the image, or train with a reader that does "
            '("overwrite_image_reader_writer" in dataset.json: "NibabelIOWithReorient" for NIfTI, else '
            '"SimpleITKIOWithReorient")'
        )
    return flag_orientation(orientation, trained)


@contextlib.contextmanager
def error_prefix(image_files: Sequence[str | Path]) -> Iterator[None]:
    """Put the name of the file in front of a user error about its case."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{short_name(Path(image_files[0]))}: {error}") from error


# The network's grid


class NetworkImage(WholeImage):
    """A case as nnU-Net would preprocess it, resampled where it is asked for.

    Attributes:
        shape: (*space) of the whole case on the network's grid.
        properties: nnU-Net's of the case, with what its preprocessing adds.
        constant: whether every channel holds one value only.
        whole_because: why the first request resamples the whole image; None: no request does.
    """

    def __init__(
        self, data: Image, properties: dict[str, Any], plans_manager: Any, configuration_manager: Any
    ) -> None:
        """Transpose, crop and normalise (channel, z, y, x) float32 as nnU-Net does; the array is written to.

        Raises:
            UserError: if the case has no voxel on the network's grid.
        """
        super().__init__(_normalised(data, properties, plans_manager, configuration_manager))
        self.properties = properties
        self._configuration = configuration_manager
        self._spacings = _spacings(properties, plans_manager, configuration_manager)
        self.shape = new_shape(self._values.shape[1:], *self._spacings)
        if not all(self.shape):
            own, target = map(_times, self._spacings)
            raise UserError(
                f"the image has {_times(self._values.shape[1:])} voxels of {own} mm (without its border of "
                f"zeros), expected at least one of {target} mm along every axis: give an image that covers "
                "the structure, and look at its voxel sizes"
            )
        self.constant = is_constant(self._values)
        self.whole_because = unusual_resampling(configuration_manager.configuration)
        self._whole: Image | None = None

    @classmethod
    def from_files(
        cls, image_files: Sequence[str], plans_manager: Any, configuration_manager: Any
    ) -> "NetworkImage":
        """Return the case of image files; see `read_image`."""
        data, properties = read_image(image_files, plans_manager, configuration_manager)
        with error_prefix(image_files):
            return cls(data, properties, plans_manager, configuration_manager)

    @classmethod
    def from_array(
        cls, data: Image, properties: dict[str, Any], plans_manager: Any, configuration_manager: Any
    ) -> "NetworkImage":
        """Return the case of an array (channel, z, y, x) and its properties; the array stays as it is.

        Raises:
            UserError: if the array holds NaN or infinity.
        """
        check_content(data)
        copy = np.array(data, dtype=np.float32)
        return cls(copy, properties, plans_manager, configuration_manager)

    def extract(self, box: Box) -> npt.NDArray[np.float32]:
        """Return (channel, *size of a box) float32 of the preprocessed case, 0 outside of the case.

        The values are those of nnU-Net's preprocessing of the whole image, to 1e-5 of the largest around the
        box: (start, stop) per axis on the network's grid, which may reach beyond the case.

        Raises:
            UserError: if the box holds more voxels than can be worked on.
        """
        return self._padded(box, self.shape)

    def own_slices(self, box: Box, axis: int) -> Image:
        """Return a box as `extract` does, but along one axis all of the case, in the image's own slices."""
        own = len(self.slice_positions(axis))
        return self._padded(_replaced(box, axis, (0, own)), _replaced(self.shape, axis, own))

    def slice_positions(self, axis: int) -> npt.NDArray[np.float64]:
        """Return where the image's own slices lie, in slices of the network's grid."""
        size = self.shape[axis]
        own = size if self.whole_because is not None else self._values.shape[1 + axis]
        return positions(size, own, (0, own))

    def interpolated(self, own_slices: Image, axis: int) -> Image:
        """Return slices as those of `own_slices`, whatever was done to each, interpolated along their axis.

        Without anything done to them, that is the box as `extract` gives it; with thick slices along another
        axis, but for what the spline overshoots, which is cut off before this axis.
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
        for into, part, channel in zip(result, own_slices, self._values, strict=True):
            values = resample_part(part, starts, part.shape, shape, box, order=_ORDER)
            np.clip(values, channel.min(), channel.max(), out=into)
        return result

    def _padded(self, box: Box, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        size = tuple(stop - start for start, stop in box)
        if np.prod(size, dtype=np.float64) > MOST_VOXELS:
            raise UserError(
                f"the part of the image for the network has {_times(size)} voxels of "
                f"{_times(self._spacings[1])} mm, expected at most {MOST_VOXELS} in all: crop the image, and "
                "look at its voxel sizes"
            )
        return super()._padded(box, shape)

    def _part(self, within: tuple[slice, ...], shape: tuple[int, ...]) -> Image:
        if self.whole_because is not None:
            if self._whole is None:
                self._whole = np.asarray(
                    self._configuration.resampling_fn_data(self._values, self.shape, *self._spacings)
                )
            return self._whole[(slice(None), *within)]
        if shape == self._values.shape[1:]:
            return super()._part(within, shape)
        box, axis = tuple((part.start, part.stop) for part in within), self._thick_axis()
        return np.stack([self._spline(channel, shape, box, axis) for channel in self._values])

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
        name = "separate_z_anisotropy_threshold"
        threshold = {"threshold": keywords[name]} if name in keywords else {}
        return thick_axis(*self._spacings, force=keywords.get("force_separate_z", False), **threshold)


def _spacings(
    properties: Mapping[str, Any], plans_manager: Any, configuration_manager: Any
) -> tuple[list[float], list[float]]:
    """Return the voxel sizes of the image and of the network's grid, in mm along the axes of the latter."""
    own = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    target = list(configuration_manager.spacing)
    # A 2d configuration keeps the spacing between slices.
    return own, [*own[: len(own) - len(target)], *target]


def _normalised(
    data: Image, properties: dict[str, Any], plans_manager: Any, configuration_manager: Any
) -> Image:
    data = data.transpose(0, *(axis + 1 for axis in plans_manager.transpose_forward))
    masked = any(configuration_manager.use_mask_for_norm)
    # Filling the holes of the mask takes seconds, and does not change its bounding box.
    mask = ndimage.binary_fill_holes((data != 0).any(axis=0)) if masked else None
    box = nonzero_box(data if mask is None else mask[None])
    slices = tuple(slice(*extent) for extent in box)
    properties["shape_before_cropping"] = data.shape[1:]
    properties["bbox_used_for_cropping"] = box
    data = data[(slice(None), *slices)]
    properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
    within = None if mask is None else mask[slices]
    intensities = plans_manager.foreground_intensity_properties_per_channel
    return normalise(data, within, configuration_manager, intensities)


def nonzero_box(data: Image) -> list[list[int]]:
    """Return [start, stop] per axis of the smallest box around voxels (channel, *space) that are not zero.

    If all are zero, it is the whole image.
    """
    found = data[0] if len(data) == 1 else (data != 0).any(axis=0)
    box = []
    for axis, size in enumerate(found.shape):
        # Planes are looked at from every side, up to the first that is not zero: six, in most images.
        planes = np.moveaxis(found, axis, 0)
        first = next((place for place in range(size) if planes[place].any()), 0)
        last = next((place for place in reversed(range(size)) if planes[place].any()), size - 1)
        box.append([first, last + 1])
    return box


def is_constant(image: Image) -> bool:
    """Return whether each channel holds one value only; it is looked at up to the first other one."""
    return not any((plane != channel.flat[0]).any() for channel in image for plane in channel)


def _replaced(values: Sequence[Any], axis: int, value: Any) -> tuple[Any, ...]:
    return tuple(value if index == axis else old for index, old in enumerate(values))


def unusual_resampling(configuration: Mapping[str, Any]) -> str | None:
    """Return the part of the plans that keeps a crop from being resampled as the whole image would be."""
    name, keywords = configuration["resampling_fn_data"], configuration["resampling_fn_data_kwargs"]
    if name != _DEFAULT:
        return f"resampling function {name}"
    for key, value in _DEFAULT_KEYWORDS.items():
        if keywords.get(key, value) != value:
            return f"resampling with {key} {keywords[key]}"
    return None


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


# Reading


def read_image(
    image_files: Sequence[str], plans_manager: Any, configuration_manager: Any
) -> tuple[Image, dict[str, Any]]:
    """Return image (channel, z, y, x) float32, finite, and properties of a case, as of nnU-Net's reader.

    The files are one per channel, or one with all channels where the reader, which the plans name, knows it.

    Raises:
        UserError: if a file is no image that can be predicted: missing, cut off, not three-dimensional, too
            large, with voxel sizes that make no sense, complex or coloured, with NaN; or if the number of
            channels is not that of training.
    """
    files = [Path(file) for file in image_files]
    flat = len(configuration_manager.patch_size) == _SLICE
    reader = plans_manager.image_reader_writer_class
    for file in files:
        if is_nifti(file.name):
            raise_first_error(volume_findings(file, flat=flat))
            if not reads_to_the_end(reader.__name__):  # what is missing is silently 0 to SimpleITK
                raise_first_error(stream_findings(file, load_nifti(file)))
    try:
        image, properties = _read(files, reader)
        stored = load_nifti(files[0]) if is_nifti(files[0].name) else None
        if stored is not None and stored.ndim == _VOLUME:  # of a flat one, nnU-Net makes up the third size
            stated, reorients = properties["spacing"], "Reorient" in reader.__name__
            properties["spacing"] = reader_spacing_mm(stated, stored.affine, reorients=reorients)
    except UserError:
        raise
    except Exception as error:  # where voxels are missing, or nnU-Net's reader objects
        for file in filter(lambda file: is_nifti(file.name), files):
            raise_first_error(stream_findings(file, load_nifti(file)))
        raise UserError(str(_unreadable(files, error))) from error
    found, expected = len(image), len(configuration_manager.normalization_schemes)
    if found != expected:
        colours = "in grey" if expected == 1 else f"in {expected} colours, as the training's"
        remedy = (
            f"write it {colours}"
            if is_picture(files[0].name)
            else "give one 3-D file per channel, <case>_0000, <case>_0001, ..."
        )
        wanted = f"{expected}, as in training"
        raise UserError(str(Finding(short_name(files[0]), "number of channels", wanted, str(found), remedy)))
    check_content(image, short_name(files[0]))
    return image, properties


def _read(files: Sequence[Path], reader: Any) -> tuple[Image, dict[str, Any]]:
    """Return what nnU-Net's reader gives; of NIfTI files without its detour over float64."""
    if is_known(reader.__name__):
        return read_channels(files, reader.__name__)
    given: tuple[Image, dict[str, Any]] = reader().read_images([str(file) for file in files])
    return given


def check_content(image: Image, name: str = "the image") -> None:
    """Refuse an image that holds NaN or infinity with a `UserError`."""
    # Plane by plane: an array of answers for all voxels costs more than the question.
    missing = sum(plane.size - int(np.isfinite(plane).sum()) for channel in image for plane in channel)
    if missing:
        raise UserError(
            f"{name}: expected numbers only, found {missing} NaN or infinite voxels of "
            f"{image.size}: repair it (for example numpy.nan_to_num) before predicting"
        )


def volume_findings(file: Path, *, flat: bool) -> Iterator[Finding]:
    """Yield what the header alone tells to be wrong, before a voxel is read."""
    name, image = short_name(file), load_nifti(file)
    shape = tuple(int(size) for size in image.shape)
    as_written = "shape " + " x ".join(map(str, shape))
    if len(shape) > _VOLUME:
        remedy = three_axes(shape, PER_VOLUME)
        yield Finding(name, "has a fourth dimension", "one 3-D image", as_written, remedy)
    if len(shape) < (_SLICE if flat else _VOLUME) or not all(shape):
        yield Finding(
            name, "is no volume", "a 3-D image", as_written, three_axes(shape, "give the whole volume")
        )
    if np.prod(shape, dtype=np.float64) > MOST_VOXELS:
        most = f"at most {MOST_VOXELS} voxels, {MOST_VOXELS * 4 / 1e9:.1f} GB as float32"
        yield Finding(name, "is too large", most, as_written, "crop it to the spine, or downsample it")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        yield Finding(name, "holds no grey values", "integers or floats", str(dtype), "convert it")


def _unreadable(files: Sequence[Path], error: Exception) -> Finding:
    names = ", ".join(map(short_name, files))
    if isinstance(error, MemoryError):
        return Finding(names, "does not fit into memory", "free memory", str(error), "crop it to the spine")
    said = " ".join(str(error).split()) or type(error).__name__
    together = "" if len(files) == 1 else ", channels on the same grid"
    return Finding(
        names, "cannot be read", f"a complete 3-D image{together}", said, "write or copy the file again"
    )
