"""What nnU-Net did to a case before training: transposed, cropped, resampled; was it by the plans at hand?"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2

from nnunet_softseg.datasets.raw_dataset import foreground_labels
from nnunet_softseg.errors import UserError
from nnunet_softseg.preprocessing.center_crop import Box

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

_PROPERTIES = {"shape_before_cropping", "bbox_used_for_cropping", "spacing"}


@dataclass(frozen=True)
class PreprocessedCase:
    """What nnU-Net did to one case; all axes are those after transposition.

    Attributes:
        case_id: its name.
        shape: of the preprocessed case.
        shape_before_crop: of the image.
        bbox: (start, stop) per axis of what is not zero in the image.
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
    """What of plans and dataset.json decides a soft target.

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
        """What the user runs to preprocess the dataset with these plans."""
        number = dataset_number(self.dataset)
        return f"nnUNetv2_preprocess -d {number} -c {self.configuration} -plans_name {self.plans}"


def grid_plan(plans_manager: "PlansManager", name: str, dataset_json: Mapping[str, Any]) -> GridPlan:
    """Return what of a configuration and dataset.json decides the network's grid.

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


def read_preprocessed_case(folder: Path, case_id: str, plan: GridPlan) -> PreprocessedCase:
    """Return what nnU-Net did to a case, after checking that it was done with these plans.

    Args:
        folder: nnUNet_preprocessed/DatasetNNN_Name/<data_identifier>.
        case_id: its name.
        plan: by which it should have been preprocessed.

    Raises:
        UserError: if the case is missing, broken, or was preprocessed with other plans.
    """
    image = open_or_none(folder / f"{case_id}.b2nd")
    try:
        properties = pickle.loads((folder / f"{case_id}.pkl").read_bytes())
    except Exception:  # half a pickle fails in as many ways as there are types in it
        properties = {}
    if image is None or not properties.keys() >= _PROPERTIES:
        raise UserError(
            f"{folder.name}/{case_id}: expected a preprocessed case (.b2nd and .pkl), found none or a broken "
            f"one: run {plan.preprocess_command}"
        )
    case = PreprocessedCase(
        case_id,
        shape=tuple(int(size) for size in image.shape[1:]),
        shape_before_crop=tuple(int(size) for size in properties["shape_before_cropping"]),
        bbox=tuple((int(start), int(stop)) for start, stop in properties["bbox_used_for_cropping"]),
        spacing_mm=tuple(float(properties["spacing"][axis]) for axis in plan.transpose_forward),
        geometry={key: properties[key] for key in ("nibabel_stuff", "sitk_stuff") if key in properties},
    )
    _require_same_plans(case, plan, folder)
    return case


def _require_same_plans(case: PreprocessedCase, plan: GridPlan, folder: Path) -> None:
    place = f"{folder.name}/{case.case_id}"
    remedy = f"it was preprocessed with other plans: run {plan.preprocess_command}"
    expected = _shape_by_plans(case, plan)
    if case.shape != expected:
        raise UserError(f"{place}: expected shape {expected} by {plan.plans}, found {case.shape}: {remedy}")
    reader = _reader_that_kept(case.geometry)
    if reader not in (None, plan.reader):
        raise UserError(
            f"{place}: expected an image read by {plan.reader}, found one read by {reader}: {remedy}"
        )


def _shape_by_plans(case: PreprocessedCase, plan: GridPlan) -> tuple[int, ...]:
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    cropped = tuple(stop - start for start, stop in case.bbox)
    if not plan.resamples:
        return cropped
    spacing_mm = plan.spacing_mm
    if len(spacing_mm) < len(cropped):  # a 2d configuration leaves the distance of slices as it is
        spacing_mm = (case.spacing_mm[0], *spacing_mm)
    return tuple(int(size) for size in compute_new_shape(cropped, case.spacing_mm, spacing_mm))


def _reader_that_kept(geometry: Mapping[str, Any]) -> str | None:
    if "nibabel_stuff" in geometry:
        return "NibabelIOWithReorient" if "reoriented_affine" in geometry["nibabel_stuff"] else "NibabelIO"
    if "sitk_stuff" in geometry:
        return (
            "SimpleITKIOWithReorient" if "original_orientation" in geometry["sitk_stuff"] else "SimpleITKIO"
        )
    return None


def preprocessed_case_ids(folder: Path) -> list[str]:
    """Return the cases in nnU-Net's folder of preprocessed cases, which may be missing, by name."""
    files = folder.glob("*.b2nd") if folder.is_dir() else ()
    return sorted(file.name.removesuffix(".b2nd") for file in files if not file.name.endswith("_seg.b2nd"))


def open_or_none(file: Path) -> blosc2.NDArray | None:
    """Return an array that is read from disk where it is sliced; None if its file is missing or broken."""
    # As nnU-Net does it: memory-mapped, except on Windows, where a mapped file cannot be replaced.
    mapping = {} if os.name == "nt" else {"mmap_mode": "r"}
    if not file.is_file():
        return None
    try:
        array = blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}, **mapping)
        _ = array.dtype  # parsed only when asked for
    except Exception:  # a broken file fails in as many ways as there are layers in the format
        return None
    return array
