"""Train, validation and test subjects, drawn or read from a file: all images of a subject in one part."""

import csv
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_softseg.datasets.conversion.sources import SourceCase, Sources
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.image_choice import YAML_ENDINGS, all_values, load_structure, load_text

FOLDS = 5
PARTS = ("train", "validation", "test")
NOT_IN_SPLIT = "not in the split"
_DEFAULT_SHARE = 0.2
_ENOUGH_FOR_TEST = 3
_PART_OF_NAME = {part: part for part in PARTS} | {
    "training": "train",
    "val": "validation",
    "valid": "validation",
}
_OF_MANIFEST = "split"
_ENTRY = re.compile(r"^(?:.*/)?(?:sub-)?(?P<label>[A-Za-z0-9]+)(?:[_.].*)?$")
_NO_PART = ("", "n/a")
_FORMATS = (
    'JSON or YAML like {"train": ["sub-01"], "val": ["sub-02"], "test": ["sub-03"]}, a conversion.json, or a '
    "participants.tsv with a column split"
)


@dataclass(frozen=True)
class Split:
    """Subjects by part, each in one part only."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    @property
    def subjects(self) -> frozenset[str]:
        """The subjects of all parts."""
        return frozenset((*self.train, *self.validation, *self.test))

    @property
    def test_only(self) -> bool:
        """Whether it names test subjects only, so that the others are to be drawn."""
        return not self.train and not self.validation

    def part_of(self, subject: str) -> str:
        """Return "train", "validation" or "test"."""
        return next(part for part in PARTS if subject in getattr(self, part))


def split_subjects(
    subjects: Iterable[str],
    lists: Split | None = None,
    *,
    num_test: int | None = None,
    num_validation: int | None = None,
    seed: int = 0,
) -> Split:
    """Return a split of the subjects, as given, or drawn at random: by default 60 / 20 / 20 percent.

    Args:
        subjects: names, in any order, repeated or not.
        lists: a given split; a subject that it does not name is in no part, unless it names test subjects
            only: then those who train and validate are drawn from the others. None: all are drawn.
        num_test: of a drawn part; None takes a fifth, at least one of three or more subjects.
        num_validation: of a drawn part; None takes a fifth, at least one.
        seed: of the draw.

    Raises:
        UserError: if not one subject is left to train on, or none to validate on.
    """
    names = sorted(set(subjects))
    fifth = round(_DEFAULT_SHARE * len(names))
    validation = max(fifth, 1) if num_validation is None else num_validation
    if lists is None:
        number = max(fifth, int(len(names) >= _ENOUGH_FOR_TEST)) if num_test is None else num_test
        _check_numbers(len(names), number, validation)
        drawn = _shuffled(names, seed)
        test, others = drawn[:number], drawn[number:]
    else:
        given = Split(*(tuple(name for name in names if name in getattr(lists, part)) for part in PARTS))
        if not lists.test_only:
            _check_numbers(len(given.subjects), len(given.test), len(given.validation))
            return given
        _check_numbers(len(names), len(given.test), validation)
        test, others = list(given.test), _shuffled([name for name in names if name not in lists.test], seed)
    train, validating = others[validation:], others[:validation]
    return Split(tuple(sorted(train)), tuple(sorted(validating)), tuple(sorted(test)))


def _shuffled(names: Sequence[str], seed: int) -> list[str]:
    if seed < 0:
        raise UserError(f"--seed {seed}: expected 0 or more: correct it")
    return [names[index] for index in np.random.default_rng(seed).permutation(len(names))]


def _check_numbers(count: int, test: int, validation: int) -> None:
    train = count - test - validation
    if test < 0 or validation < 1 or train < 1:
        raise UserError(
            f"{count} subjects cannot give {test} for testing, {validation} for validation and "
            f"{max(train, 0)} for training: expected at least 0, 1 and 1; choose other numbers"
        )


def make_folds(split: Split) -> list[dict[str, tuple[str, ...]]]:
    """Return the subjects, "train" and "val", of each of nnU-Net's five folds; the first is the split itself.

    The others move a window of as many subjects through all that are not for testing. All five are given
    because nnU-Net makes up a fold that it does not find, image by image, and so trains on the contrasts of
    subjects that it validates on.
    """
    circle = [*split.validation, *split.train]
    folds = []
    for fold in range(FOLDS):
        start = round(fold * len(circle) / FOLDS)
        window = {circle[(start + offset) % len(circle)] for offset in range(len(split.validation))}
        folds.append({"train": tuple(sorted(set(circle) - window)), "val": tuple(sorted(window))})
    return folds


def folds_of_cases(cases: Sequence[SourceCase], split: Split) -> list[dict[str, list[str]]]:
    """Return "train" and "val" of each of nnU-Net's folds as case ids; a subject is on one side only."""
    return [
        {
            side: [case.case_id for case in cases if case.subject in subjects]
            for side, subjects in fold.items()
        }
        for fold in make_folds(split)
    ]


