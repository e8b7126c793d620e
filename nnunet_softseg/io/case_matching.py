"""Which file belongs to which case and label: never a guess between two.

References tell the cases; predictions are searched for them. Names are tried in the order of `_ways`, and the
first way that finds anything serves for all cases of a folder: soft maps and label maps are never mixed.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.case_files import (
    SOFT_FOLDER,
    Case,
    ImageFiles,
    case_and_label,
    derivative_stem,
    label_of_probability_map,
    longest_prefix,
    numbers_are_labels,
    parse_bids_name,
    parse_numbered_name,
    pattern_regex,
)
from nnunet_softseg.io.formats import NIFTI_ENDINGS, without_ending

_SEGMENTATION = re.compile(r"_(seg|mask|softseg|probseg)(-[A-Za-z0-9]+)?$")
_Wanted = tuple[str, int]  # case id and label
_Named = tuple[Path, tuple[str, int | None]]
"""A file with the case and label that its name says; None: of all labels, or its content tells which."""


@dataclass(frozen=True)
class Found:
    """The files of one folder that belong to the cases asked for, and the way they were found, in words.

    `missing` holds case -> why there is none; `num_unused` counts NIfTI files of no case, or not needed, and
    `of_no_case` names those that fit none.
    """

    paths: Mapping[_Wanted, Path]
    way: str
    missing: Mapping[str, str] = field(default_factory=dict)
    num_unused: int = 0
    of_no_case: tuple[Path, ...] = ()


class References(NamedTuple):
    """The reference of each case and label, the labels, and the way in which names were read, in words."""

    paths: dict[_Wanted, Path]
    labels: tuple[int, ...]
    way: str


def folder_of_maps(folder: Path) -> Path:
    """Return the folder of soft maps, `soft`, of a folder of predictions; else the folder itself."""
    soft = folder / SOFT_FOLDER
    is_prediction = soft.is_dir() and any(parse_numbered_name(file.name) for file in soft.iterdir())
    return soft if is_prediction else folder


def _group(named: Iterable[_Named]) -> dict[tuple[str, int | None], list[Path]]:
    """Return case and label -> the files whose names say so."""
    grouped: dict[tuple[str, int | None], list[Path]] = {}
    for file, key in named:
        grouped.setdefault(key, []).append(file)
    return grouped


def reference_files(
    images: ImageFiles, labels: Sequence[int] | None = None, pattern: str | None = None
) -> References:
    """Return the references.

    The images are soft labels `<case>_<label, 4 digits>`, or maps `<case>` with or without what a derivative
    adds; labels None takes all that the names tell, or 1. The pattern is a path inside the folder with
    `{case}`, perhaps `{label}` and `*`.

    Raise a UserError if there is no file, two belong to one case and label, or a label is missing.
    """
    soft = [
        file for file in images.files if file.parent.name == SOFT_FOLDER and parse_numbered_name(file.name)
    ]
    files = soft or images.files
    names, way = (
        (_matching(images, files, pattern), f"names that match {pattern}")
        if pattern
        else _reference_names(images, files)
    )
    named = _group(names)
    if not named:
        found = f"{len(images.files)} NIfTI files and {len(images.passed_over)} others"
        raise UserError(f"{images.root}: expected files that match {pattern}, found {found}: check the path")
    for (case_id, label), files in named.items():
        if len(files) > 1:
            which = f"case {case_id}" if label is None else f"case {case_id}, label {label}"
            raise _ambiguous(images, f"one reference of {which}", files, "--reference-pattern")
    told = sorted({label for _, label in named if label is not None})
    wanted = tuple(dict.fromkeys(labels)) if labels else tuple(told) or (1,)
    paths = {}
    for case_id in sorted({case_id for case_id, _ in named}):
        for label in wanted:
            found_files = named.get((case_id, label)) or named.get((case_id, None))
            if found_files is None:
                raise UserError(
                    f"{images.root}: expected a reference of case {case_id}, label {label}, found none: add "
                    "it (all zeros where the label is absent), or choose with --label; if case ids end in "
                    "four digits, give --reference-pattern '{case}.nii.gz'"
                )
            paths[case_id, label] = found_files[0]
    return References(paths, wanted, way)


def _reference_names(images: ImageFiles, files: Sequence[Path]) -> tuple[Iterator[_Named], str]:
    """Return the files with what their names say, and how names were read."""
    by_label = numbers_are_labels(files)
    numbered = [file for file in files if parse_numbered_name(file.name)]
    ending = numbered[0].name[len(without_ending(numbered[0].name)) :] if numbered else ""
    if by_label is None:
        raise UserError(
            f"{images.root}: expected to know whether four digits at the end of a name are a label, found "
            f"{len(numbered)} files such as {examples([file.name for file in numbered])}: give "
            f"--reference-pattern '{{case}}{ending}' if each is a case, '{{case}}_{{label}}{ending}' if not"
        )
    ways = [f"<case>_<label, 4 digits>{ending}", f"<case>{ending}"]
    other = "{case}" if by_label else "{case}_{label}"
    way = f"names read as {ways[not by_label]}; if that is wrong: --reference-pattern '{other}{ending}'"
    return _named_by(files, by_label), way if numbered else "names read as <case>"


def _named_by(files: Iterable[Path], by_label: bool) -> Iterator[_Named]:
    for file in files:
        case_id, label = case_and_label(file, numbered_by_label=by_label)
        yield file, (case_id if label else derivative_stem(case_id), label)


def _matching(images: ImageFiles, files: Iterable[Path], pattern: str) -> Iterator[_Named]:
    for file in files:
        if match := pattern_regex(pattern, {}).match(_held_against(images, file, pattern)):
            told = match.groupdict().get("label")
            yield file, (match["case"], int(told) if told else None)


def _ambiguous(images: ImageFiles, expected: str, files: Sequence[Path], option: str) -> UserError:
    listed = examples([images.relative(file) for file in files], 4)
    return UserError(
        f"{images.root}: expected {expected}, found {len(files)}: {listed}: choose with {option}, such as "
        "'{case}_seg.nii.gz'"
    )


# Predictions: the cases are known


def prediction_files(
    images: ImageFiles, cases: Sequence[Case], labels: Sequence[int], pattern: str | None = None
) -> Found:
    """Return the files of a method that belong to the cases.

    Cases and labels are those of the references. With a pattern, a path inside the folder with `{case}` (or
    `{subject}`, `{contrast}`), perhaps `{label}` and `*`, no other way is tried. Raise a UserError
    if two files could be the one of a case.
    """
    if images.is_one_file and len(cases) == 1 and not pattern:
        return Found({(cases[0].case_id, label): images.root for label in labels}, "the one file given")
    if pattern and (by_pattern := _group(_by_pattern(images, cases, labels, pattern))):
        return _unambiguous(images, by_pattern, cases, labels, f"file names that match {pattern}")
    for words, files in () if pattern else _ways(images, cases):
        named = _group(files)
        if any((case.case_id, label) in named for case in cases for label in (*labels, None)):
            return _unambiguous(images, named, cases, labels, words)
    return _unambiguous(images, {}, cases, labels, "nothing found")


def _unambiguous(
    images: ImageFiles,
    named: Mapping[tuple[str, int | None], list[Path]],
    cases: Sequence[Case],
    labels: Sequence[int],
    way: str,
) -> Found:
    paths: dict[_Wanted, Path] = {}
    missing = {}
    for case in cases:
        files = {
            label: named.get((case.case_id, label)) or named.get((case.case_id, None), []) for label in labels
        }
        for label, candidates in files.items():
            if len(candidates) > 1:
                expected = f"one file of case {case.case_id}, label {label}"
                raise _ambiguous(images, expected, candidates, "--pattern")
        lacking = [str(label) for label, candidates in files.items() if not candidates]
        if not lacking:
            paths |= {(case.case_id, label): candidates[0] for label, candidates in files.items()}
        else:
            which = "" if len(lacking) == len(labels) else f" with label {examples(lacking)}"
            among = way if named else f"among {len(images.files)} images"
            missing[case.case_id] = f"no file{which} of this case ({among})"
    unused, case_ids = set(images.files) - set(paths.values()), {case.case_id for case in cases}
    stems = {file: without_ending(file.name) for file in sorted(unused)}
    of_no_case = tuple(file for file, stem in stems.items() if not _is_of_case(stem, case_ids))
    return Found(paths, way, missing, len(unused), of_no_case)


def _is_of_case(stem: str, case_ids: Collection[str]) -> bool:
    numbered = parse_numbered_name(f"{stem}{NIFTI_ENDINGS[0]}")
    return longest_prefix(numbered[0] if numbered and stem not in case_ids else stem, case_ids) is not None


def _ways(images: ImageFiles, cases: Sequence[Case]) -> Iterator[tuple[str, Iterable[_Named]]]:
    """Yield the ways in which file names tell cases, in words and as files, the most certain first."""
    numbered = {file: parsed for file in images.files if (parsed := parse_numbered_name(file.name))}
    soft = {file: parsed for file, parsed in numbered.items() if file.parent.name == SOFT_FOLDER}
    yield f"soft maps {SOFT_FOLDER}/<case>_<label>.nii.gz", soft.items()
    yield "soft maps <case>_label-<name>_probseg.nii.gz of BIDS", list(_probability_maps(images))
    yield "maps <case>_<label>.nii.gz", numbered.items()
    stems = {file: without_ending(file.name) for file in images.files}
    yield "maps <case>.nii.gz", ((file, (stem, None)) for file, stem in stems.items())
    case_ids = {case.case_id for case in cases}
    owners = {file: longest_prefix(stem, case_ids) for file, stem in stems.items() if file not in numbered}
    by_prefix = ((file, (owner, None)) for file, owner in owners.items() if owner and owner != stems[file])
    yield "maps <case>_<anything>.nii.gz", by_prefix
    by_name = _by_bids_name(images, cases)
    yield "maps with subject, session and contrast of the case in their BIDS name", by_name


def _probability_maps(images: ImageFiles) -> Iterator[_Named]:
    """Yield the soft maps of a folder of BIDS derivatives, whose label maps (dseg) lie beside them.

    dseg.tsv tells the value of a label's name; without it, there is one label.
    """
    values = {re.sub(r"\W|_", "", name): value for name, value in _values_of_names(images.root).items()}
    for file in images.files:
        if label := label_of_probability_map(file.name):
            yield file, (derivative_stem(without_ending(file.name)), values.get(label))


def _values_of_names(derivatives: Path) -> dict[str, int]:
    """Return name -> value of the labels in dseg.tsv of a folder of derivatives; none without it."""
    try:
        lines = (derivatives / "dseg.tsv").read_text("utf-8").splitlines()[1:]
        return {name: int(value) for value, name in (line.split("\t")[:2] for line in lines)}
    except (OSError, ValueError):
        return {}


def _by_bids_name(images: ImageFiles, cases: Sequence[Case]) -> Iterator[_Named]:
    """Yield the files whose BIDS names tell subject, session and contrast of a case, and no other run."""
    by_key: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        by_key.setdefault(case.key, []).append(case)
    for file in images.files:
        name = parse_bids_name(f"{derivative_stem(without_ending(file.name))}.nii.gz")
        if name is None:
            continue
        for owner in by_key.get((name.subject, name.session or "", name.contrast), []):
            both = name.entities.keys() & owner.entities.keys()
            if all(name.entities[key].lstrip("0") == owner.entities[key].lstrip("0") for key in both):
                yield file, (owner.case_id, None)


def _by_pattern(
    images: ImageFiles, cases: Sequence[Case], labels: Sequence[int], pattern: str
) -> Iterator[_Named]:
    names = [(file, _held_against(images, file, pattern)) for file in images.files]
    for case in cases:
        told = {"case": case.case_id, "subject": case.subject, "session": case.session}
        for label in labels:
            regex = pattern_regex(pattern, {**told, "contrast": case.contrast, "label": str(label)})
            yield from ((file, (case.case_id, label)) for file, name in names if regex.match(name))


def _held_against(images: ImageFiles, file: Path, pattern: str) -> str:
    """Return the path inside the folder, or the name alone if the pattern has no slash."""
    return images.relative(file) if "/" in pattern else file.name


# Companions: level, disc or other images of a map


def companion_files(
    images: ImageFiles,
    stems: Mapping[str, Sequence[str]],
    kind: str,
    *,
    cases: Sequence[Case] = (),
    not_these: Collection[Path] = (),
) -> dict[str, Path]:
    """Return the level, disc or other image of each case that has one.

    It has a stem of the case as its name, or begins with it and goes on with `_`, and with no longer stem of
    another case. Of several, the one with `kind` in its name counts, then the one with the stem as its name.
    A segmentation (`_seg`, `_mask`, ...) is none unless it has `kind` in its name.

    A single file serves all cases. `stems` holds the names to try, in this order; `kind` is "level", "disc"
    or "image"; `cases` may be told by subject, session and contrast in a BIDS name, if no stem fits;
    `not_these` are no companions, as the maps themselves. Two files for a case raise a UserError.
    """
    if images.is_one_file:
        return dict.fromkeys(stems, images.root)
    left_out = {file.resolve() for file in not_these}
    listed = tuple(
        file
        for file in images.files
        if file.resolve() not in left_out
        and (kind in file.name.lower() or not _SEGMENTATION.search(without_ending(file.name)))
    )
    every_stem = {stem for of_case in stems.values() for stem in of_case}
    owners = ((file, longest_prefix(without_ending(file.name), every_stem)) for file in listed)
    by_stem = _group((file, (owner, None)) for file, owner in owners if owner)
    by_bids = _group(_by_bids_name(replace(images, files=listed), cases))
    found = {}
    for case, of_case in stems.items():
        named = [*(by_stem.get((stem, None), []) for stem in of_case), by_bids.get((case, None), [])]
        same = [[file for file in files if without_ending(file.name) in of_case] for files in named]
        of_kind = [[file for file in files if kind in file.name.lower()] for files in named]
        candidates = next(filter(None, (*of_kind, *same, *named)), [])
        if len(candidates) > 1:
            names = examples([images.relative(file) for file in candidates])
            raise UserError(
                f"{images.root}: expected one {kind} image of {case}, found {len(candidates)}: {names}: "
                f"rename all but one, or give one {kind} image per map in the same order"
            )
        if candidates:
            found[case] = candidates[0]
    return found
