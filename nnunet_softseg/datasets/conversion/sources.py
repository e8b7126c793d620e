"""Which images of a BIDS folder become cases of a dataset, with which soft labels, and which do not."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_softseg.datasets.conversion.exclusion import Exclusion
from nnunet_softseg.datasets.conversion.layout import MADE_HERE, Layout, SoftLabelPlace
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.bids import bids_images, bids_name_of, derivative_file, parse_bids_name
from nnunet_softseg.io.nifti import NIFTI_ENDINGS, without_nifti_ending

DEFAULT_LABEL = "cord"
EXCLUDED, NO_CONTRAST, NOT_ASKED_FOR, NO_SOFT_LABEL = (
    "excluded",
    "not a contrast of this layout",
    "of another contrast",
    "without a soft label",
)


@dataclass(frozen=True)
class Case:
    """One image with its soft labels; the files may be broken still.

    Attributes:
        case_id: `<sub>[_ses]_<contrast>`.
        subject: `sub-01`.
        contrast: `T2w`.
        image: in the BIDS folder.
        soft_labels: one per label, in the order of the labels.
    """

    case_id: str
    subject: str
    contrast: str
    image: Path
    soft_labels: tuple[Path, ...]


@dataclass(frozen=True)
class Selection:
    """What a user wants of a BIDS folder.

    Attributes:
        layout: the name table.
        derivatives: folder of soft labels; None takes the layout's.
        labels: name of each label -> what follows the image's name in that of its soft label; None takes the
            layout's, for one label.
        contrasts: those to take; None takes all.
        distinguish_by: BIDS entities that make two contrasts of one.
        exclude: patterns of what is left out.
    """

    layout: Layout
    derivatives: str | None = None
    labels: Mapping[str, str] | None = None
    contrasts: tuple[str, ...] | None = None
    distinguish_by: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """What a BIDS folder offers.

    Attributes:
        bids: root of the images.
        derivatives: root of the soft labels.
        labels: name -> ending of the file name; their values are 1, 2, ... in this order.
        cases: sorted by case id.
        subjects: all of the folder, those without a case too.
        left_out: reason -> images, as paths in the BIDS folder.
        warnings: for the user.
    """

    bids: Path
    derivatives: Path
    labels: Mapping[str, str]
    cases: tuple[Case, ...]
    subjects: frozenset[str]
    left_out: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Labels:
    """A place in which soft labels may lie: a folder, and the endings of their names by label."""

    folder: Path
    endings: Mapping[str, str]

    def files(self, image: Path, bids: Path) -> tuple[Path, ...]:
        return tuple(
            _compressed_or_plain(derivative_file(image, bids, self.folder, ending))
            for ending in self.endings.values()
        )


@dataclass(frozen=True)
class _Named:
    """An image with what its name says."""

    image: Path
    case_id: str
    subject: str
    contrast: str


def find_sources(bids: Path, selection: Selection) -> Sources:
    """Return the images that become cases, and those that do not.

    Raises:
        UserError: if a name is not BIDS, two images get one case id, files are links to nowhere, or nothing
            is left.
    """
    images = bids_images(bids)
    left_out: dict[str, list[str]] = defaultdict(list)
    exclusion = Exclusion(selection.exclude)
    named = _named(images, bids, selection, exclusion, left_out)
    named = _of_contrasts(named, bids, selection, left_out)
    labels = _choose_labels(named, bids, selection)
    cases = []
    for one in named:
        files = labels.files(one.image, bids)
        if all(map(_is_there, files)):
            cases.append(Case(one.case_id, one.subject, one.contrast, one.image, files))
        else:
            left_out[NO_SOFT_LABEL].append(_relative(one.image, bids))
    _check_unique(cases)
    _check_links(cases)
    return Sources(
        bids,
        labels.folder,
        labels.endings,
        tuple(sorted(cases, key=lambda case: case.case_id)),
        frozenset(image.relative_to(bids).parts[0] for image in images),
        {reason: tuple(names) for reason, names in left_out.items()},
        tuple(exclusion.warnings()),
    )


# Images


def _named(
    images: Iterable[Path],
    bids: Path,
    selection: Selection,
    exclusion: Exclusion,
    left_out: dict[str, list[str]],
) -> list[_Named]:
    """Return the images that show a contrast of the layout and are not excluded."""
    named = []
    for image in images:
        of_image = _name(image, bids, selection)
        if exclusion.covers(image, bids, [of_image.case_id] if of_image else []):
            left_out[EXCLUDED].append(_relative(image, bids))
        elif of_image is not None:
            _check_folder(of_image, bids)
            named.append(of_image)
        else:
            bids_name_of(image, bids)  # raises if the name is not BIDS
            left_out[NO_CONTRAST].append(_relative(image, bids))
    if not named:
        reasons = ", ".join(f"{len(names)} {reason}" for reason, names in left_out.items())
        raise UserError(
            f"{bids}: expected at least one image to convert, found none left ({reasons}): choose another "
            "--layout, or exclude less"
        )
    return named


def _name(image: Path, bids: Path, selection: Selection) -> _Named | None:
    name = parse_bids_name(image.name)
    contrast = selection.layout.contrast_of(name) if name else None
    if name is None or contrast is None:
        return None
    contrast = name.told_apart(contrast, selection.distinguish_by)
    return _Named(image, f"{name.person}_{contrast}", name.subject, contrast)


def _check_folder(named: _Named, bids: Path) -> None:
    """Raise a UserError if the folder names somebody else than the file: whose image is it?"""
    folder = named.image.relative_to(bids).parts[0]
    if folder != named.subject:
        raise UserError(
            f"{_relative(named.image, bids)}: expected an image of {folder} by its folder, found one of "
            f"{named.subject} by its name: rename one of them, or leave it out (--exclude)"
        )


def _of_contrasts(
    named: Sequence[_Named], bids: Path, selection: Selection, left_out: dict[str, list[str]]
) -> list[_Named]:
    if selection.contrasts is None:
        return list(named)
    there = {one.contrast for one in named}
    unknown = [contrast for contrast in selection.contrasts if contrast not in there]
    if unknown:
        raise UserError(
            f"{bids}: no image of contrast {', '.join(unknown)}: there are {', '.join(sorted(there))}"
        )
    for one in named:
        if one.contrast not in selection.contrasts:
            left_out[NOT_ASKED_FOR].append(_relative(one.image, bids))
    return [one for one in named if one.contrast in selection.contrasts]


def _relative(image: Path, bids: Path) -> str:
    return image.relative_to(bids).as_posix()


# Soft labels


def _choose_labels(named: Sequence[_Named], bids: Path, selection: Selection) -> _Labels:
    """Return the first place in which any image has all of its soft labels."""
    candidates = _candidates(bids, selection)
    for labels in candidates:
        if any(all(map(_is_there, labels.files(one.image, bids))) for one in named):
            return labels
    image = named[0].image
    looked_for = " or ".join(str(file) for labels in candidates for file in labels.files(image, bids))
    raise UserError(
        f"{bids}: none of {len(named)} images has its soft label, expected {looked_for} for the first; "
        f"{_what_is_there(image, bids, candidates)}: make them (nnunet-softseg make-gt -i {bids} -o "
        f"{bids / MADE_HERE}), or choose --derivatives and --suffix"
    )


def _candidates(bids: Path, selection: Selection) -> list[_Labels]:
    places: Iterable[SoftLabelPlace] = selection.layout.places
    if selection.derivatives is not None:
        endings = dict.fromkeys(place.suffix for place in places)
        places = [SoftLabelPlace(selection.derivatives, ending) for ending in endings]
    found = []
    for place in places:
        labels = _Labels(
            _derivatives_folder(place.folder, bids), selection.labels or {DEFAULT_LABEL: place.suffix}
        )
        if labels not in found:
            found.append(labels)
    return found


def _derivatives_folder(name: str, bids: Path) -> Path:
    """Return the folder of this name in the BIDS folder or, if there is none, from where we are."""
    inside, from_here = bids / name, Path(name)
    return from_here if from_here.is_dir() and not inside.is_dir() else inside


def _what_is_there(image: Path, bids: Path, candidates: Sequence[_Labels]) -> str:
    """Say which files have the name of the image, where soft labels were looked for or else beside."""
    places = [labels.folder for labels in candidates]
    for folders in (places, sorted((bids / "derivatives").glob("*"))):
        files = [file for folder in folders for file in _derivatives_of(image, bids, folder)]
        if files:
            soft_first = sorted(files, key=lambda file: not re.search("prob|soft", file.name))
            return f"found {examples([str(file) for file in soft_first])}"
    missing = dict.fromkeys(str(place) for place in places if not place.is_dir())
    return f"found no folder {', '.join(missing)}" if missing else "found nothing like it"


def _derivatives_of(image: Path, bids: Path, folder: Path) -> list[Path]:
    place = folder / image.parent.relative_to(bids)
    return sorted(filter(_is_nifti, place.glob(f"{without_nifti_ending(image.name)}_*")))


def _is_nifti(file: Path) -> bool:
    return file.name.endswith(NIFTI_ENDINGS)


def _compressed_or_plain(compressed: Path) -> Path:
    plain = compressed.with_name(compressed.name.removesuffix(".gz"))
    return plain if _is_there(plain) and not _is_there(compressed) else compressed


def _is_there(file: Path) -> bool:
    # A link to nowhere counts: it is a file that was not fetched, not an image without a soft label.
    return file.is_file() or file.is_symlink()


# What must hold


def _check_unique(cases: Sequence[Case]) -> None:
    by_id = defaultdict(list)
    for case in cases:
        by_id[case.case_id.casefold()].append(case)  # some file systems do not tell T2w from T2W
    for same in by_id.values():
        if len(same) > 1:
            raise UserError(
                f"{len(same)} images get the case id {same[0].case_id} "
                f"({examples([case.image.name for case in same])}): leave out all but one (--exclude), or "
                "tell them apart (--distinguish-by acq)"
            )


def _check_links(cases: Sequence[Case]) -> None:
    files = [file for case in cases for file in (case.image, *case.soft_labels)]
    broken = [str(file) for file in files if not file.exists()]
    if broken:
        raise UserError(
            f"{examples(broken, 1)}: expected files, found links to nowhere: fetch their content (git annex "
            "get, datalad get), or leave them out (--exclude)"
        )
