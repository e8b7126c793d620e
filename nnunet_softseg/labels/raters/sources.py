"""Files of each rater, case and label, and their content.

A file of a rater is a label map (integers; one value is the label), or a mask or soft map of one label
(values in [0, 1]). In folders, `<case>.nii.gz` is either, by its content, and
`<case>_<label, 4 digits>.nii.gz` a mask or soft map.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_softseg.errors import Finding, UserError, examples, raise_first_error
from nnunet_softseg.io.case_files import is_nifti
from nnunet_softseg.io.case_names import case_and_label
from nnunet_softseg.io.map_kind import classify, content_findings, mask_of_label
from nnunet_softseg.io.nifti import Values, file_findings, stored_values

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
    names = rater_names(folders)
    found: dict[str, dict[int | None, list[RaterFile]]] = {}
    for rater, folder in zip(names, folders, strict=True):
        for case_id, files in _files_of_rater(rater, folder, known_cases).items():
            for file in files:
                found.setdefault(case_id, {}).setdefault(file.label, []).append(file)
    wanted = labels or sorted(
        {1 if label is None else label for by_label in found.values() for label in by_label}
    )
    order = {rater: place for place, rater in enumerate(names)}
    cases = {}
    for case_id, by_label in sorted(found.items()):
        files_of = {
            label: tuple(
                sorted(
                    [*by_label.get(label, []), *by_label.get(None, [])], key=lambda file: order[file.rater]
                )
            )
            for label in wanted
        }
        cases[case_id] = {label: files for label, files in files_of.items() if files}
    cases = {case_id: files for case_id, files in cases.items() if files}
    _check_some_match(cases, found, names, wanted)
    return cases


def _files_of_rater(
    rater: str, folder: Path, known_cases: Collection[str] | None
) -> dict[str, list[RaterFile]]:
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{printable(folder)}: cannot be listed: {error.strerror or error}") from error
    images = [path for path in paths if is_nifti(path.name)]
    if not images:
        others = examples([printable(path.name) for path in paths]) or "nothing"
        raise UserError(
            f"{printable(folder)}: expected <case>.nii.gz or <case>_<label, 4 digits>.nii.gz, found "
            f"{others}: give the folder that holds one rater's files"
        )
    files: dict[str, list[RaterFile]] = {}
    for path in images:
        case_id, label = case_and_label(path, known_cases or ())
        file = RaterFile(rater, path, label, f"{rater}/{printable(path.name)}")
        same_case = files.setdefault(case_id, [])
        for other in same_case:
            if other.label == label or None in (other.label, label):
                raise UserError(
                    f"{file.shown}: expected one file per rater, case and label, found "
                    f"{printable(other.path.name)}, too: remove one"
                )
        same_case.append(file)
    return files


def _check_some_match(
    cases: Mapping[str, CaseFiles],
    found: Mapping[str, Mapping[int | None, Sequence[RaterFile]]],
    raters: Sequence[str],
    labels: Sequence[int],
) -> None:
    if any(len(files) > 1 for by_label in cases.values() for files in by_label.values()):
        return
    of_rater: dict[str, list[str]] = {rater: [] for rater in raters}
    for case_id, by_label in sorted(found.items()):
        for rater in {file.rater for files in by_label.values() for file in files}:
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
    raise_first_error(dataclasses.replace(finding, file=file.shown) for finding in file_findings(file.path))
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
