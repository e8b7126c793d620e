"""An image file, opened, checked and read; the meaning of its values: mask, fractions, labels, percent.

NIfTI files stay on disk until their voxels are read; those of other formats are opened by `formats`.
"""

import enum
import glob
import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy

from nnunet_softseg.errors import Finding, UserError, examples, raise_first_error, short_name
from nnunet_softseg.io.formats import (
    NIFTI_ENDINGS,
    is_image,
    is_nifti,
    is_picture,
    open_other,
    without_ending,
    without_nifti_ending,
)
from nnunet_softseg.io.geometry import geometry_findings

_READ_IN_CHUNKS_OF = 1 << 20
_MOST_INFLATED = 1032
"""How many times longer than its gzip a file can be; zlib's documentation, "Maximum Compression Factor"."""
_AXES = 3
_REAL_KINDS = "biuf"
_AGAIN = "write the file again"
_BELOW_ONE = 0.5
"""What does not exceed this holds no whole number above 0."""
PER_LABEL = "write one 3-D file per label (<case>_0001.nii.gz, <case>_0002.nii.gz, ...)"
PER_VOLUME = "take each volume, or their mean, as an image of three axes"
"""Remedies for several volumes in one file of labels, or one image; see `three_axes`."""
_SQUEEZED = "image = nibabel.load(FILE, mmap=False), nibabel.save(nibabel.funcs.squeeze_image(image), FILE)"
_THIRD_AXIS = (
    "image = nibabel.load(FILE, mmap=False), values = image.dataobj[..., None], "
    "nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), FILE)"
)
RANGE_TOLERANCE = 1e-5
"""Fractions written as integers with a slope come back a few float32 steps off. What is within is clipped."""
WHOLE_TOLERANCE = 1e-3
"""Labels and masks stored with a slope come back a little off."""
_FEW_LABELS, _MOST_LABELS = 40, 1000
_MOST_RATERS, _MOST_COUNTED = 10, 1 << 16
_FEWEST_LEVELS, _LABELS_PER_VALUE = 4, 4
_SAME_NEIGHBOURS = 0.3
_LARGEST_OVERSHOOT, _NEAR_FULL = 0.5, 1.5

# What nibabel mends in a header it tells at every opening; `geometry_findings` tells it once, with the file.
nib.imageglobals.logger.setLevel(logging.CRITICAL)

Values = npt.NDArray[np.float32]
StrPath = str | os.PathLike[str]


def compressed_or_plain(compressed: Path) -> Path:
    """Return a `.nii.gz`, or what is there instead: a `.nii`, or an ending with capitals.

    A broken link counts as there.
    """
    plain = compressed.with_name(compressed.name.removesuffix(".gz"))
    for file in (compressed, plain):
        if is_there(file):
            return file
    others = _of_any_format(compressed.parent, without_nifti_ending(compressed.name))
    return min((file for file in others if is_nifti(file.name)), default=compressed)


def stored_as(folder: Path, stem: str) -> Path:
    """Return the image in a folder by its name without an ending; NIfTI first, and where there is none."""
    nifti = compressed_or_plain(folder / f"{stem}{NIFTI_ENDINGS[0]}")
    return nifti if is_there(nifti) else min(_of_any_format(folder, stem), default=nifti)


def _of_any_format(folder: Path, stem: str) -> list[Path]:
    beside = folder.glob(f"{glob.escape(stem)}.*") if folder.is_dir() else ()
    return [file for file in beside if is_image(file.name) and without_ending(file.name) == stem]


def is_there(file: Path) -> bool:
    """Return whether there is a file, or a link to one that was not fetched (git-annex)."""
    return file.is_file() or file.is_symlink()


def _absent(file: Path, remedy: str) -> tuple[str, str]:
    """Return what is found in the place of a file that is not there, and the remedy."""
    if file.is_symlink():
        return "a broken link", f"{remedy}, or fetch its content (git annex get, datalad get)"
    return "none", remedy


