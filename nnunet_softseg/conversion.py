"""From BIDS with soft labels to a dataset of nnU-Net's: names, a split by subject, files, a manifest.

Contrasts of one subject never fall on both sides of a split. Source files are read and copied, never linked
or changed.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
from tqdm import tqdm

from nnunet_softseg import __version__
from nnunet_softseg.atomic import make_folder, write_json
from nnunet_softseg.bids import bids_images, bids_name_of, derivative_file
from nnunet_softseg.errors import UserError
from nnunet_softseg.finding import examples, raise_first_error
from nnunet_softseg.nifti import load_nifti
from nnunet_softseg.soft_label import (
    affine_findings,
    content_findings,
    file_findings,
    hard_label_map,
    shape_findings,
    stored_values,
    write_soft_label,
)
from nnunet_softseg.subject_split import Split, make_folds, split_subjects

MANIFEST = "conversion.json"
DEFAULT_DERIVATIVE = "derivatives/truth"
DEFAULT_SUFFIX = "_label-SC_desc-truth_probseg"
_ID_LIMIT = 1000
_LABEL = 1
_FOLDER_ENDING = {"train": "Tr", "validation": "Tr", "test": "Ts"}


@dataclass(frozen=True)
class Source:
    """One image with its soft label, as found in a BIDS folder; `case_id` is `<sub>[_ses]_<contrast>`."""

    case_id: str
    subject: str
    contrast: str
    image: Path
    soft_label: Path


def convert_bids(
    bids: str | os.PathLike[str],
    dataset_id: int,
    name: str,
    *,
    raw_folder: str | os.PathLike[str] | None = None,
    derivative: str = DEFAULT_DERIVATIVE,
    suffix: str = DEFAULT_SUFFIX,
    contrasts: Sequence[str] | None = None,
    num_test: int | None = None,
    num_validation: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Return the folder of an nnU-Net dataset made from a BIDS folder with soft labels.

    An image without a soft label is left out and named in the manifest (conversion.json). A dataset that is
    there already, from the same sources and the same split, is kept as it is.

    Args:
        bids: images in `sub-*/[ses-*/]anat` and `dwi`.
        dataset_id: 1-999.
        name: of the dataset; the folder is `Dataset<id>_<name>`.
        raw_folder: where datasets lie; None takes the environment variable nnUNet_raw.
        derivative: folder inside `bids` with the soft labels, in the images' subfolders.
        suffix: what follows the image's name in that of its soft label.
        contrasts: those to take, as in the case ids; None takes all.
        num_test: subjects in imagesTs; None takes a fifth.
        num_validation: subjects that fold 0 validates on; None takes a fifth.
        seed: of the split.
        progress: whether a bar is shown.

    Raises:
        UserError: for data or arguments that don't fit; nothing is left behind.
    """
    raw, root = _find_raw_folder(raw_folder), Path(bids)
    folder = _dataset_folder(raw, dataset_id, name)
    sources, skipped = find_sources(root, derivative, suffix, contrasts)
    split = split_subjects(
        [source.subject for source in sources], num_test=num_test, num_validation=num_validation, seed=seed
    )
    manifest = _make_manifest(root, sources, skipped, split)
    if folder.exists():
        _check_same(folder, manifest)
        return folder
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    make_folder(aside)
    try:
        for source in tqdm(sources, desc="convert", unit="case", disable=not progress):
            _write_case(source, aside, _FOLDER_ENDING[split.part_of(source.subject)])
        _write_descriptions(aside, name, sources, split)
        write_json(aside / MANIFEST, {"generated_by": _generated_by(seed), **manifest})
        os.replace(aside, folder)
    except OSError as error:
        raise UserError(f"cannot write the dataset {folder}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


# What there is


def find_sources(
    bids: Path, derivative: str, suffix: str, contrasts: Sequence[str] | None = None
) -> tuple[list[Source], list[str]]:
    """Return the images that have a soft label, sorted by case, and the paths of those that have none.

    Raises:
        UserError: if a name is not BIDS, two images get one case id, or nothing is left.
    """
    found = [_source(image, bids, derivative, suffix) for image in bids_images(bids)]
    if contrasts is not None:
        _check_contrasts(contrasts, {source.contrast for source in found}, bids)
        found = [source for source in found if source.contrast in contrasts]
    sources = [source for source in found if source.soft_label.is_file()]
    if not sources:
        raise UserError(
            f"{bids}: none of {len(found)} images has a soft label, expected {found[0].soft_label} for the "
            "first: choose the folder of derivatives and the suffix"
        )
    _check_unique(sources)
    skipped = [source.image.relative_to(bids).as_posix() for source in found if source not in sources]
    return sorted(sources, key=lambda source: source.case_id), skipped


def _source(image: Path, bids: Path, derivative: str, suffix: str) -> Source:
    name = bids_name_of(image, bids)
    soft_label = derivative_file(image, bids, bids / derivative, suffix)
    return Source(f"{name.person}_{name.contrast}", name.subject, name.contrast, image, soft_label)


def _check_contrasts(asked: Sequence[str], there: set[str], bids: Path) -> None:
    unknown = [contrast for contrast in asked if contrast not in there]
    if unknown:
        raise UserError(
            f"{bids}: no image of contrast {', '.join(unknown)}: there are {', '.join(sorted(there))}"
        )


def _check_unique(sources: Sequence[Source]) -> None:
    for case_id, count in Counter(source.case_id for source in sources).items():
        if count > 1:
            names = [source.image.name for source in sources if source.case_id == case_id]
            raise UserError(
                f"{count} images get the case id {case_id} ({examples(names)}): leave out all but one"
            )


# What is written


def _write_case(source: Source, folder: Path, part: str) -> None:
    """Write image, soft label and label map of one case; the latter two in the geometry of the image."""
    raise_first_error([*file_findings(source.image), *file_findings(source.soft_label)])
    image, label = load_nifti(source.image), load_nifti(source.soft_label)
    raise_first_error(shape_findings(source.soft_label, image.shape, label.shape))
    raise_first_error(affine_findings(source.soft_label, image.affine, label.affine))
    soft_label = stored_values(source.soft_label)
    raise_first_error(content_findings(source.soft_label, soft_label))
    images, soft_labels, labels = (folder / f"{kind}{part}" for kind in ("images", "softLabels", "labels"))
    for place in (images, soft_labels, labels):
        place.mkdir(exist_ok=True)
    copied = images / f"{source.case_id}_0000.nii.gz"
    _copy(source.image, copied)
    soft_file = soft_labels / f"{source.case_id}_{_LABEL:04d}.nii.gz"
    write_soft_label(soft_file, soft_label, copied)
    _write_label_map(labels / f"{source.case_id}.nii.gz", soft_file)


def _copy(source: Path, target: Path) -> None:
    if source.name.endswith(".gz"):
        shutil.copyfile(source, target)
        return
    with source.open("rb") as plain, gzip.GzipFile(target, "wb", mtime=0) as compressed:
        shutil.copyfileobj(plain, compressed)


def _write_label_map(file: Path, soft_file: Path) -> None:
    """Write soft label > 0.5, of the values as they are on disk, where `check` will compare the two."""
    stored = load_nifti(soft_file)
    label_map = hard_label_map([stored_values(soft_file)], [_LABEL])
    header = stored.header.copy()
    header.set_data_dtype(label_map.dtype)
    header["descrip"] = f"soft label > 0.5, nnunet-softseg {__version__}".encode()
    nib.Nifti1Image(label_map, stored.affine, header).to_filename(file)


def _write_descriptions(folder: Path, name: str, sources: Sequence[Source], split: Split) -> None:
    cases: dict[str, list[str]] = {}
    for source in sources:
        cases.setdefault(source.subject, []).append(source.case_id)
    training = sum(len(cases[subject]) for subject in (*split.train, *split.validation))
    description = {
        "name": name,
        "description": "Images with soft labels (softLabelsTr); labelsTr is soft label > 0.5",
        "converted_by": f"nnunet-softseg {__version__}",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "cord": _LABEL},
        "numTraining": training,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }
    write_json(folder / "dataset.json", description)
    splits = [
        {key: [case for subject in part for case in cases[subject]] for key, part in fold.items()}
        for fold in make_folds(split)
    ]
    write_json(folder / "splits_final.json", splits)


