"""A prediction and its reference as maps in [0, 1] on one grid, or one line that says why not."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform

from nnunet_softseg.datasets.soft_label import png_full_scale
from nnunet_softseg.errors import Finding, UserError, raise_first_error
from nnunet_softseg.io.case_files import label_of_probability_map
from nnunet_softseg.io.formats import is_picture, without_ending
from nnunet_softseg.io.geometry import VoxelGrid, geometry_findings, shape_findings, turned
from nnunet_softseg.io.nifti import (
    as_fractions,
    classify,
    content_findings,
    label_findings,
    load_nifti,
    mask_of_label,
    read_values,
)

Kind = Literal["soft", "hard"]


@dataclass(frozen=True)
class LabelMap:
    """A file as it is stored, or one label of it.

    `values` are (x, y, z) in the order of the file, finite; of one label float32 in [0, 1]. `affine` is
    (4, 4), voxel to world RAS in mm; `doubts` are about the geometry in its header, and whether its
    values are labels. Where nothing is known, `unknown`, the values are 0; None: all is known. Of a picture
    (PNG, TIFF) only the shape counts, as it does not say where it lies.
    """

    file: Path
    values: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    doubts: tuple[Finding, ...] = ()
    unknown: npt.NDArray[np.bool_] | None = None

    @property
    def grid(self) -> VoxelGrid:
        """The voxels in the scanner."""
        return VoxelGrid(self.values.shape, self.affine)

    @property
    def has_place(self) -> bool:
        """Whether its file says where it lies."""
        return not is_picture(self.file.name)

    @property
    def kind(self) -> Kind:
        """Soft if there is anything between 0 and 1."""
        return "soft" if bool(((self.values > 0) & (self.values < 1)).any()) else "hard"

    def as_nifti(self) -> nib.Nifti1Image:
        """Return it as an image in memory."""
        return nib.Nifti1Image(self.values, self.affine)


@dataclass(frozen=True)
class Unknown:
    """What marks unknown voxels of a reference, beside NaN: a value of label maps, and another label map."""

    ignore: int | None = None
    label_map: Path | None = None


def read_stored(file: Path, unknown: Unknown | None = None, *, soft: bool = False) -> LabelMap:
    """Return the values of a file, scaled by its header, whatever its type of numbers.

    `soft`: by its name it holds fractions of one label; those of a PNG are scaled to [0, 1].

    Raises:
        UserError: if it is missing, broken, not 3-D, or holds infinity, or NaN where all must be known.
    """
    opened = load_nifti(file)
    image, doubts = nib.funcs.squeeze_image(opened), tuple(geometry_findings(file, opened))
    values = read_values(image, str(file), nan=unknown is not None)
    if soft and (full := png_full_scale(file, values.dtype)) > 1:
        values = values / np.float32(full)
    stored = LabelMap(file, values, np.asarray(image.affine, dtype=np.float64), doubts)
    if unknown is None:
        return stored
    where = np.isnan(values)
    if unknown.ignore is not None:
        where |= values == unknown.ignore
        if unknown.label_map is not None:
            where |= _on_same_grid(read_stored(unknown.label_map), stored) == unknown.ignore
    known = np.where(where, 0, values)
    return dataclasses.replace(stored, values=known, unknown=where) if where.any() else stored


def _on_same_grid(label_map: LabelMap, soft_label: LabelMap) -> npt.NDArray[Any]:
    """Return the values of a label map in the voxels of a soft label; its axes may be others in the file."""
    upright = _upright(label_map, soft_label)
    if not upright.grid.is_same(soft_label.grid):
        raise UserError(
            f"{label_map.file}: expected the grid of {soft_label.file}, {soft_label.grid}, found "
            f"{label_map.grid}: write both on the grid of their image"
        )
    return upright.values


def _upright(label_map: LabelMap, like: LabelMap) -> LabelMap:
    """Return a map with its axes in the order and direction of another's; those of pictures are the same."""
    placed = label_map.has_place and like.has_place
    affine = label_map.affine if placed else like.affine
    return LabelMap(label_map.file, *turned(label_map.values, affine, like.affine))


