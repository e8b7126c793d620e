"""Images of a BIDS folder that become cases of a dataset, with their soft labels: found and looked at."""

import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_softseg.datasets.soft_label import nested_labels, overlap_findings, unknown_voxels, value_findings
from nnunet_softseg.errors import Finding, UserError, examples, grouped, short_name, unfit
from nnunet_softseg.io.case_files import (
    IMAGE_FOLDERS,
    BidsName,
    Reason,
    derivative_file,
    differing_keys,
    list_bids,
    parse_bids_name,
)
from nnunet_softseg.io.formats import NIFTI_ENDINGS, is_nifti, without_nifti_ending
from nnunet_softseg.io.geometry import VoxelGrid, grid_findings
from nnunet_softseg.io.image_choice import BidsImage, ChosenImages, Exclusion, select_images
from nnunet_softseg.io.nifti import (
    PER_VOLUME,
    MapKind,
    classify,
    compressed_or_plain,
    file_findings,
    geometry_warnings,
    is_there,
    load_nifti,
    stored_values,
)
from nnunet_softseg.io.results import sha256
from nnunet_softseg.io.workers import try_jobs

DEFAULT_LABEL = "cord"
_REPORTED = (Reason.EXCLUDED, Reason.NO_CONTRAST, Reason.OTHER_CONTRAST)

# Layouts: which file shows which contrast

MADE_HERE = ("derivatives/softseg", "_label-SC_desc-softseg_probseg")
"""Where `make-gt -o BIDS/derivatives/softseg` writes, and what it appends to an image's name."""
_SAME_CONTRAST_ON_ANOTHER_GRID = "space"


@dataclass(frozen=True)
class Layout:
    """How a dataset is laid out.

    Attributes:
        places: of soft labels, in the order in which they are tried: folder in the BIDS folder, and the end
            of the file name, behind the image's name.
        contrasts: entities but `space`, sorted, and suffix of a name, `flip-1_mt-on_MTS` -> contrast as in
            case ids; empty: every image counts, its contrast is what BIDS says.
    """

    name: str
    places: tuple[tuple[str, str], ...]
    contrasts: Mapping[str, str] = field(default_factory=dict)

    def contrast_of(self, name: BidsName) -> str | None:
        """Return the contrast of a file, or None if it shows none of this layout."""
        if not self.contrasts:
            return name.contrast
        entities = {key: name.entities[key] for key in name.entities if key != _SAME_CONTRAST_ON_ANOTHER_GRID}
        words = [*sorted(f"{key}-{value}" for key, value in entities.items()), name.suffix]
        return self.contrasts.get("_".join(words))

    def in_order(self, contrasts: Iterable[str]) -> list[str]:
        """Return contrasts in the order of the table; without a table, by name."""
        table = list(dict.fromkeys(self.contrasts.values()))
        return sorted(set(contrasts), key=lambda name: (table.index(name) if name in table else -1, name))


BIDS = Layout("bids", (MADE_HERE,))

# spine-generic/data-multi-subject: the six contrasts of the paper. The third of the MTS family
# (flip-1_mt-off, once acq-MToff) is none of them, nor is the diffusion series (dwi, acq-b0_dwi): its mean is
# rec-average_dwi.
SPINE_GENERIC = Layout(
    "spine-generic",
    (
        MADE_HERE,
        ("derivatives/labels_softseg", "_label-SC_softseg"),
        ("derivatives/labels_softseg", "_softseg"),  # until 2024
    ),
    {
        "T1w": "T1w",
        "T2w": "T2w",
        "T2star": "T2star",
        "T2starw": "T2star",  # as BIDS 1.8 spells it
        "flip-1_mt-on_MTS": "mt-on",
        "mt-on_MTS": "mt-on",
        "acq-MTon_MTS": "mt-on",  # until 2023
        "flip-2_mt-off_MTS": "mt-off",  # GRE-T1w
        "acq-T1w_MTS": "mt-off",  # until 2023
        "rec-average_dwi": "dwi",
    },
)


def find_layout(name: str) -> Layout:
    """Return the layout of this name; raise a UserError if there is none."""
    layouts = {layout.name: layout for layout in (BIDS, SPINE_GENERIC)}
    if name not in layouts:
        raise UserError(f"unknown layout {name}: expected one of {', '.join(layouts)}")
    return layouts[name]


