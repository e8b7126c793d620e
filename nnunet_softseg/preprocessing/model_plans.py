"""Plans: what they say of preprocessed cases, what a trainer saves with its model."""

import importlib.metadata
import os
import pickle
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import dataset_number
from nnunet_softseg.errors import UserError
from nnunet_softseg.preprocessing.center_crop import Box
from nnunet_softseg.preprocessing.resampling import new_shape
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

if TYPE_CHECKING:
    import blosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

_NO_PLANS = ("dataset", "dataset_fingerprint", "splits_final")
_PROPERTIES = {"shape_before_cropping", "bbox_used_for_cropping", "spacing"}


LABEL_MANAGER = "SoftLabelManager"
"""The name by which nnU-Net finds it in the plans; the class is in network/of_plans.py."""
NEEDS = " [of nnunet-softseg "
"""What follows the name of the configuration in a checkpoint, as in the start-up hook, which takes it off.

Without this package nnU-Net finds no configuration of that name, and prints it before anything else fails.
"""


def named_after_package(configuration: str) -> str:
    """Return the name of a configuration with that of this package, for `init_args` of a checkpoint."""
    remedy = f"pip install nnunet-softseg=={__version__}"
    return f"{configuration}{NEEDS}{__version__}, which is missing here: {remedy}]"


def is_soft(plans: Mapping[str, Any]) -> bool:
    """Return whether a model with these plans puts out soft maps; our patches of nnU-Net ask this first."""
    return plans.get("label_manager") == LABEL_MANAGER and PLANS_KEY in plans


def soft_plans(plans: Mapping[str, Any], trainer: str, settings: SoftSegSettings) -> dict[str, Any]:
    """Return a copy of nnU-Net's plans that names our label manager, preprocessor and resampling.

    The preprocessed data stay those of the original plans, which vanilla trainers use unchanged.
    """
    soft = deepcopy(dict(plans))
    soft["label_manager"] = LABEL_MANAGER
    for configuration in soft["configurations"].values():
        if "inherits_from" not in configuration or "preprocessor_name" in configuration:
            configuration["preprocessor_name"] = "SoftSegPreprocessor"
            configuration["resampling_fn_probabilities"] = "resample_soft_map"
            configuration["resampling_fn_probabilities_kwargs"] = {}
    unknown = {"si_axis": None, "orientation": None}  # until training starts
    entry = {"trainer": trainer, "settings": settings.as_dict(), **unknown, "versions": versions()}
    soft[PLANS_KEY] = entry
    return soft


