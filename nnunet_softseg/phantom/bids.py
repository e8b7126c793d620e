"""A phantom on disk: a BIDS folder with images, raters' masks, and the truth as derivatives."""

import csv
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy.typing as npt

from nnunet_softseg import __version__
from nnunet_softseg.errors import UserError, examples
from nnunet_softseg.io.case_files import BIDS_DESCRIPTION
from nnunet_softseg.io.results import (
    changed_keys,
    json_copy,
    load_record,
    make_folder,
    replacing,
    write_bytes,
    write_error,
    write_json,
)
from nnunet_softseg.io.workers import map_jobs
from nnunet_softseg.phantom.acquisition import (
    CSA_COLUMNS,
    DEFAULT_FOV_MM,
    PhantomSpec,
    Simulated,
    check_cords_fit,
    draw_subject_anatomy,
    simulate,
    simulate_subject,
    subject_name,
)
from nnunet_softseg.phantom.anatomy import Floats
from nnunet_softseg.phantom.contrasts import CONTRAST_NAMES

LABELS, TRUTH = Path("derivatives", "labels"), Path("derivatives", "truth")
TRUTH_SUFFIX = "_label-SC_desc-truth_probseg"
LEVELS_SUFFIX = "_desc-levels_dseg"
CSA_SUFFIX = "_desc-truth_csa"
MASK_SUFFIX = "_seg-manual"
_INTEGER_COLUMNS = ("slice", "level")


def phantom(
    output: str | os.PathLike[str],
    n: int = 12,
    seed: int = 0,
    *,
    fov_mm: tuple[float, float, float] = DEFAULT_FOV_MM,
    contrasts: Sequence[str] = CONTRAST_NAMES,
    shift_mm: float = 0.0,
    cord: bool = True,
    axial_si_mm: float | None = None,
    oblique_deg: float = 0.0,
    num_processes: int = 1,
    progress: bool = True,
) -> Path:
    """Return the BIDS folder of a phantom, written or completed.

    The files are the same, bit by bit, for the same arguments, whatever `n` and `num_processes`. Subjects
    that are there already are kept, so that an interrupted call can be repeated, and a phantom can grow.

    Args:
        output: new or empty folder, or one that holds the beginning of the same phantom.
        n: number of subjects.
        seed: of everything random.
        fov_mm: R-L, A-P, S-I of the images.
        contrasts: of `CONTRAST_NAMES`.
        shift_mm: farthest distance in plane to the anatomy as T2w shows it, smoothly different in each slice.
        cord: False leaves out cord and canal; all labels are empty.
        axial_si_mm: S-I extent of the axial contrasts (T2star, MT, DWI); None for that of the others.
        oblique_deg: how far the axial slices may be tipped about the R-L axis.
        num_processes: subjects made at a time.
        progress: show a bar.

    Raises:
        UserError: for arguments out of range, a field of view too small for the cord, or a folder with other
        content.
    """
    if n < 1 or num_processes < 1:
        raise UserError(f"n and num_processes must be 1 or more, got {n} and {num_processes}")
    rl, ap, si = map(float, fov_mm)
    spec = PhantomSpec(
        seed, (rl, ap, si), tuple(contrasts), float(shift_mm), cord, axial_si_mm, float(oblique_deg)
    )
    check_cords_fit(spec, n)
    folder = Path(output)
    check_beginning(folder, _parameters(spec), n)
    try:
        _write_descriptions(folder, spec, n)
        missing = [number for number in range(1, n + 1) if not (folder / subject_name(number)).exists()]
        write = partial(write_subject, folder, spec)
        map_jobs(write, missing, num_processes=num_processes, progress=progress, description="phantom")
        _write_participants(folder, spec, n)
    except OSError as error:
        raise write_error(folder, error) from error
    return folder


