"""nnU-Net's preprocessing of an image to predict, on the look-out for what makes predictions meaningless."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunet_softseg import case_record
from nnunet_softseg.center_crop import array_orientation
from nnunet_softseg.errors import UserError
from nnunet_softseg.settings import PLANS_KEY

Image = npt.NDArray[np.floating[Any]]


class SoftSegPreprocessor(DefaultPreprocessor):  # type: ignore[misc]
    """Check orientation and content of an image, preprocess it as nnU-Net does, start the case's record."""

    def run_case(
        self,
        image_files: Sequence[str],
        seg_file: str | None,
        plans_manager: Any,
        configuration_manager: Any,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[Image, Any, dict[str, Any]]:
        """Return (image, segmentation, properties) of files; the record keeps the path, for its header."""
        started = time.perf_counter()
        data, segmentation, properties = super().run_case(
            image_files, seg_file, plans_manager, configuration_manager, dataset_json
        )
        record = case_record.start(properties)
        record["image"] = str(image_files[0])
        record["seconds"]["preprocess"] = time.perf_counter() - started
        return data, segmentation, properties

    def run_case_npy(  # noqa: PLR0917  nnU-Net's signature
        self,
        data: Image,
        seg: Any,
        properties: dict[str, Any],
        plans_manager: Any,
        configuration_manager: Any,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[Image, Any, dict[str, Any]]:
        """Return (image, segmentation, properties) of arrays.

        Raises:
            UserError: if the S-I axis is not the one of training, or the image holds NaN or infinity.
        """
        record = case_record.start(properties)
        _check_orientation(properties, plans_manager, record)
        _check_content(data, record)
        preprocessed: tuple[Image, Any, dict[str, Any]] = super().run_case_npy(
            data, seg, properties, plans_manager, configuration_manager, dataset_json
        )
        case_record.set_under_way(record)
        return preprocessed


def _check_orientation(properties: dict[str, Any], plans_manager: Any, record: dict[str, Any]) -> None:
    """Refuse an image whose S-I axis is another than in training; flag one that points the other way."""
    entry = plans_manager.plans.get(PLANS_KEY, {})
    orientation = array_orientation(properties, plans_manager.transpose_forward)
    trained: str | None = entry.get("orientation")
    if orientation is None or trained is None or orientation == trained:
        return
    axis = entry.get("si_axis")
    if axis is not None and orientation[axis] not in "SI":
        raise UserError(
            f"the image has its axes along {orientation}, but the model was trained with {trained} "
            f"(S-I on axis {axis}): reorient the image, or train with "
            '"overwrite_image_reader_writer": "NibabelIOWithReorient" in dataset.json'
        )
    case_record.add_warning(record, f"orientation {orientation} differs from training's {trained}")


def _check_content(data: Image, record: dict[str, Any]) -> None:
    if not np.isfinite(data).all():
        raise UserError(
            f"the image holds {int((~np.isfinite(data)).sum())} NaN or infinite voxels, expected numbers "
            "only: repair it (for example numpy.nan_to_num) before predicting"
        )
    if all(float(channel.max()) == float(channel.min()) for channel in data):
        case_record.add_warning(record, "constant image: the soft map is empty")
