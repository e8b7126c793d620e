"""Which image files make which case: one file, a folder as nnU-Net names it, any folder, a BIDS folder."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.bids import IMAGE_FOLDERS, bids_images, bids_name_of
from nnunet_softseg.io.nifti import without_nifti_ending

_ENDINGS = (".nii.gz", ".nii")
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class ImageCase:
    """What is predicted together.

    Attributes:
        case_id: names its files in the output.
        files: one per channel.
    """

    case_id: str
    files: tuple[Path, ...]


def find_cases(
    source: Path, num_channels: int, contrasts: Sequence[str] | None = None
) -> tuple[ImageCase, ...]:
    """Return the cases in a file or folder, by name.

    Args:
        source: a NIfTI file; a folder of them; a BIDS folder, of which `sub-*/[ses-*/]anat` and `dwi` count.
        num_channels: that the model takes. `<case>_0000` to `<case>_<num_channels - 1>` are one case, as in
            nnU-Net; for a model of one channel every other name is a case of its own.
        contrasts: of a BIDS folder, those to take; None: all.

    Raises:
        UserError: if there is no image, a channel is missing, or two cases have the same name.
    """
    images = _images(source, contrasts)
    cases = _one_per_image(images) if num_channels == 1 else _by_channels(images, num_channels)
    _check_names(cases)
    return tuple(sorted(cases, key=lambda case: case.case_id))


def _images(source: Path, contrasts: Sequence[str] | None) -> list[Path]:
    if is_bids(source):
        images = bids_images(source)
        return images if contrasts is None else _of_contrasts(images, source, contrasts)
    if contrasts is not None:
        raise UserError(
            f"{source}: expected a BIDS folder to choose contrasts from, found none of sub-*/"
            f"{', sub-*/'.join(IMAGE_FOLDERS)}: leave --contrasts out"
        )
    if source.is_file():
        if not source.name.endswith(_ENDINGS):
            raise UserError(f"{source}: expected a NIfTI file (.nii or .nii.gz), found another: convert it")
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: expected an image or a folder of images, found nothing: check the path")
    images = sorted(file for file in source.iterdir() if file.is_file() and _is_image(file))
    if not images:
        found = "an empty folder" if not any(source.iterdir()) else "none"
        raise UserError(
            f"{source}: expected NIfTI files (.nii or .nii.gz), or a BIDS folder with sub-*/anat, found "
            f"{found}: check the path"
        )
    return images


def is_bids(source: Path) -> bool:
    """Return whether a folder has images of subjects in it, `sub-*/[ses-*/]anat` or `dwi`."""
    return any(
        folder.is_dir()
        for subject in source.glob("sub-*")
        for place in (subject, *subject.glob("ses-*"))
        for folder in (place / name for name in IMAGE_FOLDERS)
    )


def _is_image(file: Path) -> bool:
    return file.name.endswith(_ENDINGS) and not file.name.startswith(".")


def _of_contrasts(images: Iterable[Path], bids: Path, contrasts: Sequence[str]) -> list[Path]:
    by_image = {image: bids_name_of(image, bids).contrast for image in images}
    unknown = sorted(set(contrasts) - set(by_image.values()))
    if unknown:
        there = ", ".join(sorted(set(by_image.values())))
        raise UserError(
            f"{bids}: expected images of {', '.join(unknown)}, found {there}: correct --contrasts"
        )
    return [image for image, contrast in by_image.items() if contrast in contrasts]


def _one_per_image(images: Sequence[Path]) -> list[ImageCase]:
    """Take every image as a case; `_0000` is nnU-Net's channel unless its case has other channels, too."""
    stems = {without_nifti_ending(image.name) for image in images}
    numbered = {
        match["case"] for stem in stems if (match := _CHANNEL.match(stem)) and match["channel"] != "0000"
    }
    cases = []
    for image in images:
        stem = without_nifti_ending(image.name)
        match = _CHANNEL.match(stem)
        is_channel = match is not None and match["channel"] == "0000" and match["case"] not in numbered
        cases.append(ImageCase(stem.removesuffix("_0000") if is_channel else stem, (image,)))
    return cases


def _by_channels(images: Sequence[Path], num_channels: int) -> list[ImageCase]:
    expected = [f"{channel:04d}" for channel in range(num_channels)]
    channels: dict[str, dict[str, list[Path]]] = {}
    for image in images:
        match = _CHANNEL.match(without_nifti_ending(image.name))
        if match is None:
            raise UserError(
                f"{image}: the model takes {num_channels} channels: expected names that end in "
                f"_{expected[0]} to _{expected[-1]}, found none: rename the images as nnU-Net's"
            )
        channels.setdefault(match["case"], {}).setdefault(match["channel"], []).append(image)
    for case, found in channels.items():
        if sorted(found) != expected or any(len(files) > 1 for files in found.values()):
            names = ", ".join(file.name for files in found.values() for file in files)
            raise UserError(
                f"{case}: expected one image for each of the channels {', '.join(expected)}, found {names}: "
                "add or remove images"
            )
    return [
        ImageCase(case, tuple(found[channel][0] for channel in expected)) for case, found in channels.items()
    ]


def _check_names(cases: Iterable[ImageCase]) -> None:
    seen: dict[str, ImageCase] = {}
    for case in cases:
        other = seen.setdefault(case.case_id, case)
        if other is not case:
            raise UserError(
                f"two images would both be case {case.case_id}: expected one, found "
                f"{examples([str(file) for file in (*other.files, *case.files)])}: rename or remove one"
            )