def spacing_range(spacings_mm: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    """Return the smallest and largest spacing along each axis, for JSON; None for no case."""
    if not len(spacings_mm):
        return None
    table = np.asarray(spacings_mm, dtype=np.float64)
    return {"smallest": table.min(axis=0).tolist(), "largest": table.max(axis=0).tolist()}


EXPORTED = "exported"
"""Of a model in one file, what it was exported with, among our entries of its plans."""


def versions(plans: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the versions that decide a result; of an exported model, which nnU-Net and torch do not run."""
    packages = ("openvino",) if EXPORTED in (plans or {}).get(PLANS_KEY, {}) else ("nnunetv2", "torch")
    return {"nnunet_softseg": __version__, **{name: importlib.metadata.version(name) for name in packages}}


def version_warning(plans: Mapping[str, Any]) -> str | None:
    """Return one line if the model was trained with another nnunet-softseg or nnU-Net than predicts here."""
    trained, here = plans.get(PLANS_KEY, {}).get("versions", {}), versions(plans)
    different = [
        f"{name} {trained.get(name, 'unknown')} (here {here[name]})"
        for name in ("nnunet_softseg", "nnunetv2")
        if name in here and trained.get(name) != here[name]
    ]
    return f"the model was trained with {', '.join(different)}" if different else None


# Preprocessed cases


@dataclass(frozen=True)
class PreprocessedCase:
    """Transposition, crop and resampling of one case by nnU-Net; all axes are those after transposition.

    `bbox` is (start, stop) per axis of the non-zero part of the image, `spacing_mm` that of the image, and
    `geometry` holds the properties in which nnU-Net's reader keeps the header.
    """

    case_id: str
    shape: tuple[int, ...]
    shape_before_crop: tuple[int, ...]
    bbox: Box
    spacing_mm: tuple[float, ...]
    geometry: Mapping[str, Any]


@dataclass(frozen=True)
class PreprocessedDataset:
    """A dataset as nnU-Net preprocessed it for one configuration.

    `labels` are the numbers of the soft label files, `ignore` the value of unknown voxels in the label map.
    `folder` is nnUNet_preprocessed/DatasetNNN_Name/<data_identifier>. `spacing_mm`, one value less in a 2d
    configuration, and `patch_size` are those of the network, of which `crop` says that it sees the fixed
    patch where there is one. Plans that leave images on their own grid have `resamples` False.
    """

    name: str
    raw_folder: Path
    folder: Path
    plans: str
    configuration: str
    labels: tuple[int, ...]
    ignore: int | None
    reader: str
    transpose_forward: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    resamples: bool
    crop: bool

    @classmethod
    def of(
        cls,
        plans_manager: "PlansManager",
        configuration: str,
        labels: Sequence[int],
        *,
        raw_folder: Path,
        folder: Path,
        ignore: int | None = None,
        crop: bool = True,
    ) -> "PreprocessedDataset":
        """Return the dataset that nnU-Net preprocessed with these plans into a folder."""
        of_plans = configuration_of(plans_manager, configuration)
        return cls(
            name=plans_manager.dataset_name,
            raw_folder=raw_folder,
            folder=folder,
            plans=plans_manager.plans_name,
            configuration=configuration,
            labels=tuple(int(label) for label in labels),
            ignore=ignore,
            reader=plans_manager.plans["image_reader_writer"],
            transpose_forward=tuple(int(axis) for axis in plans_manager.transpose_forward),
            spacing_mm=tuple(float(spacing) for spacing in of_plans.spacing),
            patch_size=tuple(int(size) for size in of_plans.patch_size),
            resamples=not str(of_plans.configuration["resampling_fn_data"]).startswith("no_resampling"),
            crop=crop,
        )

    @property
    def preprocess_command(self) -> str:
        """The command that preprocesses the dataset with these plans."""
        number = dataset_number(self.name)
        return f"nnUNetv2_preprocess -d {number} -c {self.configuration} -plans_name {self.plans}"

    def case_ids(self) -> list[str]:
        """Return the preprocessed cases, by name."""
        files = self.folder.glob("*.b2nd") if self.folder.is_dir() else ()
        return sorted(
            file.name.removesuffix(".b2nd") for file in files if not file.name.endswith("_seg.b2nd")
        )

    def read_case(self, case_id: str) -> PreprocessedCase:
        """Return a case; raise a UserError if it is missing, broken, or was preprocessed with other plans."""
        image = open_or_none(self.folder / f"{case_id}.b2nd")
        try:
            properties = pickle.loads((self.folder / f"{case_id}.pkl").read_bytes())
        except Exception:  # half a pickle fails in as many ways as there are types in it
            properties = {}
        if image is None or not properties.keys() >= _PROPERTIES:
            raise UserError(
                f"{self.folder.name}/{case_id}: expected a preprocessed case (.b2nd and .pkl), found none or "
                f"a broken one: run {self.preprocess_command}"
            )
        case = PreprocessedCase(
            case_id,
            shape=tuple(int(size) for size in image.shape[1:]),
            shape_before_crop=tuple(int(size) for size in properties["shape_before_cropping"]),
            bbox=tuple((int(start), int(stop)) for start, stop in properties["bbox_used_for_cropping"]),
            spacing_mm=tuple(float(properties["spacing"][axis]) for axis in self.transpose_forward),
            geometry={key: properties[key] for key in ("nibabel_stuff", "sitk_stuff") if key in properties},
        )
        self._require_same_plans(case)
        return case

    def _require_same_plans(self, case: PreprocessedCase) -> None:
        place = f"{self.folder.name}/{case.case_id}"
        remedy = f"it was preprocessed with other plans: run {self.preprocess_command}"
        expected = self._shape_of(case)
        if case.shape != expected:
            raise UserError(
                f"{place}: expected shape {expected} by {self.plans}, found {case.shape}: {remedy}"
            )
        reader = _reader_that_kept(case.geometry)
        if reader not in (None, self.reader):
            raise UserError(
                f"{place}: expected an image read by {self.reader}, found one read by {reader}: {remedy}"
            )

    def _shape_of(self, case: PreprocessedCase) -> tuple[int, ...]:
        """Return the shape that a case must have after preprocessing with these plans."""
        cropped, spacing_mm = tuple(stop - start for start, stop in case.bbox), self.spacing_mm
        if not self.resamples:
            return cropped
        if len(spacing_mm) < len(cropped):  # a 2d configuration leaves the distance of slices as it is
            spacing_mm = (case.spacing_mm[0], *spacing_mm)
        return new_shape(cropped, case.spacing_mm, spacing_mm)


def open_or_none(file: Path) -> "blosc2.NDArray | None":
    """Return an array that is read from disk where it is sliced; None if its file is missing or broken."""
    import blosc2

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


def _reader_that_kept(geometry: Mapping[str, Any]) -> str | None:
    for key, mark, reader in (
        ("nibabel_stuff", "reoriented_affine", "NibabelIO"),
        ("sitk_stuff", "original_orientation", "SimpleITKIO"),
    ):
        if key in geometry:
            return f"{reader}WithReorient" if mark in geometry[key] else reader
    return None


def missing_plans(file: Path) -> UserError:
    """Return the error that nnUNet_preprocessed/DatasetNNN_Name/<plans>.json is missing, with those there."""
    there = sorted(each.stem for each in file.parent.glob("*.json") if each.stem not in _NO_PLANS)
    remedy = f"run nnUNetv2_plan_and_preprocess -d {dataset_number(file.parent.name)}"
    if there:
        remedy = f"name one with -p, as in -p {there[0]}, or {remedy}"
    found = f"none; there are {', '.join(there) or 'no others'}"
    return UserError(f"{file}: expected plans, found {found}: {remedy}")


def explain_missing_plans(error: BaseException) -> UserError | None:
    """Return the mistake behind an error of a stock command that finds no plans of the name given by -p."""
    file = Path(str(error.filename)) if isinstance(error, FileNotFoundError) else Path()
    is_plans = file.suffix == ".json" and file.stem not in _NO_PLANS
    return missing_plans(file) if is_plans and file.parent.name.startswith("Dataset") else None


def configuration_of(plans_manager: "PlansManager", name: str) -> Any:
    """Return nnU-Net's configuration of that name; raise a UserError that names those of the plans."""
    available = plans_manager.available_configurations
    if name not in available:
        raise UserError(
            f"{plans_manager.plans_name}: expected a configuration out of {', '.join(available)}, found "
            f"{name}: choose one of them (-c)"
        )
    return plans_manager.get_configuration(name)
