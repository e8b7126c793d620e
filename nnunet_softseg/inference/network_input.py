"""nnU-Net's preprocessing of an image to predict, done only for the part that the network sees."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import case_record, flags
from nnunet_softseg.inference.image_reading import naming
from nnunet_softseg.inference.network_image import NetworkImage
from nnunet_softseg.io.geometry import array_orientation
from nnunet_softseg.preprocessing.center_crop import network_box
from nnunet_softseg.settings import PLANS_KEY

Image = npt.NDArray[np.floating[Any]]


class SoftSegPreprocessor(DefaultPreprocessor):  # type: ignore[misc]
    """The box of a case that the network sees, preprocessed as nnU-Net does, and the case's record begun.

    A case that comes with a segmentation is not one to predict: it goes nnU-Net's own way.
    """

    def run_case(
        self,
        image_files: Sequence[str],
        seg_file: str | None,
        plans_manager: Any,
        configuration_manager: Any,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[Image, Any, dict[str, Any]]:
        """Return (image, segmentation, properties) of files; the record keeps their paths.

        Returns:
            image: (channel, *space) float32, of the box in the record.
            segmentation: None without `seg_file`.
            properties: nnU-Net's, with the record.

        Raises:
            UserError: if the files cannot be predicted; see `image_reading.read_image`.
        """
        if seg_file is not None:
            whole: tuple[Image, Any, dict[str, Any]] = super().run_case(
                image_files, seg_file, plans_manager, configuration_manager, dataset_json
            )
            return whole
        started = time.perf_counter()
        image = NetworkImage.from_files(image_files, plans_manager, configuration_manager)
        record = case_record.start(image.properties)
        record["image"] = str(image_files[0])
        record["image_files"] = [str(file) for file in image_files]
        with naming(image_files):
            box = _box_for_network(image, plans_manager, configuration_manager)
        record["seconds"]["preprocess"] = time.perf_counter() - started
        return box, None, image.properties

    def run_case_npy(  # noqa: PLR0917  nnU-Net's signature
        self,
        data: Image,
        seg: Any,
        properties: dict[str, Any],
        plans_manager: Any,
        configuration_manager: Any,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[Image, Any, dict[str, Any]]:
        """Return (image, segmentation, properties) of arrays; as `run_case`, which has read them from files.

        Raises:
            UserError: if the S-I axis is not the one of training, or the image holds NaN or infinity.
        """
        if seg is not None:
            whole: tuple[Image, Any, dict[str, Any]] = super().run_case_npy(
                data, seg, properties, plans_manager, configuration_manager, dataset_json
            )
            return whole
        image = NetworkImage.from_array(data, properties, plans_manager, configuration_manager)
        return _box_for_network(image, plans_manager, configuration_manager), None, image.properties


def _box_for_network(image: NetworkImage, plans_manager: Any, configuration_manager: Any) -> Image:
    """Return what the network sees of a case, and say in its record where that lies."""
    record = case_record.start(image.properties)
    entry = plans_manager.plans.get(PLANS_KEY, {})
    _check_orientation(image.properties, plans_manager, record)
    flags.note(record, flags.of_spacing(image.properties["spacing"], entry.get("training_spacing_mm")))
    flags.note(record, flags.of_constant(image.constant))
    box = network_box(image.shape, configuration_manager.patch_size, entry.get("si_axis"))
    record["network_shape"] = image.shape
    record["box"] = box
    if image.whole_because is not None:
        record["resampled_whole"] = image.whole_because
    case_record.set_under_way(record)
    values: Image = image.extract(box).numpy()
    return values


def _check_orientation(properties: dict[str, Any], plans_manager: Any, record: dict[str, Any]) -> None:
    """Refuse an image whose S-I axis is another than in training; flag one that points the other way."""
    entry = plans_manager.plans.get(PLANS_KEY, {})
    orientation = array_orientation(properties, plans_manager.transpose_forward)
    trained: str | None = entry.get("orientation")
    axis = entry.get("si_axis")
    if orientation and trained and axis is not None and orientation[axis] not in "SI":
        raise UserError(
            f"the image has its axes along {orientation}, but the model was trained with {trained} "
            f"(S-I on axis {axis}): reorient the image, or train with "
            '"overwrite_image_reader_writer": "NibabelIOWithReorient" in dataset.json'
        )
    flags.note(record, flags.of_orientation(orientation, trained))
