"""Soft labels on disk: reading and writing, faults, label maps.

`softLabelsTr/<case>_<label, 4 digits>.nii.gz` holds the fraction of each voxel, in [0, 1], that belongs to a
label, on the grid of the image. Labels of MHA and NRRD images may be of their format, those of pictures TIFF
or PNG; the integers of a PNG are fractions times the largest of their type. Functions named `..._findings`
return faults and raise nothing; reading and writing raise `UserError`.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import LabelScheme, hard_label_map, soft_label_file
from nnunet_softseg.errors import Finding, UserError, examples, raise_first_error, short_name
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.formats import (
    ITK_ENDINGS,
    NIFTI_ENDINGS,
    NIFTI_READERS,
    PNG,
    READERS,
    is_image,
    is_nifti,
    without_ending,
)
from nnunet_softseg.io.geometry import shape_findings
from nnunet_softseg.io.nifti import (
    PER_VOLUME,
    content_findings,
    file_findings,
    load_nifti,
    stored_values,
    telling_line,
)
from nnunet_softseg.io.results import changed_outputs, replacing
from nnunet_softseg.settings import HARD_THRESHOLD

FOLDER = "softLabelsTr"
_SUM_TOLERANCE = 1e-3
EXTRA_FILE = "extra file"
_LEAST_OF_PNG = 1 / 255
_EIGHT_BITS = ("1", "L", "P")
"""Modes of Pillow in which a grey PNG has no more than 256 levels."""
_HOW_TO_MAKE = (
    "write one float NIfTI per case and label, <case>_<label, 4 digits>.nii.gz, with values in [0, 1] on the "
    "image's grid (docs/data.md shows how); labelsTr alone serves vanilla trainers only (nnUNetTrainer)"
)
_NOTES = (".json", ".tsv", ".csv", ".txt", ".md")

SoftLabel = npt.NDArray[np.float32]


def lost_changes(folder: Path, recorded: Mapping[str, str | None]) -> list[str]:
    """Say which labels of an earlier call, to be made again, somebody has changed; broken ones do not count.

    `recorded`: path, as seen from the folder, -> SHA-256 of what the earlier call wrote.
    """
    finished = {name: known for name, known in recorded.items() if known and is_nifti(name)}
    names = [name for name in changed_outputs(folder, finished) if not file_findings(folder / name)]
    return [f"changed since it was made, now made again: {examples(names)}"] if names else []


def folder_findings(folder: Path, case_ids: Iterable[str], labels: Sequence[int]) -> list[Finding]:
    """Say which soft labels are missing in softLabelsTr, and which files belong to no case or label."""
    case_ids = sorted(case_ids)
    if not folder.is_dir():
        expected = f"a folder with {len(case_ids)} x {len(labels)} soft labels"
        name = f"{folder.parent.name}/{FOLDER}"
        return [Finding(name, "no soft labels", expected, "no such folder", _HOW_TO_MAKE)]
    wanted = {
        soft_label_file(folder, case_id, label): (case_id, label) for case_id in case_ids for label in labels
    }
    findings = []
    for file, (case_id, label) in wanted.items():
        if file.is_file():
            continue
        expected, found = "this file", "none"
        remedy = "add it (all zeros where the label is absent), or remove the case"
        if file.is_symlink():
            expected, found = "a file", "a broken link"
            remedy = "fetch its content (git annex get, datalad get)"
        what = f"soft label of case {case_id}, label {label}, is missing"
        findings.append(Finding(short_name(file), what, expected, found, remedy))
    for file in sorted(folder.iterdir()):
        if file not in wanted and not file.name.startswith(".") and file.suffix.lower() not in _NOTES:
            expected, found = _why_extra(file, case_ids, labels)
            remedy = _how_to_rename(file, case_ids, labels)
            findings.append(Finding(short_name(file), EXTRA_FILE, expected, found, remedy))
    return findings


def _why_extra(file: Path, case_ids: Sequence[str], labels: Sequence[int]) -> tuple[str, str]:
    """Return the part of a file's name that is expected, and the one found."""
    case_id, label = parse_numbered_name(file.name) or (None, 0)
    if case_id is None or without_ending(file.name) in case_ids:
        return "only <case>_<label, 4 digits>.nii.gz", "another name"
    if case_id not in case_ids:
        return "a case of imagesTr", f"case {case_id}"
    if label not in labels:
        return f"a label of dataset.json ({', '.join(map(str, labels))})", f"label {label}"
    used = soft_label_file(file.parent, case_id, label).name
    both = sorted(name[len(without_ending(name)) :] for name in (file.name, used))
    return "one file per case and label", f"both {' and '.join(both)}"


