"""Soft maps on the network's grid -> post-processed -> on the image's -> files; what is said at the end."""

import json
import pickle
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from filelock import FileLock
from scipy import ndimage

from nnunet_softseg import __version__
from nnunet_softseg.datasets.raw_dataset import (
    LabelScheme,
    hard_label_map,
    in_nnunets_layout,
    label_scheme,
    soft_label_file,
    soft_label_files,
)
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.case_record import (
    CALIBRATION,
    KEY,
    CaseRecord,
    Flag,
    Flagged,
    Map,
    PredictionOptions,
    flag_coverage,
    flag_lines,
    flag_map,
    largest_component,
    reported_cases,
)
from nnunet_softseg.io.case_files import (
    REPORT,
    SOFT_FOLDER,
    Case,
    folds_trained_on,
    parse_numbered_name,
    picture_file,
)
from nnunet_softseg.io.formats import is_nifti, is_picture, itk_image, soft_ending, spacing_file, write_other
from nnunet_softseg.io.geometry import VoxelGrid, reader_affines
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.readers import is_known, nifti_as_stored, simpleitk, write_label_map
from nnunet_softseg.io.results import (
    as_json,
    json_copy,
    load_json,
    load_record,
    make_folder,
    remove_files,
    replacing,
    write_json,
)
from nnunet_softseg.metrics.calibration import IsotonicMap
from nnunet_softseg.metrics.slice_frame import slice_areas
from nnunet_softseg.preprocessing.center_crop import inside_of_box
from nnunet_softseg.preprocessing.image_grid import WAY_KEY, known_ways, on_image_grid, placed, whole_box
from nnunet_softseg.preprocessing.model_plans import versions
from nnunet_softseg.preprocessing.output_scale import keep_supported, output_scales
from nnunet_softseg.settings import HARD_THRESHOLD, PLANS_KEY, SoftSegSettings

MOST_CASES = 200
"""Of more cases, no page is made without being asked: a picture takes about a third of a second."""
_AS_SOFT_MAP = ("-cm", "red-yellow", "-dr", "0", "1")  # to fsleyes
_CASES, _BEFORE_CASE, _AFTER_CASES = '\n  "cases": {', '\n    "', "\n  }\n}\n"
"""Of softseg.json, as it is laid out: no line deeper in it is indented as little."""
_CALIBRATION_FORMAT = 1
_KNOTS = "labels"


def export_prediction(
    predicted: Any,
    properties: dict[str, Any],
    plans_manager: Any,
    dataset_json: dict[str, Any],
    truncated_file: str,
    *,
    save_probabilities: bool = False,
) -> None:
    """Write the soft maps of a case to `soft/<case>_<label>.nii.gz`, and what comes with them.

    Those of MHA, NRRD and GIPL images have their ending, those of pictures are float TIFF. softseg.json gets
    an entry. The label map comes last: its presence tells nnU-Net's --continue_prediction that the case is
    done.

    Args:
        predicted: soft maps (label, *space) of the box in the case's record, or of the whole case.
        properties: of the case, with its record.
        plans_manager: nnU-Net's.
        dataset_json: of the model.
        truncated_file: path of the label map without its ending.
        save_probabilities: write the soft maps as nnU-Net's .npz, too, in its layout, (class, z, y, x).
    """
    started = time.perf_counter()
    scheme = label_scheme(dataset_json)
    record = CaseRecord.of(properties)
    labels, names = scheme.numbers, scheme.names
    on_network_grid = _postprocessed(predicted, names, plans_manager.plans, record)
    label_map, soft_maps = _on_image(on_network_grid, plans_manager, scheme, properties)
    target = Path(truncated_file)
    image_geometry = {key: value for key, value in properties.items() if key != KEY}
    image = next(iter(record.image_files), None)
    ending: str = dataset_json["file_ending"]
    # Written last, it says that all is there: one of before must not say so of soft maps of now.
    target.with_name(f"{target.name}{ending}").unlink(missing_ok=True)
    volumes_mm3 = write_soft_maps(target, soft_maps, labels, image_geometry, ending=ending, image=image)
    if save_probabilities:
        write_probabilities(target, in_nnunets_layout(soft_maps, scheme), image_geometry)
    for name, volume_mm3 in zip(names, volumes_mm3, strict=True):
        record.labels[name]["soft_volume_mm3"] = volume_mm3
    si_axis = plans_manager.plans[PLANS_KEY]["si_axis"]
    if si_axis is not None or soft_maps.shape[1] > 1:  # a picture has one slice
        axis = plans_manager.transpose_forward[si_axis or 0]
        record.add_flags(flag_coverage(soft_maps, names, axis))
    record.add_flags(_flag_seen(target.name, plans_manager.plans))
    record.seconds["export"] = time.perf_counter() - started
    report_case(target, made_by(plans_manager.plans, names, record.options), record.as_json())
    write_segmentation(target, ending, label_map, plans_manager.image_reader_writer_class(), properties)


