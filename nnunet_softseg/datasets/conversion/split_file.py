"""A split that somebody has made: which subjects train, validate and test, read from a file."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_softseg.datasets.conversion.list_file import YAML_ENDINGS, all_values, load_structure, load_table
from nnunet_softseg.datasets.subject_split import PARTS, SubjectLists
from nnunet_softseg.errors import UserError

_PART_OF_NAME = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
_OF_MANIFEST = "split"
_ENTRY = re.compile(r"^(?:.*/)?(?:sub-)?(?P<label>[A-Za-z0-9]+)(?:[_.].*)?$")
_NO_PART = ("", "n/a")
_FORMATS = (
    'JSON or YAML like {"train": ["sub-01"], "val": ["sub-02"], "test": ["sub-03"]}, a conversion.json, or a '
    "participants.tsv with a column split"
)


def read_split_file(file: Path) -> SubjectLists:
    """Return the subjects of each part, as `sub-<label>`.

    Entries may be subjects, with or without `sub-`, or names of their images, as ivadomed lists them.

    Args:
        file: JSON or YAML with the keys train, val (validation, valid) and test; a conversion.json; or a
            participants.tsv with a column `split`.

    Raises:
        UserError: if it is none of these, or puts one subject into two parts.
    """
    entries = _table_entries(file) if file.suffix.lower() == ".tsv" else _structure_entries(file)
    parts = {part: _subjects(file, entries.get(part, ())) for part in PARTS}
    _check_apart(file, parts)
    if not any(parts.values()):
        raise UserError(f"{file}: expected a split, {_FORMATS}; found no subject in it: rewrite it")
    return SubjectLists(**parts)


def _table_entries(file: Path) -> dict[str, list[str]]:
    entries: dict[str, list[str]] = {}
    for row in load_table(file):
        if "participant_id" not in row or "split" not in row:
            raise UserError(
                f"{file}: expected columns participant_id and split, found {', '.join(row)}: add them, or "
                "give JSON or YAML"
            )
        if row["split"].strip() not in _NO_PART:
            entries.setdefault(_part(file, row["split"].strip()), []).append(row["participant_id"])
    return entries


def _structure_entries(file: Path) -> dict[str, list[str]]:
    if file.suffix.lower() not in (".json", *YAML_ENDINGS):
        raise UserError(f"{file}: expected a split, {_FORMATS}; found another ending")
    content: Any = load_structure(file)
    if isinstance(content, Mapping) and isinstance(content.get(_OF_MANIFEST), Mapping):
        content = content[_OF_MANIFEST]
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: expected a split, {_FORMATS}; found a {type(content).__name__}: rewrite it")
    entries: dict[str, list[str]] = {}
    for name, values in content.items():
        entries.setdefault(_part(file, str(name)), []).extend(all_values(values))
    return entries


def _part(file: Path, name: str) -> str:
    if name.lower() not in _PART_OF_NAME:
        raise UserError(f"{file}: expected train, val and test, found {name!r}: rename it")
    return _PART_OF_NAME[name.lower()]


def _subjects(file: Path, entries: Iterable[str]) -> tuple[str, ...]:
    subjects = set()
    for entry in entries:
        match = _ENTRY.match(entry.strip())
        if match is None:
            raise UserError(f"{file}: expected subjects like sub-01, found {entry!r}: correct it")
        subjects.add(f"sub-{match['label']}")
    return tuple(sorted(subjects))


def _check_apart(file: Path, parts: Mapping[str, tuple[str, ...]]) -> None:
    places: dict[str, list[str]] = {}
    for part, subjects in parts.items():
        for subject in subjects:
            places.setdefault(subject, []).append(part)
    shared = [subject for subject, found in places.items() if len(found) > 1]
    if shared:
        more = f" ({len(shared)} subjects are in two parts)" if len(shared) > 1 else ""
        raise UserError(
            f"{file}: expected each subject in one part, found {shared[0]} in "
            f"{' and '.join(places[shared[0]])}{more}: take it out of all but one"
        )
