"""Datasets in nnUNet_raw: id, folder, images, soft labels, label maps, dataset.json, splits, conversion.json.

conversion.json says where every file comes from, by which a later call knows its own dataset.
"""

import contextlib
import dataclasses
import gzip
import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_softseg import __version__
from nnunet_softseg.datasets.conversion.sources import Inspection, Selection, SourceCase, Sources
from nnunet_softseg.datasets.conversion.splits import PARTS, Split, folds_of_cases
from nnunet_softseg.datasets.raw_dataset import NnunetFolders
from nnunet_softseg.datasets.soft_label import write_label_map, write_soft_label
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.nifti import StrPath, stored_values
from nnunet_softseg.io.results import changed_keys, load_record, new_folder, write_json
from nnunet_softseg.io.workers import map_jobs

MANIFEST = "conversion.json"
_ID_LIMIT = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_IDENTITY = ("labels", "split", "cases")
_REMEDY = "remove it, or choose another dataset id"


@dataclass(frozen=True)
class Dataset:
    """One dataset to write; a UserError for an impossible id or name, or the id of another dataset."""

    raw: Path
    dataset_id: int
    name: str
    elsewhere: tuple[Path, ...] = ()
    """Other folders that know ids: nnU-Net looks an id up in all three and refuses one that has two names."""
    cases: tuple[SourceCase, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.dataset_id < _ID_LIMIT:
            raise UserError(f"the dataset id must lie between 1 and {_ID_LIMIT - 1}, got {self.dataset_id}")
        if not _NAME.fullmatch(self.name):
            raise UserError(f"the dataset's name must consist of letters, digits, - and _, got {self.name!r}")
        for place in (self.raw, *self.elsewhere):
            found = sorted(path.name for path in place.glob(f"Dataset{self.dataset_id:03d}_*"))
            taken = next((name for name in found if name != self.folder.name), None)
            if taken:
                where = f"by {taken} in {place}"
                raise UserError(f"dataset id {self.dataset_id} is taken {where}: choose another id")

    @property
    def folder(self) -> Path:
        """The folder nnUNet_raw/DatasetNNN_Name; it may be there already."""
        return self.raw / f"Dataset{self.dataset_id:03d}_{self.name}"


def find_raw_folder(raw_folder: StrPath | None, folders: NnunetFolders) -> tuple[Path, tuple[Path, ...]]:
    """Return the folder of all datasets, the one that was given or nnU-Net's, and where else it knows ids.

    Raise a UserError if none is given or set.
    """
    raw = Path(raw_folder) if raw_folder else folders.raw
    if raw is None:
        raise UserError(
            "nnUNet_raw is not set: export nnUNet_raw=FOLDER, where nnU-Net's datasets lie, or give -o"
        )
    is_nnunets = folders.raw is not None and folders.raw.resolve() == raw.resolve()
    return raw, folders.roots if is_nnunets else ()


def make_datasets(
    target: Dataset, sources: Sources, selection: Selection, per_contrast: bool | Mapping[str, int]
) -> list[Dataset]:
    """Return the dataset of all contrasts, the target, and, if asked for, one more for each.

    The ids of these follow, in the order of the selection's contrasts or else of its layout, or come from a
    mapping contrast -> id. A UserError if ids or names are impossible or taken.
    """
    datasets = [dataclasses.replace(target, cases=sources.cases)]
    if not per_contrast:
        return datasets
    there = {case.contrast for case in sources.cases}
    order = selection.contrasts or selection.layout.in_order(there)
    contrasts = [contrast for contrast in order if contrast in there]
    if isinstance(per_contrast, Mapping):
        _check_ids(per_contrast, contrasts, target.dataset_id)
        ids = dict(per_contrast)
    else:
        ids = {contrast: target.dataset_id + number for number, contrast in enumerate(contrasts, 1)}
    for contrast, dataset_id in ids.items():
        cases = tuple(case for case in sources.cases if case.contrast == contrast)
        name = f"{target.name}_{contrast}"
        datasets.append(dataclasses.replace(target, dataset_id=dataset_id, name=name, cases=cases))
    return datasets


def _check_ids(asked: Mapping[str, int], contrasts: Sequence[str], dataset_id: int) -> None:
    unknown = [contrast for contrast in asked if contrast not in contrasts]
    if unknown:
        raise UserError(
            f"--per-contrast names {', '.join(unknown)}: expected contrasts of the dataset, "
            f"{', '.join(contrasts)}"
        )
    if len({dataset_id, *asked.values()}) <= len(asked):
        ids = ", ".join(map(str, (dataset_id, *asked.values())))
        raise UserError(f"--per-contrast gives one dataset id twice ({ids}): choose different ones")


def check_split(dataset: Dataset, split: Split) -> list[str]:
    """Return warnings about folds that lack training or validation images; a UserError if the first does."""
    folds = folds_of_cases(dataset.cases, split)
    for side, what in (("train", "training"), ("val", "validation")):
        if not folds[0][side]:
            raise UserError(
                f"{dataset.folder.name}: expected images for {what}, found none in the split: give another "
                "--split or --seed, or leave this contrast out"
            )
    empty = [str(number) for number, fold in enumerate(folds) if not (fold["train"] and fold["val"])]
    if not empty:
        return []
    return [
        f"{dataset.folder.name}: folds {', '.join(empty)} have no images to train on, or none to validate "
        "on: do not train these"
    ]


# conversion.json


def make_manifest(
    sources: Sources, cases: Sequence[SourceCase], split: Split, inspections: Sequence[Inspection]
) -> dict[str, Any]:
    """Return where every file of one dataset, of the cases given, comes from, with its SHA-256."""
    hashes = {file: value for inspection in inspections for file, value in inspection.sha256.items()}
    entries = {}
    for case in cases:
        entries[case.case_id] = {
            "subject": case.subject,
            "contrast": case.contrast,
            "part": split.part_of(case.subject),
            "image": case.image.relative_to(sources.bids).as_posix(),
            "image_sha256": hashes[case.image],
            "soft_labels": {
                label: {"file": file.relative_to(sources.derivatives).as_posix(), "sha256": hashes[file]}
                for label, file in zip(sources.labels, case.soft_labels, strict=True)
            },
        }
    return {
        "source_folder": str(sources.bids.resolve()),
        "soft_label_folder": str(sources.derivatives.resolve()),
        "labels": dict(sources.labels),
        "split": {part: list(getattr(split, part)) for part in PARTS},
        "cases": entries,
        "left_out": {reason: list(images) for reason, images in sources.left_out.items()},
    }


def _check_same(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise a UserError unless a dataset comes from the same sources with the same split, and is whole.

    Folders may have moved and other images may be left out since.
    """
    there = load_record(folder / MANIFEST, *_IDENTITY)
    if there is None:
        raise UserError(f"{folder} exists and was not made by this command: {_REMEDY}")
    # The order of the labels gives their values.
    before, now = ({**record, "labels": [*record["labels"].items()]} for record in (there, manifest))
    different = changed_keys(before, {key: now[key] for key in _IDENTITY})
    if different:
        raise UserError(f"{folder} exists with other content ({', '.join(different)} differ): {_REMEDY}")
    names = ["dataset.json", "splits_final.json"]
    for case_id, case in manifest["cases"].items():
        names += _case_files(case_id, case["part"], len(manifest["labels"]))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder} exists, but {name} is missing in it: {_REMEDY}")


@dataclass(frozen=True)
class CaseJob:
    """One case to write to the folders of the datasets that it belongs to."""

    case: SourceCase
    part: str
    folders: tuple[Path, ...]


def write_datasets(
    datasets: Sequence[Dataset],
    manifests: Mapping[Path, Mapping[str, Any]],
    split: Split,
    *,
    num_processes: int,
    progress: bool,
    partly_unknown: Collection[str] = (),
) -> list[Dataset]:
    """Write the datasets that are not there, all of them aside first, and return them.

    The manifests are by folder; `partly_unknown` are the ids of cases in which no label is known somewhere. A
    UserError if a folder that is there holds another dataset.
    """
    new = [dataset for dataset in datasets if not dataset.folder.exists()]
    for dataset in datasets:
        if dataset not in new:
            _check_same(dataset.folder, manifests[dataset.folder])
    with contextlib.ExitStack() as stack:
        aside = {dataset.folder: stack.enter_context(new_folder(dataset.folder)) for dataset in new}
        folders: dict[SourceCase, list[Path]] = defaultdict(list)
        for dataset in new:
            for case in dataset.cases:
                folders[case].append(aside[dataset.folder])
        map_jobs(
            write_case,
            [CaseJob(case, split.part_of(case.subject), tuple(folders[case])) for case in folders],
            num_processes=num_processes,
            progress=progress and bool(new),
            description="Writing cases",
        )
        for dataset in new:
            folder, manifest = aside[dataset.folder], manifests[dataset.folder]
            labels = {"background": 0, **{name: value for value, name in enumerate(manifest["labels"], 1)}}
            if any(case.case_id in partly_unknown for case in dataset.cases):
                labels["ignore"] = len(labels)
            _write_descriptions(folder, dataset, labels, split)
            write_json(folder / MANIFEST, manifest)
    return new


def write_case(job: CaseJob) -> None:
    """Write image, soft labels and label map of one case; the latter two in the geometry of the image."""
    first, *others = job.folders
    names = _case_files(job.case.case_id, job.part, len(job.case.soft_labels))
    for folder in job.folders:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
    image, *soft_files, label_map = (first / name for name in names)
    copy_image(job.case.image, image)
    for source, file in zip(job.case.soft_labels, soft_files, strict=True):
        write_soft_label(file, stored_values(source), image)
    write_label_map(label_map, soft_files, [(at, at + 1) for at in range(len(soft_files))])
    for folder in others:
        for name in names:
            shutil.copyfile(first / name, folder / name)


def copy_image(source: Path, target: Path) -> None:
    """Copy a NIfTI file to a name that ends in .nii.gz, compressed if it is not."""
    if source.suffix.lower() == ".gz":
        shutil.copyfile(source, target)
    else:
        with source.open("rb") as plain, gzip.GzipFile(target, "wb", mtime=0) as compressed:
            shutil.copyfileobj(plain, compressed)


def _case_files(case_id: str, part: str, num_labels: int) -> list[str]:
    """Return the paths of a case in its dataset: image, soft labels, label map."""
    ending = "Ts" if part == "test" else "Tr"
    return [
        f"images{ending}/{case_id}_0000.nii.gz",
        *(f"softLabels{ending}/{case_id}_{label:04d}.nii.gz" for label in range(1, num_labels + 1)),
        f"labels{ending}/{case_id}.nii.gz",
    ]


def _write_descriptions(folder: Path, dataset: Dataset, labels: Mapping[str, int], split: Split) -> None:
    """Write dataset.json and splits_final.json."""
    description = {
        "name": dataset.name,
        "description": "Images with soft labels (softLabelsTr); labelsTr is soft label > 0.5",
        "converted_by": f"nnunet-softseg {__version__}",
        "channel_names": {"0": "MRI"},
        "labels": dict(labels),
        "numTraining": sum(split.part_of(case.subject) != "test" for case in dataset.cases),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }
    write_json(folder / "dataset.json", description)
    write_json(folder / "splits_final.json", folds_of_cases(dataset.cases, split))