def write_probabilities(target: Path, probabilities: Map, properties: Mapping[str, Any]) -> None:
    """Write probabilities (class, z, y, x) and properties of a case beside its label map, as nnU-Net does."""
    with replacing(target.with_name(target.name + ".npz")) as aside:
        np.savez_compressed(aside, probabilities=probabilities)
    with replacing(target.with_name(target.name + ".pkl")) as aside:
        aside.write_bytes(pickle.dumps(dict(properties)))


def write_segmentation(
    target: Path,
    ending: str,
    label_map: npt.NDArray[np.integer[Any]],
    writer: Any,
    properties: Mapping[str, Any],
) -> None:
    """Write a label map (z, y, x) as nnU-Net's writer does; `target` is its path without the ending."""
    with replacing(target.with_name(target.name + ending)) as aside:
        if is_known(type(writer).__name__):
            write_label_map(label_map, aside, properties)
        else:
            writer.write_seg(label_map, str(aside), properties)
        beside = spacing_file(aside)
        if beside.is_file():  # of a TIFF with three axes, which cannot hold its spacing
            beside.replace(target.with_name(f"{target.name}.json"))


def convert_prediction(
    predicted: Any, properties: dict[str, Any], plans_manager: Any, label_manager: Any
) -> tuple[npt.NDArray[np.integer[Any]], Map]:
    """Return label map (z, y, x) and soft maps (label, z, y, x); arguments as for `export_prediction`."""
    scheme: LabelScheme = label_manager.scheme
    soft_maps = _postprocessed(predicted, scheme.names, plans_manager.plans, CaseRecord.of(properties))
    return _on_image(soft_maps, plans_manager, scheme, properties)


def _on_image(
    soft_maps: Map, plans_manager: Any, scheme: LabelScheme, properties: dict[str, Any]
) -> tuple[npt.NDArray[np.integer[Any]], Map]:
    """Return label map (z, y, x) and soft maps (label, z, y, x) on the grid that nnU-Net's reader gave."""
    record = CaseRecord.of(properties)
    network_shape = tuple(record.network_shape or soft_maps.shape[1:])
    box = record.box or whole_box(network_shape)
    size = tuple(stop - start for start, stop in box)
    if soft_maps.shape[1:] != size:
        raise ValueError(
            f"the soft maps have shape {soft_maps.shape[1:]}, but the box of the case has {size}"
        )
    names, plans = scheme.names, plans_manager.plans
    part, slices = on_image_grid(
        soft_maps,
        box,
        network_shape,
        properties["shape_after_cropping_and_before_resampling"],
        known_ways(plans, names),
    )
    if is_calibrated(plans, record.options):
        part = calibrated(part, names, plans)
    label_part: Any = hard_label_map(part, scheme.painted)[None]
    corner = [start for start, _ in properties["bbox_used_for_cropping"]]
    slices = tuple(slice(start + at.start, start + at.stop) for start, at in zip(corner, slices, strict=True))
    back = (0, *(axis + 1 for axis in plans_manager.transpose_backward))
    label_map, on_image = (
        placed(values, slices, properties["shape_before_cropping"]).transpose(back)
        for values in (label_part, part)
    )
    return label_map[0], on_image


def _postprocessed(predicted: Any, names: Sequence[str], plans: Mapping[str, Any], record: CaseRecord) -> Map:
    """Return the soft maps after post-processing; their flags and how much it removed go into the record."""
    soft_maps = np.asarray(predicted, dtype=np.float32)
    box, shape, placement = record.box, record.network_shape, record.placement
    kept, raised = postprocess(
        soft_maps,
        names,
        plans,
        record.options,
        in_case=inside_of_box(box, shape) if box and shape else (),
        tilt_factor=placement.tilt_factor if placement else None,
    )
    record.add_flags(raised)
    scales = dict(zip(names, output_scales(plans, names), strict=True))
    for name, before, after in zip(names, soft_maps, kept, strict=True):
        total, left = float(before.sum(dtype=np.float64)), float(after.sum(dtype=np.float64))
        label = record.labels.setdefault(name, {})
        label["output_scale"] = scales[name].output_scale
        label["removed_percent"] = round(100 * (total - left) / total, 3) if total else 0.0
    return kept