def check_beginning(folder: Path, asked: Mapping[str, Any], n: int, what: str = "phantom") -> None:
    """Raise a UserError if the folder holds anything but the first subjects of what these parameters make.

    The parameters stand in dataset_description.json, under `what` with a capital.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    record = load_record(folder / BIDS_DESCRIPTION, what.capitalize())
    if record is None:
        raise UserError(f"{folder} is not empty and holds no {what}: choose another folder")
    there = record[what.capitalize()]
    changed = changed_keys(there, asked)
    different = [_difference(key, there.get(key), asked[key]) for key in changed]
    if different:
        raise UserError(f"{folder} holds another {what} ({'; '.join(different)}): choose another folder")
    numbers = [path.name.removeprefix("sub-") for path in folder.glob("sub-*")]
    surplus = [number for number in numbers if not number.isdigit() or int(number) > n]
    if surplus:
        raise UserError(
            f"{folder} holds {n + len(surplus)} subjects, {n} asked for: choose another folder or a larger n"
        )


def _difference(key: str, there: Any, asked: Any) -> str:
    """Return in words how a parameter differs; of a mapping (file -> SHA-256), which of its keys do."""
    if not isinstance(asked, dict):
        return f"{key} {there} there, {asked} asked for"
    there = there or {}
    names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
    return f"{key} of {examples(names)} there and asked for differ"


def _parameters(spec: PhantomSpec) -> dict[str, Any]:
    """Return all that decides the voxels, as JSON gives it back."""
    return dict(json_copy({"version": __version__, **asdict(spec)}))


def write_subject(folder: Path, spec: PhantomSpec, number: int) -> None:
    """Write all files of a subject aside, then move them, the images last: these mean that it is complete."""
    name = subject_name(number)
    aside = folder / f".partial-{name}"
    shutil.rmtree(aside, ignore_errors=True)
    places = {aside / "labels": folder / LABELS, aside / "truth": folder / TRUTH, aside / "raw": folder}
    try:
        subject = simulate_subject(spec, number)
        for contrast in spec.contrasts:
            _write_image(aside, simulate(spec, number, contrast, subject), spec, number)
        for source, target in places.items():
            shutil.rmtree(target / name, ignore_errors=True)
            target.mkdir(parents=True, exist_ok=True)
            os.replace(source, target / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_image(aside: Path, simulated: Simulated, spec: PhantomSpec, number: int) -> None:
    contrast = simulated.contrast
    source = contrast.source_name(subject_name(number))
    raw, labels, truth = (aside / kind / contrast.folder for kind in ("raw", "labels", "truth"))
    for folder in (raw, labels, truth):
        folder.mkdir(parents=True, exist_ok=True)
    about = {
        "RawSources": [f"bids::{subject_name(number)}/{contrast.folder}/{source}.nii.gz"],
        "SliceAxis": simulated.slice_axis,
        "GeneratedBy": [_generated_by(spec, number)],
    }

    def write(stem: Path, voxels: npt.NDArray[Any], sidecar: dict[str, Any]) -> None:
        write_nifti(stem, voxels, simulated.affine, sidecar, "phantom")

    write(raw / source, simulated.image, {
        "Modality": "MR", "SliceThickness": contrast.voxel_mm[2], "ContrastName": contrast.name,
        "Simulated": True, "GeneratedBy": about["GeneratedBy"],
    })  # fmt: skip
    write(labels / (source + MASK_SUFFIX), simulated.mask, {
        **about, "Type": "ROI", "Manual": False,
        "Description": "The cord as a rater of this contrast outlines it, with the contrast's bias",
        "AreaBias": contrast.mask_area_bias,
    })  # fmt: skip
    write(truth / (source + TRUTH_SUFFIX), simulated.truth, {
        **about, "Type": "ROI", "Description": "Share of each voxel that is spinal cord, from the geometry",
    })  # fmt: skip
    write(truth / (source + LEVELS_SUFFIX), simulated.levels, {
        **about, "Description": "Vertebral level in the canal: 1-7 are C1-C7, 8-19 T1-T12, 20-24 L1-L5",
    })  # fmt: skip
    decimals = {name: 0 if name in _INTEGER_COLUMNS else 4 for name in CSA_COLUMNS}
    columns = [[f"{value:.{decimals[name]}f}" for value in simulated.csa[name]] for name in CSA_COLUMNS]
    _write_tsv(truth / f"{source}{CSA_SUFFIX}.tsv", CSA_COLUMNS, zip(*columns, strict=True))
    described = {name: {"Description": words} for name, words in CSA_COLUMNS.items()}
    write_json(truth / f"{source}{CSA_SUFFIX}.json", about | described)


def _write_descriptions(folder: Path, spec: PhantomSpec, n: int) -> None:
    derivatives = {LABELS: "Cord masks, biased by contrast", TRUTH: "True cord: shares, levels, areas"}
    write_descriptions(
        folder,
        "Spinal cord phantom",
        derivatives,
        parameters={"Phantom": _parameters(spec)},
        made_by=_generated_by(spec, n),
        readme="Simulated MRI of a spinal cord with known truth, made by nnunet-softseg.",
    )


def write_descriptions(
    folder: Path,
    name: str,
    derivatives: Mapping[Path, str],
    *,
    parameters: Mapping[str, Any],
    made_by: Mapping[str, Any],
    readme: str,
) -> None:
    """Write README, and dataset_description.json of images and of their derivatives (folder -> name)."""
    make_folder(folder)
    common = {"BIDSVersion": "1.9.0", "GeneratedBy": [made_by]}
    write_json(folder / BIDS_DESCRIPTION, {"Name": name, "DatasetType": "raw", **common, **parameters})
    for derivative, of in derivatives.items():
        make_folder(folder / derivative)
        write_json(
            folder / derivative / BIDS_DESCRIPTION, {"Name": of, "DatasetType": "derivative", **common}
        )
    write_bytes(folder / "README", f"{readme} No person was scanned.\n".encode())


def _generated_by(spec: PhantomSpec, n: int) -> dict[str, Any]:
    return {"Name": "nnunet-softseg", "Version": __version__, "Seed": spec.seed, "Command": _command(spec, n)}


def _command(spec: PhantomSpec, n: int) -> str:
    """Return the command that makes the phantom up to its n-th subject."""
    words = ["nnunet-softseg phantom -o BIDS", f"-n {n}", f"--seed {spec.seed}"]
    words += ["--fov-mm", *(f"{extent:g}" for extent in spec.fov_mm), "--contrasts", *spec.contrasts]
    words += [f"--shift-mm {spec.shift_mm:g}"] * (spec.shift_mm > 0) + ["--no-cord"] * (not spec.cord)
    words += [f"--oblique-deg {spec.oblique_deg:g}"] * (spec.oblique_deg > 0)
    words += [f"--axial-si-mm {spec.axial_si_mm:g}"] if spec.axial_si_mm is not None else []
    return " ".join(words)


def _write_participants(folder: Path, spec: PhantomSpec, n: int) -> None:
    rows = []
    for number in range(1, n + 1):
        anatomy = draw_subject_anatomy(spec, number)
        rows.append([subject_name(number), f"{anatomy.csa_c2c3_mm2 * anatomy.has_cord:.4f}"])
    _write_tsv(folder / "participants.tsv", ["participant_id", "csa_c2c3_mm2"], rows)
    meaning = (
        "True area of the cord perpendicular to its centreline, mean over C2 and C3, mm2; 0 without cord"
    )
    write_json(folder / "participants.json", {"csa_c2c3_mm2": {"Description": meaning, "Units": "mm2"}})


def write_nifti(
    stem: Path, voxels: npt.NDArray[Any], affine: Floats, sidecar: Mapping[str, Any], command: str
) -> None:
    """Write `<stem>.json`, then `<stem>.nii.gz`, voxels in scanner space in mm that a command has drawn."""
    write_json(stem.with_name(f"{stem.name}.json"), sidecar)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    image.header["descrip"] = f"nnunet-softseg {__version__} {command}".encode()
    with replacing(stem.with_name(f"{stem.name}.nii.gz")) as aside:
        image.to_filename(aside)


def _write_tsv(path: Path, header: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])
