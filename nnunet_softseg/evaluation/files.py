"""Which file of a folder belongs to which case: never a guess between two.

A reference folder tells the cases; the other folders are searched for them. Names are tried in the order of
`_WAYS`, and the first way that finds anything serves for all cases of a folder: soft maps and label maps are
never mixed.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.evaluation.cases import Case, derivative_stem
from nnunet_softseg.io.bids import parse_bids_name
from nnunet_softseg.io.case_files import parse_numbered_name
from nnunet_softseg.io.nifti import NIFTI_ENDINGS, without_nifti_ending

SOFT_FOLDER = "soft"
REPORT = "softseg.json"
"""Folder and file that our trainers' predictions have (`export`, which needs torch to be imported)."""
_FIELDS = re.compile(r"\{(\w*)\}|(\*)")
_LABEL_SUFFIX = re.compile(r"_\d{4}$")

Wanted = tuple[str, int]
"""Case id and label."""


@dataclass(frozen=True)
class Images:
    """The NIfTI files under a folder.

    Attributes:
        root: the folder, or a single file.
        files: sorted; hidden ones are passed over.
        num_others: files that are no NIfTI.
    """

    root: Path
    files: tuple[Path, ...]
    num_others: int

    def relative(self, file: Path) -> str:
        """Return the path inside the folder."""
        return file.relative_to(self.root).as_posix() if file != self.root else file.name


@dataclass(frozen=True)
class Found:
    """The files of one folder that belong to the cases asked for.

    Attributes:
        paths: case and label -> file.
        way: how they were found, in words.
        missing: case -> why there is none.
        num_unused: NIfTI files that belong to no case, or were not needed.
    """

    paths: Mapping[Wanted, Path]
    way: str
    missing: Mapping[str, str] = field(default_factory=dict)
    num_unused: int = 0


def images_in(root: Path) -> Images:
    """Return the NIfTI files in a folder and its subfolders, or the one file.

    Raises:
        UserError: if there is nothing of that name, or a file that is no NIfTI.
    """
    if root.is_dir():
        files = [file for file in sorted(root.rglob("*")) if not _is_hidden(file, root) and not file.is_dir()]
        images = tuple(file for file in files if file.name.endswith(NIFTI_ENDINGS))
        return Images(root, images, len(files) - len(images))
    if not root.is_file():
        raise UserError(f"{root}: expected a folder with NIfTI files, found nothing: check the path")
    if not root.name.endswith(NIFTI_ENDINGS):
        raise UserError(f"{root}: expected a folder, or a file that ends in {' or '.join(NIFTI_ENDINGS)}")
    return Images(root, (root,), 0)


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


# References: the files tell the cases


def reference_files(
    images: Images, labels: Sequence[int] | None = None, pattern: str | None = None
) -> tuple[dict[Wanted, Path], tuple[int, ...]]:
    """Return the reference of each case and label, and the labels.

    Args:
        images: soft labels `<case>_<label, 4 digits>`, or maps `<case>` with or without what a derivative
            adds.
        labels: those to take; None takes all that the names tell, or 1.
        pattern: path inside the folder with `{case}`, perhaps `{label}` and `*`.

    Raises:
        UserError: if there is no file, two belong to one case and label, or a label is missing.
    """
    named = defaultdict(list)
    for file in _soft_first(images.files):
        case_and_label = _reference_name(images, file, pattern)
        if case_and_label:
            named[case_and_label].append(file)
    if not named:
        _refuse_empty(images, pattern)
    for (case_id, label), files in named.items():
        if len(files) > 1:
            listed = examples([images.relative(file) for file in files])
            which = f"case {case_id}" if label is None else f"case {case_id}, label {label}"
            raise UserError(
                f"{images.root}: expected one reference of {which}, found {len(files)}: {listed}: choose "
                "with "
                "--reference-pattern, such as '{case}_seg-manual.nii.gz'"
            )
    return _by_label({key: files[0] for key, files in named.items()}, labels, images.root)


