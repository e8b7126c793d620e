"""The soft label on disk: its name, its grid, its range.

`softLabelsTr/<case>_<label, 4 digits>.nii.gz` holds the fraction of each voxel, in [0, 1], that belongs to a
label, on the grid of the image. Functions named `..._findings` say what is wrong with one and raise nothing;
reading and writing raise `UserError`.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import NIFTI_ENDINGS, ImageReader
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.atomic import replacing
from nnunet_softseg.io.finding import Finding, raise_first_error, short_name
from nnunet_softseg.io.nifti import UNREADABLE, load_nifti
from nnunet_softseg.io.reader_geometry import reader_affines
from nnunet_softseg.settings import HARD_THRESHOLD

FOLDER = "softLabelsTr"
AFFINE_TOLERANCE = 1e-3
RANGE_TOLERANCE = 1e-5
"""Fractions written as integers with a slope come back a few float32 steps off. What is within is clipped."""
SUM_TOLERANCE = 1e-3
EXTRA_FILE = "extra file"
HOW_TO_MAKE = (
    "write one float NIfTI per case and label, <case>_<label, 4 digits>.nii.gz, with values in [0, 1] on "
    "the image's grid (docs/data.md shows how); labelsTr alone serves vanilla trainers "
    "only (nnUNetTrainer)"
)

_NAME = re.compile(r"^(?P<case>.+)_(?P<label>\d{4})(\.nii|\.nii\.gz)$")
_NOTES = (".json", ".tsv", ".csv", ".txt", ".md")
_READ_IN_CHUNKS_OF = 1 << 20
_AXES = 3
_LARGEST_OVERSHOOT = 0.5
_LARGEST_LABEL_VALUE = 20

SoftLabel = npt.NDArray[np.float32]


# Names


def soft_label_file(folder: Path, case_id: str, label: int) -> Path:
    """Return the file of one soft label; `.nii.gz` unless only a `.nii` is there.

    Args:
        folder: softLabelsTr, or the `soft` folder of a prediction.
        case_id: as in imagesTr, without the channel.
        label: its value in dataset.json.
    """
    compressed, plain = (folder / f"{case_id}_{label:04d}{ending}" for ending in NIFTI_ENDINGS)
    return plain if plain.exists() and not compressed.exists() else compressed


def parse_soft_label_name(name: str) -> tuple[str, int] | None:
    """Return (case_id, label) of a file name, or None if it is not the name of a soft label."""
    match = _NAME.match(name)
    return (match["case"], int(match["label"])) if match else None


def folder_findings(folder: Path, case_ids: Iterable[str], labels: Sequence[int]) -> list[Finding]:
    """Say which soft labels are missing, and which files belong to no case or label.

    Args:
        folder: softLabelsTr.
        case_ids: those that need a soft label.
        labels: foreground values of dataset.json.
    """
    case_ids = sorted(case_ids)
    if not folder.is_dir():
        expected = f"a folder with {len(case_ids)} x {len(labels)} soft labels"
        return [
            Finding(
                f"{folder.parent.name}/{FOLDER}", "no soft labels", expected, "no such folder", HOW_TO_MAKE
            )
        ]
    wanted = {
        soft_label_file(folder, case_id, label): (case_id, label) for case_id in case_ids for label in labels
    }
    findings = [_missing(file, *wanted[file]) for file in wanted if not file.is_file()]
    for file in sorted(folder.iterdir()):
        if file not in wanted and not file.name.startswith(".") and file.suffix.lower() not in _NOTES:
            findings.append(_extra(file, set(case_ids), labels))
    return findings


def _missing(file: Path, case_id: str, label: int) -> Finding:
    what = f"soft label of case {case_id}, label {label}, is missing"
    if file.is_symlink():
        return Finding(
            short_name(file),
            what,
            "a file",
            "a broken link",
            "fetch its content (git annex get, datalad get)",
        )
    return Finding(
        short_name(file),
        what,
        "this file",
        "none",
        "add it (all zeros where the label is absent), or remove the case",
    )


def _extra(file: Path, case_ids: set[str], labels: Sequence[int]) -> Finding:
    expected, found = "only <case>_<label, 4 digits>.nii.gz", "another name"
    parsed = parse_soft_label_name(file.name)
    if parsed:
        case_id, label = parsed
        if case_id not in case_ids:
            expected, found = "a case of imagesTr", f"case {case_id}"
        elif label not in labels:
            expected, found = f"a label of dataset.json ({', '.join(map(str, labels))})", f"label {label}"
        else:
            expected, found = "one file per case and label", "both .nii and .nii.gz"
    return Finding(short_name(file), EXTRA_FILE, expected, found, "remove or rename it")


# Files


def file_findings(file: Path) -> list[Finding]:
    """Say whether a NIfTI file is there, whole (by its checksum if compressed) and three-dimensional.

    Readers cannot be left to find this out: SimpleITK fills what a file is short of with zeros, in silence.
    """
    name, again = short_name(file), "write the file again"
    if not file.is_file():
        found = "a broken link" if file.is_symlink() else "none"
        return [Finding(name, "file is missing", "a NIfTI file", found, "add it")]
    try:
        size = _uncompressed_size(file)
    except (OSError, EOFError, zlib.error) as error:
        return [Finding(name, "corrupt or truncated gzip", "a whole file", _first_line(error), again)]
    try:
        image: Any = nib.load(file)
    except UNREADABLE as error:
        return [Finding(name, "unreadable NIfTI header", "a NIfTI file", _first_line(error), again)]
    shape, data = image.shape, image.dataobj
    expected = data.offset + math.prod(shape) * data.dtype.itemsize
    if size < expected:
        return [Finding(name, "truncated data", f"{expected} bytes by its header", str(size), again)]
    if len(shape) != _AXES:
        what, found = "not a 3-D image", f"{len(shape)}-D, shape {shape}"
        return [Finding(name, what, "shape (x, y, z)", found, _three_axes(shape))]
    return []


def _uncompressed_size(file: Path) -> int:
    if not file.name.endswith(".gz"):
        return file.stat().st_size
    with gzip.open(file) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(_READ_IN_CHUNKS_OF), b""))


def _three_axes(shape: tuple[int, ...]) -> str:
    if len(shape) > _AXES and all(size == 1 for size in shape[_AXES:]):
        return "drop the axes of length 1"
    return "write one 3-D file per label (<case>_0001.nii.gz, <case>_0002.nii.gz, ...)"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    # SimpleITK's last line is the one that says what is wrong.
    return (lines[-1] if lines else type(error).__name__).strip()


def read_image(files: Sequence[Path], reader: ImageReader) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Return (channel, z, y, x) and the properties of an image, in the axis order of nnU-Net's reader.

    Raises:
        UserError: if the reader cannot open it, whatever it raises.
    """
    try:
        return reader.read_images([str(file) for file in files])
    except Exception as error:
        names = ", ".join(short_name(file) for file in files)
        raise UserError(
            f"{names}: expected a NIfTI file that {type(reader).__name__} can read, found: "
            f"{_first_line(error)}: write the file "
            'again, or choose another reader ("overwrite_image_reader_writer" in dataset.json)'
        ) from error


