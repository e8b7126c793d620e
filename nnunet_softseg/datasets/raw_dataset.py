"""A dataset as nnU-Net knows it: its name, dataset.json, labels, files of the cases, reader and splits."""

import contextlib
import glob
import io
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import Finding, UserError, examples, raise_first_error
from nnunet_softseg.io.case_files import SOFT_FOLDER, subjects_of
from nnunet_softseg.io.formats import IMAGE_ENDINGS, READERS, is_image
from nnunet_softseg.io.nifti import Values, load_nifti, stored_as
from nnunet_softseg.settings import HARD_THRESHOLD

VANILLA = "train it with nnUNetTrainer"
SPLITS = "splits_final.json"
SIDES = ("train", "val")
"""Of a fold in splits_final.json."""
_FEWEST_TO_SPLIT = 5
"""nnU-Net makes five folds by itself, of which none may be empty."""
_KEYS = ("labels", "channel_names", "numTraining", "file_ending")


@dataclass(frozen=True)
class TrainingCase:
    """The files of one case: an image per channel, and the integer labels that vanilla trainers read."""

    case_id: str
    images: tuple[Path, ...]
    label_map: Path


def one_orientation(file_ending: str) -> str:
    """Return what to do about images of an ending (not of pictures) that lie differently in their files."""
    reorients = READERS[file_ending][-1]
    return (
        f'set "overwrite_image_reader_writer": "{reorients}" in dataset.json, then run '
        "nnUNetv2_plan_and_preprocess again"
    )


def dataset_number(name: str) -> str:
    """Return the id in `DatasetNNN_Name`, for the option -d."""
    return name.removeprefix("Dataset").split("_")[0]


@dataclass(frozen=True)
class NnunetFolders:
    """NnU-Net's three folders, each None if its environment variable is not set; read once by a command."""

    raw: Path | None
    preprocessed: Path | None
    results: Path | None

    @classmethod
    def from_environment(cls) -> "NnunetFolders":
        """Return those that nnU-Net's environment variables name."""
        values = (os.environ.get(f"nnUNet_{field.name}") for field in fields(cls))
        return cls(*(Path(value) if value else None for value in values))

    @property
    def roots(self) -> tuple[Path, ...]:
        """Those that are set."""
        return tuple(filter(None, (self.raw, self.preprocessed, self.results)))

    def of_dataset(self, kind: Literal["raw", "preprocessed"], name: str) -> Path:
        """Return the folder of a dataset, there or not; a UserError if the variable is not set."""
        root: Path | None = getattr(self, kind)
        if root is None:
            raise UserError(
                f"nnUNet_{kind}: expected a folder, found the environment variable not set: set it as for "
                "nnU-Net"
            )
        return root / name

    def dataset_name(self, dataset: int | str) -> str:
        """Return the full name, `DatasetNNN_Name`, of a dataset given by it, by its id or by `Name`.

        A UserError if there is none or several.
        """
        from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

        found = {folder.name for root in self.roots for folder in root.glob("Dataset[0-9][0-9][0-9]_*")}
        named = [name for name in found if name.partition("_")[2] == str(dataset)]
        if len(named) == 1:
            return named[0]
        try:
            return str(maybe_convert_to_dataset_name(dataset))
        except (RuntimeError, ValueError) as error:
            folders = {"nnUNet_raw": self.raw, "nnUNet_preprocessed": self.preprocessed}
            places = ", ".join(f"{variable}={folder or 'not set'}" for variable, folder in folders.items())
            raise UserError(
                f"dataset {dataset}: expected one folder DatasetNNN_Name with this id, found none or several "
                f"({places}): check the id, and that these variables are set as for nnU-Net"
            ) from error


def dataset_json_findings(dataset_json: Any) -> list[Finding]:
    """Return the faults of dataset.json, and the parts that soft training does not support."""
    if not isinstance(dataset_json, Mapping):
        return [dataset_finding("not a JSON object", "{...}", type(dataset_json).__name__, "rewrite it")]
    missing = [key for key in _KEYS if key not in dataset_json]
    if missing:
        remedy = "add them, see nnU-Net's documentation/dataset_format.md"
        found = f"no {', '.join(missing)}"
        return [dataset_finding("keys are missing", f"all of {', '.join(_KEYS)}", found, remedy)]
    of_channels = _channel_name_findings(dataset_json["channel_names"])
    listed = _listing_findings(dataset_json.get("dataset", {}))
    return [*label_findings(dataset_json), *format_findings(dataset_json), *of_channels, *listed]


