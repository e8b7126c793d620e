"""Files of each rater, case and label, and their content.

A file of a rater is a label map (integers; one value is the label), or a mask or soft map of one label
(values in [0, 1]). In folders, `<case>.nii.gz` is either, by its content, and
`<case>_<label, 4 digits>.nii.gz` a mask or soft map.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_softseg.errors import Finding, UserError, examples, raise_first_error
from nnunet_softseg.io.case_files import list_files
from nnunet_softseg.io.case_names import case_and_label
from nnunet_softseg.io.nifti import (
    Values,
    classify,
    content_findings,
    file_findings,
    mask_of_label,
    stored_values,
)

_MASK_VALUE = 255


@dataclass(frozen=True)
class RaterFile:
    """One file of one rater.

    Attributes:
        rater: unique name, for tables.
        path: NIfTI.
        label: which label it is the map of, where its name says so; None: the content tells.
        shown: path as messages show it.
    """

    rater: str
    path: Path
    label: int | None
    shown: str


CaseFiles = Mapping[int, tuple[RaterFile, ...]]
"""label -> the files that speak of it, in the order of the raters."""


# Names


def printable(name: str | Path) -> str:
    """Return a name without what would break a line, a table or the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(name))


def rater_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path, by what tells them apart: `r1` and `r2` of `r1/a` and `r2/a`."""
    parts = [tuple(printable(part) for part in Path(os.path.abspath(path)).parts) for path in paths]
    while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}:{path}" for number, path in enumerate(map(str, paths), start=1)]


def check_different(paths: Sequence[Path]) -> None:
    """Raise a UserError if two paths are the same file or folder: a rater would count twice."""
    for number, path in enumerate(paths):
        for other in paths[:number]:
            if path.exists() and other.exists() and path.samefile(other):
                raise UserError(
                    f"{printable(path)} is given twice (also as {printable(other)}): expected each "
                    "rater once: leave one out, or use --weights"
                )


# Folders


def find_cases(
    folders: Sequence[Path], labels: Sequence[int] | None, known_cases: Collection[str] | None
) -> dict[str, dict[int, tuple[RaterFile, ...]]]:
    """Return case -> label -> files, sorted by case.

    Args:
        folders: one per rater.
        labels: to look for; None: those in file names, and 1 for files that carry none.
        known_cases: those of the images: `<case>.nii.gz` of a known case is taken as such even if its name
            ends in four digits. None: not known.

    Raises:
        UserError: if a folder has no NIfTI file, names are ambiguous, or no case is in two folders.
    """
    raters = rater_names(folders)
    found: dict[str, list[RaterFile]] = {}
    for rater, folder in zip(raters, folders, strict=True):
        for case_id, file in _files_of_rater(rater, folder, known_cases or ()):
            found.setdefault(case_id, []).append(file)
    wanted = labels or sorted(
        {1 if file.label is None else file.label for files in found.values() for file in files}
    )
    cases = {}
    for case_id, files in sorted(found.items()):
        by_label = {label: tuple(file for file in files if file.label in (label, None)) for label in wanted}
        if any(by_label.values()):
            cases[case_id] = {label: of_label for label, of_label in by_label.items() if of_label}
    _check_some_match(cases, found, raters, wanted)
    return cases


def _files_of_rater(
    rater: str, folder: Path, known_cases: Collection[str]
) -> Iterator[tuple[str, RaterFile]]:
    listing = list_files(
        folder,
        subfolders=False,
        expected="<case>.nii.gz or <case>_<label, 4 digits>.nii.gz",
        remedy="give the folder that holds one rater's files",
    )
    seen: dict[str, list[RaterFile]] = {}
    for path in listing.files:
        case_id, label = case_and_label(path, known_cases)
        file = RaterFile(rater, path, label, f"{rater}/{printable(path.name)}")
        for other in seen.setdefault(case_id, []):
            if other.label == label or None in (other.label, label):
                raise UserError(
                    f"{file.shown}: expected one file per rater, case and label, found "
                    f"{printable(other.path.name)}, too: remove one"
                )
        seen[case_id].append(file)
        yield case_id, file


def _check_some_match(
    cases: Mapping[str, CaseFiles],
    found: Mapping[str, Sequence[RaterFile]],
    raters: Sequence[str],
    labels: Sequence[int],
) -> None:
    if any(len(files) > 1 for by_label in cases.values() for files in by_label.values()):
        return
    of_rater: dict[str, list[str]] = {rater: [] for rater in raters}
    for case_id, of_case in sorted(found.items()):
        for rater in {file.rater for file in of_case}:
            of_rater[rater].append(printable(case_id))
    has = "; ".join(f"{rater} has {examples(case_ids)}" for rater, case_ids in of_rater.items())
    raise UserError(
        f"no case in two folders, label {examples([str(label) for label in labels])}: expected the same case "
        f"ids in all folders, found: {has}: rename the files to <case>.nii.gz, or look at --labels"
    )


# Content


@dataclass(frozen=True)
class Content:
    """Content of a rater's file.

    Attributes:
        values: (x, y, z), as they are.
        labels: those in it, without 0, if it can be a label map by its name and its values; else None.
    """

    values: Values
    labels: tuple[int, ...] | None


def read_content(file: RaterFile) -> Content:
    """Return the content of a rater's file.

    Raises:
        UserError: for a file that cannot be read, is not three-dimensional, or holds no numbers.
    """
    raise_first_error(file_findings(file.path, file.shown))
    values = stored_values(file.path)
    is_map_of_label = file.label is not None or not np.isfinite(values).all()
    return Content(values, None if is_map_of_label else classify(values).labels)


def rater_map(file: RaterFile, content: Content, label: int | None) -> Values:
    """Return one rater's mask or soft map of a label, in [0, 1].

    Args:
        file: of the rater.
        content: of the file.
        label: its value in label maps; None: the file is no label map, its values are the fractions.

    Raises:
        UserError: if the values are neither labels nor fractions.
    """
    if label is None or content.labels is None:
        choose = "" if file.label is not None else "--label"
        raise_first_error(content_findings(file.shown, content.values, choose))
        return np.clip(content.values, 0, 1)
    if content.labels == (_MASK_VALUE,) and label != _MASK_VALUE:
        what, expected = f"label {label} is not in it", f"values 0 and {label}"
        remedy = f"divide it by {_MASK_VALUE}, or give --labels {_MASK_VALUE}"
        raise UserError(str(Finding(file.shown, what, expected, f"0 and {_MASK_VALUE}", remedy)))
    return mask_of_label(content.values, label)