def _soft_first(files: Sequence[Path]) -> Sequence[Path]:
    """Return the soft maps of a prediction if there are any, else all files."""
    soft = [file for file in files if file.parent.name == SOFT_FOLDER and parse_numbered_name(file.name)]
    return soft or files


def _reference_name(images: Images, file: Path, pattern: str | None) -> tuple[str, int | None] | None:
    if pattern is not None:
        match = _pattern_regex(pattern, {}).match(_subject_of_pattern(images, file, pattern))
        if match is None:
            return None
        label = match.groupdict().get("label")
        return match["case"], None if label is None else int(label)
    soft = parse_numbered_name(file.name)
    if soft and soft[1] == 0:
        raise UserError(
            f"{images.relative(file)}: expected reference labels, found an image's channel (_0000) in "
            f"{images.root}: "
            "give softLabelsTs or labelsTs, not imagesTs"
        )
    return soft or (derivative_stem(without_nifti_ending(file.name)), None)


def _refuse_empty(images: Images, pattern: str | None) -> None:
    wanted = f"files that match {pattern}" if pattern else "files that end in .nii.gz or .nii"
    raise UserError(
        f"{images.root}: expected {wanted}, found {len(images.files)} NIfTI files and {images.num_others} "
        "others: "
        "check the path"
    )


def _by_label(
    named: Mapping[tuple[str, int | None], Path], labels: Sequence[int] | None, root: Path
) -> tuple[dict[Wanted, Path], tuple[int, ...]]:
    told = sorted({label for _, label in named if label is not None})
    wanted = tuple(dict.fromkeys(labels)) if labels else tuple(told) or (1,)
    cases = sorted({case_id for case_id, _ in named})
    paths = {}
    for case_id in cases:
        for label in wanted:
            file = named.get((case_id, label)) or named.get((case_id, None))
            if file is None:
                raise UserError(
                    f"{root}: expected a reference of case {case_id}, label {label}, found none: add it "
                    "(all zeros "
                    "where the label is absent), or choose with --label"
                )
            paths[case_id, label] = file
    return paths, wanted


def label_names(reference: Path, labels: Iterable[int]) -> dict[int, str]:
    """Return value -> name, from dataset.json in or above the folder of references, else `label 1`."""
    names: dict[int, str] = {}
    for folder in (reference, reference.parent):
        try:
            described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
            names = {value: str(name) for name, value in described.items() if isinstance(value, int)}
            break
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue
    return {label: names.get(label, f"label {label}") for label in labels}


# Predictions: the cases are known


def prediction_files(
    images: Images, cases: Sequence[Case], labels: Sequence[int], pattern: str | None = None
) -> Found:
    """Return the files of a method that belong to the cases.

    Args:
        images: of the method's folder.
        cases: of the references.
        labels: of the references.
        pattern: path inside the folder with `{case}` (or `{subject}`, `{contrast}`), perhaps `{label}` and
            `*`; no other way is tried then.

    Raises:
        UserError: if two files could be the one of a case.
    """
    if images.files == (images.root,) and len(cases) == 1:
        return Found({(cases[0].case_id, label): images.root for label in labels}, "the one file given")
    wanted = [(case, label) for case in cases for label in labels]
    ways = [_Way("file names that match {pattern}", _by_pattern)] if pattern else _WAYS
    for way in ways:
        candidates = way.find(images, wanted, pattern or "")
        if any(candidates.values()):
            return _unambiguous(images, candidates, cases, way.words.replace("{pattern}", pattern or ""))
    reason = f"no file of this case among {len(images.files)} images"
    return Found({}, "nothing found", {case.case_id: reason for case in cases}, len(images.files))


Candidates = dict[Wanted, list[Path]]


@dataclass(frozen=True)
class _Way:
    words: str
    find: Callable[[Images, Sequence[tuple[Case, int]], str], Candidates]