def read_soft_label(file: Path, reader: ImageReader) -> tuple[SoftLabel, dict[str, Any]]:
    """Return a soft label (z, y, x) and its properties, just as the reader gives the image.

    Only the file is checked; see `content_findings` and `reader_geometry_findings` for what is in it.

    Args:
        file: NIfTI.
        reader: of the dataset, see `raw_dataset.find_reader`.

    Raises:
        UserError: if the file is missing, broken or not three-dimensional.
    """
    raise_first_error(file_findings(file))
    channels, properties = read_image([file], reader)
    return np.asarray(channels[0], dtype=np.float32), properties


def stored_values(file: Path) -> SoftLabel:
    """Return what a NIfTI file holds, (x, y, z), in the order in which viewers count voxels.

    The range is judged by this and not by what nnU-Net's readers give: SimpleITK turns NaN into 0, in
    silence.

    Args:
        file: whole, see `file_findings`.
    """
    return np.asarray(load_nifti(file).dataobj, dtype=np.float32)


def write_soft_label(file: Path, soft_label: npt.NDArray[np.floating[Any]], reference: Path) -> None:
    """Write a soft label, float32, with the geometry and header of its image.

    Args:
        file: ends in .nii.gz or .nii.
        soft_label: (x, y, z) in the axis order of the reference file, values in [0, 1].
        reference: NIfTI file of the image.

    Raises:
        UserError: if shape or range are wrong, or the file cannot be written.
    """
    raise_first_error(file_findings(reference))
    image = load_nifti(reference)
    raise_first_error(shape_findings(file, image.shape, soft_label.shape))
    raise_first_error(content_findings(file, np.asarray(soft_label)))
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    # The window of the image would hide a map in [0, 1].
    header["cal_min"], header["cal_max"] = 0, 1
    header["descrip"] = f"soft label, nnunet-softseg {__version__}".encode()
    content = np.clip(soft_label, 0, 1).astype(np.float32)
    with replacing(file) as aside:
        nib.Nifti1Image(content, image.affine, header).to_filename(aside)