def write_soft_maps(
    target: Path,
    soft_maps: Map,
    labels: Sequence[int],
    properties: Mapping[str, Any],
    *,
    ending: str,
    image: str | None,
) -> list[float]:
    """Write one file per label to `soft/`, and return the soft volume of each in mm3, by their affine.

    A voxel of a picture with one slice counts 1, as of all whose size is not known: volumes are numbers of
    pixels. Target: path of the label map, of that ending, but without it. The maps are (label, z, y, x);
    properties and image are those of `soft_nifti`.
    """
    folder = target.parent / SOFT_FOLDER
    names = [f"{target.name}_{label:04d}{soft_ending(ending)}" for label in labels]
    make_folder(folder)
    first, nifti = folder / names[0], None
    for name, soft_map in zip(names, soft_maps, strict=True):
        with replacing(folder / name) as aside:
            if is_nifti(name):
                nifti = soft_nifti(soft_map, properties, image)
                nib.save(nifti, aside)
            else:
                write_other(aside, soft_map, properties)
    if is_picture(first.name) and soft_maps.shape[1] > 1:
        write_json(spacing_file(first), {"spacing": [float(size) for size in properties["spacing"]]})
    voxel_mm3 = VoxelGrid.of(load_nifti(first) if nifti is None else nifti).voxel_mm3
    return [round(float(soft_map.sum(dtype=np.float64)) * voxel_mm3, 3) for soft_map in soft_maps]


def soft_nifti(soft_map: Map, properties: Mapping[str, Any], image: str | None) -> nib.Nifti1Image:
    """Return a soft map (z, y, x), uncropped, as float32 NIfTI on its image's own grid, in the file's axes.

    Affine, form codes and units are those of the image that was predicted; where there is none, the geometry
    comes from the properties, of the same reader of nnU-Net's as the axes.

    Raises:
        ValueError: if the properties are not from a NIfTI reader of nnU-Net's.
    """
    in_file_order, affine = _to_file_order(soft_map, properties)
    header = None
    if image is not None and Path(image).is_file():
        source = load_nifti(Path(image))
        if tuple(source.shape[:3]) == in_file_order.shape:
            header, affine = source.header.copy(), source.affine
    # As a view, whose memory is in the order of the file: a contiguous copy would be turned round twice.
    nifti = nib.Nifti1Image(np.asarray(in_file_order, dtype=np.float32), affine, header)
    nifti.set_data_dtype(np.float32)
    nifti.header.set_slope_inter(1, 0)
    nifti.header["cal_min"], nifti.header["cal_max"] = 0, 1
    nifti.header["descrip"] = f"soft map, nnunet-softseg {__version__}"
    return nifti


def _to_file_order(soft_map: Map, properties: Mapping[str, Any]) -> tuple[Map, npt.NDArray[np.float64]]:
    """Return (array in the axis order of the file, affine) of a map (z, y, x) in that of nnU-Net's reader."""
    if "nibabel_stuff" in properties:
        geometry = properties["nibabel_stuff"]
        nifti = nifti_as_stored(soft_map.transpose(2, 1, 0), geometry)
        return np.asarray(nifti.dataobj), np.asarray(geometry["original_affine"], dtype=np.float64)
    if "sitk_stuff" in properties:
        image = itk_image(soft_map, properties["sitk_stuff"])
        spacing, origin, direction = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
        in_file = {"spacing": spacing, "origin": origin, "direction": direction}
        affine = reader_affines({"sitk_stuff": in_file})["original"]
        return simpleitk().GetArrayFromImage(image).T, affine
    raise ValueError(
        "a soft map can be written only with the geometry of its image, and the properties hold none: give "
        "those of one of nnU-Net's NIfTI readers (NibabelIOWithReorient, NibabelIO, SimpleITKIO)"
    )