def _unambiguous(images: Images, candidates: Candidates, cases: Sequence[Case], way: str) -> Found:
    for (case_id, label), files in candidates.items():
        if len(files) > 1:
            listed = examples([images.relative(file) for file in files], 4)
            raise UserError(
                f"{images.root}: expected one file of case {case_id}, label {label}, found {len(files)}: "
                f"{listed}: "
                "choose with --pattern, such as '{case}_seg.nii.gz'"
            )
    labels = {label for _, label in candidates}
    missing = {}
    for case in cases:
        lacking = [label for label in labels if not candidates[case.case_id, label]]
        if lacking:
            which = (
                "" if len(lacking) == len(labels) else f" with label {examples([str(x) for x in lacking])}"
            )
            missing[case.case_id] = f"no file{which} of this case ({way})"
    paths = {key: files[0] for key, files in candidates.items() if files and key[0] not in missing}
    return Found(paths, way, missing, len(images.files) - len(set(paths.values())))


def _with_label_in_name(files: Iterable[Path], wanted: Sequence[tuple[Case, int]]) -> Candidates:
    named = defaultdict(list)
    for file in files:
        parsed = parse_numbered_name(file.name)
        if parsed:
            named[parsed].append(file)
    return {(case.case_id, label): named.get((case.case_id, label), []) for case, label in wanted}


def _soft_maps(images: Images, wanted: Sequence[tuple[Case, int]], _: str) -> Candidates:
    return _with_label_in_name((file for file in images.files if file.parent.name == SOFT_FOLDER), wanted)


def _labelled(images: Images, wanted: Sequence[tuple[Case, int]], _: str) -> Candidates:
    return _with_label_in_name(images.files, wanted)


def _exact(images: Images, wanted: Sequence[tuple[Case, int]], _: str) -> Candidates:
    return _per_case({case.case_id for case, _ in wanted}, images.files, wanted, lambda stem, ids: stem)


def _by_prefix(images: Images, wanted: Sequence[tuple[Case, int]], _: str) -> Candidates:
    return _per_case({case.case_id for case, _ in wanted}, images.files, wanted, _longest_prefix)


def _by_bids(images: Images, wanted: Sequence[tuple[Case, int]], _: str) -> Candidates:
    by_key = {case.key: case.case_id for case, _ in wanted}
    return _per_case(set(), images.files, wanted, lambda stem, ids: by_key.get(_bids_key(stem), ""))


def _by_pattern(images: Images, wanted: Sequence[tuple[Case, int]], pattern: str) -> Candidates:
    names = [(file, _subject_of_pattern(images, file, pattern)) for file in images.files]
    found: Candidates = {}
    for case, label in wanted:
        values = {
            "case": case.case_id,
            "subject": case.subject,
            "session": case.session,
            "contrast": case.contrast,
            "label": f"{label:04d}",
        }
        regex = _pattern_regex(pattern, values)
        found[case.case_id, label] = [file for file, name in names if regex.match(name)]
    return found


def _per_case(
    case_ids: set[str],
    files: Iterable[Path],
    wanted: Sequence[tuple[Case, int]],
    owner: Callable[[str, set[str]], str],
) -> Candidates:
    named = defaultdict(list)
    for file in files:
        stem = without_nifti_ending(file.name)
        named[owner(stem, case_ids)].append(file)
    return {(case.case_id, label): named.get(case.case_id, []) for case, label in wanted}


