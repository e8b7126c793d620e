"""Which images and masks a BIDS folder offers, subject by subject and session by session."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.bids import BidsName, bids_images, derivative_file, parse_bids_name
from nnunet_softseg.io.nifti import NIFTI_ENDINGS, without_nifti_ending

DEFAULT_MASKS = "derivatives/labels"
DEFAULT_SUFFIX = "_seg-manual"


@dataclass(frozen=True)
class SourceChoice:
    """Which files of a BIDS folder a user wants.

    Attributes:
        bids: images in `sub-*/[ses-*/]anat` and `dwi`.
        masks: a mask lies anywhere in it, best in the same subfolders as its image.
        suffix: what follows the image's name in that of its mask.
        contrasts: those to take; None takes all.
        exclude: patterns (`*`, `?`) of images to pass over: path in the BIDS folder, file name with or
            without ending, subject, or subject and session.
        distinguish_by: BIDS entities that make two contrasts of one, `("acq",)`: `acq-sag_T2w`, `acq-ax_T2w`.
    """

    bids: Path
    masks: Path
    suffix: str = DEFAULT_SUFFIX
    contrasts: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    distinguish_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskedImage:
    """One image with the mask drawn on it; the files may be missing or broken still."""

    contrast: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class SubjectSources:
    """What one subject, or one session of one, offers.

    Attributes:
        person: `sub-01` or `sub-01_ses-1`.
        subject: `sub-01`.
        images: one per contrast, sorted by it; empty if there is no mask.
        problem: why nothing can be made of them, or None.
    """

    person: str
    subject: str
    images: tuple[MaskedImage, ...]
    problem: str | None = None


@dataclass(frozen=True)
class CohortSources:
    """What a BIDS folder offers.

    Attributes:
        subjects: sorted; those without a mask included.
        contrasts: of all images, with mask or without.
        warnings: files that were passed over, and why.
    """

    subjects: tuple[SubjectSources, ...]
    contrasts: frozenset[str]
    warnings: tuple[str, ...] = ()


@dataclass
class _Masks:
    """Masks by file name; `used` are those that belong to an image."""

    by_name: dict[str, list[Path]]
    used: set[Path] = field(default_factory=set)


def find_sources(choice: SourceChoice) -> CohortSources:
    """Return the images of each subject that have a mask.

    Raises:
        UserError: if there is no such folder, no image, no mask, or no image of a contrast that is asked for.
    """
    images, misnamed = _named_images(choice.bids)
    masks = _find_masks(choice)
    found: dict[str, list[tuple[str, Path, list[Path]]]] = {}
    subjects, excluded, contrasts = {}, set[str](), set[str]()
    for image, name in images.items():
        of_image = _masks_of(image, choice, masks)
        matching = [pattern for pattern in choice.exclude if _matches(pattern, image, name, choice.bids)]
        excluded.update(matching)
        if matching:
            continue
        contrast = _contrast(name, choice.distinguish_by)
        contrasts.add(contrast)
        subjects[name.person] = name.subject
        of_person = found.setdefault(name.person, [])
        if of_image and (choice.contrasts is None or contrast in choice.contrasts):
            of_person.append((contrast, image, of_image))
    _check_contrasts(choice, contrasts)
    warnings = [
        *_counted("not a BIDS name, left out", "file", misnamed),
        *_counted("mask without image, left out", "file", _orphans(choice, masks)),
        *(f"--exclude {pattern} fits no image" for pattern in choice.exclude if pattern not in excluded),
    ]
    people = (_subject(person, subjects[person], of_person, choice) for person, of_person in found.items())
    cohort = CohortSources(
        tuple(sorted(people, key=lambda person: person.person)), frozenset(contrasts), tuple(warnings)
    )
    _check_any_mask(choice, cohort, list(images))
    return cohort


# Images


def _named_images(bids: Path) -> tuple[dict[Path, BidsName], list[str]]:
    """Return the images with what their names say, and the paths of those whose name says nothing."""
    images, misnamed = {}, []
    for image in bids_images(bids):
        name, place = parse_bids_name(image.name), image.relative_to(bids)
        # A file that was moved to another person's folder would mix two people.
        if name is None or list(place.parts[:-2]) != [part for part in (name.subject, name.session) if part]:
            misnamed.append(place.as_posix())
        else:
            images[image] = name
    return images, misnamed


def _contrast(name: BidsName, distinguish_by: Iterable[str]) -> str:
    told_apart = [f"{key}-{name.entities[key]}" for key in distinguish_by if key in name.entities]
    return "_".join([*told_apart, name.contrast])


def _matches(pattern: str, image: Path, name: BidsName, bids: Path) -> bool:
    names = (
        image.relative_to(bids).as_posix(),
        image.name,
        without_nifti_ending(image.name),
        name.subject,
        name.person,
    )
    return any(fnmatchcase(candidate, pattern) for candidate in names)


def _check_contrasts(choice: SourceChoice, there: set[str]) -> None:
    unknown = [contrast for contrast in choice.contrasts or () if contrast not in there]
    if unknown:
        raise UserError(
            f"{choice.bids}: no image of contrast {', '.join(unknown)}: there are {', '.join(sorted(there))}"
        )


# Masks


def _find_masks(choice: SourceChoice) -> _Masks:
    if not choice.masks.is_dir():
        found = "a file" if choice.masks.exists() else "nothing"
        raise UserError(
            f"{choice.masks}: expected the folder of the masks, found {found}: choose it with --masks"
        )
    masks = _Masks({})
    endings = tuple(f"{choice.suffix}{ending}" for ending in NIFTI_ENDINGS)
    for folder, _, names in os.walk(choice.masks):
        for name in names:
            if name.endswith(endings) and not name.startswith("."):
                masks.by_name.setdefault(without_nifti_ending(name), []).append(Path(folder, name))
    return masks


def _masks_of(image: Path, choice: SourceChoice, masks: _Masks) -> list[Path]:
    """Return the mask of an image: the one in the same subfolders, else all of that name."""
    candidates = masks.by_name.get(f"{without_nifti_ending(image.name)}{choice.suffix}", [])
    masks.used.update(candidates)
    mirrored = derivative_file(image, choice.bids, choice.masks, choice.suffix).parent
    return sorted([mask for mask in candidates if mask.parent == mirrored] or candidates)


def _orphans(choice: SourceChoice, masks: _Masks) -> list[str]:
    everything = (mask for of_name in masks.by_name.values() for mask in of_name)
    return sorted(mask.relative_to(choice.masks).as_posix() for mask in everything if mask not in masks.used)


def _check_any_mask(choice: SourceChoice, cohort: CohortSources, images: Sequence[Path]) -> None:
    if any(person.images or person.problem for person in cohort.subjects):
        return
    if not images:
        raise UserError(f"{choice.bids}: expected names like sub-01_T2w.nii.gz, found none among its images")
    if not cohort.subjects:
        raise UserError(f"{choice.bids}: --exclude leaves none of {len(images)} images: exclude fewer")
    expected = derivative_file(images[0], choice.bids, choice.masks, choice.suffix)
    wanted = f" of {', '.join(choice.contrasts)}" if choice.contrasts else ""
    raise UserError(
        f"{choice.bids}: no image{wanted} has a mask: expected {expected} for the first, found none like it "
        f"in {choice.masks}: choose the folder (--masks) and what follows the image's name (--suffix)"
    )


# Subjects


def _subject(
    person: str, subject: str, found: Sequence[tuple[str, Path, list[Path]]], choice: SourceChoice
) -> SubjectSources:
    by_contrast: dict[str, list[MaskedImage]] = {}
    for contrast, image, masks in found:
        if len(masks) > 1:
            places = examples([mask.relative_to(choice.masks).as_posix() for mask in masks])
            problem = (
                f"{image.name}: expected one mask, found {len(masks)} ({places}): keep one, in the image's "
                "subfolders"
            )
            return SubjectSources(person, subject, (), problem)
        by_contrast.setdefault(contrast, []).append(MaskedImage(contrast, image, masks[0]))
    unclear = _same_contrast(by_contrast)
    if unclear:
        return SubjectSources(person, subject, (), unclear)
    return SubjectSources(person, subject, tuple(by_contrast[name][0] for name in sorted(by_contrast)))


def _same_contrast(by_contrast: Mapping[str, Sequence[MaskedImage]]) -> str | None:
    """Return why it is not clear which image shows a contrast; None if it is.

    Both would count in the average, one contrast twice: which is meant is for the user to say.
    """
    for contrast, images in by_contrast.items():
        if len(images) > 1:
            names = [image.image.name for image in images]
            keys = _differing_entities(names)
            apart = f", or take them as contrasts of their own (--distinguish-by {keys})" if keys else ""
            return (
                f"contrast {contrast}: expected one image with a mask, found {len(images)} "
                f"({examples(names)}): pass over all but one (--exclude {_pattern(names[-1])}){apart}"
            )
    return None


def _differing_entities(names: Sequence[str]) -> str:
    entities = [parsed.entities for parsed in map(parse_bids_name, names) if parsed]
    keys = dict.fromkeys(key for of_image in entities for key in of_image)
    return " ".join(key for key in keys if len({of_image.get(key) for of_image in entities}) > 1)


def _pattern(name: str) -> str:
    """Return what excludes an image, and those like it of other subjects if its name tells what it is."""
    parsed = parse_bids_name(name)
    if parsed is None or not parsed.entities:
        return name
    entities = "_".join(f"{key}-{value}" for key, value in parsed.entities.items())
    return f"'*_{entities}_{parsed.suffix}'"


def _counted(what: str, unit: str, names: Sequence[str]) -> list[str]:
    return [f"{what}: {len(names)} {unit}{'s' * (len(names) > 1)} ({examples(names)})"] if names else []