def _flag_seen(case_id: str, plans: Mapping[str, Any]) -> list[Flagged]:
    """Flag a case of a subject that the model was trained on."""
    subject = Case.from_name(case_id).subject
    folds = folds_trained_on(subject, plans[PLANS_KEY].get("training_cases", {}))
    why = f"{subject} is a subject of the training of fold {', '.join(folds)}: this is no test of the model"
    return [Flagged(Flag.SEEN, why)] if folds else []


def made_by(plans: Mapping[str, Any], names: Sequence[str], options: PredictionOptions) -> dict[str, Any]:
    """Return what softseg.json says of a model with labels of these names, and of options, as JSON has it."""
    entry = plans[PLANS_KEY]
    scales = dict(zip(names, output_scales(plans, names), strict=True))
    described = {
        "versions": versions(plans),
        "trainer": entry["trainer"],
        "trained_with": entry["versions"],
        "orientation": entry["orientation"],
        "training_cases": entry.get("training_cases", {}),
        "threshold": HARD_THRESHOLD,
        "labels": {name: asdict(scale) for name, scale in scales.items()},
        "settings": SoftSegSettings.from_plans(plans).as_dict(),
        WAY_KEY: entry.get(WAY_KEY, {}),
        **_decided_by(plans, options),
    }
    return cast("dict[str, Any]", json_copy(described))


def report_case(target: Path, made_by: Mapping[str, Any], case: Mapping[str, Any]) -> None:
    """Add a case to softseg.json of its folder; workers, and parts of a split prediction, take turns.

    Entries of other cases stay the text that they are: to parse and write thousands of them anew after each
    case takes a sixth of the time of predicting small images.
    """
    path = target.parent / REPORT
    head = as_json({**made_by, "cases": {}}).removesuffix("}\n}\n")
    with FileLock(target.parent / f".{REPORT}.lock"):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not text.startswith(head):  # of another model, or laid out in another way
            before = json.loads(text) if text else {}
            same_model = {key: before.get(key) for key in made_by} == made_by
            text = as_json({"cases": before["cases"] if same_model else {}})
        entries = _entries(text) | _entries(as_json({"cases": {target.name: case}}))
        cases = ",".join(_BEFORE_CASE + entries[name] for name in sorted(entries))
        with replacing(path) as aside:
            aside.write_text(f"{head}{cases}{_AFTER_CASES}", encoding="utf-8")


def forget_cases(folder: Path, case_ids: Collection[str], ending: str) -> None:
    """Remove what a folder of predictions holds of cases: maps of any labels, pictures, reported entries.

    The label map of a case, of that ending, goes first: it says that the others are there.
    """
    for case_id in case_ids:
        maps = (folder / f"{case_id}{ending}", *soft_label_files(folder / SOFT_FOLDER, case_id))
        remove_files([*maps, picture_file(folder, case_id)])
    path = folder / REPORT
    with FileLock(folder / f".{REPORT}.lock"):
        report = load_json(path) if path.is_file() else {"cases": {}}
        if forgotten := report["cases"].keys() & set(case_ids):
            left = {name: entry for name, entry in report["cases"].items() if name not in forgotten}
            write_json(path, {**report, "cases": left})


def keep_only(folder: Path, case_ids: Collection[str], ending: str) -> None:
    """Remove all other cases from a folder of predictions that is made again; see `forget_cases`."""
    there = {name[0] for file in (folder / SOFT_FOLDER).glob("*") if (name := parse_numbered_name(file.name))}
    others = sorted({*there, *reported_cases(folder)} - set(case_ids))
    if others:
        forget_cases(folder, others, ending)


def _entries(report: str) -> dict[str, str]:
    """Return the text of each case in a report, its name included, by its name."""
    pieces = report.partition(_CASES)[2].removesuffix(_AFTER_CASES).split(_BEFORE_CASE)[1:]
    return {piece.partition('": {')[0]: piece.removesuffix(",") for piece in pieces}


# Post-processing


