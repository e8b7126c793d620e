"""Images of a BIDS folder and the masks drawn on them: found, checked and read."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nnunet_softseg.errors import Finding, UserError, examples, raise_first_error, short_name
from nnunet_softseg.io.case_files import (
    Reason,
    derivative_file,
    differing_keys,
    list_bids,
    list_files,
    parse_bids_name,
)
from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.geometry import VoxelGrid, grid_findings
from nnunet_softseg.io.image_choice import BidsImage, ChosenImages, Exclusion, select_images
from nnunet_softseg.io.nifti import (
    RANGE_TOLERANCE,
    MapKind,
    Values,
    as_fractions,
    classify,
    content_findings,
    file_findings,
    load_nifti,
    stored_values,
)
from nnunet_softseg.io.results import load_record
from nnunet_softseg.labels.contrasts.volume import Volume

DEFAULT_MASKS = "derivatives/labels"
DEFAULT_SUFFIX = "_seg-manual"
_OF_LABEL_MAP = "write the voxels of the cord's label as 1, all others as 0"
_MEAN_OF_VOLUMES = (
    "draw the mask on a 3-D image, such as the mean of the volumes, and name it so (rec-average)"
)


@dataclass(frozen=True)
class SourceChoice:
    """The files of a BIDS folder that a user wants, as in `make_gt`.

    A mask lies anywhere in `masks`, best in the same subfolders as its image; `contrasts` None takes all.
    """

    bids: Path
    masks: Path
    suffix: str = DEFAULT_SUFFIX
    contrasts: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    distinguish_by: tuple[str, ...] = ()

    def uri(self, file: Path) -> str:
        """Return the BIDS URI of a file, `bids:raw:...` in `bids`, `bids:masks:...` in `masks`."""
        for name, folder in (("raw", self.bids), ("masks", self.masks)):
            if file.is_relative_to(folder):
                return f"bids:{name}:{file.relative_to(folder).as_posix()}"
        return file.name


@dataclass(frozen=True)
class MaskedImage:
    """One image with the mask drawn on it; the files may be missing or broken still."""

    contrast: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class SubjectSources:
    """The images with a mask of one subject (`sub-01`) or session (`sub-01_ses-1`), sorted by contrast.

    One image per contrast; a `problem` says why nothing can be made of them.
    """

    person: str
    images: tuple[MaskedImage, ...]
    problem: str | None = None

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask, of use or not."""
        return bool(self.images or self.problem)


@dataclass(frozen=True)
class CohortSources:
    """The subjects of a BIDS folder, sorted, and the contrasts of all images: with mask or without."""

    subjects: tuple[SubjectSources, ...]
    contrasts: frozenset[str]
    warnings: tuple[str, ...] = ()


# Finding


def find_sources(choice: SourceChoice) -> CohortSources:
    """Return the images of each subject that have a mask.

    Raises:
        UserError: if there is no such folder, no image, no mask, or no image of a contrast that is asked for.
    """
    listing, exclusion = list_bids(choice.bids), Exclusion(choice.exclude)
    masks = _masks_by_name(choice)
    chosen = select_images(
        listing, exclude=exclusion, contrasts=choice.contrasts, distinguish_by=choice.distinguish_by
    )
    found: dict[str, list[BidsImage]] = {}
    for image in chosen.images:
        found.setdefault(image.name.person, []).append(image)
    for path in chosen.because(Reason.OTHER_CONTRAST):
        if name := parse_bids_name(path.name):
            found.setdefault(name.person, [])
    subjects = tuple(_subject(person, found[person], choice, masks) for person in sorted(found))
    warnings = (*_passed_over(chosen, choice, masks), *exclusion.warnings())
    cohort = CohortSources(subjects, chosen.contrasts, warnings)
    _check_any_mask(choice, cohort, chosen, listing.files)
    return cohort


