"""Which file is whose: single files, or a folder per rater; and what one of them says about a label.

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
import numpy.typing as npt

from nnunet_softseg.errors import Finding, UserError, examples, raise_first_error
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.map_kind import content_findings
from nnunet_softseg.io.nifti import (
    NIFTI_ENDINGS,
    file_findings,
    load_nifti,
    stored_values,
    without_nifti_ending,
)
from nnunet_softseg.io.same_grid import affine_findings, shape_findings

_MASK_VALUE = 255
_IMAGE_ENDINGS = tuple(f"_0000{ending}" for ending in NIFTI_ENDINGS)

Values = npt.NDArray[np.float32]


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
    images = [path for path in paths if path.name.endswith(NIFTI_ENDINGS)]
    if not images:
        others = examples([printable(path.name) for path in paths]) or "nothing"
        raise UserError(
            f"{printable(folder)}: expected <case>.nii.gz or <case>_<label, 4 digits>.nii.gz, found "
            f"{others}: give the folder that holds one rater's files"
        )
    files: dict[str, list[RaterFile]] = {}
    for path in images:
        case_id, label = _case_and_label(path, rater, known_cases)
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


def _case_and_label(path: Path, rater: str, known_cases: Collection[str] | None) -> tuple[str, int | None]:
    stem = without_nifti_ending(path.name)
    if known_cases is not None and stem in known_cases:
        return stem, None
    parsed = parse_numbered_name(path.name)
    if parsed is None:
        return stem, None
    if path.name.endswith(_IMAGE_ENDINGS):
        raise UserError(
            f"{rater}/{printable(path.name)}: named like an image channel: expected <case>.nii.gz or "
            f"<case>_<label, 4 digits>.nii.gz, found label 0000: rename it to {printable(parsed[0])}.nii.gz"
        )
    return parsed


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
    """What a rater's file holds.

    Attributes:
        values: (x, y, z), as they are.
        labels: those in it, without 0, if it can be a label map by its name and its values; else None.
    """

    values: Values
    labels: frozenset[int] | None


def read_content(file: RaterFile) -> Content:
    """Return what a rater's file holds.

    Raises:
        UserError: for a file that cannot be read, is not three-dimensional, or holds no numbers.
    """
    raise_first_error(_renamed(file_findings(file.path), file.shown))
    _check_numbers(file)
    values = stored_values(file.path)
    if file.label is not None or not _are_labels(values):
        return Content(values, None)
    return Content(values, frozenset(int(value) for value in np.unique(values) if value))


def _are_labels(values: Values) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all() and (values == np.round(values)).all())


def rater_map(file: RaterFile, content: Content, label: int | None) -> Values:
    """Return one rater's mask or soft map of a label, in [0, 1].

    Args:
        file: of the rater.
        content: of the file.
        label: its value in label maps; None: the file is no label map, its values are the fractions.

    Raises:
        UserError: if the values are neither labels nor fractions.
    """
    if label is not None and content.labels is not None:
        if content.labels == {_MASK_VALUE} and label != _MASK_VALUE:
            remedy = f"divide it by {_MASK_VALUE}, or give --labels {_MASK_VALUE}"
            what, expected = f"label {label} is not in it", f"values 0 and {label}"
            found = f"0 and {_MASK_VALUE}"
            raise_first_error([Finding(file.shown, what, expected, found, remedy)])
        mask: Values = (content.values == label).astype(np.float32)
        return mask
    findings = _renamed(content_findings(file.path, content.values), file.shown)
    if content.labels is not None and len(content.labels) > 1:
        labels = examples([str(value) for value in sorted(content.labels)])
        remedy = f"if this is a label map, choose a label with --label ({labels})"
        findings = [dataclasses.replace(finding, remedy=remedy) for finding in findings]
    raise_first_error(findings)
    clipped: Values = np.clip(content.values, 0, 1)
    return clipped


def _check_numbers(file: RaterFile) -> None:
    dtype = load_nifti(file.path).get_data_dtype()
    if dtype.kind not in "biuf":
        remedy = "write it as integers or floats"
        raise UserError(
            str(Finding(file.shown, "voxels are not numbers", "integers or floats", str(dtype), remedy))
        )


def grid_findings(file: RaterFile, reference: Path, shown: str) -> list[Finding]:
    """Say whether a rater's file lies on the grid of another file, naming both.

    Args:
        file: of the rater, readable.
        reference: the image, or the file of the first rater.
        shown: the reference, as messages show it.
    """
    expected, found = load_nifti(reference), load_nifti(file.path)
    findings = shape_findings(file.path, expected.shape, found.shape) or affine_findings(
        file.path, expected.affine, found.affine
    )
    return [
        dataclasses.replace(
            finding, file=file.shown, what=finding.what.replace("that of the image", f"that of {shown}")
        )
        for finding in findings
    ]


def _renamed(findings: Sequence[Finding], name: str) -> list[Finding]:
    return [dataclasses.replace(finding, file=name) for finding in findings]
