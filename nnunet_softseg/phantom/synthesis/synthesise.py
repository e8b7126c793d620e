"""Training images of random contrast from label maps, as a BIDS folder with exact soft labels."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from nnunet_softseg import __version__
from nnunet_softseg.datasets.conversion.sources import MADE_HERE
from nnunet_softseg.errors import UserError
from nnunet_softseg.io.case_files import list_files
from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.nifti import compressed_or_plain
from nnunet_softseg.io.results import json_copy, make_folder, sha256, write_error
from nnunet_softseg.io.workers import map_jobs
from nnunet_softseg.phantom.bids import check_beginning, write_descriptions, write_nifti
from nnunet_softseg.phantom.synthesis.image_plan import draw_plan
from nnunet_softseg.phantom.synthesis.image_render import render
from nnunet_softseg.phantom.synthesis.label_anatomy import (
    LabelAnatomy,
    label_map_anatomy,
    pam50_anatomy,
    pam50_files,
    phantom_anatomy,
)

_DERIVATIVES, _SUFFIX = Path(MADE_HERE[0]), MADE_HERE[1]
"""Of the soft labels: where `convert` looks for them."""
_CONTRAST = "synth"
_IMAGES_OF_A_PHANTOM = 8
_PAM50, _PHANTOM = "PAM50", "phantom"


@dataclass(frozen=True)
class SynthesisSpec:
    """All that decides the files, apart from their number.

    Attributes:
        sources: what the images are drawn from, in turn: names of label maps, "PAM50", "phantom".
        structure: values of label maps that are the structure.
        without: share of images without the structure.
        seed: of everything random.
        sha256: name and SHA-256 of each file that the images are drawn from.
    """

    sources: tuple[str, ...]
    structure: tuple[int, ...]
    without: float
    seed: int
    sha256: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Folders:
    label_maps: str | None
    images: str | None
    pam50: str | None


def synthesise(
    label_maps: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    n: int = 400,
    seed: int = 0,
    *,
    structure: Sequence[int] = (1,),
    images: str | os.PathLike[str] | None = None,
    pam50: str | os.PathLike[str] | None = None,
    phantom: bool = False,
    without: float = 0.15,
    num_processes: int = 1,
    progress: bool = True,
) -> Path:
    """Return a BIDS folder of synthetic images with soft labels, written or completed.

    Every image has a contrast, voxels, a field of view, a deformation and artefacts of its own; its soft
    label is the share of the structure in each voxel, averaged over the same points as the brightness. The
    files are the same for the same arguments, whatever `n`: a call can be repeated, and a folder can grow.

    Args:
        label_maps: folder of tissue label maps (NIfTI, whole numbers, 0: not labelled), or one; None: none.
        output: new or empty folder, or the beginning of the same images, from files of the same content.
        n: number of images.
        seed: of everything random.
        structure: values of the label maps that are the structure, together.
        images: folder of images named as the label maps: they say what is there where nothing is labelled.
        pam50: folder of the PAM50 template, to draw from, too.
        phantom: draw from the cord phantom, too.
        without: share of images without the structure, whose label is empty, in [0, 1].
        num_processes: images drawn at a time.
        progress: show a bar.

    Raises:
        UserError: for arguments out of range, files that are no label maps, or a folder with other content.
    """
    if n < 1 or num_processes < 1 or seed < 0 or not 0 <= without <= 1:
        raise UserError(
            "expected -n and -np from 1, --seed from 0, --without in [0, 1], got "
            f"{n}, {num_processes}, {seed}, {without}"
        )
    folders = _Folders(*(str(path) if path else None for path in (label_maps, images, pam50)))
    sources = _sources(folders, phantom)
    hashes = {of: sha256(file) for name in sources for of, file in _files(name, folders).items()}
    spec = SynthesisSpec(sources, tuple(structure), float(without), seed, tuple(hashes.items()))
    for name in sources:  # a wrong label map is told before anything is written
        if name not in {_PAM50, _PHANTOM}:
            _anatomy(name, 0, spec, folders)
    asked = {"version": __version__, **asdict(spec), "sha256": hashes}
    folder, asked = Path(output), json_copy(asked)
    check_beginning(folder, asked, n, "synthesis")
    try:
        write_descriptions(
            folder,
            "Synthetic images",
            {_DERIVATIVES: "Soft labels of synthetic images"},
            parameters={"Synthesis": asked},
            made_by={"Name": "nnunet-softseg", "Version": __version__},
            readme="Images of random contrast drawn from label maps by nnunet-softseg.",
        )
        missing = [number for number in range(1, n + 1) if not _image_file(folder, number).is_file()]
        write = partial(_write_case, folder, spec, folders)
        map_jobs(write, missing, num_processes=num_processes, progress=progress, description="synthesise")
    except OSError as error:
        raise write_error(folder, error) from error
    return folder


def _sources(folders: _Folders, phantom: bool) -> tuple[str, ...]:
    names = []
    if folders.images is not None and folders.label_maps is None:
        raise UserError(
            "--images: expected label maps of the images (-i), found none: name them, or leave it out"
        )
    if folders.label_maps is not None:
        expected = "label maps (.nii or .nii.gz)"
        files = list_files(Path(folders.label_maps), subfolders=False, expected=expected).files
        names = [file.name for file in files]
    names += [_PAM50] * (folders.pam50 is not None) + [_PHANTOM] * phantom
    if not names:
        raise UserError("nothing to draw from: expected label maps (-i), --pam50 or --phantom")
    return tuple(names)


def _files(name: str, folders: _Folders) -> dict[str, Path]:
    """Return what a source is drawn from, by names that tell the files of all sources apart."""
    if name == _PHANTOM:
        return {}
    if name == _PAM50:
        return {f"{_PAM50} {file.name}": file for file in pam50_files(Path(str(folders.pam50))).values()}
    place = Path(str(folders.label_maps))
    label_map = {name: place / name if place.is_dir() else place}
    if folders.images is None:
        return label_map
    stem = without_nifti_ending(name)
    image = compressed_or_plain(Path(folders.images) / f"{stem}.nii.gz")
    if not image.is_file():
        raise UserError(f"{folders.images}: expected an image {stem}.nii.gz of the label map, found none")
    return label_map | {f"image of {name}": image}


@lru_cache(maxsize=3)
def _anatomy(name: str, phantom: int, spec: SynthesisSpec, folders: _Folders) -> LabelAnatomy:
    if name == _PHANTOM:
        rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(phantom, 1)))
        return phantom_anatomy(rng, f"phantom {phantom + 1}")
    if name == _PAM50:
        return pam50_anatomy(Path(str(folders.pam50)))
    label_map, *image = _files(name, folders).values()
    return label_map_anatomy(label_map, spec.structure, *image)


# Files


def _image_file(folder: Path, number: int) -> Path:
    subject = f"sub-{number:04d}"
    return folder / subject / "anat" / f"{subject}_{_CONTRAST}.nii.gz"


def _write_case(folder: Path, spec: SynthesisSpec, folders: _Folders, number: int) -> None:
    """Write the soft label, then the image: where this is, the case is complete."""
    turn, at = divmod(number - 1, len(spec.sources))  # the sources take turns
    name = spec.sources[at]
    phantom = turn // _IMAGES_OF_A_PHANTOM if name == _PHANTOM else 0
    anatomy = _anatomy(name, phantom, spec, folders)
    rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(number, 0)))
    drawn, image = render(anatomy, draw_plan(anatomy, rng, without=spec.without)), _image_file(folder, number)
    stem = without_nifti_ending(image.name)
    labels = folder / _DERIVATIVES / image.parent.relative_to(folder)
    for place in (labels, image.parent):
        make_folder(place)
    about = {"Simulated": True, "Anatomy": anatomy.name, "Seed": spec.seed, "Number": number}
    of_label = {
        **about, "Description": "Share of each voxel that is the structure",
        "RawSources": [f"bids::{image.relative_to(folder).as_posix()}"],
    }  # fmt: skip
    write_nifti(labels / f"{stem}{_SUFFIX}", drawn.share, drawn.affine, of_label, "synthesise")
    of_image = {**about, "Modality": "MR"}
    write_nifti(image.with_name(stem), drawn.image, drawn.affine, of_image, "synthesise")
