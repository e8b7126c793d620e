"""nnU-Net's preprocessing of an image to predict, done only for the part that the network sees."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import flags
from nnunet_softseg.inference.case_record import KEY, CaseRecord
from nnunet_softseg.inference.image_reading import naming
from nnunet_softseg.inference.network_image import NetworkImage
from nnunet_softseg.io.geometry import array_orientation
from nnunet_softseg.preprocessing.center_crop import network_box
from nnunet_softseg.settings import PLANS_KEY

Image = npt.NDArray[np.floating[Any]]


def preprocess_files(
    image_files: Sequence[str], plans_manager: Any, configuration_manager: Any
) -> tuple[Image, dict[str, Any]]:
    """Return (image, properties) of a case to predict; its record keeps the paths.

    Args:
        image_files: one per channel, or one with all channels where the reader knows such files.
        plans_manager: nnU-Net's.
        configuration_manager: nnU-Net's.

    Returns:
        image: (channel, *space) float32, of the box in the record.
        properties: nnU-Net's, with the record.

    Raises:
        UserError: if the files cannot be predicted; see `image_reading.read_image`.
    """
    started = time.perf_counter()
    image = NetworkImage.from_files(image_files, plans_manager, configuration_manager)
    image.properties[KEY] = record = CaseRecord(image_files=tuple(map(str, image_files)))
    with naming(image_files):
        box = _box_for_network(image, plans_manager, configuration_manager)
    record.seconds["preprocess"] = time.perf_counter() - started
    return box, image.properties


def preprocess_array(
    data: Image, properties: dict[str, Any], plans_manager: Any, configuration_manager: Any
) -> tuple[Image, dict[str, Any]]:
    """Return (image, properties) of an array (channel, z, y, x); as `preprocess_files`.

    Raises:
        UserError: if the S-I axis is not the one of training, or the image holds NaN or infinity.
    """
    image = NetworkImage.from_array(data, properties, plans_manager, configuration_manager)
    image.properties[KEY] = CaseRecord()  # one may be left over from another array
    return _box_for_network(image, plans_manager, configuration_manager), image.properties


def _box_for_network(image: NetworkImage, plans_manager: Any, configuration_manager: Any) -> Image:
    """Return what the network sees of a case, and say in its record where that lies."""
    record = CaseRecord.of(image.properties)
    entry = plans_manager.plans.get(PLANS_KEY, {})
    _check_orientation(image.properties, plans_manager, record)
    record.add_flags(flags.of_spacing(image.properties["spacing"], entry.get("training_spacing_mm")))
    record.add_flags(flags.of_constant(image.constant))
    box = network_box(image.shape, configuration_manager.patch_size, entry.get("si_axis"))
    record.network_shape, record.box, record.resampled_whole = image.shape, box, image.whole_because
    values: Image = image.extract(box).numpy()
    return values


def _check_orientation(properties: dict[str, Any], plans_manager: Any, record: CaseRecord) -> None:
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
    record.add_flags(flags.of_orientation(orientation, trained))