def _channel_name_findings(names: Any) -> list[Finding]:
    """Say whether channels are not named 0, 1, ... in this order, by which nnU-Net normalises them."""
    numbers = [str(number) for number in range(len(names))] if isinstance(names, Mapping) else []
    if numbers and [*names] == numbers and all(isinstance(name, str) for name in names.values()):
        return []
    what, expected = "channel_names that nnU-Net misreads", '{"0": "T1w", "1": "T2w", ...} in this order'
    return [dataset_finding(what, expected, f"{names!r}"[:60], "write number and name of each channel")]


def _listing_findings(listed: Any) -> list[Finding]:
    """Say whether dataset.json lists the files of the cases in another way than nnU-Net reads."""
    what, expected = "cases that nnU-Net cannot read", '{"<case>": {"images": [files], "label": file}, ...}'
    remedy = "correct the key dataset, or remove it and name the files as nnU-Net does"
    for case_id, entry in listed.items() if isinstance(listed, Mapping) else [("", listed)]:
        told = entry if isinstance(entry, Mapping) else {}
        images, label = told.get("images"), told.get("label")
        are_named = isinstance(images, list) and all(isinstance(file, str) for file in (*images, label))
        if not (images and are_named):
            found = f"{case_id}: {entry!r}".removeprefix(": ")[:60]
            return [dataset_finding(what, expected, found, remedy)]
    return []


