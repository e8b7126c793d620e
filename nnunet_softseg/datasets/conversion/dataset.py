"""Where a dataset goes: id, name and folder in nnUNet_raw; one for all contrasts, or one more for each."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_softseg.datasets.conversion.sources import Case, Selection, Sources
from nnunet_softseg.datasets.conversion.writing import folds_of_cases
from nnunet_softseg.datasets.subject_split import Split
from nnunet_softseg.errors import UserError

_ID_LIMIT = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_OTHER_FOLDERS = ("nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Target:
    """What a dataset is to be called: nnUNet_raw, id, name."""

    raw: Path
    dataset_id: int
    name: str


@dataclass(frozen=True)
class Dataset:
    """One dataset to be.

    Attributes:
        folder: nnUNet_raw/DatasetNNN_Name.
        name: without the id.
        cases: sorted by case id.
    """

    folder: Path
    name: str
    cases: tuple[Case, ...]


def find_raw_folder(raw_folder: str | os.PathLike[str] | None) -> Path:
    """Return where datasets lie: what was given, or nnUNet_raw.

    Raises:
        UserError: if neither is known.
    """
    folder = raw_folder or os.environ.get("nnUNet_raw")
    if not folder:
        raise UserError(
            "nnUNet_raw is not set: export nnUNet_raw=FOLDER, where nnU-Net's datasets lie, or give -o"
        )
    return Path(folder)


def dataset_folder(target: Target) -> Path:
    """Return the folder of a dataset; it may be there already.

    Raises:
        UserError: if id or name are impossible, or the id belongs to a dataset of another name.
    """
    if not 0 < target.dataset_id < _ID_LIMIT:
        raise UserError(f"the dataset id must lie between 1 and {_ID_LIMIT - 1}, got {target.dataset_id}")
    if not _NAME.fullmatch(target.name):
        raise UserError(f"the dataset's name must consist of letters, digits, - and _, got {target.name!r}")
    start = f"Dataset{target.dataset_id:03d}_"
    folder = target.raw / f"{start}{target.name}"
    for place in _places(target.raw):
        others = sorted(path.name for path in place.glob(f"{start}*") if path.name != folder.name)
        if others:
            raise UserError(
                f"dataset id {target.dataset_id} is taken by {others[0]} in {place}: choose another id"
            )
    return folder


def make_datasets(
    target: Target, sources: Sources, selection: Selection, per_contrast: bool | Mapping[str, int]
) -> list[Dataset]:
    """Return the dataset of all contrasts and, if asked for, one more for each.

    Args:
        target: of the dataset of all contrasts.
        sources: all cases.
        selection: its contrasts, or else its layout, give the order of ids.
        per_contrast: True: with the ids that follow; a mapping: contrast -> id.

    Raises:
        UserError: if ids or names are impossible or taken.
    """
    datasets = [Dataset(dataset_folder(target), target.name, sources.cases)]
    if not per_contrast:
        return datasets
    there = {case.contrast for case in sources.cases}
    order = selection.contrasts or selection.layout.in_order(sorted(there))
    asked = per_contrast if isinstance(per_contrast, Mapping) else None
    ids = _contrast_ids([one for one in order if one in there], target.dataset_id, asked)
    for contrast, dataset_id in ids.items():
        own = Target(target.raw, dataset_id, f"{target.name}_{contrast}")
        cases = tuple(case for case in sources.cases if case.contrast == contrast)
        datasets.append(Dataset(dataset_folder(own), own.name, cases))
    return datasets


def _places(raw: Path) -> list[Path]:
    """Return the folders in which nnU-Net looks an id up: it refuses one that has two names."""
    environment = os.environ.get("nnUNet_raw")
    if not environment or Path(environment).resolve() != raw.resolve():
        return [raw]
    return [raw, *(Path(os.environ[name]) for name in _OTHER_FOLDERS if os.environ.get(name))]


def _contrast_ids(
    contrasts: Sequence[str], dataset_id: int, asked: Mapping[str, int] | None
) -> dict[str, int]:
    if asked is None:
        return {contrast: dataset_id + number for number, contrast in enumerate(contrasts, 1)}
    unknown = [contrast for contrast in asked if contrast not in contrasts]
    if unknown:
        raise UserError(
            f"--per-contrast names {', '.join(unknown)}: expected contrasts of the dataset, "
            f"{', '.join(contrasts)}"
        )
    if len({dataset_id, *asked.values()}) <= len(asked):
        ids = ", ".join(map(str, (dataset_id, *asked.values())))
        raise UserError(f"--per-contrast gives one dataset id twice ({ids}): choose different ones")
    return dict(asked)


def check_split(dataset: Dataset, split: Split) -> list[str]:
    """Return what is odd about the folds of a dataset, as warnings.

    Raises:
        UserError: if nothing is left to train on, or to validate on, in its first fold.
    """
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