@dataclass(frozen=True)
class SourceCase:
    """One image, `<sub>[_ses]_<contrast>`, with a soft label per label; the files may be broken still."""

    case_id: str
    subject: str
    contrast: str
    image: Path
    soft_labels: tuple[Path, ...]


@dataclass(frozen=True)
class Selection:
    """Images and soft labels of a BIDS folder that a user asks for.

    Attributes:
        derivatives: folder of soft labels; None takes the layout's.
        labels: name of each label -> what follows the image's name in that of its soft label; None takes the
            layout's, for one label.
        contrasts: None takes all.
        distinguish_by: BIDS entities that make two contrasts of one.
        exclude: patterns of images to leave out, see `Exclusion`.
    """

    layout: Layout
    derivatives: str | None = None
    labels: Mapping[str, str] | None = None
    contrasts: tuple[str, ...] | None = None
    distinguish_by: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """Cases of a BIDS folder, sorted by case id.

    Attributes:
        labels: name -> ending of the file name; their values are 1, 2, ... in this order.
        subjects: all of the folder, those without a case too.
        left_out: reason -> images, as paths in the BIDS folder.
    """

    bids: Path
    derivatives: Path
    labels: Mapping[str, str]
    cases: tuple[SourceCase, ...]
    subjects: frozenset[str]
    left_out: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]


def find_sources(bids: Path, selection: Selection) -> Sources:
    """Return the images that become cases, and those that do not.

    A UserError if a name is not BIDS, two images get one case id, a file is a broken link, or none is left.
    """
    listing, exclusion = list_bids(bids), Exclusion(selection.exclude)
    chosen = select_images(
        listing,
        exclude=exclusion,
        contrasts=selection.contrasts,
        distinguish_by=selection.distinguish_by,
        contrast_of=selection.layout.contrast_of,
    )
    _check_names(chosen, bids)
    left_out: dict[str, list[str]] = defaultdict(list)
    for path, reason in chosen.passed_over.items():
        if reason in _REPORTED:
            left_out[reason.value].append(listing.relative(path))
    if not chosen.images:
        reasons = ", ".join(f"{len(names)} {reason}" for reason, names in left_out.items())
        raise UserError(
            f"{bids}: expected at least one image to convert, found none left ({reasons}): choose another "
            "--layout, or exclude less"
        )
    place = _find_place(chosen.images, bids, selection)
    cases = []
    for image in chosen.images:
        files = place.files(image.path, bids)
        if all(map(is_there, files)):
            cases.append(SourceCase(image.case_id, image.name.subject, image.contrast, image.path, files))
        else:
            left_out[Reason.NO_SOFT_LABEL.value].append(listing.relative(image.path))
    elsewhere = chosen.because(Reason.OTHER_FOLDER)
    for path in elsewhere:
        if any(map(is_there, place.files(path, bids))) and not exclusion.covers(path, bids):
            left_out[Reason.OTHER_FOLDER.value].append(listing.relative(path))
    _check_cases(cases)
    return Sources(
        bids,
        place.folder,
        place.endings,
        tuple(sorted(cases, key=lambda case: case.case_id)),
        frozenset(file.relative_to(bids).parts[0] for file in listing.files),
        {reason: tuple(names) for reason, names in left_out.items()},
        (*exclusion.warnings(), *_without_image(place, [*listing.files, *elsewhere], bids)),
    )


def _without_image(place: "_Place", images: Sequence[Path], bids: Path) -> Iterator[str]:
    """Name the soft labels of no image of the folder: it may lie elsewhere, or in another format."""
    known = {file for image in images for file in place.files(image, bids)}
    found = {
        file
        for ending in place.endings.values()
        for end in NIFTI_ENDINGS
        for file in place.folder.glob(f"sub-*/**/*{glob.escape(ending)}{end}")
    }
    if lost := sorted(str(file.relative_to(place.folder)) for file in found - known):
        yield f"{len(lost)} soft labels without an image in NIfTI at its place, left out: {examples(lost)}"


def _check_names(chosen: ChosenImages, bids: Path) -> None:
    """Raise a UserError if a name is not BIDS, or its folder names somebody else: whose image is it?"""
    for image in (*chosen.because(Reason.MISNAMED), *chosen.because(Reason.MISPLACED)):
        path, name = image.relative_to(bids), parse_bids_name(image.name)
        if name is None:
            raise UserError(
                f"{path}: expected a BIDS name like sub-01_T2w.nii.gz: rename it, or move it out of "
                f"{'/'.join(IMAGE_FOLDERS)}"
            )
        by_folder = "_".join(path.parts[:-2])
        raise UserError(
            f"{path.as_posix()}: expected an image of {by_folder} by its folder, found one of {name.person} "
            f"by its name: rename one of them, or leave it out (--exclude)"
        )


