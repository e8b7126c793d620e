"""Files of each rater, case and label: label maps (integers), or masks or soft maps (in [0, 1]) of one label.

In folders, `<case>.nii.gz` is either, by its content, and `<case>_<label, 4 digits>.nii.gz` the latter.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunet_softseg.errors import Finding, UserError, examples, printable, raise_first_error
from nnunet_softseg.io.case_files import case_and_label, list_files, numbers_are_labels, parse_numbered_name
from nnunet_softseg.io.nifti import (
    FULL_SCALES,
    MapContent,
    MapKind,
    Values,
    as_fractions,
    classify,
    content_findings,
    file_findings,
    label_findings,
    mask_of_label,
    not_finite,
    stored_values,
)


@dataclass(frozen=True)
class RaterFile:
    """One file of one rater, with the label that its name carries (None: the content tells)."""

    rater: str
    path: Path
    label: int | None
    shown: str


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
    for other, path in itertools.combinations(paths, 2):
        if path.samefile(other):
            raise UserError(
                f"{printable(path)} is given twice (also as {printable(other)}): expected each "
                "rater once: leave one out, or use --weights"
            )


def find_cases(
    folders: Sequence[Path], labels: Sequence[int] | None, known_cases: Collection[str] | None
) -> dict[str, dict[int, tuple[RaterFile, ...]]]:
    """Return case -> label -> files, a folder per rater, sorted by case; known cases: see `case_and_label`.

    Without labels: those in file names, and 1 for files that carry none. A UserError if a folder has no NIfTI
    file, names are ambiguous, or no case is in two folders.
    """
    raters = rater_names(folders)
    found: dict[str, list[RaterFile]] = defaultdict(list)
    files_of = {rater: _list_rater(folder) for rater, folder in zip(raters, folders, strict=True)}
    every_file = [file for paths in files_of.values() for file in paths]
    is_numbered = True if known_cases is not None else numbers_are_labels(every_file)
    if is_numbered is None:
        numbered = examples([file.name for file in every_file if parse_numbered_name(file.name)])
        raise UserError(
            f"{printable(folders[0])}: expected to know whether four digits at the end of a name are a "
            f"label, found {printable(numbered)}: give --images, whose names <case>_0000 tell the cases"
        )
    for rater, paths in files_of.items():
        for case_id, of_case in _files_of_rater(rater, paths, known_cases or (), is_numbered).items():
            found[case_id] += of_case
    named = {1 if file.label is None else file.label for files in found.values() for file in files}
    wanted = labels or sorted(named)
    cases = {}
    for case_id, files in sorted(found.items()):
        by_label = {label: tuple(file for file in files if file.label in (label, None)) for label in wanted}
        if any(by_label.values()):
            cases[case_id] = {label: of_label for label, of_label in by_label.items() if of_label}
    _check_some_match(cases, found, raters, wanted)
    return cases


def _list_rater(folder: Path) -> tuple[Path, ...]:
    expected = "<case>.nii.gz or <case>_<label, 4 digits>.nii.gz"
    remedy = "give the folder that holds one rater's files"
    return list_files(folder, subfolders=False, expected=expected, remedy=remedy).files


def _files_of_rater(
    rater: str, files: Iterable[Path], known_cases: Collection[str], by_label: bool
) -> dict[str, list[RaterFile]]:
    """Return case -> files of one rater."""
    of_case: dict[str, list[RaterFile]] = defaultdict(list)
    for path in files:
        case_id, label = case_and_label(path, known_cases, numbered_by_label=by_label)
        file = RaterFile(rater, path, label, f"{rater}/{printable(path.name)}")
        for other in of_case[case_id]:
            if other.label == label or None in (other.label, label):
                raise UserError(
                    f"{file.shown}: expected one file per rater, case and label, found "
                    f"{printable(other.path.name)}, too: remove one"
                )
        of_case[case_id].append(file)
    return of_case


def _check_some_match(
    cases: Mapping[str, Mapping[int, Sequence[RaterFile]]],
    found: Mapping[str, Sequence[RaterFile]],
    raters: Sequence[str],
    labels: Sequence[int],
) -> None:
    if any(len(files) > 1 for by_label in cases.values() for files in by_label.values()):
        return
    of_rater = {
        rater: [printable(case) for case in sorted(found) if any(file.rater == rater for file in found[case])]
        for rater in raters
    }
    has = "; ".join(f"{rater} has {examples(case_ids)}" for rater, case_ids in of_rater.items())
    raise UserError(
        f"no case in two folders, label {examples([str(label) for label in labels])}: expected the same case "
        f"ids in all folders, found: {has}: rename the files to <case>.nii.gz, or look at --labels"
    )


class Content(NamedTuple):
    """Values (x, y, z) of a rater's file, finite, and their meaning."""

    values: Values
    meaning: MapContent


def read_content(file: RaterFile) -> Content:
    """Return the content of a rater's file; raise a UserError unless it holds numbers in three dimensions."""
    raise_first_error(file_findings(file.path, file.shown))
    values = stored_values(file.path)
    if not np.isfinite(values).all():
        raise_first_error([not_finite(file.shown, values)])
    return Content(values, classify(values))


def rater_map(
    file: RaterFile, content: Content, label: int | None, wanted: Sequence[int] | None
) -> tuple[Values, list[str]]:
    """Return one rater's mask or soft map, in [0, 1], of a label, and what is odd about it.

    A label of None: the file holds the fractions. `wanted` are the labels that the user asks for; None:
    nobody did. A UserError if the values are neither labels nor fractions, or fractions of who knows which
    label.
    """
    values, meaning = content
    is_own = label is None or file.label is not None
    is_only = label == 1 if wanted is None else len(wanted) == 1 and meaning.kind is MapKind.SOFT
    if meaning.is_fraction and (is_own or is_only):
        return as_fractions(values, meaning), []
    findings: list[Finding] = []
    if meaning.kind is MapKind.SOFT:
        what, expected = "holds fractions, of which label is not known", "a label map of whole numbers"
        remedy = "write one file per label, <case>_<label, 4 digits>.nii.gz"
        raise UserError(str(Finding(file.shown, what, expected, meaning.found, remedy)))
    if is_own or label is None or (wanted is None and meaning.is_scaled):
        choose = "" if file.label is not None else "--label"
        raise_first_error(content_findings(file.shown, values, choose, content=meaning))
    elif meaning.kind is MapKind.OTHER_MASK and _is_habit(meaning, wanted):
        what, expected = f"label {label} is not in it", f"values 0 and {label}"
        remedy = meaning.remedy()
        if round(meaning.high) not in FULL_SCALES.values():
            remedy += f"; or, if {meaning.high:.0f} is another label, say which to fuse (--labels {label})"
        raise UserError(str(Finding(file.shown, what, expected, meaning.found, remedy)))
    else:
        findings = label_findings(file.shown, meaning, label)
        raise_first_error(findings)
    return mask_of_label(values, label or 1), [str(finding) for finding in findings]


def _is_habit(meaning: MapContent, wanted: Sequence[int] | None) -> bool:
    """Return whether the one value of a mask is how a rater writes masks, and no label.

    Where labels are asked for, a label map may lack all but another one in a case; 100 and 255 are no labels.
    """
    value = round(meaning.high)
    return value not in (wanted or (1,)) and (wanted is None or value in FULL_SCALES.values())