def load_nifti(file: Path) -> nib.Nifti1Image:
    """Return an open NIfTI file, its voxels still on disk: the one way by which commands open images.

    A file of another format comes as a NIfTI image in memory. Raise a UserError if it is missing, its header
    cannot be read, promises more than the file can hold, or places the voxels nowhere.
    """
    image = _opened(file)
    if isinstance(image, Finding):
        raise UserError(str(image))
    raise_first_error(header_findings(file, image))
    return image


def _opened(file: Path, name: str = "") -> nib.Nifti1Image | Finding:
    other = is_image(file.name) and not is_nifti(file.name)
    expected = f"a whole {file.suffix[1:].upper()} image" if other else "a NIfTI file"
    name, problem = name or short_name(file), "cannot be opened"
    if not file.exists():
        return Finding(name, problem, expected, *_absent(file, "check the path"))
    try:
        image = open_other(file) if other else _open_nifti(file)
        if isinstance(image, nib.Nifti1Image):
            return image
        found = type(image).__name__
    except Exception as error:  # each field of a broken header fails in its own way
        found = telling_line(error)
    return Finding(name, problem, expected, found, _AGAIN)


def _open_nifti(file: Path) -> Any:
    """Open a NIfTI file, its ending in any case: of `.Nii` nibabel would look for `.nii`."""
    ending = file.name[len(without_nifti_ending(file.name)) :].partition(".")[2].partition(".")[0]
    if ending in (ending.lower(), ending.upper()):
        return nib.load(file)
    with nib.openers.ImageOpener(str(file)) as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    kind = next((kind for kind in kinds if kind.header_class.may_contain_header(start)), kinds[0])
    return kind.from_file_map({"image": nib.FileHolder(str(file))})


def header_findings(file: Path, image: nib.Nifti1Image, name: str = "") -> Iterator[Finding]:
    """Say whether the header promises more than the file can hold, and what `geometry_findings` say."""
    size, ending = file.stat().st_size, file.suffix.lower()
    most = {".gz": size * _MOST_INFLATED, ".nii": size}.get(ending)
    if most is not None and (needed := bytes_needed(image)) > most:
        expected, found = f"{needed} bytes by its header", f"{most}{' at most' * (ending == '.gz')}"
        yield Finding(name or short_name(file), "truncated data", expected, found, _AGAIN)
    yield from geometry_findings(file, image, name)


def geometry_warnings(file: Path, image: nib.Nifti1Image | None = None) -> list[Finding]:
    """Return what is legal in the geometry of a file, but doubtful; a UserError as `load_nifti`.

    `image` is that of the file, where it is open already.
    """
    return [*geometry_findings(file, load_nifti(file) if image is None else image)]


def file_findings(
    file: Path, name: str = "", *, colours: bool = False, several: str = PER_LABEL
) -> list[Finding]:
    """Say whether an image is there, whole (by its checksum if compressed), 3-D and of real numbers.

    Its geometry's errors are among them, `geometry_findings` has warnings, too. `colours`: a picture may have
    them. `several`: the remedy for several volumes in it; see `three_axes`.

    Readers cannot be left to find this out: SimpleITK fills what a file is short of with zeros, in silence.
    """
    name = name or short_name(file)
    if not file.is_file():
        return [Finding(name, "file is missing", "a NIfTI file", *_absent(file, "add it"))]
    size = _inflated(file, name)
    if isinstance(size, Finding):
        return [size]
    image = _opened(file, name)
    if isinstance(image, Finding):
        return [image]
    findings = _length_findings(name, image, size)
    findings = findings or _stored_findings(name, image, several, colours=colours)
    findings = findings or [*header_findings(file, image, name)]
    return [finding for finding in findings if finding.severity == "error"]


def _stored_findings(name: str, image: nib.Nifti1Image, several: str, *, colours: bool) -> list[Finding]:
    shape, dtype = image.shape, image.get_data_dtype()
    if is_picture(name) and len(shape) > _AXES:
        if colours:
            return []
        found, remedy = f"{shape[-1]} colours", "write one value per pixel, as 16-bit grey PNG or float TIFF"
        return [Finding(name, "is in colours", "a grey picture", found, remedy)]
    if len(shape) != _AXES:
        found = f"{len(shape)}-D, shape {shape}"
        return [Finding(name, "not a 3-D image", "shape (x, y, z)", found, three_axes(shape, several))]
    if dtype.kind not in _REAL_KINDS:
        what, remedy = "voxels are not real numbers", "write it as one of them"
        return [Finding(name, what, "integers or floats", str(dtype), remedy)]
    return []