def _make_manifest(
    bids: Path, sources: Sequence[Source], skipped: Sequence[str], split: Split
) -> dict[str, Any]:
    """Return where every file comes from, with its SHA-256, as JSON gives it back."""
    cases = {
        source.case_id: {
            "subject": source.subject,
            "contrast": source.contrast,
            "part": split.part_of(source.subject),
            "image": source.image.relative_to(bids).as_posix(),
            "image_sha256": _sha256(source.image),
            "soft_label": source.soft_label.relative_to(bids).as_posix(),
            "soft_label_sha256": _sha256(source.soft_label),
        }
        for source in sources
    }
    split_lists = {part: list(getattr(split, part)) for part in ("train", "validation", "test")}
    return {
        "source_folder": str(bids.resolve()),
        "split": split_lists,
        "cases": cases,
        "images_without_soft_label": list(skipped),
    }


def _generated_by(seed: int) -> dict[str, Any]:
    return {"name": "nnunet-softseg", "version": __version__, "split_seed": seed}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# Where it goes


def _find_raw_folder(raw_folder: str | os.PathLike[str] | None) -> Path:
    folder = raw_folder or os.environ.get("nnUNet_raw")
    if not folder:
        raise UserError("nnUNet_raw is not set: export nnUNet_raw=FOLDER, where nnU-Net's datasets lie")
    return Path(folder)


def _dataset_folder(raw: Path, dataset_id: int, name: str) -> Path:
    if not 0 < dataset_id < _ID_LIMIT:
        raise UserError(f"the dataset id must lie between 1 and {_ID_LIMIT - 1}, got {dataset_id}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"the dataset's name must consist of letters, digits, - and _, got {name!r}")
    folder = raw / f"Dataset{dataset_id:03d}_{name}"
    others = sorted(path.name for path in raw.glob(f"Dataset{dataset_id:03d}_*") if path != folder)
    if others:
        raise UserError(f"dataset id {dataset_id} is taken by {others[0]} in {raw}: choose another id")
    return folder


def _check_same(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise a UserError unless the folder comes from the same sources with the same split, and is whole."""
    remedy = "remove it, or choose another dataset id"
    try:
        there = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        there.pop("generated_by")
    except (OSError, ValueError, AttributeError, KeyError):
        raise UserError(f"{folder} exists and was not made by this command: {remedy}") from None
    different = [key for key in manifest if key != "source_folder" and there.get(key) != manifest[key]]
    if different:
        raise UserError(f"{folder} exists with other content ({', '.join(different)} differ): {remedy}")
    for case_id, case in manifest["cases"].items():
        part = _FOLDER_ENDING[case["part"]]
        for file in (
            f"images{part}/{case_id}_0000",
            f"labels{part}/{case_id}",
            f"softLabels{part}/{case_id}_0001",
        ):
            if not (folder / f"{file}.nii.gz").is_file():
                raise UserError(f"{folder} exists, but {file}.nii.gz is missing in it: {remedy}")