@dataclass(frozen=True)
class LabelScheme:
    """The soft labels of a dataset, and how the integer label map is painted with them.

    Attributes:
        names: of the labels, in the order in which soft labels are stacked.
        numbers: of the soft label files: the value of a label, or k for the k-th region.
        regions: the values of the label map that make up each label; of a label without regions its own.
        painted: (index, value in the label map) of each label, the last on top.
        ignore: value of the label map where nothing is known; None: there is none.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...]
    painted: tuple[tuple[int, int], ...]
    ignore: int | None = None

    @classmethod
    def of(cls, dataset_json: Mapping[str, Any]) -> "LabelScheme":
        """Return the labels of a dataset.json whose labels have no findings.

        As in nnU-Net, the k-th region is painted with the k-th value of `regions_class_order`, in this order.
        Of labels without regions, `regions_class_order` gives the order alone; else it is that of the values.
        """
        found = {name: _values_of(entry) for name, entry in dataset_json["labels"].items()}
        found = {name: values for name, values in found.items() if name != "ignore" and values != (0,)}
        order: Any = dataset_json.get("regions_class_order")
        ignore = dataset_json["labels"].get("ignore")
        if any(len(values) > 1 for values in found.values()):
            numbers = tuple(range(1, len(found) + 1))
            return cls(tuple(found), numbers, tuple(found.values()), tuple(enumerate(order)), ignore)
        by_value = sorted((value, name) for name, (value,) in found.items())
        numbers = tuple(value for value, _ in by_value)
        painted = tuple((numbers.index(value), value) for value in order or numbers)
        return cls(
            tuple(name for _, name in by_value), numbers, tuple((n,) for n in numbers), painted, ignore
        )

    @property
    def has_regions(self) -> bool:
        """Whether a label is made up of several values of the label map."""
        return any(len(region) > 1 for region in self.regions)

    @property
    def is_by_value(self) -> bool:
        """Whether the label map has the later value on top for want of another order."""
        return not self.has_regions and self.painted == tuple(enumerate(self.numbers))

    @property
    def values(self) -> tuple[int, ...]:
        """The values of the label map above background, ascending, without that of unknown voxels."""
        return tuple(sorted({value for region in self.regions for value in region}))

    def region_of(self, number: int) -> tuple[int, ...]:
        """Return the values of the label map that make up the label of a number."""
        return dict(zip(self.numbers, self.regions, strict=True)).get(number, (number,))

    def painted_value(self, value: int) -> int:
        """Return the value that voxels of a value of the label map get when their labels are painted."""
        if not self.has_regions:
            return value
        return next((top for index, top in reversed(self.painted) if value in self.regions[index]), 0)


def hard_label_map(
    soft_labels: npt.NDArray[Any] | Sequence[npt.NDArray[Any]], painted: Iterable[tuple[int, int]]
) -> npt.NDArray[np.integer[Any]]:
    """Return the integer label map of soft labels: where several are > 0.5, the one that is painted last.

    The one rule for label maps: of datasets, of predictions, of fused raters. The arrays have one shape;
    `painted` is that of `LabelScheme`. Unknown voxels, NaN, are not above 0.5. uint16 for a value above 255,
    else uint8.
    """
    painted = tuple(painted)
    highest = max(value for _, value in painted)
    dtype = np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16
    label_map = np.zeros(np.shape(soft_labels[0]), dtype=dtype)
    for index, value in painted:
        label_map[np.asarray(soft_labels[index]) > HARD_THRESHOLD] = value
    return label_map


def in_nnunets_layout(soft_maps: Values, scheme: LabelScheme) -> Values:
    """Return soft maps (label, *space) as nnU-Net stores probabilities, (class, *space).

    The background comes first, as 1 - the largest of the soft maps; regions have none in nnU-Net either.
    """
    if scheme.has_regions:
        return soft_maps
    return np.concatenate([1 - soft_maps.max(axis=0, keepdims=True), soft_maps])


def _values_of(entry: Any) -> tuple[int, ...]:
    return tuple(entry) if isinstance(entry, list | tuple) else (entry,)


def label_findings(dataset_json: Mapping[str, Any]) -> list[Finding]:
    """Say why soft training cannot use the labels of dataset.json, regions and ignore label among them."""
    labels, what = dataset_json.get("labels"), "labels that soft training cannot use"
    if not isinstance(labels, Mapping):
        return [dataset_finding(what, '{"background": 0, "name": 1, ...}', repr(labels), "rewrite it")]
    entries = {name: _values_of(entry) for name, entry in labels.items()}
    whole = all(isinstance(value, int) for of_name in entries.values() for value in of_name)
    if not whole or entries.get("background") != (0,) or not all(entries.values()):
        expected = '"background": 0 and integers, or lists of them'
        return [dataset_finding(what, expected, repr(dict(labels)), "correct them")]
    values = sorted({value for name, of_name in entries.items() if name != "ignore" for value in of_name})
    if values != list(range(len(values))) or len(values) == 1:
        expected, found = "consecutive values 0, 1, ..., at least one above 0", repr(values)
        return [dataset_finding(what, expected, found, "renumber them, in the files too")]
    highest = len(values)
    if labels.get("ignore", highest) != highest:
        expected, found = f'"ignore": {highest}, the highest value', repr(labels["ignore"])
        return [dataset_finding(what, expected, found, "renumber it, in labelsTr too")]
    return _order_findings(dataset_json, entries, values[1:])


def _order_findings(
    dataset_json: Mapping[str, Any], entries: Mapping[str, tuple[int, ...]], values: Sequence[int]
) -> list[Finding]:
    """Say whether `regions_class_order` lacks values, or paints regions over others that lie in them."""
    order: Any = dataset_json.get("regions_class_order")
    foreground = [of_name for name, of_name in entries.items() if name != "ignore" and of_name != (0,)]
    has_regions = any(len(region) > 1 for region in foreground)
    if order is None and not has_regions:
        return []
    what = "regions_class_order does not fit the labels"
    known = isinstance(order, list | tuple) and all(isinstance(value, int) for value in order)
    complete = known and len(order) == len(foreground) and set(order) <= set(values)
    if not complete or (not has_regions and set(order) != set(values)):
        expected = f"{len(foreground)} values out of {', '.join(map(str, values))}, one for each label"
        remedy = "give the value that a voxel gets of each label, the outermost first"
        return [dataset_finding(what, expected, repr(order), remedy)]
    scheme, findings = LabelScheme.of(dataset_json), []
    for value in values:
        top = scheme.painted_value(value)
        lost = [
            name
            for name, region in zip(scheme.names, scheme.regions, strict=True)
            if (value in region) != (top in region)
        ]
        if lost:
            expected = f"a voxel of value {value} to stay in the same regions when all are painted"
            found = f"value {top} painted on it, which is wrong for {', '.join(map(str, lost))}"
            remedy = "list nested regions from the outermost to the innermost, in labels and in the order"
            findings.append(dataset_finding("regions are not nested", expected, found, remedy))
    return findings


def format_findings(dataset_json: Mapping[str, Any]) -> list[Finding]:
    """Say whether the images are of a format, or their reader one, that soft training does not know."""
    ending = dataset_json["file_ending"]
    reader = dataset_json.get("overwrite_image_reader_writer", "None")
    if ending not in IMAGE_ENDINGS:
        what, remedy = "images of another format", f"convert the images, or {VANILLA}"
        return [dataset_finding(what, f"one of {', '.join(IMAGE_ENDINGS)}", repr(ending), remedy)]
    if reader not in ("None", *READERS[ending]):
        what, expected = f"not a reader of {ending} images", " or ".join(READERS[ending])
        remedy = f"correct overwrite_image_reader_writer, or {VANILLA}"
        return [dataset_finding(what, expected, repr(reader), remedy)]
    return []


def dataset_finding(
    what: str, expected: str, found: str, remedy: str, *, severity: Literal["error", "warning"] = "error"
) -> Finding:
    """Return a finding about dataset.json."""
    return Finding("dataset.json", what, expected, found, remedy, severity)


def label_scheme(dataset_json: Mapping[str, Any]) -> LabelScheme:
    """Return the soft labels of a dataset; a UserError for those that soft training cannot use."""
    raise_first_error(label_findings(dataset_json))
    return LabelScheme.of(dataset_json)


def channel_names(dataset_json: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the names of the channels of a dataset, by number; older ones call them `modality`."""
    names: Mapping[str, str] = dataset_json.get("channel_names") or dataset_json["modality"]
    return names