def inflated_size(file: Path) -> int:
    """Return the number of bytes of a file, inflated; a broken stream raises what gzip and zlib raise."""
    if file.suffix.lower() != ".gz":
        return file.stat().st_size
    with gzip.open(file) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(_READ_IN_CHUNKS_OF), b""))


def bytes_needed(image: nib.Nifti1Image) -> int:
    """Return the length that the header of a file asks for, inflated."""
    # nibabel's header forgets where the voxels begin; what will read them knows.
    data = cast(ArrayProxy, image.dataobj)
    return int(data.offset) + math.prod(image.shape) * int(data.dtype.itemsize)


def stream_findings(file: Path, image: nib.Nifti1Image) -> list[Finding]:
    """Say whether a file is whole: by its checksum if compressed, and as long as its header says."""
    size = _inflated(file, short_name(file))
    return [size] if isinstance(size, Finding) else _length_findings(short_name(file), image, size)


def _inflated(file: Path, name: str) -> int | Finding:
    try:
        return inflated_size(file)
    except (OSError, EOFError, zlib.error) as error:
        return Finding(name, "corrupt or truncated gzip", "a whole file", telling_line(error), _AGAIN)


def _length_findings(name: str, image: nib.Nifti1Image, size: int) -> list[Finding]:
    if nib.is_proxy(image.dataobj) and size < (expected := bytes_needed(image)):
        return [Finding(name, "truncated data", f"{expected} bytes by its header", str(size), _AGAIN)]
    return []


def three_axes(shape: tuple[int, ...], several: str = PER_LABEL) -> str:
    """Return what gives a file of that shape three axes; of several volumes, `several`."""
    # All axes of length 1 dropped, (x, y, 1, 1) would become (x, y), which is refused, too.
    if len(shape) > _AXES and all(size == 1 for size in shape[_AXES:]):
        return f"drop the axes of length 1 behind the third: {_SQUEEZED}"
    if len(shape) == _AXES - 1:
        return f"give it a third axis, of length 1: {_THIRD_AXIS}"
    return several


def telling_line(error: BaseException) -> str:
    """Return the line of an error that says what is wrong, whoever raised it."""
    lines = str(error).strip().splitlines()
    # SimpleITK's last line is the one that says what is wrong.
    return (lines[-1] if lines else type(error).__name__).strip()


# Values


def image_name(image: nib.Nifti1Image, otherwise: str) -> str:
    """Return the file of an image for messages, or another name if it has none."""
    return str(image.get_filename() or otherwise)


def stored_values(file: Path) -> Values:
    """Return the values of a whole NIfTI file, (x, y, z), in the order in which viewers count voxels.

    The range is judged by these: of nnU-Net's readers, SimpleITK turns NaN into 0, in silence. Raise a
    UserError if it cannot be read after all.
    """
    return np.asarray(_values(load_nifti(file), str(file)), dtype=np.float32)


def read_values(image: nib.Nifti1Image, name: str, *, nan: bool = False) -> npt.NDArray[Any]:
    """Return the values of a 3-D image, scaled by its header, in the type that gives; name: for messages.

    Raise a UserError if it is not 3-D, cannot be read, or holds no real, finite numbers; `nan`: NaN may be.
    """
    shape = image.shape
    if len(shape) != _AXES:
        found = f"{len(shape)}-D, shape {shape}"
        raise UserError(f"{name}: expected three axes, found {found}: {three_axes(shape)}")
    dtype, number = image.get_data_dtype(), math.prod(shape)
    if dtype.kind not in _REAL_KINDS or not number:
        raise UserError(
            f"{name}: expected voxels of real numbers, found {number} of type {dtype}: write it as float32"
        )
    values = _values(image, name)
    extremes = (values.min(), values.max())
    if not np.isfinite(extremes).all() and not (nan and not np.isinf(values).any()):
        raise UserError(str(not_finite(name, values)))
    return values