def _how_to_rename(file: Path, case_ids: Sequence[str], labels: Sequence[int]) -> str:
    stem = without_ending(file.name)
    if not is_image(file.name) or stem not in case_ids:
        return "remove or rename it"
    of_label = "" if len(labels) == 1 else ", if it holds the fractions of that label"
    return f"rename it to {stem}_{labels[0]:04d}{file.name[len(stem) :].lower()}{of_label}"


class ImageReader(Protocol):
    """The part of nnU-Net's reader classes that is used here."""

    def read_images(self, image_fnames: list[str]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return (channel, z, y, x) and the properties of the image."""


def find_reader(name: str) -> ImageReader:
    """Return nnU-Net's reader of that name; a UserError for one that soft training does not know."""
    known = sorted({reader for readers in READERS.values() for reader in readers})
    if name not in known:
        raise UserError(
            f"dataset.json: expected a reader out of {', '.join(known)}, found {name}: correct "
            "overwrite_image_reader_writer"
        )
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    reader: ImageReader = recursive_find_reader_writer_by_name(name)()
    return reader


def read_image(files: Sequence[Path], reader: ImageReader) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Return (channel, z, y, x) and the properties of an image; a UserError if the reader cannot open it."""
    try:
        return reader.read_images([str(file) for file in files])
    except Exception as error:
        names = ", ".join(short_name(file) for file in files)
        expected = "a NIfTI file" if is_nifti(files[0].name) else "an image"
        raise UserError(
            f"{names}: expected {expected} that {type(reader).__name__} can read, found: "
            f"{telling_line(error)}: write the file again, or choose another reader "
            '("overwrite_image_reader_writer" in dataset.json)'
        ) from error


def read_soft_label(file: Path, reader: ImageReader) -> tuple[SoftLabel, dict[str, Any]]:
    """Return a soft label (z, y, x) and its properties, just as the dataset's reader gives the image.

    Voxels where nothing is known are NaN. Only the file is checked: a UserError if it is missing, broken, not
    three-dimensional, or of a format that does not go with the reader's.
    """
    raise_first_error([*file_findings(file), *format_findings(file, reader)])
    return read_checked(file, reader)


def read_checked(file: Path, reader: ImageReader) -> tuple[SoftLabel, dict[str, Any]]:
    """Return a soft label as `read_soft_label` does, of a file whose findings are known."""
    if not _keeps_geometry(reader):
        return _as_read(stored_soft_label(file)), {}
    channels, properties = read_image([file], reader)
    label = np.asarray(channels[0], dtype=np.float32)
    if is_nifti(file.name) and type(reader).__name__.startswith("SimpleITK"):  # which reads NaN as 0
        unknown = np.isnan(stored_values(file))
        if unknown.any():
            label[_turned(unknown, file, reader)] = np.nan
    return label, properties


def read_label_map(file: Path, reader: ImageReader) -> npt.NDArray[np.float32]:
    """Return an integer label map (z, y, x) as the dataset's reader gives the image; UserError: broken."""
    raise_first_error(file_findings(file))
    return read_image([file], reader)[0][0] if _keeps_geometry(reader) else _as_read(stored_values(file))


def _keeps_geometry(reader: ImageReader) -> bool:
    """Return whether a reader is one of NIfTI, MHA and NRRD, and not of pictures."""
    return type(reader).__name__ in NIFTI_READERS


def _as_read(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return values (x, y, z) of a file as nnU-Net's readers of pictures give theirs, (z, y, x)."""
    return np.ascontiguousarray(values.T)


def format_findings(file: Path, reader: ImageReader) -> list[Finding]:
    """Say whether a soft label is of a format that does not go with images of a reader."""
    name = type(reader).__name__
    wanted: tuple[str, ...] = NIFTI_ENDINGS
    if name.startswith("SimpleITK"):
        wanted = (*NIFTI_ENDINGS, *ITK_ENDINGS)
    elif not _keeps_geometry(reader):
        wanted = (*NIFTI_ENDINGS, ".tif", ".tiff", PNG)
    if file.name.lower().endswith(wanted):
        return []
    what, expected = f"not a soft label of images that {name} reads", " or ".join(wanted)
    return [Finding(short_name(file), what, expected, file.suffix, "write it in one of these formats")]


def stored_soft_label(file: Path) -> SoftLabel:
    """Return the fractions of a soft label of any format, (x, y, z); a UserError if it cannot be read.

    They are exact to what is stored: the integers of a PNG are divided by the largest of their type.
    """
    values = stored_values(file)
    full = png_full_scale(file, load_nifti(file).get_data_dtype()) if file.suffix.lower() == PNG else 1
    return values if full == 1 else values / np.float32(full)


def png_full_scale(file: Path, dtype: np.dtype[Any]) -> int:
    """Return what means a whole voxel in the file of a soft label: 255 or 65535 in a PNG, else 1."""
    is_scaled = file.suffix.lower() == PNG and dtype.kind == "u"
    return int(np.iinfo(dtype).max) if is_scaled else 1


def precision_findings(files: Iterable[Path]) -> list[Finding]:
    """Warn once of soft labels in PNG files with 8 bits."""
    from PIL import Image  # only here: predictions go without

    coarse = []
    for file in files:
        if file.suffix.lower() == PNG and file.is_file():
            try:
                with Image.open(file) as picture:
                    coarse += [short_name(file)] if picture.mode in _EIGHT_BITS else []
            except OSError:  # `file_findings` says so
                continue
    if not coarse:
        return []
    what = f"{len(coarse)} soft labels have 256 levels ({examples(coarse)})"
    expected, found = "16-bit PNG or float TIFF", "8-bit PNG, off by up to 0.002"
    remedy = "nothing, if that is precise enough; else write them again"
    return [Finding(FOLDER, what, expected, found, remedy, "warning")]


def _turned(unknown: npt.NDArray[np.bool_], file: Path, reader: ImageReader) -> npt.NDArray[np.bool_]:
    """Return voxels (x, y, z) of a file as the reader turns them, (z, y, x)."""
    image = load_nifti(file)
    with tempfile.TemporaryDirectory() as folder:
        marked = Path(folder) / "unknown.nii"
        # With the header of the file: of its two transforms, readers differ in which they go by.
        turned = nib.Nifti1Image(unknown.astype(np.uint8), image.affine, image.header)
        turned.header.set_data_dtype(np.uint8)
        turned.to_filename(marked)
        return np.asarray(read_image([marked], reader)[0][0] > 0)


def value_findings(file: Path, values: SoftLabel) -> list[Finding]:
    """Say whether the known values of a soft label are fractions; NaN means unknown and is no fault."""
    unknown = np.isnan(values)
    if unknown.all():
        what, expected, remedy = "nothing is known", "some voxels other than NaN", "nothing, if that is meant"
        return [Finding(short_name(file), what, expected, "NaN only", remedy, "warning")]
    if file.suffix.lower() == PNG and 0 < (highest := float(values.max())) <= _LEAST_OF_PNG * (1 + 1e-2):
        what, expected = "hardly above 0 anywhere", "fractions times 65535 (16 bits) or 255 (8 bits)"
        found = f"a largest fraction of {highest:.2g}"
        remedy = "write fractions on that scale, the 1 of a mask as 65535 or 255; or write float TIFF"
        return [Finding(short_name(file), what, expected, found, remedy)]
    # In space: neighbours tell labels from steps of fractions.
    return content_findings(file, np.where(unknown, np.float32(0), values) if unknown.any() else values)


def write_soft_label(file: Path, soft_label: npt.NDArray[np.floating[Any]], reference: Path) -> None:
    """Write a soft label, (x, y, z) in [0, 1] or NaN, as float32 with the header of its reference image.

    A UserError if shape or range are wrong, or the file cannot be written.
    """
    raise_first_error(file_findings(reference, several=PER_VOLUME))
    image = load_nifti(reference)
    raise_first_error(shape_findings(file, image.shape, soft_label.shape))
    raise_first_error(value_findings(file, np.asarray(soft_label)))
    _write(file, np.clip(soft_label, 0, 1).astype(np.float32), image, 1, "soft label")


def write_label_map(
    file: Path, soft_files: Sequence[Path], painted: Sequence[tuple[int, int]], *, ignore: int | None = None
) -> None:
    """Write the label map of soft labels, of the values as they are on disk, where `check` compares the two.

    There is one soft file per label, on one grid; the first gives the header. They are `painted` as
    `LabelScheme` says. Where no label is known, the map holds the label to `ignore`; None: the next value
    above those painted.
    """
    highest = max(value for _, value in painted)
    soft_labels = [stored_values(soft_file) for soft_file in soft_files]
    unknown = unknown_voxels(soft_labels)
    if unknown.any():
        soft_labels.append(unknown.astype(np.float32))
        painted = [*painted, (len(soft_files), highest + 1 if ignore is None else ignore)]
    label_map = hard_label_map(soft_labels, painted)
    _write(file, label_map, load_nifti(soft_files[0]), highest, f"soft label > {HARD_THRESHOLD:g}")


def _write(file: Path, values: npt.NDArray[Any], like: nib.Nifti1Image, highest: int, what: str) -> None:
    header = like.header.copy()
    header.set_data_dtype(values.dtype)
    # The window of the image would hide the values.
    header["cal_min"], header["cal_max"] = 0, highest
    header["descrip"] = f"{what}, nnunet-softseg {__version__}".encode()
    with replacing(file) as aside:
        nib.Nifti1Image(values, like.affine, header).to_filename(aside)


def known_voxels(
    soft_labels: Sequence[SoftLabel], label_map: npt.NDArray[Any] | None, ignore: int | None
) -> npt.NDArray[np.bool_]:
    """Return where the labels are known, as (label, *space): not NaN, and not the label to ignore."""
    known = np.stack([~np.isnan(values) for values in soft_labels])
    return known if ignore is None or label_map is None else known & (label_map != ignore)


def unknown_voxels(soft_labels: Sequence[SoftLabel]) -> npt.NDArray[np.bool_]:
    """Return where no label of a case is known: all are NaN there."""
    return np.asarray(np.isnan(soft_labels).all(axis=0))


def ignored_findings(files: Sequence[Path], soft_labels: Sequence[SoftLabel], ignored: Any) -> list[Finding]:
    """Warn of soft labels above 0 in voxels that the label map marks as unknown: the label map counts."""
    findings = []
    for file, soft_label in zip(files, soft_labels, strict=True):
        number = int(np.count_nonzero(soft_label[ignored] > 0))
        if number:
            what, expected = "soft label where labelsTr has the label to ignore", "0 or NaN there"
            found, remedy = f"{number} voxels above 0, which count as unknown", "nothing, or correct labelsTr"
            findings.append(Finding(short_name(file), what, expected, found, remedy, "warning"))
    return findings


def overlap_findings(files: Sequence[Path], soft_labels: Sequence[SoftLabel]) -> list[Finding]:
    """Warn where the labels of one case add up to more than a whole voxel; unknown ones count as 0."""
    if len(soft_labels) < 2:  # noqa: PLR2004
        return []
    total = np.nansum(soft_labels, axis=0, dtype=np.float32)
    over = int(np.count_nonzero(total > 1 + _SUM_TOLERANCE))
    if not over:
        return []
    what, expected = f"the {len(files)} labels of this case overlap", "a sum of at most 1 in each voxel"
    found = f"up to {float(total.max()):.4g}, above 1 in {over} voxels"
    remedy = "nothing, if labels are meant to overlap; else divide them by their sum there"
    return [Finding(short_name(files[0]), what, expected, found, remedy, "warning")]


def surely_above_or_not(file: Path, values: SoftLabel) -> SoftLabel:
    """Return the fractions of a soft label, NaN where rounding to the file's integers may decide on > 0.5.

    In a PNG, a half is 32768 / 65535 or 128 / 255, which is more.
    """
    image = load_nifti(file)
    dtype = image.get_data_dtype()
    step = abs(getattr(image.dataobj, "slope", 1.0)) / png_full_scale(file, dtype)
    if dtype.kind not in "iu" or step >= 1:  # the 0 and 1 of a mask are not rounded
        return values
    half_a_step = 0.51 * step  # a little more, as float32 rounds, too
    return np.where(np.abs(values - HARD_THRESHOLD) <= half_a_step, np.float32(np.nan), values)


def nested_labels(soft_labels: Sequence[SoftLabel]) -> dict[tuple[int, int], bool]:
    """Return which labels of a case lie in which: (inner, outer) -> whether the inner exceeds 0.5 somewhere.

    Nowhere is the inner one larger; unknown voxels are not compared, and an absent label lies in all others.
    """
    found = {}
    for inner, values in enumerate(soft_labels):
        there = values > 0
        of_inner = values[there]
        for outer, others in enumerate(soft_labels):
            if outer != inner and not (of_inner > others[there] + _SUM_TOLERANCE).any():
                found[inner, outer] = bool((of_inner > HARD_THRESHOLD).any())
    return found


def label_map_findings(
    label_map_file: Path, label_map: npt.NDArray[Any], soft_labels: Sequence[SoftLabel], scheme: LabelScheme
) -> list[Finding]:
    """Say whether the integer label map is soft label > 0.5, as vanilla trainers must see the same anatomy.

    Where labels overlap, the one that is painted last counts, or, without `regions_class_order`, the largest,
    in the whole label map; of equal ones always the first, or always the last.
    Unknown voxels are not compared. All arrays are (x, y, z) in the axis order of the file.
    """
    name = short_name(label_map_file)
    remedy = (
        "write the label map again as soft label > 0.5, strictly (of labels that overlap, the later value)"
    )
    allowed = (0, *scheme.values, *([] if scheme.ignore is None else [scheme.ignore]))
    strange = np.setdiff1d(label_map, allowed)
    if strange.size:
        expected, found = ", ".join(map(str, allowed)), ", ".join(f"{value:g}" for value in strange[:5])
        return [Finding(name, "values that are not in dataset.json", expected, f"({found})", remedy)]
    known = known_voxels(soft_labels, label_map, scheme.ignore).all(axis=0)
    values = label_map.copy() if scheme.has_regions else label_map
    for value in scheme.values if scheme.has_regions else ():
        # of values that only make up regions together, one is painted for all
        values[label_map == value] = scheme.painted_value(value)
    differs = (values != hard_label_map(soft_labels, scheme.painted)) & known
    if not differs.any():
        return []
    orders = (scheme.painted, scheme.painted[::-1]) if scheme.is_by_value else ()
    wrong = [known & (values != _largest_on_top(soft_labels, order)) for order in orders]
    if all(where.any() for where in wrong):
        in_all = np.logical_and.reduce([differs, *wrong])
        what, expected = "label map disagrees with its soft label", "label map = soft label > 0.5"
        found = _voxels_that_differ(in_all if in_all.any() else differs)
        return [Finding(name, what, expected, found, remedy)]
    what, expected = "of overlapping labels the label map has the largest on top", "the later value on top"
    remedy = "nothing, or write it again as predictions will be"
    return [Finding(name, what, expected, _voxels_that_differ(differs), remedy, "warning")]


def _voxels_that_differ(where: npt.NDArray[np.bool_]) -> str:
    voxels = np.argwhere(where)
    first = ", ".join(str(tuple(voxel)) for voxel in voxels[:3].tolist())
    return f"{len(voxels)} voxels that differ, first at (x, y, z) = {first}"


def _largest_on_top(
    soft_labels: Sequence[SoftLabel], painted: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Return the label map with the largest label above 0.5 on top; of equal ones the first of `painted`."""
    ordered = np.stack([soft_labels[index] for index, _ in painted])
    largest = np.array([value for _, value in painted])[ordered.argmax(axis=0)]
    return np.where(ordered.max(axis=0) > HARD_THRESHOLD, largest, 0)