def training_cases(folder: Path, dataset_json: Mapping[str, Any]) -> tuple[TrainingCase, ...]:
    """Return the training cases of a raw dataset, nnUNet_raw/DatasetNNN_Name, by name; files may be missing.

    Their paths are those in "dataset" of dataset.json, or else imagesTr and labelsTr.
    """
    if "dataset" in dataset_json:
        cases = []
        for case_id, entry in sorted(dataset_json["dataset"].items()):
            names = [*entry["images"], entry["label"]]
            *images, label = (folder / os.path.expandvars(name) for name in names)
            cases.append(TrainingCase(case_id, tuple(images), label))
        return tuple(cases)
    ending = dataset_json["file_ending"]
    channels: dict[str, list[Path]] = {}
    for image in sorted((folder / "imagesTr").glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
        channels.setdefault(image.name[: -len(ending) - len("_0000")], []).append(image)
    return tuple(
        TrainingCase(case_id, tuple(files), folder / "labelsTr" / f"{case_id}{ending}")
        for case_id, files in sorted(channels.items())
    )


def label_maps(folder: Path, dataset_json: Mapping[str, Any], case_ids: Iterable[str]) -> dict[str, Path]:
    """Return case -> label map of a raw dataset; of a case without images, as on a cluster, in labelsTr."""
    found = {case.case_id: case.label_map for case in training_cases(folder, dataset_json)}
    ending: str = dataset_json["file_ending"]
    return {case_id: found.get(case_id, folder / "labelsTr" / f"{case_id}{ending}") for case_id in case_ids}


def soft_label_file(folder: Path, case_id: str, label: int) -> Path:
    """Return the file of one soft label (its value in dataset.json); `.nii.gz` unless only another is there.

    The folder is softLabelsTr, or the `soft` folder of a prediction.
    """
    return stored_as(folder, f"{case_id}_{label:04d}")


def soft_label_files(folder: Path, case_id: str) -> list[Path]:
    """Return those of a case that are there, of whatever labels, by their numbers."""
    beside = sorted(folder.glob(f"{glob.escape(case_id)}_[0-9][0-9][0-9][0-9].*"))
    return [file for file in beside if is_image(file.name)]


def is_predicted(label_map: Path, case_id: str, labels: Iterable[int], images: Iterable[Path] = ()) -> bool:
    """Return whether a case's label map is there, and the soft map of each label in `soft/` beside it.

    Not if one of its images was written after them; see `is_up_to_date`.
    """
    folder = label_map.parent / SOFT_FOLDER
    return is_up_to_date(label_map, (soft_label_file(folder, case_id, label) for label in labels), images)


def is_up_to_date(label_map: Path, soft_maps: Iterable[Path], images: Iterable[Path]) -> bool:
    """Return whether all maps of a case are there, the label map, which is written last, as its images are.

    Not if one of its images was written after the label map: repaired, or replaced. Of a clock that is wrong,
    nothing is told: a time to come does not count.
    """
    if not label_map.is_file() or not all(file.is_file() for file in soft_maps):
        return False
    written, now = label_map.stat().st_mtime_ns, time.time_ns()
    return not any(written < image.stat().st_mtime_ns <= now for image in images if image.is_file())


def reader_name(dataset_json: Mapping[str, Any], example_image: Path) -> str:
    """Return the name of the reader that nnU-Net's planner will choose for a dataset.

    nnU-Net takes the first that can open the example, the first image; a UserError if none can.
    """
    load_nifti(example_image)  # what its header promises, readers would take memory for
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    # nnU-Net prints a traceback for each reader that it tries in vain.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            chosen = determine_reader_writer_from_dataset_json(
                dict(dataset_json), str(example_image), verbose=False
            )
        except RuntimeError as error:
            raise UserError(
                f"{example_image.parent.name}/{example_image.name}: expected an image that one of nnU-Net's "
                "readers can open, found none that can: write the file again"
            ) from error
    return str(chosen.__name__)