def postprocess(
    soft_maps: Map,
    names: Sequence[str],
    plans: Mapping[str, Any],
    options: PredictionOptions,
    *,
    in_case: tuple[slice, ...] = (),
    tilt_factor: npt.NDArray[np.float64] | None = None,
) -> tuple[Map, list[Flagged]]:
    """Return new soft maps with the background exactly 0, and their flags.

    Only the options take more away than background: the largest component alone is kept, a map unlike the
    training is emptied. Without them no map is emptied by its shape. The maps are (label, *space) on the
    network's grid, along S-I all of the case; `in_case` is the part of the space that lies in the case, all
    of it if not given; see `label_shape` for the tilt factor.
    """
    entry = plans[PLANS_KEY]
    training, axis = entry.get("training_shapes", {}), entry.get("si_axis") or 0
    kept, findings = [], []
    for name, soft_map, scale in zip(names, soft_maps, output_scales(plans, names), strict=True):
        label = keep_supported(soft_map, scale.core_threshold, scale.support_threshold)
        if options.largest_piece:
            label = largest_piece(label, scale.support_threshold)
        cores = {name: scale.core_threshold}
        raised = flag_map(label[in_case][None], [name], training, axis, tilt_factor, cores=cores)
        if options.discard_implausible and any(flag is Flag.UNLIKE for flag, _ in raised):
            label = np.zeros_like(label)
            why = f"{name} is unlike the labels of the training: emptied, as was asked for"
            raised.append(Flagged(Flag.DISCARDED, why))
        kept.append(label)
        findings += raised
    return np.stack(kept), findings


def largest_piece(soft_map: Map, support_threshold: float) -> Map:
    """Return a soft map from `keep_supported` with only its largest component, by the sum of its values."""
    neighbours = np.ones((3,) * soft_map.ndim, dtype=bool)
    kept = ndimage.binary_dilation(largest_component(soft_map, support_threshold), structure=neighbours)
    return np.where(kept, soft_map, np.float32(0))


# Calibration: per label a monotone map from soft map to soft label, on request. It is kept in the plans of
# a model, which go wherever the model goes: archives, predictors of nnU-Net.


def keep_calibration(
    plans: Mapping[str, Any], maps: Mapping[str, IsotonicMap], folds: Sequence[str], num_cases: int
) -> None:
    """Write the maps of all labels, by name, into the plans of a model, and of which cases they come."""
    plans[PLANS_KEY][CALIBRATION] = {
        "format": _CALIBRATION_FORMAT,
        "version": __version__,
        "folds": list(folds),
        "num_cases": num_cases,
        _KNOTS: {name: asdict(of_label) for name, of_label in maps.items()},
    }


def kept_calibration(plans: Mapping[str, Any], names: Sequence[str]) -> list[IsotonicMap]:
    """Return the map of each label of a model.

    Raises:
        UserError: if the model has no calibration, or one of another version or other labels.
    """
    kept = plans[PLANS_KEY].get(CALIBRATION)
    remedy = "run nnunet-softseg calibrate -m MODEL, or predict without --calibrate"
    if kept is None:
        raise UserError(
            "--calibrate: expected a calibration in the model's plans.json, found none (training a fold "
            f"removes it): {remedy}"
        )
    try:
        of_format, knots = kept["format"], kept[_KNOTS]
        maps = {name: IsotonicMap(tuple(of["x"]), tuple(of["y"])) for name, of in knots.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"--calibrate: expected the calibration in plans.json as it was written, found: {error}: {remedy}"
        ) from error
    if of_format != _CALIBRATION_FORMAT:
        raise UserError(
            f"--calibrate: expected a calibration of format {_CALIBRATION_FORMAT}, found {of_format}, made "
            f"by nnunet-softseg {kept.get('version')} (here {__version__}): {remedy}"
        )
    if list(maps) != list(names):
        raise UserError(
            f"--calibrate: expected a calibration of the model's labels, {', '.join(names)}, found one of "
            f"{', '.join(maps)}: {remedy}"
        )
    return list(maps.values())


def is_calibrated(plans: Mapping[str, Any], options: PredictionOptions) -> bool:
    """Return whether maps are calibrated: asked for, and there; the final validation of a fold never is."""
    return options.calibrate and CALIBRATION in plans[PLANS_KEY]


def calibrated(soft_maps: Map, names: Sequence[str], plans: Mapping[str, Any]) -> Map:
    """Return soft maps (label, *space) on the image's grid calibrated; what is 0 stays 0."""
    maps = kept_calibration(plans, names)
    return np.stack([of_label(soft_map) for of_label, soft_map in zip(maps, soft_maps, strict=True)])


