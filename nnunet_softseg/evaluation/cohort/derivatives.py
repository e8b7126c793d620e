"""Derivatives of a BIDS folder: which images they are of, their names, and the model that made them.

A folder of derivatives holds those of one model. `dataset_description.json` says which; another is refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import is_up_to_date
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.case_files import BIDS_DESCRIPTION, BidsName, Reason, list_bids, parse_bids_name
from nnunet_softseg.io.formats import NIFTI_ENDINGS, without_nifti_ending
from nnunet_softseg.io.image_choice import Exclusion, select_images
from nnunet_softseg.io.results import (
    changed_keys,
    load_record,
    make_folder,
    relative_name,
    remove_files,
    replacing,
    require_writable,
    write_json,
)
from nnunet_softseg.metrics.morphometry.slice_table import COLUMNS

WORK = ".work"
"""The folder of predictions under way, in that of the derivatives."""
LOGS = "logs"
FIGURES = "figures"
NAME = "nnunet-softseg"
AREA_COLUMNS = {"label": "name of the label, as in dseg.tsv", **COLUMNS}
"""The columns of an image's table of areas."""
BIDS_VERSION = "1.9.0"
_LOCK = ".description.lock"
_LABELS, _AREAS = "dseg.tsv", "csa.json"
_SIDECAR = "_dseg.json"


@dataclass(frozen=True)
class Derivative:
    """All that is made of one image.

    Attributes:
        root: folder of the derivatives.
        place: of the image in its BIDS folder, `sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz`.
        name: that of the image taken apart.
    """

    root: Path
    place: Path
    name: BidsName

    @property
    def case_id(self) -> str:
        """Name of the image without its ending."""
        return without_nifti_ending(self.place.name)

    @property
    def label_map(self) -> Path:
        """`<image>_dseg.nii.gz`, written last: where it is, all is."""
        return self._beside(f"_dseg{NIFTI_ENDINGS[0]}")

    @property
    def sidecar(self) -> Path:
        """`<image>_dseg.json`: source, flags, warnings, volumes, mean areas."""
        return self._beside(_SIDECAR)

    @property
    def areas(self) -> Path:
        """`<image>_csa.tsv`: a row per label and slice."""
        return self._beside("_csa.tsv")

    @property
    def picture(self) -> Path:
        """`<subject>/figures/<image>.webp`."""
        return self.root / self.name.subject / FIGURES / f"{self.case_id}.webp"

    @property
    def log(self) -> Path:
        """`logs/<image>.json`: why the image failed; there is none of images that did not."""
        return self.root / LOGS / f"{self.case_id}.json"

    def soft_map(self, label: str) -> Path:
        """Return the path of a label's soft map, `<image>_label-<label>_probseg.nii.gz`."""
        return self._beside(f"_label-{label}_probseg{NIFTI_ENDINGS[0]}")

    @property
    def is_done(self) -> bool:
        """Whether all of it is written, from whichever image."""
        return self.label_map.is_file()

    def is_up_to_date(self, bids: Path, names: Iterable[str]) -> bool:
        """Return whether it is to be kept, by the rule of `predict`; names: of the labels."""
        soft_maps = map(self.soft_map, label_words(names).values())
        return is_up_to_date(self.label_map, soft_maps, [bids / self.place])

    def remove(self, names: Iterable[str]) -> None:
        """Remove what was made of the image, the label map first: without it nothing is done."""
        soft_maps = map(self.soft_map, label_words(names).values())
        remove_files((self.label_map, self.sidecar, self.areas, self.picture, *soft_maps))

    def _beside(self, suffix: str) -> Path:
        return self.root / self.place.parent / f"{self.case_id}{suffix}"


@dataclass(frozen=True)
class Choice:
    """What a call is about; empty: all. Labels are those of BIDS, with or without `sub-` and `ses-`."""

    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    contrasts: Sequence[str] | None = None

    def takes(self, name: BidsName) -> bool:
        """Return whether an image is of these participants, sessions and contrasts."""
        return (
            (not self.participants or name.subject in _full_labels("sub-", self.participants))
            and (not self.sessions or name.session in _full_labels("ses-", self.sessions))
            and (self.contrasts is None or name.contrast in self.contrasts)
        )


def _full_labels(prefix: str, labels: Iterable[str]) -> dict[str, str]:
    """Return labels with their prefix -> as they were given."""
    return {prefix + label.removeprefix(prefix): label for label in labels}


def chosen_images(bids: Path, root: Path, choice: Choice) -> tuple[list[Derivative], list[str]]:
    """Return the images of a BIDS folder that are asked for, sorted, and warnings about those passed over.

    Raises:
        UserError: if the folder is no BIDS folder, or lacks a participant, a session or a contrast.
    """
    chosen = select_images(list_bids(bids), exclude=Exclusion(), contrasts=choice.contrasts)
    names = [image.name for image in chosen.images]
    _check_labels("--participant-label", "sub-", choice.participants, [name.subject for name in names])
    of_people = [name for name in names if Choice(choice.participants).takes(name)]
    sessions = [name.session for name in of_people if name.session]
    _check_labels("--session-label", "ses-", choice.sessions, sessions)
    images = [
        Derivative(root, image.path.relative_to(bids), image.name)
        for image in chosen.images
        if choice.takes(image.name)
    ]
    if not images:
        raise UserError(
            f"{bids}: expected images of these participants and sessions, found none: name others"
        )
    warnings = [
        f"{bids}: {len(files)} images {reason.value}, left out: {examples([file.name for file in files])}"
        for reason in (Reason.MISNAMED, Reason.MISPLACED)
        if (files := chosen.because(reason))
    ]
    return images, warnings