def _longest_prefix(stem: str, case_ids: set[str]) -> str:
    """Return the longest case id that the stem begins with and goes on from with `_`, or ""."""
    if _LABEL_SUFFIX.search(stem):
        return ""
    parts = stem.split("_")
    shorter = ("_".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return next((name for name in shorter if name in case_ids), "")


def _bids_key(stem: str) -> tuple[str, str, str]:
    name = parse_bids_name(f"{derivative_stem(stem)}.nii.gz")
    return (name.subject, name.session or "", name.contrast) if name else ("", "", "")


_WAYS = (
    _Way(f"soft maps {SOFT_FOLDER}/<case>_<label>.nii.gz", _soft_maps),
    _Way("maps <case>_<label>.nii.gz", _labelled),
    _Way("maps <case>.nii.gz", _exact),
    _Way("maps <case>_<anything>.nii.gz", _by_prefix),
    _Way("maps with subject, session and contrast of the case in their BIDS name", _by_bids),
)


# Patterns


def check_pattern(pattern: str) -> str:
    """Return a pattern that names its case.

    Raises:
        UserError: if it has another field, or neither {case} nor {subject}.
    """
    fields = {match[1] for match in _FIELDS.finditer(pattern) if match[2] is None}
    known = {"case", "subject", "session", "contrast", "label"}
    if fields - known or not fields & {"case", "subject"}:
        raise UserError(
            f"pattern {pattern!r}: expected {{case}} in it, perhaps {{subject}}, {{session}}, {{contrast}}, "
            f"{{label}} "
            "and *, such as '{case}_seg.nii.gz'"
        )
    return pattern


def _pattern_regex(pattern: str, values: Mapping[str, str]) -> "re.Pattern[str]":
    """Return a pattern as a regular expression; fields without a value become groups."""
    groups = {"label": r"(?P<label>\d+)", "case": r"(?P<case>[^/]+)"}
    parts, end = [], 0
    for match in _FIELDS.finditer(pattern):
        parts.append(re.escape(pattern[end : match.start()]))
        name = match[1]
        if match[2]:
            parts.append("[^/]*")
        else:
            parts.append(re.escape(values[name]) if name in values else groups.get(name, "[^/]+"))
        end = match.end()
    return re.compile("".join([*parts, re.escape(pattern[end:])]) + r"\Z", re.DOTALL)


def _subject_of_pattern(images: Images, file: Path, pattern: str) -> str:
    """Return what a pattern is held against: the path inside the folder, or the name if it has no slash."""
    return images.relative(file) if "/" in pattern else file.name


# Companions: levels and images


def companion_files(images: Images, cases: Sequence[Case], kind: str) -> dict[str, Path]:
    """Return case id -> the level image or the image of each case that has one.

    Args:
        images: of a folder with those of many cases; a single file serves all of them.
        cases: of the references.
        kind: "level": the file is named `<case>` or `<case>_...`, or like it in BIDS; of several, the one
            with "level" in its name counts. "image": it is named `<case>_0000`, `<case>`, or like it in BIDS.

    Raises:
        UserError: if two files could be the one of a case.
    """
    if images.files == (images.root,):
        return dict.fromkeys((case.case_id for case in cases), images.root)
    ways = (_channel_zero, _exact, _by_bids) if kind == "image" else (_exact, _by_prefix, _by_bids)
    wanted = [(case, 0) for case in cases]
    found: dict[str, Path] = {}
    for way in ways:
        for (case_id, _), files in way(images, wanted, "").items():
            of_kind = [file for file in files if kind in file.name.lower()] or files
            if len(of_kind) > 1 and case_id not in found:
                listed = examples([images.relative(file) for file in of_kind])
                raise UserError(f"{images.root}: expected one {kind} file of case {case_id}, found {listed}")
            if of_kind:
                found.setdefault(case_id, of_kind[0])
    return found


def _channel_zero(images: Images, wanted: Sequence[tuple[Case, int]], _: str) -> Candidates:
    return _with_label_in_name(images.files, wanted)


# What a prediction of ours says about itself


def inference_seconds(root: Path) -> dict[str, float]:
    """Return case id -> seconds of all stages, from softseg.json in or above a method's folder, if any."""
    for folder in (root, root.parent):
        try:
            cases = json.loads((folder / REPORT).read_text(encoding="utf-8"))["cases"]
            return {case_id: float(sum(case["seconds"].values())) for case_id, case in cases.items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue
    return {}
