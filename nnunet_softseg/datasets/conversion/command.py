"""`nnunet-softseg convert`: BIDS with soft labels -> datasets in nnUNet_raw, split by subject."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_softseg import __version__
from nnunet_softseg.datasets.conversion.sources import (
    BIDS,
    DEFAULT_LABEL,
    Selection,
    find_layout,
    find_sources,
    inspect_cases,
    inspection_warnings,
    require_outer_first,
)
from nnunet_softseg.datasets.conversion.splits import PARTS, Split, choose_split
from nnunet_softseg.datasets.conversion.writing import (
    Dataset,
    check_split,
    find_raw_folder,
    make_datasets,
    make_manifest,
    write_datasets,
)
from nnunet_softseg.datasets.raw_dataset import NnunetFolders
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.image_choice import read_exclusions
from nnunet_softseg.io.nifti import StrPath

_LABEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED = ("background", "ignore")


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did.

    Attributes:
        folders: that of all contrasts first, then one for each contrast if asked for.
        written: the folders that were not there before.
        num_cases: by part, "train", "validation" and "test", as `num_subjects`.
        left_out: reason -> images that are in no dataset, as paths in the BIDS folder.
    """

    folders: tuple[Path, ...]
    written: tuple[Path, ...]
    num_cases: Mapping[str, int]
    num_subjects: Mapping[str, int]
    left_out: Mapping[str, Sequence[str]]
    warnings: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The dataset of all contrasts."""
        return self.folders[0]

    def as_text(self) -> str:
        """Return the report in lines."""
        parts = ", ".join(f"{number} {part}" for part, number in self.num_cases.items())
        num_cases, num_subjects = sum(self.num_cases.values()), sum(self.num_subjects.values())
        there = " (was there already, the same)"
        lines = [
            *(f"{folder}{'' if folder in self.written else there}" for folder in self.folders),
            f"{num_cases} images of {num_subjects} subjects: {parts}",
            *(f"left out, {why}: {len(names)} ({examples(names)})" for why, names in self.left_out.items()),
            *(f"warning: {warning}" for warning in self.warnings),
            f"next: nnunet-softseg check -d {self.folder.name}",
        ]
        return "\n".join(lines)


def convert(
    bids: StrPath,
    dataset_id: int,
    name: str,
    *,
    raw_folder: StrPath | None = None,
    layout: str = BIDS.name,
    derivatives: StrPath | None = None,
    suffix: str | None = None,
    labels: Mapping[str, str] | None = None,
    contrasts: Sequence[str] | None = None,
    distinguish_by: Sequence[str] = (),
    exclude: Sequence[str] = (),
    split_file: StrPath | None = None,
    num_test: int | None = None,
    num_validation: int | None = None,
    seed: int = 0,
    per_contrast: bool | Mapping[str, int] = False,
    num_processes: int = 1,
    progress: bool = True,
) -> ConversionReport:
    """Make nnU-Net datasets of a BIDS folder with soft labels.

    Images are copied. All contrasts of a subject, in all datasets, are on one side of the split. A dataset
    that is there already, from the same sources and the same split, is kept.

    Args:
        bids: images in `sub-*/[ses-*/]anat` and `dwi`.
        dataset_id: 1-999.
        name: of the dataset; the folder is `Dataset<id>_<name>`.
        raw_folder: of all datasets; None takes the environment variable nnUNet_raw.
        layout: "bids" or "spine-generic".
        derivatives: folder of the soft labels, in `bids` or anywhere, with the images' subfolders; None takes
            the layout's (derivatives/softseg).
        suffix: end of a soft label's name behind the image's, for one label, "cord"; None: the layout's.
        labels: the same for several labels, name -> suffix; their values are 1, 2, ... in this order, the
            outer of nested ones first. An image that lacks one is left out.
        contrasts: those to take, as in the case ids; None takes all.
        distinguish_by: BIDS entities that make two contrasts of one, ("acq",).
        exclude: names or patterns of subjects, sessions, cases, images; or files of them.
        split_file: see `splits.read_split_file`. Subjects that it does not name are left out; if it names
            test subjects only, the others are drawn.
        num_test: subjects in imagesTs; None takes a fifth.
        num_validation: subjects that fold 0 validates on; None takes a fifth.
        seed: of the draw.
        per_contrast: also make a dataset `<name>_<contrast>` of each contrast, with the ids that follow; or
            of those in a mapping contrast -> id.
        num_processes: that read and write cases.
        progress: show a bar.

    Raises:
        UserError: for data or arguments that don't fit; nothing is left behind.
    """
    raw, elsewhere = find_raw_folder(raw_folder, NnunetFolders.from_environment())
    target = Dataset(raw, dataset_id, name, elsewhere)
    selection = Selection(
        find_layout(layout),
        None if derivatives is None else os.fspath(derivatives),
        _label_endings(labels, suffix),
        None if contrasts is None else tuple(contrasts),
        tuple(distinguish_by),
        read_exclusions(exclude),
    )
    file = None if split_file is None else Path(split_file)
    numbers = {"num_test": num_test, "num_validation": num_validation}
    split, sources = choose_split(find_sources(Path(bids), selection), file, **numbers, seed=seed)
    datasets = make_datasets(target, sources, selection, per_contrast)
    fold_warnings = [warning for dataset in datasets for warning in check_split(dataset, split)]
    inspections = inspect_cases(sources.cases, num_processes=num_processes, progress=progress)
    require_outer_first(sources.labels, inspections)
    made_by: dict[str, object] = {"name": "nnunet-softseg", "version": __version__, "layout": layout}
    made_by |= {"split_file": file and str(file), "split_seed": seed, "exclude": list(exclude)}
    manifests = {
        dataset.folder: {"generated_by": made_by, **make_manifest(sources, dataset.cases, split, inspections)}
        for dataset in datasets
    }
    unknown = [inspection.case_id for inspection in inspections if inspection.is_partly_unknown]
    options: dict[str, Any] = {"num_processes": num_processes, "progress": progress}
    written = write_datasets(datasets, manifests, split, partly_unknown=unknown, **options)
    return ConversionReport(
        tuple(dataset.folder for dataset in datasets),
        tuple(dataset.folder for dataset in written),
        _count(split, [case.subject for case in sources.cases]),
        _count(split, {case.subject for case in sources.cases}),
        sources.left_out,
        (*sources.warnings, *fold_warnings, *inspection_warnings(inspections)),
    )


def _label_endings(labels: Mapping[str, str] | None, suffix: str | None) -> dict[str, str] | None:
    if labels and suffix:
        raise UserError("expected --label or --suffix, got both: give every label as --label NAME=SUFFIX")
    if suffix:
        labels = {DEFAULT_LABEL: suffix}
    for name in labels or ():
        if not _LABEL_NAME.fullmatch(name) or name in _RESERVED:
            raise UserError(
                f"label {name!r}: expected a name of letters, digits, - and _ other than "
                f"{' and '.join(_RESERVED)}: choose another"
            )
    if not labels:
        return None
    given = {name: without_nifti_ending(ending) for name, ending in labels.items()}
    endings = {
        name: ending if ending.startswith("-") else f"_{ending.lstrip('_')}" for name, ending in given.items()
    }
    if len(set(endings.values())) < len(endings):
        raise UserError(f"two labels have one suffix ({', '.join(endings.values())}): give each its own")
    return endings


def _count(split: Split, subjects: Iterable[str]) -> dict[str, int]:
    counted = Counter(split.part_of(subject) for subject in subjects)
    return {part: counted[part] for part in PARTS}