# Splits


def split_findings(splits: Any, case_ids: Sequence[str], file: str = SPLITS) -> list[Finding]:
    """Say whether a subject is on both sides of a split, a side is empty, and cases are unknown or left out.

    splits_final.json holds {"train": cases, "val": cases} per fold; None: nnU-Net splits by case. Subjects
    are those that `subjects_of` tells by the cases' names.
    """
    subjects = subjects_of(case_ids)
    if splits is None:
        repeated = sorted(name for name, number in Counter(subjects.values()).items() if number > 1)
        if not repeated:
            return []
        what, expected = "nnU-Net will put one subject on both sides of its splits", "a split by subject"
        found = f"none yet, and several cases of {examples(repeated)}"
        return [Finding(file, what, expected, found, "write one grouped by subject", "warning")]
    findings = []
    for fold in range(len(splits) if isinstance(splits, list) else 1):
        findings += fold_findings(fold, splits, subjects, file)
    if not isinstance(splits, list) or not all(map(is_split, splits)):
        return findings
    used = {case_id for split in splits for side in SIDES for case_id in split[side]}
    if left_out := sorted(set(case_ids) - used):
        what, expected = f"{len(left_out)} cases are in no fold", "every case of imagesTr"
        remedy = "add them, or write the file anew"
        findings.append(Finding(file, what, expected, examples(left_out), remedy, "warning"))
    return findings


def is_split(split: Any) -> bool:
    """Return whether it is laid out as a fold of splits_final.json: a list of cases on either side."""
    return isinstance(split, Mapping) and all(
        isinstance(split.get(side), list) and all(isinstance(case, str) for case in split[side])
        for side in SIDES
    )


def fold_findings(fold: int, splits: Any, subjects: Mapping[str, str], file: str = SPLITS) -> list[Finding]:
    """Return the faults of one fold; `subjects`: case -> subject.

    Without a file (None) nnU-Net makes five folds; for a fold beyond those of the file it draws a split.
    """
    if splits is None:
        what, expected = "nnU-Net cannot split so few cases", f"at least {_FEWEST_TO_SPLIT} cases"
        few = Finding(file, what, expected, str(len(subjects)), 'train fold "all", or write a split')
        return [few] if len(subjects) < _FEWEST_TO_SPLIT else []
    are_folds = isinstance(splits, list)
    if are_folds and fold >= len(splits):
        return []
    split = splits[fold] if are_folds and fold >= 0 else None
    if split is None or not is_split(split):
        what, expected = (
            f"fold {fold} is no split",
            'a list of {"train": ["case", ...], "val": ["case", ...]}',
        )
        found = f"{split if are_folds else splits!r}"[:60]
        return [Finding(file, what, expected, found, "correct the fold, or write the file anew")]
    findings = []
    for side, whose in zip(SIDES, ("training", "validation"), strict=True):
        if not split[side]:
            what, expected = f"fold {fold} has no {whose} case", "at least one: nnU-Net cannot start without"
            findings.append(Finding(file, what, expected, "none", "add some, or remove the fold"))
    unknown = sorted({*split["train"], *split["val"]} - set(subjects))
    if unknown:
        what, expected = f"fold {fold} names unknown cases", "cases of imagesTr"
        findings.append(Finding(file, what, expected, examples(unknown), "correct or remove the file"))
    train, val = ({subjects.get(case_id, case_id) for case_id in split[side]} for side in SIDES)
    if both := sorted(train & val):
        what, expected = f"fold {fold} validates on subjects that it trains on", "each on one side"
        remedy = "write one grouped by subject"
        findings.append(Finding(file, what, expected, examples(both), remedy, "warning"))
    return findings