def _check_cases(cases: Sequence[SourceCase]) -> None:
    """Raise a UserError if two images get one case id, or a file is a link to nowhere."""
    by_id = defaultdict(list)
    for case in cases:
        by_id[case.case_id.casefold()].append(case)  # some file systems do not tell T2w from T2W
    for same in by_id.values():
        if len(same) > 1:
            keys = differing_keys([name for case in same if (name := parse_bids_name(case.image.name))])
            apart = f", or tell them apart (--distinguish-by {keys})" if keys else ""
            raise UserError(
                f"{len(same)} images get the case id {same[0].case_id} "
                f"({examples([case.image.name for case in same])}): leave out all but one (--exclude){apart}"
            )
    files = [file for case in cases for file in (case.image, *case.soft_labels)]
    broken = [str(file) for file in files if not file.exists()]
    if broken:
        raise UserError(
            f"{examples(broken, 1)}: expected files, found links to nowhere: fetch their content (git annex "
            "get, datalad get), or leave them out (--exclude)"
        )


@dataclass(frozen=True)
class _Place:
    """A place of soft labels: a folder, and the endings of their names by label."""

    folder: Path
    endings: Mapping[str, str]

    def files(self, image: Path, bids: Path) -> tuple[Path, ...]:
        files = [derivative_file(image, bids, self.folder, ending) for ending in self.endings.values()]
        return tuple(map(compressed_or_plain, files))


def _find_place(images: Sequence[BidsImage], bids: Path, selection: Selection) -> _Place:
    """Return the first place in which any image has all of its soft labels."""
    places = list(_places(bids, selection))
    for place in places:
        if any(all(map(is_there, place.files(image.path, bids))) for image in images):
            return place
    first = images[0].path
    files = dict.fromkeys(str(file) for place in places for file in place.files(first, bids))
    raise UserError(
        f"{bids}: none of {len(images)} images has its soft label, expected {' or '.join(files)} for the "
        f"first; {_found_instead(first, bids, places)}: make them (nnunet-softseg make-gt -i {bids} -o "
        f"{bids / MADE_HERE[0]}), or choose --derivatives and --suffix"
    )


def _places(bids: Path, selection: Selection) -> Iterator[_Place]:
    for folder, suffix in selection.layout.places:
        name = selection.derivatives or folder
        inside, from_here = bids / name, Path(name)
        found = from_here if from_here.is_dir() and not inside.is_dir() else inside
        yield _Place(found, selection.labels or {DEFAULT_LABEL: suffix})


def _found_instead(image: Path, bids: Path, places: Sequence[_Place]) -> str:
    """Name the files that begin with the image's name, where soft labels were looked for or else beside."""
    folders = [place.folder for place in places]
    pattern = f"{image.parent.relative_to(bids)}/{glob.escape(without_nifti_ending(image.name))}[_-]*"
    for searched in (dict.fromkeys(folders), sorted((bids / "derivatives").glob("*"))):
        files = [file for folder in searched for file in sorted(folder.glob(pattern)) if is_nifti(file.name)]
        if files:
            soft_first = sorted(files, key=lambda file: not re.search("prob|soft", file.name))
            return f"found {examples([str(file) for file in soft_first])}"
    missing = dict.fromkeys(str(folder) for folder in folders if not folder.is_dir())
    return f"found no folder {', '.join(missing)}" if missing else "found nothing like it"


# Faults and hashes of all sources, before anything is written


@dataclass(frozen=True)
class Inspection:
    """Faults and hashes (none if there is an error) of one case; its soft labels that hold 0 and 1 only.

    `is_partly_unknown`: somewhere no label is known. `nested`: of `soft_label.nested_labels`.
    """

    case_id: str
    errors: list[Finding]
    warnings: list[Finding] = field(default_factory=list)
    sha256: dict[Path, str] = field(default_factory=dict)
    masks: list[Path] = field(default_factory=list)
    is_partly_unknown: bool = False
    nested: Mapping[tuple[int, int], bool] = field(default_factory=dict)


