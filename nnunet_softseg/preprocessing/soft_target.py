"""Soft target: the soft label on the grid of the network, where nnU-Net has brought the image.

nnU-Net transposes an image, crops it to its non-zero part and resamples it. A soft label goes the same way
here, always by linear interpolation, never by nearest neighbour. Arithmetic only: `preparation` reads, stores
and reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.datasets.raw_dataset import foreground_labels
from nnunet_softseg.errors import UserError
from nnunet_softseg.preprocessing.center_crop import Box

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

SoftTarget = npt.NDArray[np.float16]


@dataclass(frozen=True)
class PreprocessedCase:
    """Transposition, crop and resampling of one case by nnU-Net; all axes are those after transposition.

    Attributes:
        case_id: its name.
        shape: of the preprocessed case.
        shape_before_crop: of the image.
        bbox: (start, stop) per axis of the non-zero part of the image.
        spacing_mm: of the image.
        geometry: what the reader kept of the image's header.
    """

    case_id: str
    shape: tuple[int, ...]
    shape_before_crop: tuple[int, ...]
    bbox: Box
    spacing_mm: tuple[float, ...]
    geometry: Mapping[str, Any]


@dataclass(frozen=True)
class GridPlan:
    """The part of plans and dataset.json that decides a soft target.

    Attributes:
        dataset: its name.
        configuration: of the plans.
        plans: their name.
        labels: foreground values, ascending.
        reader: class name.
        transpose_forward: which axis of the reader's array comes first, second, third.
        spacing_mm: of the network's grid; one value less in a 2d configuration.
        patch_size: of the network.
        resamples: False for plans that leave images on their own grid.
    """

    dataset: str
    configuration: str
    plans: str
    labels: tuple[int, ...]
    reader: str
    transpose_forward: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    resamples: bool

    @property
    def preprocess_command(self) -> str:
        """The command that preprocesses the dataset with these plans."""
        number = dataset_number(self.dataset)
        return f"nnUNetv2_preprocess -d {number} -c {self.configuration} -plans_name {self.plans}"

    def shape_of(self, case: PreprocessedCase) -> tuple[int, ...]:
        """Return the shape that a case must have after preprocessing with these plans."""
        from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

        cropped = tuple(stop - start for start, stop in case.bbox)
        if not self.resamples:
            return cropped
        spacing_mm = self.spacing_mm
        if len(spacing_mm) < len(cropped):  # a 2d configuration leaves the distance of slices as it is
            spacing_mm = (case.spacing_mm[0], *spacing_mm)
        return tuple(int(size) for size in compute_new_shape(cropped, case.spacing_mm, spacing_mm))


def grid_plan(plans_manager: "PlansManager", name: str, dataset_json: Mapping[str, Any]) -> GridPlan:
    """Return the grid of the network by a configuration of the plans.

    Args:
        plans_manager: nnU-Net's.
        name: of the configuration.
        dataset_json: of the dataset.

    Raises:
        UserError: if there is no such configuration, or the labels are not supported.
    """
    configuration = configuration_of(plans_manager, name)
    resampling = str(configuration.configuration["resampling_fn_data"])
    return GridPlan(
        dataset=plans_manager.dataset_name,
        configuration=name,
        plans=plans_manager.plans_name,
        labels=foreground_labels(dataset_json),
        reader=plans_manager.plans["image_reader_writer"],
        transpose_forward=tuple(int(axis) for axis in plans_manager.transpose_forward),
        spacing_mm=tuple(float(spacing) for spacing in configuration.spacing),
        patch_size=tuple(int(size) for size in configuration.patch_size),
        resamples=not resampling.startswith("no_resampling"),
    )


def configuration_of(plans_manager: "PlansManager", name: str) -> Any:
    """Return nnU-Net's configuration of that name.

    Raises:
        UserError: if the plans have none; names those that they have.
    """
    available = plans_manager.available_configurations
    if name not in available:
        raise UserError(
            f"{plans_manager.plans_name}: expected a configuration out of {', '.join(available)}, found "
            f"{name}: choose one of them (-c)"
        )
    return plans_manager.get_configuration(name)


def dataset_number(name: str) -> str:
    """Return the id in `DatasetNNN_Name`, for the option -d."""
    return name.removeprefix("Dataset").split("_")[0]


def on_network_grid(label: npt.NDArray[np.float32], case: PreprocessedCase) -> npt.NDArray[np.float32]:
    """Return a soft label on the grid of the network, values in [0, 1].

    Args:
        label: of the whole image, axes after transposition, values in [0, 1].
        case: the image it belongs to.
    """
    cropped = label[tuple(slice(start, stop) for start, stop in case.bbox)]
    target: npt.NDArray[np.float32] = np.clip(resample_linear(cropped, case.shape), 0, 1)
    return target


def resample_linear(array: npt.NDArray[np.float32], shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return an array sampled linearly at the centres of the voxels of another grid over the same extent.

    This is the grid on which nnU-Net resamples images: sample i lies at (i + 0.5) * old / new - 0.5, clamped
    at the edges, without smoothing first. Along thick slices, where nnU-Net takes the nearest slice of the
    image, a label is still interpolated linearly.

    Args:
        array: three axes.
        shape: of the result.
    """
    if array.shape == tuple(shape):
        return np.ascontiguousarray(array)
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))[None, None]
    with torch.no_grad():
        resampled = torch.nn.functional.interpolate(
            tensor, size=tuple(int(size) for size in shape), mode="trilinear", align_corners=False
        )
    result: npt.NDArray[np.float32] = resampled[0, 0].numpy()
    return result
