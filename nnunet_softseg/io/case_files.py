"""The image files of a folder or a BIDS tree, and what their names say: subject, contrast, case, label.

parse_numbered_name("sub-01_T2w_0001.nii.gz")     # ("sub-01_T2w", 1): a label, or the channel of an image
Case.from_name("sub-01_ses-1_T2w").key            # ("sub-01", "ses-1", "T2w")
list_files(folder).passed_over                    # {path: Reason}: the files that were not taken
"""

import enum
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.formats import (
    NIFTI,
    NIFTI_ENDINGS,
    is_image,
    is_nifti,
    without_ending,
    without_nifti_ending,
)
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import read_in_or_above

SOFT_FOLDER = "soft"
"""The folder of soft maps, `<case>_<label>.nii.gz`, in a folder of predictions."""
REPORT = "softseg.json"
"""What predictions say about themselves, in the same folder."""
RUN = "softseg_predict.json"
"""What `predict` has made them with, in the same folder; gone where nnU-Net's command has written since."""
PICTURES = "qc"
"""The folder of pictures of predictions, in the same folder."""
DATASET_JSON = "dataset.json"
BIDS_DESCRIPTION = "dataset_description.json"
"""Of BIDS folders and derivatives: what made them."""
IMAGE_FOLDERS = ("anat", "dwi")
_OTHER_FORMATS = (
    ".mha",
    ".mhd",
    ".nrrd",
    ".nhdr",
    ".img",
    ".hdr",
    ".mgz",
    ".mgh",
    ".dcm",
    ".nii.bz2",
    ".nii.zip",
)
_MTS_BY_ACQUISITION = {"MTon": "mt-on", "MToff": "mt-off", "T1w": "mt-off"}
"""Names from before BIDS had `mt`; spine-generic's acq-T1w_MTS is flip-2_mt-off_MTS now."""
_PERSON = r"^(?P<subject>sub-[A-Za-z0-9]+)(_(?P<session>ses-[A-Za-z0-9]+))?"
_BIDS = re.compile(_PERSON + r"(?P<entities>(_[a-z]+-[A-Za-z0-9]+)*)_(?P<suffix>[A-Za-z0-9]+)$")
_SUBJECT = re.compile(_PERSON + "(_(?P<rest>.+))?$", re.IGNORECASE)
_NUMBERED = re.compile(r"^(?P<case>.+)_(?P<number>[0-9]{4})$")
_DERIVATIVE = re.compile(r"_(label-|desc-|space-|(seg|mask|probseg|dseg|softseg)(?=[-_]|$)).*$")
_PROBABILITY_MAP = re.compile(r"_label-(?P<label>[A-Za-z0-9]+)_probseg$")
_VISIT_DIGITS = 2
_DATE = re.compile("(19[89]|20[0-9])[0-9](0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
_FIELDS = re.compile(r"\{(\w*)\}|(\*)")


@dataclass(frozen=True)
class BidsName:
    """A file name taken apart: `sub-01`, `ses-1` or None, the other entities by key `acq: sag`, `T2w`."""

    subject: str
    session: str | None
    entities: Mapping[str, str]
    suffix: str

    @property
    def contrast(self) -> str:
        """The suffix; of the family MTS, whose contrasts share it, `mt-on` or `mt-off`."""
        if self.suffix != "MTS":
            return self.suffix
        if "mt" in self.entities:
            return f"mt-{self.entities['mt']}"
        return _MTS_BY_ACQUISITION.get(self.entities.get("acq", ""), self.suffix)

    def contrast_name(self, contrast: str, keys: Iterable[str]) -> str:
        """Return a contrast behind those of the entities that this file has: `acq-sag_T2w`."""
        return "_".join([*(f"{key}-{self.entities[key]}" for key in keys if key in self.entities), contrast])

    @property
    def person(self) -> str:
        """Subject and session, `sub-01_ses-1`."""
        return "_".join(part for part in (self.subject, self.session) if part)


def parse_bids_name(name: str) -> BidsName | None:
    """Return the parts of a NIfTI file's name, or None if it is not BIDS."""
    match = _BIDS.match(without_nifti_ending(name)) if is_nifti(name) else None
    if match is None:
        return None
    entities = dict(entity.split("-") for entity in match["entities"].split("_") if entity)
    return BidsName(match["subject"], match["session"], entities, match["suffix"])


def picture_file(folder: Path, case_id: str) -> Path:
    """Return the picture of a case in a folder of predictions."""
    return folder / PICTURES / f"{case_id}.webp"


def differing_keys(names: Sequence[BidsName]) -> str:
    """Return the entities in which names differ, `acq run`, as --distinguish-by takes them; "": in none."""
    keys = dict.fromkeys(key for name in names for key in name.entities)
    return " ".join(key for key in keys if len({name.entities.get(key) for name in names}) > 1)


def derivative_file(image: Path, bids: Path, derivative: Path, suffix: str) -> Path:
    """Return the path of an image's derivative: the same subfolders, `<source name><suffix>.nii.gz`.

    `bids` is the root of the images, `derivative` that of the derivatives, the suffix such as `_seg-manual`.
    """
    return derivative / image.parent.relative_to(bids) / f"{without_nifti_ending(image.name)}{suffix}.nii.gz"


def derivative_stem(stem: str) -> str:
    """Return the name of a derivative's source image: without `_label-...`, `_desc-...`, `_seg...`."""
    return _DERIVATIVE.sub("", stem) or stem


def label_of_probability_map(name: str) -> str | None:
    """Return the label's name of a soft map of BIDS, `..._label-cord_probseg.nii.gz`; None of other files."""
    match = _PROBABILITY_MAP.search(without_ending(name))
    return match["label"] if match else None


# Cases and labels


@dataclass(frozen=True)
class Case:
    """One image, its name in nnU-Net (`sub-01_ses-1_T2w`), and the parts of it; "" if there is none.

    Subjects are the independent unit of all statistics. `entities` are the others of a BIDS name, by key.
    """

    case_id: str
    subject: str
    session: str
    contrast: str
    entities: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def from_name(cls, case_id: str, *, whole_rest: bool = False) -> "Case":
        """Return a case by `<subject>[_<session>][_<contrast>]`; without `sub-`, a subject of its own.

        `SUB-01` is the subject sub-01.

        With `whole_rest`, the contrast is all behind subject and session, not only the BIDS contrast.
        """
        match = _SUBJECT.match(case_id)
        if match is None:
            return cls(case_id, case_id, "", "")
        bids = parse_bids_name(f"{case_id}.nii.gz")
        contrast = bids.contrast if bids and not whole_rest else match["rest"] or ""
        subject = f"sub-{match['subject'][len('sub-') :]}"
        return cls(case_id, subject, match["session"] or "", contrast, bids.entities if bids else {})

    @property
    def key(self) -> tuple[str, str, str]:
        """Subject, session and contrast: one image of each method is paired by them."""
        return self.subject, self.session, self.contrast


def subjects_of(case_ids: Iterable[str]) -> dict[str, str]:
    """Return case id -> subject, by `sub-` (in capitals or not), or by what names have in common.

    Of pat3_T1, pat3_T2 and pat4_T1, what follows recurs, so pat3 and pat4 are subjects; case_001 and case_002
    are two, and so are patients whom sites number alike (a_001, b_001). Dates recur, whichever day it is:
    pat3_20200131, pat4_20210228.
    """
    found = {case_id: Case.from_name(case_id) for case_id in case_ids}
    subjects = {case_id: case.subject.casefold() for case_id, case in found.items()}
    others = [case_id.split("_") for case_id, case in found.items() if case.subject == case_id]
    for count in range(1, max(map(len, others), default=0)):
        named = {("_".join(parts[:count]), "_".join(parts[count:])) for parts in others if parts[count:]}
        if _starts_are_subjects(named):
            return subjects | {f"{start}_{rest}": start.casefold() for start, rest in named}
    return subjects


def _starts_are_subjects(named: Collection[tuple[str, str]]) -> bool:
    """Return whether names begin with a subject and go on with a contrast or visit, which recurs."""
    named = _with_dates_alike(named)
    recurring = {rest for rest, number in Counter(rest for _, rest in named).items() if number > 1}
    starts, rests = {start for start, rest in named if rest in recurring}, {rest for _, rest in named}
    are_numbered = all(re.search("[0-9]", start) for start in starts)
    if all(rest.isdigit() for rest in recurring):
        are_visits = len(rests) < len(starts) and max(map(len, rests)) <= _VISIT_DIGITS
        return bool(recurring) and are_numbered and are_visits
    return are_numbered or len(rests) <= len(starts)


def _with_dates_alike(named: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return names with one word for each date that follows a start with a digit in it.

    If not all numbers of eight digits there are dates, none is: they number people.
    """
    parted = [(start, *rest.partition("_")) for start, rest in named]
    numbers = {word for _, word, *_ in parted if re.fullmatch("[0-9]{8}", word)}
    if not all(map(_DATE.fullmatch, numbers)):
        return set(named)
    return {
        (start, f"{'date' if word in numbers and re.search('[0-9]', start) else word}{''.join(others)}")
        for start, word, *others in parted
    }


def folds_trained_on(
    subject: str, training_cases: Mapping[str, Iterable[str]], subjects: Mapping[str, str] | None = None
) -> list[str]:
    """Return the folds of a model that have seen images of a subject.

    `training_cases`: fold -> case ids; `subjects`: case id -> subject, where names do not tell.
    """
    known = subjects or {}
    return [
        fold
        for fold, cases in training_cases.items()
        if any(
            known.get(case_id, Case.from_name(case_id).subject).casefold() == subject.casefold()
            for case_id in cases
        )
    ]


def parse_numbered_name(name: str) -> tuple[str, int] | None:
    """Return (case_id, number of the label or channel) of `<case>_<4 digits>.nii.gz`, or None.

    The ending may be that of any image.
    """
    match = _NUMBERED.match(without_ending(name)) if is_image(name) else None
    return (match["case"], int(match["number"])) if match else None


def numbers_are_labels(files: Iterable[Path]) -> bool | None:
    """Return whether four digits at the end of maps' names are labels; False: of case ids; None: unknown.

    Seven patients scan_0001 to scan_0007 are not one patient with seven labels. What tells, the surest first:
    the folder is one of soft labels; dataset.json, in or above it, has no such label; labels begin with 1 and
    leave out none; subjects as in BIDS; labelsTr and labelsTs hold one map per case; labels of a case are on
    one grid, and those of another case on another. Patients of site A and site B have names like labels of
    two cases: where all lie on one grid, nothing tells them apart.
    """
    numbered = {file: parsed for file in files if (parsed := parse_numbered_name(file.name))}
    of_case: dict[str, set[int]] = {}
    for case_id, number in numbered.values():
        of_case.setdefault(case_id, set()).add(number)
    folders = {file.parent for file in numbered}
    if all(folder.name.lower().startswith(SOFT_FOLDER) for folder in folders):
        return True
    several, numbers = len(of_case) > 1, set[int]().union(*of_case.values())
    alike = all(of_one == numbers for of_one in of_case.values())
    known = set().union(*(_labels_of_dataset(folder) for folder in folders))
    are_subjects = all(case_id.lower().startswith("sub-") for case_id in of_case)
    if 0 in numbers and alike and (several or len(numbers) == 1):
        return True  # the channels of images, as `case_and_label` says
    if known and (not numbers <= known or (alike and several)):
        return numbers <= known
    if any(of_one != set(range(1, len(of_one) + 1)) for of_one in of_case.values()):
        return None if alike and several else False
    if are_subjects or all(folder.name.lower() in ("labelstr", "labelsts") for folder in folders):
        return are_subjects
    return True if numbers == {1} else _by_grids({file: case_id for file, (case_id, _) in numbered.items()})


def _by_grids(case_of: Mapping[Path, str]) -> bool | None:
    """Return whether files of one case, by names without numbers, are on one grid, which is no other case's.

    True: they are labels; False: two of a case are on different grids; None: the grids do not tell.
    """
    grids: list[VoxelGrid] = []
    of_case: dict[str, set[int]] = {}
    for file, case_id in case_of.items():
        try:
            grid = VoxelGrid.of(load_nifti(file))
        except UserError:  # it is named when it is read
            continue
        same = next((place for place, other in enumerate(grids) if grid.is_same(other)), len(grids))
        grids += [grid] * (same == len(grids))
        of_case.setdefault(case_id, set()).add(same)
    if any(len(places) > 1 for places in of_case.values()):
        return False
    return True if len(grids) == len(of_case) > 1 else None


def _labels_of_dataset(folder: Path) -> set[int]:
    """Return the labels of the dataset.json in or above a folder; none if there is none that can be read."""
    return read_in_or_above(folder, DATASET_JSON, lambda content: set(content["labels"].values())) or set()


def case_and_label(
    file: Path, known_cases: Collection[str] = (), *, numbered_by_label: bool = True
) -> tuple[str, int | None]:
    """Return case and label of a map named `<case>` (None: no label) or `<case>_<label, 4 digits>`.

    The name of a known case is taken as such even if it ends in four digits, and so is every name unless
    `numbered_by_label`. Raise a UserError if it is named as the channel of an image.
    """
    stem = without_ending(file.name)
    is_case = stem in known_cases or not numbered_by_label
    numbered = None if is_case else parse_numbered_name(file.name)
    if numbered and numbered[1] == 0:
        raise UserError(
            f"{file}: expected a map <case>.nii.gz or <case>_<label, 4 digits>.nii.gz, found an image's "
            f"channel (_0000): give softLabelsTs or labelsTs, not imagesTs, or rename it "
            f"to {numbered[0]}.nii.gz"
        )
    return numbered or (stem, None)


def longest_prefix(stem: str, names: Collection[str]) -> str | None:
    """Return the longest name that the stem is, or begins with and goes on from with `_`.

    What goes on with four digits is another case (scan_0003_levels is not scan's), but for `_0000`, an image.
    """
    parts = stem.split("_")
    shorter = (("_".join(parts[:count]), parts[count:]) for count in range(len(parts), 0, -1))
    found = ((name, rest) for name, rest in shorter if name in names)
    name, rest = next(found, (None, []))
    is_other = rest and re.fullmatch("[0-9]{4}", rest[0]) and rest[0] != "0000"
    return None if is_other else name


# Patterns of users


def check_pattern(pattern: str, needed: Collection[str] = ("case", "subject")) -> str:
    """Return the pattern; raise a UserError if it has an unknown field, or none of those needed."""
    fields = {match[1] for match in _FIELDS.finditer(pattern) if match[2] is None}
    known = {"case", "subject", "session", "contrast", "label"}
    if fields - known or fields.isdisjoint(needed):
        raise UserError(
            f"pattern {pattern!r}: expected {{case}} in it, perhaps {{subject}}, {{session}}, {{contrast}}, "
            "{label} and *, such as '{case}_seg.nii.gz'"
        )
    return pattern


def pattern_regex(pattern: str, values: Mapping[str, str]) -> "re.Pattern[str]":
    """Return a pattern as a regular expression; fields without a value become groups.

    A label is a number with or without leading zeros.
    """
    parts, end, groups = [], 0, set[str]()
    for match in _FIELDS.finditer(pattern):
        parts.append(re.escape(pattern[end : match.start()]))
        name = match[1]
        if match[2]:
            parts.append("[^/]*")
        elif name in values:
            is_label = name == "label"
            parts.append(_label_regex(int(values[name])) if is_label else re.escape(values[name]))
        else:
            content = r"(?<!\d)\d+" if name == "label" else "[^/]+"
            parts.append(f"(?P={name})" if name in groups else f"(?P<{name}>{content})")
            groups.add(name)
        end = match.end()
    return re.compile("".join([*parts, re.escape(pattern[end:])]) + r"\Z", re.DOTALL)


def _label_regex(label: int) -> str:
    """Return what a label looks like in a name; of 12 neither the 1 nor the 2 is one."""
    return rf"(?:{label:04d}|(?<!\d)0*{label})(?!\d)"


class Reason(enum.Enum):
    """Why a file was passed over; the words are those of reports."""

    HIDDEN = "hidden"
    NOT_NIFTI = "not NIfTI"
    OTHER_FOLDER = f"not in {' or '.join(IMAGE_FOLDERS)}"
    MISNAMED = "not a BIDS name"
    MISPLACED = "of another subject or session by its folder"
    EXCLUDED = "excluded"
    NO_CONTRAST = "not a contrast of this layout"
    OTHER_CONTRAST = "of another contrast"
    NO_SOFT_LABEL = "without a soft label"


@dataclass(frozen=True)
class ImageFiles:
    """The images of a folder (or the one file `root`), sorted; the other files, and why not taken."""

    root: Path
    files: tuple[Path, ...]
    passed_over: Mapping[Path, Reason] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """Name the images of other formats; pictures may be figures."""
        others = [file for file in self.passed_over if file.name.lower().endswith(_OTHER_FORMATS)]
        listed = examples([self.relative(file) for file in others])
        found = f"{self.root}: {len(others)} images of other formats are passed over: {listed}"
        taken = self.files[0].name if self.files else ""
        return [f"{found}: convert them to {_format_of(taken)}"] if others else []

    @property
    def is_one_file(self) -> bool:
        """Whether a file was given, and no folder."""
        return self.files == (self.root,)

    def relative(self, file: Path) -> str:
        """Return the path of a file inside the folder."""
        return file.name if self.is_one_file else file.relative_to(self.root).as_posix()


def _format_of(name: str) -> str:
    ending = name[len(without_ending(name)) :]
    return ending[1:].upper() if ending and not is_nifti(name) else "NIfTI"


def list_files(
    root: Path,
    *,
    subfolders: bool = True,
    formats: Sequence[Callable[[str], bool]] = NIFTI,
    expected: str = f"files that end in {' or '.join(NIFTI_ENDINGS)}",
    remedy: str = "check the path",
) -> ImageFiles:
    """Return the NIfTI files in a folder, or the one file; `expected` and `remedy` are parts of the message.

    `formats` tell by a name whether a file is taken: the first by which there is any. Raise a UserError if
    there is nothing of that name, no such file in it, or it is a file of another kind.
    """
    if root.is_file():
        if not any(is_taken(root.name) for is_taken in formats):
            raise UserError(f"{root}: expected a folder, or a file that ends in {' or '.join(NIFTI_ENDINGS)}")
        return ImageFiles(root, (root,))
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder with NIfTI files, found nothing: check the path")
    try:
        found = _files_below(root) if subfolders else sorted(root.iterdir())
    except OSError as error:
        raise UserError(f"{root}: cannot be listed: {error.strerror or error}") from error
    paths = [path for path in found if not path.is_dir()]
    is_taken = next((of for of in formats if any(of(path.name) for path in paths)), formats[0])
    listing = _sort_out(root, paths, is_taken=is_taken)
    if not listing.files:
        others = [listing.relative(path) for path in listing.passed_over]
        listed = f" ({examples(others)})" if others else ""
        raise UserError(
            f"{root}: expected {expected}, found 0 NIfTI files and {len(others)} others{listed}: {remedy}"
        )
    return listing


def list_bids(bids: Path) -> ImageFiles:
    """Return the images in `sub-*/[ses-*/]anat` and `dwi`; other files of the subjects are passed over.

    Raise a UserError if there is no such folder or no image in it.
    """
    if not bids.is_dir():
        raise UserError(f"{bids}: expected a BIDS folder, found {'a file' if bids.exists() else 'nothing'}")
    found = sorted(path for subject in _folders(bids, "sub-") for path in _files_below(subject))
    listing = _sort_out(bids, [path for path in found if is_nifti(path.name)], _is_image_folder)
    if not listing.files:
        raise UserError(f"{bids}: expected images like sub-01/anat/sub-01_T2w.nii.gz, found none")
    return listing


def _files_below(root: Path) -> list[Path]:
    """Return the files below a folder, sorted, also by way of links to folders, which `rglob` passes over.

    Each folder counts once, and what lies there itself before a link: of `v1` and `latest -> v1` it is `v1`.
    """
    seen = {root.resolve(), *root.resolve().parents}
    files: list[Path] = []
    places = [root]
    while places:
        links: list[Path] = []
        for folder, names, of_folder in (
            entry for place in places for entry in os.walk(place, onerror=_told)
        ):
            here = Path(folder)
            files += [here / name for name in of_folder]
            inside = {name: here / name for name in names}
            links += [path for path in inside.values() if path.is_symlink()]
            names[:] = [name for name, path in inside.items() if path.resolve() not in seen]
            seen |= {inside[name].resolve() for name in names if not inside[name].is_symlink()}
        # A folder that two links lead to is entered by the first.
        targets = {link.resolve(): link for link in sorted(links, reverse=True)}
        places = sorted(link for target, link in targets.items() if target not in seen)
        seen |= set(targets)
    return sorted(files)


def _told(error: OSError) -> None:
    """Raise what keeps a folder from being listed, but for a want of rights, as `rglob` does."""
    if not isinstance(error, PermissionError):
        raise error


def is_bids(folder: Path) -> bool:
    """Return whether a folder has images of subjects in it, `sub-*/[ses-*/]anat` or `dwi`."""
    subjects = _folders(folder, "sub-")
    places = (place for subject in subjects for place in (subject, *_folders(subject, "ses-")))
    return any(inside.name.lower() in IMAGE_FOLDERS for place in places for inside in _folders(place, ""))


def _folders(place: Path, prefix: str) -> list[Path]:
    """Return the folders whose names begin so, in capitals or not: SUB-02 is misnamed, and there."""
    inside = sorted(place.iterdir()) if place.is_dir() else []
    return [path for path in inside if path.name.lower().startswith(prefix) and path.is_dir()]


def _is_image_folder(parts: Sequence[str]) -> bool:
    _, *session, folder = [part.lower() for part in parts] if len(parts) > 1 else (*parts, "", "")
    return folder in IMAGE_FOLDERS and (not session or (len(session) == 1 and session[0].startswith("ses-")))


def _sort_out(
    root: Path,
    paths: Iterable[Path],
    is_wanted: Callable[[Sequence[str]], bool] = lambda _: True,
    is_taken: Callable[[str], bool] = is_nifti,
) -> ImageFiles:
    files, passed_over = [], {}
    for path in paths:
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts):
            passed_over[path] = Reason.HIDDEN
        elif not is_taken(path.name):
            passed_over[path] = Reason.NOT_NIFTI
        elif not is_wanted(parts[:-1]):
            passed_over[path] = Reason.OTHER_FOLDER
        else:
            files.append(path)
    return ImageFiles(root, tuple(files), passed_over)