def inspect_cases(cases: Sequence[SourceCase], *, num_processes: int, progress: bool) -> list[Inspection]:
    """Return faults and hashes of every case, in their order; a UserError if any case is not fit."""
    options = {"num_processes": num_processes, "progress": progress, "description": "Looking at cases"}
    outcomes = try_jobs(inspect, cases, lambda case: case.case_id, **options)
    inspections = [
        Inspection(case.case_id, [unfit(case.case_id, found)]) if isinstance(found, UserError) else found
        for case, found in zip(cases, outcomes, strict=True)
    ]
    broken = [inspection for inspection in inspections if inspection.errors]
    if broken:
        others = [inspection.case_id for inspection in broken[1:]]
        more = f" (so are {len(others)} other cases: {examples(others)})" if others else ""
        raise UserError(f"case {broken[0].case_id} is not fit: {broken[0].errors[0]}{more}")
    return inspections


def inspect(case: SourceCase) -> Inspection:
    """Return faults and hashes of one case."""
    findings = file_findings(case.image, several=PER_VOLUME)
    findings += [finding for file in case.soft_labels for finding in file_findings(file)]
    if findings:
        return Inspection(case.case_id, findings)
    grid, soft_labels, masks = VoxelGrid.of(load_nifti(case.image)), [], []
    for file in case.soft_labels:
        soft_labels.append(stored_values(file))
        of_file = grid_findings(file, grid, VoxelGrid.of(load_nifti(file)))
        of_file += value_findings(file, soft_labels[-1])
        unknown = np.isnan(soft_labels[-1])
        if unknown.any():
            what, expected, found = "unknown voxels (NaN)", "values", f"{int(unknown.sum())} of them"
            remedy = (
                "nothing, if nobody looked there; vanilla trainers leave out voxels in which no label is "
                "known (the label to ignore in labelsTr), and take this label for absent in others"
            )
            of_file.append(Finding(short_name(file), what, expected, found, remedy, "warning"))
        if not of_file and classify(soft_labels[-1]).kind is MapKind.MASK:
            masks.append(file)
        findings += of_file
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        return Inspection(case.case_id, errors)
    findings += [*geometry_warnings(case.image), *overlap_findings(case.soft_labels, soft_labels)]
    hashes = {file: sha256(file) for file in (case.image, *case.soft_labels)}
    unknown, nested = unknown_voxels(soft_labels), nested_labels(soft_labels)
    return Inspection(case.case_id, [], findings, hashes, masks, bool(unknown.any()), nested)


def require_outer_first(labels: Mapping[str, str], inspections: Sequence[Inspection]) -> None:
    """Raise a UserError if a label lies in a later one, which hides it in the label map of every case.

    `labels` are name -> ending, as of `Sources`. Labels that are equal everywhere do not lie in one another.
    """
    everywhere = set.intersection(*(set(inspection.nested) for inspection in inspections))
    nested = sorted(pair for pair in everywhere if pair[::-1] not in everywhere)
    hidden = [
        (inner, outer)
        for inner, outer in nested
        if inner < outer and any(inspection.nested[inner, outer] for inspection in inspections)
    ]
    if not hidden:
        return
    names = [*labels]
    inner, outer = (names[at] for at in hidden[0])
    in_how_many = [sum(label == inside for inside, _ in nested) for label in range(len(names))]
    order = sorted(range(len(names)), key=in_how_many.__getitem__)
    words = " ".join(f"--label {names[at]}={labels[names[at]]}" for at in order)
    raise UserError(
        f"--label {inner}: expected after {outer}, in which it lies everywhere in all {len(inspections)} "
        f"cases, as the later label is on top in labelsTr, found before it, so that labelsTr would never "
        f"show {inner}: give {words}"
    )


def inspection_warnings(inspections: Sequence[Inspection]) -> list[str]:
    """Return one line for each kind of warning, with its files."""
    lines = grouped((found for inspection in inspections for found in inspection.warnings), len(inspections))
    masks = [file.name for inspection in inspections for file in inspection.masks]
    if masks:
        number = sum(bool(inspection.masks) for inspection in inspections)
        lines.append(
            f"{number} of {len(inspections)} cases: the soft label holds 0 and 1 only ({examples(masks)}): "
            "this is a mask; make soft labels (nnunet-softseg make-gt, fuse) or choose another --suffix, "
            "unless it is meant"
        )
    return lines