def _check_labels(option: str, prefix: str, wanted: Iterable[str], there: Sequence[str]) -> None:
    known = sorted(set(there))
    missing = [label for full, label in _full_labels(prefix, wanted).items() if full not in known]
    if missing:
        found = examples(known) if known else "none"
        raise UserError(
            f"{option} {' '.join(missing)}: expected some of those that have images, {found}: correct it"
        )


def label_words(names: Iterable[str]) -> dict[str, str]:
    """Return name -> label of BIDS, which has letters and digits only and is unlike every other."""
    words: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        word = re.sub("[^A-Za-z0-9]", "", name)
        while not word or word in words.values():
            word += f"label{number}"
        words[name] = word
    return words


# What made them


def start(root: Path, bids: Path, made_by: Mapping[str, Any], labels: Mapping[str, int]) -> None:
    """Make the folder of derivatives and say what makes them, once; processes take turns.

    Args:
        root: the folder.
        bids: of the images.
        made_by: all that decides the values of a derivative.
        labels: name -> value in the label maps.

    Raises:
        UserError: if it is the folder of the images, holds something else or derivatives of another model, or
            cannot be written.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: expected a folder for the derivatives, found a file: give a folder")
    if root.resolve() == bids.resolve():
        raise UserError(
            f"{root}: expected a folder for the derivatives, found that of the images: give another, such as "
            f"{bids / 'derivatives' / NAME}"
        )
    if root.is_dir():
        _refuse_others(root, made_by)  # before a lock is left in somebody else's folder
    make_folder(root)
    require_writable(root)  # a lock says less
    with FileLock(root / _LOCK):
        if not _refuse_others(root, made_by):
            write_json(
                root / BIDS_DESCRIPTION,
                {
                    "Name": f"{NAME}: soft maps and areas",
                    "BIDSVersion": BIDS_VERSION,
                    "DatasetType": "derivative",
                    "GeneratedBy": [{"Name": NAME, "Version": __version__, "Model": dict(made_by)}],
                    "DatasetLinks": {"raw": relative_name(bids, root)},
                },
            )
        if not (root / _LABELS).is_file():
            names = pd.DataFrame({"index": [*labels.values()], "name": [*labels]})
            write_table_tsv(names.sort_values("index"), root / _LABELS)
        if not (root / _AREAS).is_file():
            write_column_meanings(root / _AREAS, AREA_COLUMNS)


def _refuse_others(root: Path, made_by: Mapping[str, Any]) -> bool:
    """Return whether the folder is started; raise a UserError if it is somebody else's."""
    before = made_by_of(root)
    if before is None:
        there = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        if there:
            raise UserError(
                f"{root}: expected an empty folder, or derivatives of {NAME}, found {examples(there)}: give "
                "another folder"
            )
        return False
    # Either may say more: a model in one file names its precision.
    if changed := dict.fromkeys(changed_keys(before, made_by) + changed_keys(made_by, before)):
        raise UserError(
            f"{root}: expected derivatives of this model and these options to go on with, found "
            f"{BIDS_DESCRIPTION} that differs in {', '.join(changed)}: give another folder"
        )
    return True


def made_by_of(root: Path) -> Mapping[str, Any] | None:
    """Return what made the derivatives in a folder; None if they are not of this package."""
    description = load_record(root / BIDS_DESCRIPTION, "GeneratedBy") or {}
    for entry in description.get("GeneratedBy", ()):
        model = entry.get("Model") if isinstance(entry, Mapping) and entry.get("Name") == NAME else None
        if isinstance(model, Mapping):
            return model
    return None


# Which are there


def finished(root: Path, choice: Choice) -> list[tuple[Derivative, dict[str, Any]]]:
    """Return the images whose derivatives are there, with the content of their sidecars, sorted."""
    found = []
    for sidecar in sorted(root.glob(f"sub-*/**/*{_SIDECAR}")):
        stem = sidecar.name.removesuffix(_SIDECAR)
        name = parse_bids_name(f"{stem}{NIFTI_ENDINGS[0]}")
        if name is None or not choice.takes(name):
            continue
        image = Derivative(root, sidecar.parent.relative_to(root) / f"{stem}{NIFTI_ENDINGS[0]}", name)
        record = load_record(sidecar, "Labels", "Flags", "Warnings")
        if record is not None and image.is_done:
            found.append((image, record))
    return found


def failures(root: Path, bids: Path, subject: str) -> dict[str, str]:
    """Return the images of a subject that failed, in whichever call, and are still there -> why."""
    logs = {log.stem: load_record(log, "Failed") for log in sorted((root / LOGS).glob(f"{subject}_*.json"))}
    return {
        case_id: str(log["Failed"])
        for case_id, log in logs.items()
        if log and (bids / log.get("Image", "")).exists()
    }


def write_table_tsv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as BIDS wants it: tabs between columns, n/a where there is no value."""
    make_folder(path.parent)
    with replacing(path) as aside:
        table.replace("", None).to_csv(
            aside, sep="\t", index=False, na_rep="n/a", float_format="%.6g", lineterminator="\n"
        )


def write_column_meanings(path: Path, columns: Mapping[str, str]) -> None:
    """Write the JSON that explains the columns of a table."""
    write_json(path, {name: {"Description": words} for name, words in columns.items()})