# Geometry


def shape_findings(
    file: Path, expected: Sequence[int], found: Sequence[int], axes: str = "x, y, z"
) -> list[Finding]:
    """Say whether a label has the shape of its image."""
    if tuple(expected) == tuple(found):
        return []
    return [
        Finding(
            short_name(file),
            "shape differs from that of the image",
            f"({axes}) = {_numbers(expected)}",
            _numbers(found),
            "resample the label linearly to the image's grid, or look for a mix-up of files",
        )
    ]


def affine_findings(
    file: Path,
    expected: npt.NDArray[np.float64],
    found: npt.NDArray[np.float64],
    seen_by: str = "NIfTI header",
) -> list[Finding]:
    """Say whether a label lies where its image lies.

    Args:
        file: of the label.
        expected: (4, 4) voxel to world in mm, of the image.
        found: of the label.
        seen_by: whose reading of the header it is: readers differ where qform and sform do.
    """
    difference = np.abs(np.asarray(expected) - np.asarray(found))
    if bool(np.all(difference <= AFFINE_TOLERANCE)):  # false for NaN
        return []
    row, column = np.unravel_index(int(np.argmax(np.nan_to_num(difference, nan=np.inf))), difference.shape)
    return [
        Finding(
            short_name(file),
            f"affine differs from that of the image by {difference[row, column]:.4g} (row {row}, column "
            f"{column}, {seen_by})",
            f"{expected[row, column]:.6g} +- {AFFINE_TOLERANCE}",
            f"{found[row, column]:.6g}",
            "resample the label linearly to the image's grid, or, if only its header is wrong, copy the "
            "header of the image",
        )
    ]


def reader_geometry_findings(file: Path, image: Mapping[str, Any], label: Mapping[str, Any]) -> list[Finding]:
    """Say whether nnU-Net's reader sees image and label on one grid.

    Args:
        file: of the label.
        image: properties that the reader gave with the image.
        label: properties that the same reader gave with the label.
    """
    expected, found = reader_affines(image), reader_affines(label)
    return [
        finding
        for name in expected
        if name in found
        for finding in affine_findings(file, expected[name], found[name], f"{name} affine of the reader")
    ][:1]


# Values


def content_findings(file: Path, soft_label: npt.NDArray[Any]) -> list[Finding]:
    """Say whether the values are finite, in [0, 1], and not all zero (a warning: a label may be absent)."""
    name = short_name(file)
    bad = int(np.count_nonzero(~np.isfinite(soft_label)))
    if bad:
        remedy = "write 0 where nothing is known (0/0 outside of all masks is the usual cause)"
        return [
            Finding(name, "NaN or infinite values", "finite values", f"{bad} voxels that are not", remedy)
        ]
    low, high = (float(soft_label.min()), float(soft_label.max())) if soft_label.size else (0.0, 0.0)
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        remedy = _range_remedy(soft_label, low, high)
        return [Finding(name, "values outside [0, 1]", "[0, 1]", f"[{low:.6g}, {high:.6g}]", remedy)]
    if high <= 0:
        remedy = "nothing, if the label is absent from this image"
        return [Finding(name, "all zero", "some voxels above 0", "none", remedy, "warning")]
    return []