def _values(image: nib.Nifti1Image, name: str) -> npt.NDArray[Any]:
    try:
        return values_to_the_end(image.dataobj)
    except Exception as error:  # changed since it was looked at, the disk fails, or the memory is full
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: expected a whole file, found: {reason}: {_AGAIN}") from error


def values_to_the_end(data: Any) -> npt.NDArray[Any]:
    """Return the voxels of an image's `dataobj`, a compressed file read on to the checksum.

    nibabel alone stops at the last voxel. What is wrong with the file raises what gzip and nibabel raise.
    """
    if not (nib.is_proxy(data) and str(data.file_like).lower().endswith(".gz")):
        return np.asarray(data)
    how = data.shape, data.dtype, data.offset, data.slope, data.inter
    with gzip.open(data.file_like) as stream:
        values = np.asarray(ArrayProxy(stream, how, mmap=False))
        while stream.read(_READ_IN_CHUNKS_OF):
            pass
    return values


def not_finite(name: str, values: npt.NDArray[Any]) -> Finding:
    """Return the finding for NaN and infinity, where NaN does not mean unknown."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    remedy = "write a number there (0/0 outside of all masks is the usual cause: 0, if nothing is there)"
    return Finding(name, "NaN or infinite values", "finite values", f"{bad} voxels that are not", remedy)


# The meaning of values


class MapKind(enum.Enum):
    """The meaning of a map's values, told by the values alone; the words are those of messages."""

    EMPTY = "all zero"
    MASK = "a mask of 0 and 1"
    OTHER_MASK = "a mask of 0 and another value"
    SOFT = "fractions in [0, 1]"
    LABELS = "a label map"
    PERCENT = "a map in percent"
    BYTES = "a map from 0 to 255"
    SCALED = "a map in percent, or from 0 to 255"
    OVERSHOOT = "fractions that overshoot"
    OTHER = "other values"


FULL_SCALES = {MapKind.PERCENT: 100, MapKind.BYTES: 255}
_REMEDIES = {
    MapKind.LABELS: "this looks like an integer label map: write one file per label with its fraction in "
    "[0, 1]",
    MapKind.OVERSHOOT: "clip it to [0, 1]; resample labels linearly, splines overshoot",
    MapKind.OTHER: "this does not look like a fraction: write the fraction of each voxel that belongs to the "
    "label",
}


@dataclass(frozen=True)
class MapContent:
    """Meaning, smallest and largest of a map's values.

    `labels` are its values above 0 if all are whole numbers from 0, so that one can be chosen as a label:
    those of masks, label maps and maps in percent or bytes; None: no label map (an image has more).
    """

    kind: MapKind
    low: float
    high: float
    labels: tuple[int, ...] | None

    @property
    def is_fraction(self) -> bool:
        """Whether the values are the fraction of each voxel that belongs to one label."""
        return self.kind in (MapKind.EMPTY, MapKind.MASK, MapKind.SOFT)

    @property
    def is_scaled(self) -> bool:
        """Whether the values are fractions times a number, as 100 or 255, and no labels."""
        return self.kind in (MapKind.PERCENT, MapKind.BYTES, MapKind.SCALED)

    @property
    def found(self) -> str:
        """The values in words, for messages."""
        if self.labels is not None and len(self.labels) < _FEW_LABELS:
            return f"whole numbers ({examples([str(value) for value in (0, *self.labels)], 6)})"
        return f"[{self.low:.6g}, {self.high:.6g}]"

    def remedy(self, choose: str = "") -> str:
        """Return how values that are no fractions become fractions; `choose` as in `content_findings`."""
        if self.kind is MapKind.OTHER_MASK:
            return f"divide it by {round(self.high)}" + (f", or choose it with {choose}" if choose else "")
        if self.kind is MapKind.LABELS:
            of_map = f"choose a label of it with {choose}" if choose else _REMEDIES[self.kind]
            return f"{of_map}{self._of_fractions()}"
        if self.is_scaled:
            doubtful = self.labels and (self.kind is MapKind.SCALED or _in_rows(self.labels))
            return self._unscaled() + (
                f"; of a label map choose a label with {choose}" if choose and doubtful else ""
            )
        if self.kind is MapKind.OTHER and self.low >= 0:
            return f"divide it by {self.high:g}, if that means a whole voxel, else by the value that does"
        return _REMEDIES[self.kind]

    def _unscaled(self) -> str:
        scale = FULL_SCALES.get(_scale(0, self.high) if self.kind is MapKind.LABELS else self.kind)
        if scale:
            return f"divide it by {scale}"
        percent, in_bytes = "by 100 if it is in percent", "by 255 if 255 means a whole voxel"
        ways = (percent, in_bytes) if self.labels is None else (in_bytes, percent)
        return f"divide it {', '.join(ways)}"

    def _of_fractions(self) -> str:
        """Return the way out if the numbers are fractions times 255, or count the raters of a voxel."""
        if not self.labels:
            return ""
        most = self.labels[-1]
        if most > _MOST_RATERS and not _in_rows(self.labels) and most <= max(FULL_SCALES.values()):
            return f"; or, if it holds fractions, {self._unscaled()}"
        if self.labels[0] != 1 or most > _MOST_RATERS:
            return ""
        return (
            f"; or, if it is the sum of {most} raters' masks, divide it by {most} (by the number of raters)"
        )