def _masks_by_name(choice: SourceChoice) -> dict[str, list[Path]]:
    """Return the name of a mask without ending -> the files with it."""
    if not choice.masks.is_dir():
        found = "a file" if choice.masks.exists() else "nothing"
        raise UserError(
            f"{choice.masks}: expected the folder of the masks, found {found}: choose it with --masks"
        )
    expected = f"masks like sub-01_T2w{choice.suffix}.nii.gz"
    masks: dict[str, list[Path]] = {}
    for file in list_files(choice.masks, expected=expected, remedy="choose another with --masks").files:
        name = without_nifti_ending(file.name)
        if name.endswith(choice.suffix):
            masks.setdefault(name, []).append(file)
    return masks


def _passed_over(chosen: ChosenImages, choice: SourceChoice, masks: Mapping[str, list[Path]]) -> list[str]:
    misnamed = sorted([*chosen.because(Reason.MISNAMED), *chosen.because(Reason.MISPLACED)])
    images = [image.path for image in chosen.images]
    images += [*chosen.because(Reason.EXCLUDED), *chosen.because(Reason.OTHER_CONTRAST)]
    owned = {f"{without_nifti_ending(image.name)}{choice.suffix}" for image in images}
    orphans = sorted(mask for name, of_name in masks.items() if name not in owned for mask in of_name)
    bare = [
        image.path
        for image in chosen.images
        if f"{without_nifti_ending(image.path.name)}{choice.suffix}" not in masks
    ]
    return [
        *_counted("not a BIDS name, left out", misnamed, choice.bids),
        *_counted("image without a mask, left out", bare, choice.bids),
        *_counted("mask without image, left out", orphans, choice.masks),
    ]


def _counted(what: str, files: Sequence[Path], root: Path) -> list[str]:
    names = [file.relative_to(root).as_posix() for file in files]
    return [f"{what}: {len(names)} file{'s' * (len(names) > 1)} ({examples(names)})"] if names else []


def _check_any_mask(
    choice: SourceChoice, cohort: CohortSources, chosen: ChosenImages, images: Sequence[Path]
) -> None:
    if any(person.has_mask for person in cohort.subjects):
        return
    if not cohort.subjects and chosen.because(Reason.EXCLUDED):
        raise UserError(f"{choice.bids}: --exclude leaves none of {len(images)} images: exclude fewer")
    if not cohort.subjects:
        raise UserError(f"{choice.bids}: expected names like sub-01_T2w.nii.gz, found none among its images")
    expected = derivative_file(images[0], choice.bids, choice.masks, choice.suffix)
    wanted = f" of {', '.join(choice.contrasts)}" if choice.contrasts else ""
    raise UserError(
        f"{choice.bids}: no image{wanted} has a mask: expected {expected} for the first, found none like it "
        f"in {choice.masks}: choose the folder (--masks) and what follows the image's name (--suffix)"
    )


def _subject(
    person: str, images: Sequence[BidsImage], choice: SourceChoice, masks: Mapping[str, list[Path]]
) -> SubjectSources:
    found: dict[str, list[tuple[BidsImage, Path]]] = {}
    for image in images:
        expected = derivative_file(image.path, choice.bids, choice.masks, choice.suffix)
        candidates = masks.get(without_nifti_ending(expected.name), [])
        of_image = [mask for mask in candidates if mask.parent == expected.parent] or candidates
        if len(of_image) > 1:
            places = examples([mask.relative_to(choice.masks).as_posix() for mask in of_image])
            problem = (
                f"{image.path.name}: expected one mask, found {len(of_image)} ({places}): keep one, in the "
                "image's subfolders"
            )
            return SubjectSources(person, (), problem)
        if of_image:
            found.setdefault(image.contrast, []).append((image, of_image[0]))
    for contrast, of_contrast in found.items():
        if len(of_contrast) > 1:  # the average would count this contrast twice
            problem = _two_images(contrast, [image for image, _mask in of_contrast], choice.bids)
            return SubjectSources(person, (), problem)
    firsts = ((contrast, *found[contrast][0]) for contrast in sorted(found))
    return SubjectSources(person, tuple(MaskedImage(name, image.path, mask) for name, image, mask in firsts))


