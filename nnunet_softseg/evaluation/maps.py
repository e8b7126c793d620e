"""A prediction and its reference as arrays on one grid, or one line that says why not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.geometry import AFFINE_TOLERANCE
from nnunet_softseg.io.map_kind import RANGE_TOLERANCE, content_findings
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.metrics.morphometry.reading import read_values

Kind = Literal["soft", "hard"]
_BYTE = 255
_MOST_LABELS = 1000
_MORE_THAN_A_LABEL_MAP_HAS = 40
_ROUNDING = 1e-3
_AXES = 3


@dataclass(frozen=True)
class StoredMap:
    """A file as it is.

    Attributes:
        file: where it lies, for messages.
        values: (x, y, z) in the order of the file, finite.
        affine: (4, 4) voxel to world RAS in mm.
    """

    file: Path
    values: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelMap:
    """One label of one case.

    Attributes:
        file: where it comes from.
        values: (x, y, z) float32 in [0, 1].
        affine: (4, 4) voxel to world RAS in mm.
    """

    file: Path
    values: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size along x, y, z."""
        return tuple(float(size) for size in nib.affines.voxel_sizes(self.affine))

    @property
    def kind(self) -> Kind:
        """Soft if there is anything between 0 and 1."""
        return "soft" if bool(((self.values > 0) & (self.values < 1)).any()) else "hard"

    def as_nifti(self) -> nib.Nifti1Image:
        """Return it as an image in memory."""
        return nib.Nifti1Image(self.values, self.affine)


def read_stored(file: Path) -> StoredMap:
    """Return what a file holds, scaled by its header, whatever its type of numbers.

    Raises:
        UserError: if it is missing, broken, not 3-D, or holds NaN or infinity.
    """
    image = nib.funcs.squeeze_image(load_nifti(file))
    return StoredMap(file, read_values(image, str(file)), np.asarray(image.affine, dtype=np.float64))


def read_map(file: Path, label: int, labels: Sequence[int] = (1,), *, chosen: bool = False) -> LabelMap:
    """Return one label of a file, see `label_of`.

    Raises:
        UserError: as `read_stored` and `label_of`.
    """
    return label_of(read_stored(file), label, labels, chosen=chosen)


def label_of(
    stored: StoredMap, label: int, labels: Sequence[int] = (1,), *, chosen: bool = False
) -> LabelMap:
    """Return one label: the values if they are fractions of it, or where a label map has it.

    A file `<case>_<label>` holds fractions. Any other holds fractions too if only one label is compared and
    all values lie in [0, 1]; if not, it is a label map.

    Args:
        stored: the file.
        label: wanted.
        labels: all that are compared.
        chosen: the user named the labels, so that other whole numbers than 0 and 1 mean labels.

    Raises:
        UserError: if the values are neither fractions nor the labels asked for.
    """
    values = stored.values
    low, high = (float(values.min()), float(values.max()))
    fractions = low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE
    own_file = stored.file.name.removesuffix(".gz").removesuffix(".nii").endswith(f"_{label:04d}")
    if fractions and (own_file or (len(labels) == 1 and label == 1)):
        return LabelMap(stored.file, np.clip(values, 0, 1).astype(np.float32, copy=False), stored.affine)
    whole = low >= 0 and high <= _MOST_LABELS and _is_whole(values)
    if whole and not own_file and (chosen or len(labels) > 1 or label != 1):
        return LabelMap(stored.file, (np.round(values) == label).astype(np.float32), stored.affine)
    raise UserError(_refusal(stored, whole, fractions, own_file))


def _is_whole(values: npt.NDArray[Any]) -> bool:
    """Say whether values are whole numbers; labels stored with a slope come back a little off."""
    return values.dtype.kind in "biu" or bool((np.abs(values - np.round(values)) < _ROUNDING).all())


def _refusal(stored: StoredMap, whole: bool, fractions: bool, own_file: bool) -> str:
    high = float(stored.values.max())
    if fractions:
        return (
            f"{stored.file}: expected a label map of whole numbers, found fractions, of which label is not "
            "known: "
            "write one file per label, <case>_<label, 4 digits>.nii.gz"
        )
    if whole and high == _BYTE and not ((stored.values > 0) & (stored.values < _BYTE)).any():
        remedy = "divide it by 255, or say --label 255"
        return f"{stored.file}: expected values in [0, 1], found only 0 and 255: {remedy}"
    present = [f"{value:g}" for value in np.unique(np.round(stored.values))] if whole else []
    if whole and not own_file and len(present) < _MORE_THAN_A_LABEL_MAP_HAS:
        return (
            f"{stored.file}: expected values in [0, 1], found a map of whole numbers "
            f"({examples(present, 6)}): "
            "choose a label of it with --label"
        )
    return str(content_findings(stored.file, stored.values)[0])


# One grid


def on_grid_of(prediction: LabelMap, reference: LabelMap, *, resample: bool) -> tuple[LabelMap, bool]:
    """Return a prediction on the grid of its reference, and whether it had to be resampled.

    The same voxels in another orientation are turned, which changes no value.

    Args:
        prediction: on any grid.
        reference: of the same case.
        resample: interpolate linearly if the grids differ, 0 outside of the prediction.

    Raises:
        UserError: if the grids differ and `resample` is false.
    """
    turned = _turned(prediction, reference)
    if turned.values.shape == reference.values.shape and np.allclose(
        turned.affine, reference.affine, rtol=0, atol=AFFINE_TOLERANCE
    ):
        return turned, False
    if not resample:
        raise UserError(
            f"{prediction.file}: expected the grid of {reference.file}, {_grid(reference)}, found "
            f"{_grid(prediction)}: "
            "look for a mix-up of files, or give --resample"
        )
    matrix = np.linalg.inv(prediction.affine) @ reference.affine
    values = affine_transform(
        prediction.values,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=reference.values.shape,
        order=1,
        mode="grid-constant",
    )
    return LabelMap(prediction.file, np.clip(values, 0, 1), reference.affine), True


def _turned(prediction: LabelMap, reference: LabelMap) -> LabelMap:
    transform = nib.orientations.ornt_transform(
        nib.io_orientation(prediction.affine), nib.io_orientation(reference.affine)
    )
    if (transform == [[0, 1], [1, 1], [2, 1]]).all():
        return prediction
    values = nib.orientations.apply_orientation(prediction.values, transform)
    to_before = nib.orientations.inv_ornt_aff(transform, prediction.values.shape)
    return LabelMap(prediction.file, np.ascontiguousarray(values), prediction.affine @ to_before)


def _grid(stored: LabelMap) -> str:
    shape = " x ".join(map(str, stored.values.shape))
    sizes = " x ".join(f"{size:.4g}" for size in stored.spacing_mm)
    rows = "; ".join(" ".join(f"{value:.5g}" for value in row) for row in stored.affine[:_AXES])
    return f"{shape} voxels of {sizes} mm, affine [{rows}]"