def classify(values: npt.NDArray[Any]) -> MapContent:
    """Return the meaning of finite values; whole numbers may be off by 1e-3, as some tools store them.

    In [0, 1], they are fractions of one label. Whole numbers beyond that are labels, unless there are many of
    them, the largest is 100 or 255, or there are gaps between nearly all, which fractions in percent or bytes
    have.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if low >= -RANGE_TOLERANCE and high <= 0:
        return MapContent(MapKind.EMPTY, low, high, ())
    if low >= -WHOLE_TOLERANCE and high > _BELOW_ONE and _are_whole(values):
        labels = _labels_above_zero(values, high)
        return MapContent(
            _whole_kind(labels, values), low, high, labels if len(labels) < _MOST_LABELS else None
        )
    if low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE:
        return MapContent(MapKind.SOFT, low, high, None)
    return MapContent(_scale(low, high), low, high, None)


def _labels_above_zero(values: npt.NDArray[Any], high: float) -> tuple[int, ...]:
    if round(high) == 1:
        return (1,)
    if high > _MOST_COUNTED:  # an array of counts would be larger than the map
        return tuple(int(value) for value in np.unique(np.round(values)) if value)
    counts = np.bincount(np.round(values).astype(np.int64).ravel())
    return tuple(int(value) for value in np.flatnonzero(counts) if value)


def _whole_kind(labels: Sequence[int], values: npt.NDArray[Any]) -> MapKind:
    """Return the meaning of whole numbers; labels are those above 0, ascending."""
    if len(labels) == 1:
        return MapKind.MASK if labels[0] == 1 else MapKind.OTHER_MASK
    high = labels[-1]
    if len(labels) >= _FEW_LABELS or high in FULL_SCALES.values():
        return _scale(0, high)
    if len(labels) < _FEWEST_LEVELS or high <= _MOST_RATERS:
        return MapKind.LABELS
    if values.ndim == _AXES:
        is_scaled = _is_scattered(values, high)
    else:
        is_scaled = high > _LABELS_PER_VALUE * len(labels) and not _in_rows(labels)
    return _scale(0, high) if is_scaled else MapKind.LABELS


def _is_scattered(values: npt.NDArray[Any], high: float) -> bool:
    """Return whether neighbours differ within a structure, as fractions do; labels fill regions.

    The axes' median: along a straight cord fractions repeat, and levels of one slice never do.
    """
    shares: list[float] = []
    for axis in range(_AXES):
        first, second = (np.swapaxes(values, 0, axis)[part] for part in (slice(-1), slice(1, None)))
        inside = (first > 0) & (second > 0) & (first < high)
        if inside.any():  # not so for single points
            shares.append(float(np.mean((first == second)[inside])))
    return bool(shares) and float(np.median(shares)) < _SAME_NEIGHBOURS


def _in_rows(labels: Sequence[int]) -> bool:
    """Return whether numbers come in rows, as labels do (2 to 8; 41, 42) and steps of fractions rarely."""
    alone = sum(value - 1 not in labels and value + 1 not in labels for value in labels)
    return alone <= len(labels) / 2 and len(labels) < _FEW_LABELS


def _are_whole(values: npt.NDArray[Any]) -> bool:
    if values.dtype.kind in "biu":
        return True
    # Plane by plane: the first one with fractions answers.
    planes = values if values.ndim > 1 else values[None]
    return all(bool((np.abs(plane - np.round(plane)) <= WHOLE_TOLERANCE).all()) for plane in planes)


def _scale(low: float, high: float) -> MapKind:
    if low >= -_LARGEST_OVERSHOOT and high <= 1 + _LARGEST_OVERSHOOT:
        return MapKind.OVERSHOOT
    if low < -RANGE_TOLERANCE or high > FULL_SCALES[MapKind.BYTES] + _LARGEST_OVERSHOOT:
        return MapKind.OTHER
    percent = FULL_SCALES[MapKind.PERCENT]
    if abs(high - percent) <= _NEAR_FULL:
        return MapKind.PERCENT
    # Bytes that peak far below 255 look like percent.
    return MapKind.BYTES if high > percent else MapKind.SCALED


def as_fractions(values: npt.NDArray[Any], content: MapContent) -> Values:
    """Return fractions as float32 in [0, 1]; those of a mask become 0 and 1 exactly."""
    if content.kind is MapKind.MASK:
        return mask_of_label(values, 1)
    return np.asarray(np.clip(values, 0, 1), dtype=np.float32)


def mask_of_label(values: npt.NDArray[Any], *labels: int) -> Values:
    """Return 1 where a label map has one of the labels, else 0; a slope brings values back a little off."""
    whole = np.round(values)
    chosen = whole == labels[0] if len(labels) == 1 else np.isin(whole, labels)
    return np.asarray(chosen, dtype=np.float32)


def map_or_label(
    file: Path | str, values: npt.NDArray[Any], content: MapContent, label: int | None
) -> tuple[Values, list[Finding]]:
    """Return a map as fractions, or one label of a label map as a mask, and what is odd about the label.

    Raises:
        UserError: if the values are no fractions, or the label cannot be taken from them.
    """
    if label is None:
        raise_first_error(content_findings(file, values, "--label", content=content))
        return as_fractions(values, content), []
    findings = label_findings(file, content, label)
    raise_first_error(findings)
    return mask_of_label(values, label), findings


def content_findings(
    file: Path | str, values: npt.NDArray[Any], choose: str = "", *, content: MapContent | None = None
) -> list[Finding]:
    """Say whether the values are finite, in [0, 1], and not all zero (a warning: a label may be absent).

    `choose` is the option by which a command takes one label of a label map, `--label`; "" if it cannot.
    `content` is their meaning if that is known already.
    """
    name = short_name(file)
    if values.size and not np.isfinite((values.min(), values.max())).all():
        return [not_finite(name, values)]
    content = content or classify(values)
    if content.kind is MapKind.EMPTY:
        remedy = "nothing, if the label is absent from this image"
        return [Finding(name, "all zero", "some voxels above 0", "none", remedy, "warning")]
    if content.is_fraction:
        return []
    return [Finding(name, "values outside [0, 1]", "[0, 1]", content.found, content.remedy(choose))]


def label_findings(file: Path | str, content: MapContent, label: int) -> list[Finding]:
    """Say why a label cannot be taken from a map: it holds fractions, or a scale on which no label counts."""
    name, expected = short_name(file), f"a label map with label {label}"
    if content.labels is None:
        remedy = "leave out --label" if content.is_fraction else content.remedy()
        return [Finding(name, "no whole numbers", expected, content.found, remedy)]
    if not content.is_scaled or _in_rows(content.labels):
        return []
    if label not in content.labels:
        return [Finding(name, f"label {label} is not in it", expected, content.found, content.remedy())]
    what = f"label {label} looks like one step of fractions"
    remedy = f"nothing, if it is a label; else {content.remedy()}"
    return [Finding(name, what, expected, content.found, remedy, "warning")]
