"""Soft maps in what nnU-Net makes of predictions: ensembles, cross-validation, post-processing.

nnU-Net's commands read and write label maps and probabilities alone. Here the soft maps follow: an ensemble
has the mean of all members, the folder of a cross-validation those of its folds, and after post-processing
a piece that was removed from the label map is gone from its soft map, too.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from scipy import ndimage

from nnunet_softseg.datasets.raw_dataset import LabelScheme, hard_label_map, label_scheme, soft_label_file
from nnunet_softseg.datasets.soft_label import read_soft_label
from nnunet_softseg.errors import UserError, examples, short_name
from nnunet_softseg.inference.case_record import Map, in_one_piece, told_of_all
from nnunet_softseg.inference.export import (
    report_case,
    write_probabilities,
    write_segmentation,
    write_soft_maps,
)
from nnunet_softseg.inference.validation import VALIDATION, validation_folder
from nnunet_softseg.io.case_files import DATASET_JSON, REPORT, SOFT_FOLDER
from nnunet_softseg.io.formats import spacing_file
from nnunet_softseg.io.geometry import VoxelGrid
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import copy_file, load_json, make_folder, write_json
from nnunet_softseg.preprocessing.model_plans import versions
from nnunet_softseg.settings import HARD_THRESHOLD

Labels = npt.NDArray[np.integer[Any]]


# Ensembles


def require_same_labels(folders: Sequence[Path]) -> None:
    """Raise a UserError unless all folders of an ensemble have the same labels in their dataset.json."""
    keys = ("labels", "regions_class_order")
    found = [{key: load_json(folder / DATASET_JSON).get(key) for key in keys} for folder in folders]
    for folder, other in zip(folders[1:], found[1:], strict=True):
        if other != found[0]:
            expected, different = (json.dumps(one["labels"]) for one in (found[0], other))
            raise UserError(
                f"an ensemble of {folders[0]} and {folder}: expected models of the same labels, {expected}, "
                f"found {different}: leave one out"
            )


def require_probabilities(folders: Sequence[Path]) -> None:
    """Raise a UserError unless all folders of an ensemble have probabilities, and of the same cases."""
    cases = {folder: {file.stem for file in folder.glob("*.npz")} for folder in folders}
    for folder, found in cases.items():
        if not found:
            raise UserError(
                f"{folder}: expected probabilities, one .npz per case, found none: predict with "
                "--save_probabilities"
            )
    for (folder, found), (other, expected) in itertools.permutations(cases.items(), 2):
        if missing := sorted(expected - found):
            raise UserError(
                f"{folder}: expected probabilities of the same cases as {other}, found none of "
                f"{examples(missing)}: predict these, too, with --save_probabilities"
            )


def merge(
    files: Sequence[Path],
    target: Path,
    *,
    ending: str,
    writer: Any,
    label_manager: Any,
    save_probabilities: bool,
) -> None:
    """Write label map and soft maps of an ensemble's case, from the .npz of each member in nnU-Net's layout.

    Where a label of the mean exceeds 0.5 the label map is painted as that of one model. Of a soft model and
    another one, whose probabilities add up to 1, it elsewhere has the class with the largest mean, as in
    nnU-Net's own ensembles. What is flagged in a member is flagged. Target: path of the label map without
    its ending. The label manager is that of the first member. `save_probabilities`: write the mean as nnU-Net
    does, too, for an ensemble of ensembles.
    """
    order = label_manager.regions_class_order
    scheme = label_scheme({"labels": label_manager.label_dict, "regions_class_order": order})
    mean = _mean(files, scheme)
    soft_maps = mean if scheme.has_regions else mean[1:]
    label_map = hard_label_map(soft_maps, scheme.painted)
    soft_folders = [file.parent for file in files if (file.parent / REPORT).is_file()]
    if len(soft_folders) < len(files) and not scheme.has_regions:
        above = (soft_maps > HARD_THRESHOLD).any(axis=0)
        label_map = np.where(above, label_map, mean.argmax(axis=0)).astype(label_map.dtype)
    properties = load_pickle(str(files[0].with_suffix(".pkl")))
    like = (soft_label_file(folder / SOFT_FOLDER, target.name, scheme.numbers[0]) for folder in soft_folders)
    image = next((str(file) for file in like if file.is_file()), None)
    volumes = write_soft_maps(target, soft_maps, scheme.numbers, properties, ending=ending, image=image)
    labels = {name: {"soft_volume_mm3": mm3} for name, mm3 in zip(scheme.names, volumes, strict=True)}
    reports = (load_json(folder / REPORT).get("cases", {}) for folder in soft_folders)
    told = told_of_all(cases[target.name] for cases in reports if target.name in cases)
    report_case(target, _made_by(files), {"labels": labels, **told})
    write_segmentation(target, ending, label_map, writer, properties)
    if save_probabilities:
        write_probabilities(target, mean, properties)


def _mean(files: Sequence[Path], scheme: LabelScheme) -> Map:
    """Return the mean of probabilities (class, z, y, x) float32, the files read one after the other."""
    total: Map | None = None
    expected = len(scheme.names) + (not scheme.has_regions)
    for file in files:
        probabilities = np.load(file)["probabilities"].astype(np.float32)
        shape = (expected, *(probabilities.shape[1:] if total is None else total.shape[1:]))
        if probabilities.shape != shape:
            raise UserError(
                f"{short_name(file)}: expected probabilities of shape {shape}, found {probabilities.shape}: "
                "predict all members of the ensemble again, from the same images"
            )
        total = probabilities if total is None else total + probabilities
    if total is None:
        raise ValueError("an ensemble has one file at least, found none")
    return np.asarray(total / np.float32(len(files)))


def _made_by(files: Iterable[Path]) -> dict[str, Any]:
    """Return what softseg.json says of an ensemble; cases of a cross-validation are seen by no member."""
    seen: dict[str, set[str]] = {}
    for file in files:
        if file.parent.name != VALIDATION and (file.parent / REPORT).is_file():
            for fold, cases in load_json(file.parent / REPORT).get("training_cases", {}).items():
                seen.setdefault(fold, set()).update(cases)
    folders = [
        str(file.parent.parents[1] if file.parent.name == VALIDATION else file.parent) for file in files
    ]
    training_cases = {fold: sorted(cases) for fold, cases in seen.items()}
    made_by = {"versions": versions(), "ensemble_of": folders, "threshold": HARD_THRESHOLD}
    return {**made_by, "training_cases": training_cases}


# Cross-validation


def gather_folds(model: Path, merged: Path, folds: Sequence[int | str]) -> None:
    """Copy the soft maps of each fold's validation, and what softseg.json says of them, to one folder."""
    make_folder(merged / SOFT_FOLDER)
    report: dict[str, Any] = {}
    cases: dict[str, Any] = {}
    for fold in folds:
        validation = validation_folder(model, fold)
        for file in sorted((validation / SOFT_FOLDER).glob("*.*")):
            copy_file(file, merged / SOFT_FOLDER / file.name)
        if (validation / REPORT).is_file():
            report = load_json(validation / REPORT)
            cases |= report["cases"]
    if report:
        # No case was trained on by the fold that predicted it.
        write_json(merged / REPORT, {**report, "training_cases": {}, "cases": dict(sorted(cases.items()))})


