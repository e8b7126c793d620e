"""A dataset on disk: copies of the images, soft labels, label maps, dataset.json, splits."""

import gzip
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib

from nnunet_softseg import __version__
from nnunet_softseg.datasets.conversion.sources import Case
from nnunet_softseg.datasets.soft_label import hard_label_map, write_soft_label
from nnunet_softseg.datasets.subject_split import Split, make_folds
from nnunet_softseg.io.atomic import write_json
from nnunet_softseg.io.nifti import load_nifti, stored_values

FOLDER_ENDING = {"train": "Tr", "validation": "Tr", "test": "Ts"}
_KINDS = ("images", "softLabels", "labels")


@dataclass(frozen=True)
class CaseJob:
    """One case to write.

    Attributes:
        case: fit to be written.
        part: "train", "validation" or "test".
        folders: of the datasets that it belongs to.
    """

    case: Case
    part: str
    folders: tuple[Path, ...]


def case_files(case_id: str, part: str, num_labels: int) -> list[str]:
    """Return the paths of a case in its dataset: image, soft labels, label map."""
    images, soft_labels, labels = (f"{kind}{FOLDER_ENDING[part]}" for kind in _KINDS)
    return [
        f"{images}/{case_id}_0000.nii.gz",
        *(f"{soft_labels}/{case_id}_{label:04d}.nii.gz" for label in range(1, num_labels + 1)),
        f"{labels}/{case_id}.nii.gz",
    ]


def write_case(job: CaseJob) -> None:
    """Write image, soft labels and label map of one case; the latter two in the geometry of the image."""
    first, *others = job.folders
    names = case_files(job.case.case_id, job.part, len(job.case.soft_labels))
    for folder in job.folders:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
    image, *soft_files, label_map = (first / name for name in names)
    _copy(job.case.image, image)
    for source, file in zip(job.case.soft_labels, soft_files, strict=True):
        write_soft_label(file, stored_values(source), image)
    _write_label_map(label_map, soft_files)
    for folder in others:
        for name in names:
            shutil.copyfile(first / name, folder / name)


def _copy(source: Path, target: Path) -> None:
    if source.name.endswith(".gz"):
        shutil.copyfile(source, target)
        return
    with source.open("rb") as plain, gzip.GzipFile(target, "wb", mtime=0) as compressed:
        shutil.copyfileobj(plain, compressed)


def _write_label_map(file: Path, soft_files: Sequence[Path]) -> None:
    """Write soft label > 0.5, of the values as they are on disk, where `check` will compare the two."""
    values = [stored_values(soft_file) for soft_file in soft_files]
    label_map = hard_label_map(values, range(1, len(values) + 1))
    stored = load_nifti(soft_files[0])
    header = stored.header.copy()
    header.set_data_dtype(label_map.dtype)
    header["cal_max"] = len(values)
    header["descrip"] = f"soft label > 0.5, nnunet-softseg {__version__}".encode()
    nib.Nifti1Image(label_map, stored.affine, header).to_filename(file)


def write_descriptions(
    folder: Path, name: str, labels: Sequence[str], cases: Sequence[Case], split: Split
) -> None:
    """Write dataset.json and splits_final.json."""
    training = [case for case in cases if split.part_of(case.subject) != "test"]
    description: Mapping[str, Any] = {
        "name": name,
        "description": "Images with soft labels (softLabelsTr); labelsTr is soft label > 0.5",
        "converted_by": f"nnunet-softseg {__version__}",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, **{label: value for value, label in enumerate(labels, 1)}},
        "numTraining": len(training),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }
    write_json(folder / "dataset.json", description)
    write_json(folder / "splits_final.json", folds_of_cases(cases, split))


def folds_of_cases(cases: Sequence[Case], split: Split) -> list[dict[str, list[str]]]:
    """Return "train" and "val" of each of nnU-Net's folds as case ids; a subject is on one side only."""
    return [
        {
            side: [case.case_id for case in cases if case.subject in subjects]
            for side, subjects in fold.items()
        }
        for fold in make_folds(split)
    ]