def _two_images(contrast: str, images: Sequence[BidsImage], bids: Path) -> str:
    names, entities = [image.path.name for image in images], [image.name.entities for image in images]
    differing = differing_keys([image.name for image in images])
    apart = f", or take them as contrasts of their own (--distinguish-by {differing})" if differing else ""
    last = "_".join(f"{key}-{value}" for key, value in entities[-1].items())
    alike = f"*_{last}_{images[-1].name.suffix}"  # excludes those like it of other subjects, too
    patterns = [*([alike] if last else []), names[-1], images[-1].path.relative_to(bids).as_posix()]
    pattern = next(
        one
        for one in patterns
        if sum(Exclusion((one,)).covers(image.path, bids, [image.case_id]) for image in images) == 1
    )
    return (
        f"contrast {contrast}: expected one image with a mask, found {len(names)} ({examples(names)}): pass "
        f"over all but one (--exclude {shlex.quote(pattern)}){apart}"
    )


# Reading


def read_mask(source: MaskedImage, *, soft: bool = False) -> Volume:
    """Return the mask of an image on the grid of the image; `soft`: values between 0 and 1 are allowed.

    Raises:
        UserError: if a file is missing or broken, the two do not lie on one grid, or the mask is none.
    """
    raise_first_error([*file_findings(source.image, several=_MEAN_OF_VOLUMES), *file_findings(source.mask)])
    image, mask = load_nifti(source.image), load_nifti(source.mask)
    raise_first_error(grid_findings(source.mask, VoxelGrid.of(image), VoxelGrid.of(mask)))
    values = stored_values(source.mask)
    raise_first_error(_mask_findings(source.mask, values, soft=soft))
    # A slope in the header puts some values a few float32 steps beside 0 and 1, also of a soft mask.
    values = as_fractions(values, classify(values))
    nearest = np.round(values) + np.float32(0)  # no -0
    values = np.where(np.abs(values - nearest) <= RANGE_TOLERANCE, nearest, values)
    return Volume(values, image.affine, _thickness_mm(source.image, image.affine))


def read_image(file: Path) -> Volume:
    """Return an image that `read_mask` found whole; a UserError if it cannot be read after all."""
    return Volume(stored_values(file), load_nifti(file).affine)


def _mask_findings(file: Path, values: Values, *, soft: bool) -> list[Finding]:
    """Say whether a mask holds 0 and 1 only, or, if it may be soft, values between them."""
    if soft or not np.isfinite(values).all():
        return [finding for finding in content_findings(file, values) if finding.severity == "error"]
    content = classify(values)
    if content.kind in (MapKind.MASK, MapKind.EMPTY):
        return []
    if content.kind is MapKind.SOFT:
        remedy = "threshold it, or take it as it is (--soft-masks)"
    elif content.is_scaled:
        remedy = f"{content.remedy()}, then threshold it, or take it as it is (--soft-masks)"
        remedy += f"; of a label map {_OF_LABEL_MAP}" if content.labels else ""
    elif content.labels is not None and len(content.labels) > 1:
        remedy = f"this looks like a label map: {_OF_LABEL_MAP}"
    elif content.labels:
        remedy = f"divide it by {content.labels[0]}"
    else:
        remedy = "write 1 where the cord is, 0 elsewhere"
    return [Finding(short_name(file), "not a binary mask", "values 0 and 1", content.found, remedy)]


def sidecar_of(file: Path) -> Path:
    """Return the JSON beside a NIfTI file."""
    return file.with_name(f"{without_nifti_ending(file.name)}.json")


def stated_thickness_mm(image: Path) -> float | None:
    """Return `SliceThickness` of the JSON beside an image, in mm; None if there is none."""
    record = load_record(sidecar_of(image), "SliceThickness") or {"SliceThickness": None}
    try:
        return float(record["SliceThickness"])
    except (ValueError, TypeError):
        return None  # BIDS does not ask for it, and nothing here depends on the rest of that file


def _thickness_mm(image: Path, affine: npt.NDArray[np.float64]) -> float | None:
    """Return how thick the slices across S-I are, if that is stated and less than the distance between them.

    The header has that distance only. Of a sagittal or coronal image the thickness is along another axis.
    """
    spacing, thickness = VoxelGrid((), affine).body_spacing_mm, stated_thickness_mm(image)
    return thickness if thickness and 0 < thickness < spacing[2] == max(spacing) else None