def known_part(prediction: LabelMap, reference: LabelMap) -> LabelMap:
    """Return a prediction, on the grid of its reference, with 0 where that is unknown."""
    if reference.unknown is None:
        return prediction
    values = np.where(reference.unknown, 0, prediction.values).astype(prediction.values.dtype)
    return dataclasses.replace(prediction, values=values)


def read_map(file: Path, label: int, labels: Sequence[int] = (1,), **how: Any) -> LabelMap:
    """Return one label of a file, see `read_stored` and `label_of`, also for errors and further arguments."""
    soft = is_of_label(file, label, how.get("case_id", ""), told=how.get("told", False))
    return label_of(read_stored(file, how.pop("unknown", None), soft=soft), label, labels, **how)


def is_of_label(file: Path, label: int, case_id: str = "", *, told: bool = False) -> bool:
    """Return whether a file is of one label by its name, `<case>_<label>`, and of no case of that name.

    A soft map of BIDS, `<case>_label-<name>_probseg`, is of that label for which it was found, and so is a
    file whose label a pattern of the user `told`.
    """
    stem = without_ending(file.name)
    named = stem.endswith(f"_{label:04d}") or label_of_probability_map(file.name) is not None
    return told or (named and stem != case_id)


def label_of(
    stored: LabelMap,
    label: int,
    labels: Sequence[int] = (1,),
    *,
    case_id: str = "",
    told: bool = False,
    chosen: bool = False,
    region: Sequence[int] = (),
) -> LabelMap:
    """Return one label: the values if they are fractions of it, or where a label map has it.

    A file `<case>_<label>` holds fractions. Any other holds fractions too if only one label is compared and
    all values lie in [0, 1]; if not, it is a label map.

    `labels` are all that are compared; `case_id` may end in four digits, which are no label; `told`: see
    `is_of_label`; `chosen`: the user named the labels, so that other whole numbers than 0 and 1 mean labels;
    `region`: the values of a label map that make up the label, if not its own.

    Raises:
        UserError: if the values are neither fractions nor the labels asked for.
    """
    content, values = classify(stored.values), stored.values
    own_file = is_of_label(stored.file, label, case_id, told=told)
    if content.is_fraction and (own_file or (len(labels) == 1 and label == 1)):
        return dataclasses.replace(stored, values=as_fractions(values, content))
    if content.labels is not None and not own_file and (chosen or len(labels) > 1 or label != 1):
        findings = label_findings(str(stored.file), content, label)
        raise_first_error(findings)
        mask = mask_of_label(values, *(region or (label,)))
        return dataclasses.replace(stored, values=mask, doubts=(*stored.doubts, *findings))
    raise_first_error(content_findings(str(stored.file), values, "" if own_file else "--label"))
    raise UserError(
        f"{stored.file}: expected a label map of whole numbers, found {content.kind.value}, of which label "
        "is not known: write one file per label, <case>_<label, 4 digits>.nii.gz"
    )


def on_grid_of(prediction: LabelMap, reference: LabelMap, *, resample: bool) -> tuple[LabelMap, bool]:
    """Return a prediction on the grid of its reference, and whether it had to be resampled.

    The same voxels in another orientation are turned, which changes no value. Where one of the two is a
    picture, equal shapes are one grid. `resample`: interpolate linearly, 0 outside of the prediction.

    Raises:
        UserError: if the grids differ and `resample` is false.
    """
    if not (prediction.has_place and reference.has_place):
        raise_first_error(shape_findings(str(prediction.file), reference.grid.shape, prediction.grid.shape))
        return dataclasses.replace(prediction, affine=reference.affine), False
    upright = _upright(prediction, reference)
    if upright.grid.is_same(reference.grid):
        return upright, False
    if not resample:
        raise UserError(
            f"{prediction.file}: expected the grid of {reference.file}, {reference.grid}, found "
            f"{prediction.grid}: look for a mix-up of files, or give --resample"
        )
    matrix = np.linalg.inv(prediction.affine) @ reference.affine
    how = {"output_shape": reference.values.shape, "order": 1, "mode": "grid-constant"}
    values = affine_transform(prediction.values, matrix[:3, :3], matrix[:3, 3], **how)
    return LabelMap(prediction.file, np.clip(values, 0, 1), reference.affine), True
