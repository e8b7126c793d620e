"""One case of a raw dataset: faults of its images, soft labels and label map, and what is compared of it."""

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_softseg.datasets import soft_label
from nnunet_softseg.datasets.raw_dataset import LabelScheme, TrainingCase
from nnunet_softseg.errors import Finding, UserError, short_name
from nnunet_softseg.io.formats import is_picture, without_ending
from nnunet_softseg.io.geometry import (
    TWO_SIZES,
    VoxelGrid,
    array_orientation,
    geometry_findings,
    grid_findings,
    reader_geometry_findings,
    shape_findings,
    sizes_agree,
    sizes_in_file,
)
from nnunet_softseg.io.nifti import PER_VOLUME, Values, file_findings, load_nifti, stored_values
from nnunet_softseg.settings import HARD_THRESHOLD

_READER_ORDER = (0, 1, 2)
_AGAIN = "write the file again"
_SAMPLED = 20_000
"""Voxels of an image, about, whose intensities tell one channel from another."""
_PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class CaseJob:
    """A case, the files of its soft labels by ascending label, and what dataset.json says of all cases."""

    case: TrainingCase
    soft_files: tuple[Path, ...]
    scheme: LabelScheme
    reader: str
    num_channels: int


@dataclass(frozen=True)
class CaseResult:
    """Faults of a case, and what is compared: a letter per array axis, mm along R-L, A-P, S-I, channels.

    `channels` has a row of numbers per channel: intensities as `_appearance` gives them. `known` is the share
    of voxels in which each label is known. All are None or empty where the image cannot be read.
    """

    findings: list[Finding]
    orientation: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    channels: tuple[tuple[float, ...], ...] = ()
    is_binary: bool = False
    known: tuple[float, ...] = ()


def check_case(job: CaseJob) -> CaseResult:
    """Return the faults of a case, and what is to be compared with others."""
    findings, properties, images = _image_findings(job)
    soft_labels: list[Values] = []
    for file in filter(Path.is_file, job.soft_files):  # `folder_findings` names the others
        of_file, values = _soft_label_findings(file, job, properties)
        findings += of_file
        if values is not None and not _has_error(of_file):
            soft_labels.append(values)
    if len(soft_labels) < len(job.soft_files):
        soft_labels = []
    if not job.scheme.has_regions:  # which lie in one another
        findings += soft_label.overlap_findings(job.soft_files, soft_labels)
    findings += _label_map_findings(job, properties is not None, soft_labels)
    if properties is None:
        return CaseResult(findings)
    known, of_unknown = _known_voxels(job, [] if _has_error(findings) else soft_labels)
    is_binary = bool(soft_labels) and not any(((values > 0) & (values < 1)).any() for values in soft_labels)
    return CaseResult(
        findings + of_unknown,
        array_orientation(properties, _READER_ORDER),
        VoxelGrid.of(load_nifti(job.case.images[0])).body_spacing_mm,
        tuple(_appearance(image, soft_labels) for image in images),
        is_binary,
        known,
    )


def _known_voxels(job: CaseJob, soft_labels: Sequence[Values]) -> tuple[tuple[float, ...], list[Finding]]:
    """Return the share of voxels in which each label is known, and what contradicts the label to ignore."""
    ignore = job.scheme.ignore
    if not soft_labels:
        return (), []
    label_map = None if ignore is None else stored_values(job.case.label_map)
    known = soft_label.known_voxels(soft_labels, label_map, ignore)
    shares = tuple(float(of_label.mean()) for of_label in known)
    if label_map is None:
        return shares, []
    return shares, soft_label.ignored_findings(job.soft_files, soft_labels, label_map == ignore)


def _image_findings(job: CaseJob) -> tuple[list[Finding], dict[str, Any] | None, list[Values]]:
    """Return the faults of an image, the reader's properties of it, and the channels if there are several.

    Properties are None if it is unreadable.
    """
    files = job.case.images
    broken = [
        finding for image in files for finding in file_findings(image, colours=True, several=PER_VOLUME)
    ]
    findings = _number_findings(job, len(files) if broken else sum(map(_channels, files)))
    if broken:
        return findings + broken, None, []
    off_grid = [finding for image in files[1:] for finding in _channel_findings(image, files[0])]
    try:
        # Of channels on several grids, nnU-Net's reader takes the first one's, or breaks down.
        together = files[:1] if off_grid else files
        with contextlib.redirect_stdout(io.StringIO()):
            _, properties = soft_label.read_image(together, soft_label.find_reader(job.reader))
    except UserError as error:
        unreadable = Finding(short_name(files[0]), "unreadable image", "an image", str(error), _AGAIN)
        return [*findings, unreadable], None, []
    findings += off_grid
    images = []
    for file in files:
        values = stored_values(file)
        findings += [*_geometry_findings(file), *_intensity_findings(file, values)]
        images += [values] if job.num_channels == len(files) > 1 and not off_grid else []
    return findings, properties, images