def choose_split(
    sources: Sources,
    file: Path | None = None,
    *,
    num_test: int | None = None,
    num_validation: int | None = None,
    seed: int = 0,
) -> tuple[Split, Sources]:
    """Return the split of a file, or drawn without one, and the sources of the subjects that are in it.

    See `read_split_file` and `split_subjects`. A UserError if the file names unknown subjects, or one in two
    parts, or if no subject is left to train or to validate on.
    """
    subjects = {case.subject for case in sources.cases}
    if file is None:
        return split_subjects(subjects, num_test=num_test, num_validation=num_validation, seed=seed), sources
    lists = read_split_file(file)
    if num_test is not None or (num_validation is not None and not lists.test_only):
        raise UserError(f"expected either --split or numbers of subjects, got both: {file} says who is where")
    unknown = sorted(lists.subjects - sources.subjects)
    if unknown:
        raise UserError(
            f"{file}: expected subjects of {sources.bids}, found {len(unknown)} that are not there "
            f"({examples(unknown)}): correct or remove them"
        )
    split = split_subjects(subjects, lists, num_validation=num_validation, seed=seed)
    absent, surplus = sorted(lists.subjects - subjects), sorted(subjects - split.subjects)
    warnings, left_out = list(sources.warnings), dict(sources.left_out)
    if absent:
        warnings.append(
            f"{file}: {len(absent)} of {len(lists.subjects)} subjects have no image in this dataset "
            f"({examples(absent)})"
        )
    if surplus:
        warnings.append(
            f"{file} does not name {len(surplus)} of {len(subjects)} subjects ({examples(surplus)}): left out"
        )
        images = [case.image for case in sources.cases if case.subject in surplus]
        left_out[NOT_IN_SPLIT] = tuple(image.relative_to(sources.bids).as_posix() for image in images)
    cases = tuple(case for case in sources.cases if case.subject in split.subjects)
    return split, dataclasses.replace(sources, cases=cases, left_out=left_out, warnings=tuple(warnings))


def read_split_file(file: Path) -> Split:
    """Return the subjects of each part, as `sub-<label>`.

    The file is JSON or YAML with the keys train, val (validation, valid) and test; a conversion.json; or a
    participants.tsv with a column `split`; anything else, or a subject in two parts, raises a UserError.
    Entries may be subjects, with or without `sub-`, or names of their images, as ivadomed lists them.
    """
    entries = _table_entries(file) if file.suffix.lower() == ".tsv" else _structure_entries(file)
    parts: dict[str, tuple[str, ...]] = dict.fromkeys(PARTS, ())
    for name, values in entries:
        if name.lower() not in _PART_OF_NAME:
            raise UserError(f"{file}: expected train, val and test, found {name!r}: rename it")
        part = _PART_OF_NAME[name.lower()]
        parts[part] = tuple(sorted({*parts[part], *_subjects(file, values)}))
    split = Split(**parts)
    _check_apart(file, split)
    if not split.subjects:
        raise UserError(f"{file}: expected a split, {_FORMATS}; found no subject in it: rewrite it")
    return split


def _table_entries(file: Path) -> list[tuple[str, list[str]]]:
    """Return (name of the part, [subject]) of each row."""
    entries = []
    for row in csv.DictReader(load_text(file).splitlines(), delimiter="\t"):
        if "participant_id" not in row or "split" not in row:
            raise UserError(
                f"{file}: expected columns participant_id and split, found {', '.join(filter(None, row))}: "
                "add them, or give JSON or YAML"
            )
        part = (row["split"] or "").strip()
        if part not in _NO_PART:
            entries.append((part, [row["participant_id"] or ""]))
    return entries


def _structure_entries(file: Path) -> list[tuple[str, list[str]]]:
    """Return (name of the part, subjects) of each key."""
    if file.suffix.lower() not in (".json", *YAML_ENDINGS):
        raise UserError(f"{file}: expected a split, {_FORMATS}; found another ending")
    content: Any = load_structure(file)
    if isinstance(content, Mapping) and isinstance(content.get(_OF_MANIFEST), Mapping):
        content = content[_OF_MANIFEST]
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: expected a split, {_FORMATS}; found a {type(content).__name__}: rewrite it")
    return [(str(name), all_values(values)) for name, values in content.items()]


def _subjects(file: Path, entries: Iterable[str]) -> set[str]:
    subjects = set()
    for entry in entries:
        match = _ENTRY.match(entry.strip())
        if match is None:
            raise UserError(f"{file}: expected subjects like sub-01, found {entry!r}: correct it")
        subjects.add(f"sub-{match['label']}")
    return subjects


def _check_apart(file: Path, split: Split) -> None:
    """Raise a UserError if a subject is in two parts."""
    count = Counter((*split.train, *split.validation, *split.test))
    shared = [subject for subject in count if count[subject] > 1]
    if shared:
        found = " and ".join(part for part in PARTS if shared[0] in getattr(split, part))
        more = f" ({len(shared)} subjects are in two parts)" if len(shared) > 1 else ""
        raise UserError(
            f"{file}: expected each subject in one part, found {shared[0]} in {found}{more}: "
            "take it out of all but one"
        )