# Post-processing


def follow_postprocessing(source: Path, output: Path, dataset_json: Mapping[str, Any], reader: Any) -> None:
    """Write the soft maps of post-processed label maps: what was removed from these is 0 in them.

    The source is the folder of the predictions, the output that of their label maps after post-processing. A
    label that is in one piece then is no longer flagged for its pieces.
    """
    if not (source / SOFT_FOLDER).is_dir() or not output.is_dir():
        return
    scheme, ending = label_scheme(dataset_json), dataset_json["file_ending"]
    make_folder(output / SOFT_FOLDER)
    report = load_json(source / REPORT) if (source / REPORT).is_file() else {"cases": {}}
    cases: dict[str, Any] = {}
    for file in sorted(source.glob(f"*{ending}")):
        case = file.name.removesuffix(ending)
        if (output / file.name).is_file():
            volumes, whole = _follow_case(case, file, output / file.name, scheme, reader)
            entry = in_one_piece(report["cases"].get(case, {}), whole)
            cases[case] = {**entry, "labels": {**entry.get("labels", {}), **volumes}}
    write_json(output / REPORT, {**report, "postprocessed_from": str(source), "cases": cases})


def _follow_case(
    case: str, before_file: Path, after_file: Path, scheme: LabelScheme, reader: Any
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Write the soft maps of a case; return the volumes of those that have changed, and the whole of them."""
    before, after = (reader.read_seg(str(file))[0][0] for file in (before_file, after_file))
    changed = before != after
    volumes, whole = {}, []
    for name, number, region in zip(scheme.names, scheme.numbers, scheme.regions, strict=True):
        source = soft_label_file(before_file.parent / SOFT_FOLDER, case, number)
        removed = changed & np.isin(before, region)
        if not source.is_file():
            continue
        if not removed.any():
            for file in filter(Path.is_file, (source, spacing_file(source))):
                copy_file(file, after_file.parent / SOFT_FOLDER / file.name)
            continue
        soft_map, properties = read_soft_label(source, reader)
        if not properties:  # of pictures
            properties = {"spacing": VoxelGrid.of(load_nifti(source)).spacing_mm[::-1]}
        left = without_pieces(soft_map, removed, properties["spacing"])
        written: dict[str, Any] = {"ending": after_file.name[len(case) :], "image": str(source)}
        (mm3,) = write_soft_maps(after_file.parent / case, left[None], [number], properties, **written)
        volumes[name] = {"soft_volume_mm3": mm3}
        if _pieces(left > HARD_THRESHOLD).max() <= 1:
            whole.append(name)
    return volumes, whole


def _pieces(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return the number of each voxel's piece, from 1 on; voxels that share a corner belong together."""
    numbers: npt.NDArray[np.int32] = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))[0]
    return numbers


def without_pieces(soft_map: Map, removed: npt.NDArray[np.bool_], spacing_mm: Sequence[float]) -> Map:
    """Return a soft map (z, y, x) without the pieces that were removed from its label map, a mask likewise.

    A voxel goes if it is connected to removed ones by values above 0, and none that was kept is nearer.
    """
    kept = (soft_map > HARD_THRESHOLD) & ~removed
    pieces = _pieces(soft_map > 0)
    nearest = ndimage.distance_transform_edt(
        ~(kept | removed), sampling=spacing_mm, return_distances=False, return_indices=True
    )
    goes = removed[tuple(nearest)] & np.isin(pieces, np.unique(pieces[removed]))
    return np.where(goes | removed, np.float32(0), soft_map)