def _decided_by(plans: Mapping[str, Any], options: PredictionOptions) -> dict[str, Any]:
    """Return what softseg.json says of the options that decide the values of its maps.

    Of the calibration, None: they are as the network says.
    """
    kept = plans[PLANS_KEY][CALIBRATION] if is_calibrated(plans, options) else None
    described = kept and {key: value for key, value in kept.items() if key != _KNOTS}
    return {**options.that_decide(plans), CALIBRATION: described}


# The image's grid


def resample_soft_map(
    data: Any,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    *,
    core_threshold: float | Sequence[float] = 0.5,
    support_threshold: float | Sequence[float] = 0.05,
) -> Map:
    """Return soft maps (label, *new_shape) in [0, 1] on another grid of the same field of view.

    nnU-Net calls this, by its name in the plans, where it would resample logits (label, *space), of NumPy or
    torch. It would take the nearest slice along a thick-slice axis; a soft map is interpolated there too,
    always linearly: the inverse of how soft targets come to the network's grid along thick slices. The
    spacings are not needed, as both grids cover the same field of view. The background becomes exactly 0, by
    thresholds of each label or of all, see `keep_supported`.
    """
    soft_maps = np.asarray(data, dtype=np.float32)
    thresholds = np.broadcast_arrays(core_threshold, support_threshold, np.ones(len(soft_maps)))[:2]
    cleaned = np.stack([keep_supported(*of_label) for of_label in zip(soft_maps, *thresholds, strict=True)])
    shape = cleaned.shape[1:]
    whole_case = whole_box(shape)
    return placed(*on_image_grid(cleaned, whole_case, shape, new_shape), new_shape)


# The end of a prediction


def summarise(
    folder: Path, images: Mapping[str, Path], numbers: Sequence[int], *, draw: bool, progress: bool
) -> str:
    """Return in lines how many cases have which flag, why, and what to do; draw the page if asked to.

    Of a single case it says volume and area of each label, too, and how to look at them. The folder is that
    of the predictions, with softseg.json; the images are those of each case of the call, also of those that
    an earlier call predicted; the page, `qc/index.html`, shows all cases in the folder.
    """
    entries = (load_record(folder / REPORT, "cases") or {"cases": {}})["cases"]
    lines = flag_lines({case: entries[case] for case in images if case in entries})
    if len(images) == len(entries.keys() & images) == 1:
        ((case, image),) = images.items()
        labels = entries[case]["labels"]
        files = [soft_label_file(folder / SOFT_FOLDER, case, number) for number in numbers]
        if is_nifti(image.name):
            lines += result_lines(image, dict(zip(labels, files, strict=True)), labels)
    if draw and len(entries) > MOST_CASES:
        lines.append(f"no pictures: expected at most {MOST_CASES} cases in a folder, found {len(entries)}")
    elif draw and entries:
        try:
            from nnunet_softseg.inference.qc_page import write_qc_page  # only here: it loads matplotlib
        except ModuleNotFoundError as error:
            need = f"{error.name} is not installed: pip install matplotlib jinja2, or give --no-qc"
            lines.append(f"no pictures: {need}")
        else:
            page = write_qc_page(folder, entries, images, progress=progress)
            lines.append(f"pictures of all, flagged first: {page}")
    return "\n".join(lines)


def result_lines(image: Path, maps: Mapping[str, Path], labels: Mapping[str, Any]) -> list[str]:
    """Return soft volume and mean area of each label, by its name, and a viewer's command.

    The maps are files, the labels an entry of softseg.json, with the soft volume in mm3.
    """
    lines = []
    for name, file in maps.items():
        area = _area_in_the_middle(file)
        volume = f"soft volume {labels[name]['soft_volume_mm3'] / 1000:.2f} cm3"
        where = "over the middle third of its slices, not corrected for tilt"
        lines.append(f"{name}: none found" if area is None else f"{name}: {volume}, {area:.1f} mm2 {where}")
    view = [word for file in maps.values() for word in (str(file), *_AS_SOFT_MAP)]
    return [*lines, f"to look at it: {shlex.join(['fsleyes', str(image), *view])}"]


def _area_in_the_middle(soft_map: Path) -> float | None:
    """Return the mean area in mm2 over the middle third of the slices that hold something; None: none do."""
    area = slice_areas(load_nifti(soft_map)).area_mm2
    filled = np.flatnonzero(np.isfinite(area))
    if not len(filled):
        return None
    margin = len(filled) // 3
    return float(area[filled[margin : len(filled) - margin]].mean())