def _geometry_findings(file: Path) -> list[Finding]:
    """Return the doubts about an image's geometry; gross ones, by which training would go, are errors."""
    image = load_nifti(file)
    gross = not sizes_agree(sizes_in_file(file, image), VoxelGrid.of(image).spacing_mm)
    return [
        dataclasses.replace(doubt, severity="error") if gross and doubt.what == TWO_SIZES else doubt
        for doubt in geometry_findings(file, image)
    ]


def _channels(file: Path) -> int:
    """Return the channels in a file: 1, or the colours of a picture."""
    shape = load_nifti(file).shape
    return shape[-1] if len(shape) > len(_READER_ORDER) else 1


def _number_findings(job: CaseJob, found: int) -> list[Finding]:
    files, maps = job.case.images, job.case.label_map.parent
    if found == job.num_channels:
        return []
    expected, remedy = f"{job.num_channels}, as channel_names", "add or remove files"
    if found > len(files):
        remedy = f"in colours: write it in grey, or all images in colours and {found} channel_names"
    cases = [file for file in files if (maps / file.name).is_file()]
    if cases:  # scan_0001, scan_0002: ids that end in four digits
        name, stem = cases[0].name, without_ending(cases[0].name)
        remedy = f"if each is a case, add its channel: rename {name} to {stem}_0000{name[len(stem) :]}"
    return [Finding(short_name(files[0]), "wrong number of channels", expected, str(found), remedy)]


def _channel_findings(file: Path, first: Path) -> list[Finding]:
    remedy = "resample it to the grid of the first channel, or, if only its header is wrong, copy that header"
    expected, grid = (VoxelGrid.of(load_nifti(image)) for image in (first, file))
    found = grid_findings(file, expected, grid, f"channel {first.name}")
    return [dataclasses.replace(finding, remedy=remedy) for finding in found]


def _intensity_findings(file: Path, image: Values) -> list[Finding]:
    name = short_name(file)
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        found = f"{bad} voxels that are not"
        return [Finding(name, "NaN or infinite intensities", "finite values", found, "replace them")]
    if not image.any():
        return [Finding(name, "image is all zero", "an image", "only zeros", "remove the case", "warning")]
    return []


def _appearance(image: Values, soft_labels: Sequence[Values]) -> tuple[float, ...]:
    """Return percentiles of an image, and its mean in each label, in standard deviations from its mean."""
    step = max(int((image.size / _SAMPLED) ** (1 / 3)), 1)
    sample = image[(slice(None, None, step),) * image.ndim]
    mean, deviation = float(sample.mean()), float(sample.std())
    if not np.isfinite(deviation) or deviation <= 0:
        return ()
    inside = [image[label > HARD_THRESHOLD] for label in soft_labels if label.shape == image.shape]
    means = [float(values.mean()) if values.size else mean for values in inside]
    numbers = (np.array([*np.percentile(sample, _PERCENTILES), *means]) - mean) / deviation
    return tuple(map(float, numbers))


def _soft_label_findings(
    file: Path, job: CaseJob, properties: Mapping[str, Any] | None
) -> tuple[list[Finding], npt.NDArray[np.float32] | None]:
    """Return the faults of a soft label, and its values (x, y, z); None: unreadable."""
    reader = soft_label.find_reader(job.reader)
    findings = file_findings(file) or soft_label.format_findings(file, reader)
    if findings:
        return findings, None
    try:
        _, seen = soft_label.read_checked(file, reader)
    except UserError as error:
        return [Finding(short_name(file), "unreadable soft label", "an image", str(error), _AGAIN)], None
    if properties is not None:
        findings = _grid_findings(file, job.case.images[0])
        findings = findings or reader_geometry_findings(file, properties, seen)
    values = soft_label.stored_soft_label(file)
    return findings + soft_label.value_findings(file, values), values


def _label_map_findings(
    job: CaseJob, image_is_right: bool, soft_labels: Sequence[npt.NDArray[np.float32]]
) -> list[Finding]:
    file = job.case.label_map
    if not file.parent.is_dir():  # `check.place_findings` says so once
        return []
    if not file.is_file():
        what, remedy = "label map is missing", "write it as soft label > 0.5"
        return [Finding(short_name(file), what, "the integer labels", "none", remedy)]
    findings = file_findings(file)
    if findings or not image_is_right:
        return findings
    # nnU-Net takes the array alone: training would be right, but a viewer shows the map in the wrong place.
    findings = [
        dataclasses.replace(finding, severity="warning") if finding.what.startswith("affine") else finding
        for finding in _grid_findings(file, job.case.images[0])
    ]
    if soft_labels and not _has_error(findings):
        label_map = stored_values(file)
        compared = [*map(soft_label.surely_above_or_not, job.soft_files, soft_labels)]
        findings += soft_label.label_map_findings(file, label_map, compared, job.scheme)
    return findings


def _grid_findings(file: Path, image: Path) -> list[Finding]:
    expected, found = (VoxelGrid.of(load_nifti(each)) for each in (image, file))
    if is_picture(image.name) or is_picture(file.name):  # which do not say where they lie
        return shape_findings(file, expected.shape[: len(_READER_ORDER)], found.shape)
    return grid_findings(file, expected, found)


def _has_error(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)