def _range_remedy(soft_label: npt.NDArray[Any], low: float, high: float) -> str:
    if low >= -_LARGEST_OVERSHOOT and high <= 1 + _LARGEST_OVERSHOOT:
        return "clip it to [0, 1]; resample labels linearly, splines overshoot"
    if low < -RANGE_TOLERANCE:
        return (
            "this does not look like a fraction: write the fraction of each voxel that belongs to the label"
        )
    if high <= _LARGEST_LABEL_VALUE and bool(np.all(soft_label == np.round(soft_label))):
        return "this looks like an integer label map: write one file per label with its fraction in [0, 1]"
    factor = next((factor for factor in (100, 255) if high <= factor + _LARGEST_OVERSHOOT), high)
    return f"divide it by {factor:g}"


def overlap_findings(files: Sequence[Path], soft_labels: Sequence[SoftLabel]) -> list[Finding]:
    """Warn where the labels of one case add up to more than a whole voxel."""
    if len(soft_labels) < 2:  # noqa: PLR2004
        return []
    total = np.sum(soft_labels, axis=0, dtype=np.float32)
    over = int(np.count_nonzero(total > 1 + SUM_TOLERANCE))
    if not over:
        return []
    return [
        Finding(
            short_name(files[0]),
            f"the {len(files)} labels of this case overlap",
            "a sum of at most 1 in each voxel",
            f"up to {float(total.max()):.4g}, above 1 in {over} voxels",
            "nothing, if labels are meant to overlap; else divide them by their sum there",
            "warning",
        )
    ]


def hard_label_map(
    soft_labels: Sequence[npt.NDArray[Any]], labels: Sequence[int]
) -> npt.NDArray[np.integer[Any]]:
    """Return the integer label map of soft labels: the label of the largest where that is > 0.5, else 0.

    Args:
        soft_labels: one array per label, all of one shape.
        labels: their values.

    Returns:
        uint8, or uint16 for a label above 255. Of equal fractions, the first label wins.
    """
    dtype = np.uint8 if max(labels) <= np.iinfo(np.uint8).max else np.uint16
    largest = np.asarray(soft_labels[0])
    label_map = np.full(largest.shape, labels[0], dtype=dtype)
    for label, soft_label in zip(labels[1:], soft_labels[1:], strict=True):
        label_map[soft_label > largest] = label
        largest = np.maximum(largest, soft_label)
    label_map[~(largest > HARD_THRESHOLD)] = 0
    return label_map


def label_map_findings(
    label_map_file: Path, label_map: npt.NDArray[Any], soft_labels: Sequence[SoftLabel], labels: Sequence[int]
) -> list[Finding]:
    """Say whether the integer label map is soft label > 0.5, as vanilla trainers must see the same anatomy.

    Args:
        label_map_file: in labelsTr.
        label_map: (x, y, z) in the axis order of the file.
        soft_labels: one array per label, same axes.
        labels: their values.
    """
    name = short_name(label_map_file)
    remedy = (
        "write the label map again as soft label > 0.5, strictly (the largest label where there are several)"
    )
    strange = np.setdiff1d(np.unique(label_map), [0, *labels])
    if strange.size:
        expected = ", ".join(map(str, [0, *labels]))
        return [
            Finding(
                name, "values that are not in dataset.json", expected, _numbers(strange[:5].tolist()), remedy
            )
        ]
    differs = label_map != hard_label_map(soft_labels, labels)
    count = int(np.count_nonzero(differs))
    if not count:
        return []
    first = ", ".join(str(tuple(int(i) for i in voxel)) for voxel in np.argwhere(differs)[:3])
    found = f"{count} voxels that differ, first at (x, y, z) = {first}"
    return [
        Finding(
            name, "label map disagrees with its soft label", "label map = soft label > 0.5", found, remedy
        )
    ]


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
