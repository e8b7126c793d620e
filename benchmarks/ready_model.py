"""The ready model: synthetic images of the cord -> dataset -> stock nnU-Net training -> one file.

    python benchmarks/ready_model.py -o ready_output --pam50 PAM50
    python benchmarks/ready_model.py -o ready_output --evaluate --real DATA

Draws images from the PAM50 template and the phantom (no image of a person is trained on), converts, plans and
trains by the stock commands, and writes OUT/cord.softseg. A call that was cut off goes on where it was. With
`--evaluate`, predicts real images with manual masks, and images that show no cord, and writes OUT/real.csv.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from study import FOLD, PLANS, Method, Study, plan

from nnunet_softseg.datasets.conversion import convert
from nnunet_softseg.evaluation.evaluate import evaluate as evaluate_maps
from nnunet_softseg.io.case_files import derivative_file, list_bids
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.io.results import copy_file, load_json, make_folder, replacing, write_json
from nnunet_softseg.metrics import overlap
from nnunet_softseg.phantom import TRUTH, TRUTH_SUFFIX, phantom
from nnunet_softseg.phantom.synthesis import synthesise
from nnunet_softseg.preprocessing.output_scale import keep_output_scales, output_scales
from nnunet_softseg.settings import PLANS_KEY

DATASET_ID, NAME = 930, "SyntheticCord"
TRAINER, PLANNER = "nnUNetTrainerSoftSegReady", "SoftSegReadyPlanner"
CONFIGURATION = "3d_fullres"
VALIDATION_SHARE = 30
"""One image in so many is validated on."""
PATCH = [128, 64, 48]
"""Of the exported model, S-I, A-P, R-L: the box around the middle, or around the cord where it runs
elsewhere. Training draws patches anywhere, so that the network also knows what lies beside the cord."""
SI_AXIS = 0
LABEL, HEIGHT = "cord", 0.98
"""The robust peak of a whole cord at 1 mm, whose boundary is partial volume."""
FLOOR, CORE = 0.75, 0.8
"""Chosen on real images at an earlier checkpoint: where there is a cord, raw output reaches 0.79 and more;
where there is none, in most images less than 0.6."""
RL_AXIS, LEAST_AGREEMENT = 2, 0.75
"""Predictions are means over the image and its mirror image, left to right. Where there is a cord in a real
image, both agree by 0.86 and more, with black and white exchanged by 0.78 and more; where there is none and
something was found, by 0.75 and less."""
PHANTOM_SEED, THICK = 4711, 5
MASK, OFF_BODY_IMAGES = "_seg-manual", 20


def main() -> None:
    """Train what is not trained yet, or evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-o", dest="output", type=Path, required=True, help="folder, made if missing")
    add("--pam50", type=Path, help="folder of the PAM50 label maps")
    add("-n", dest="number", type=int, default=240, help="images to draw (default: 240)")
    add("--seed", type=int, default=0, help="of the images (default: 0)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("-np", dest="num_processes", type=int, default=2, help="processes (default: 2)")
    add(
        "--checkpoint", default="checkpoint_final.pth", help="to export; checkpoint_latest.pth while training"
    )
    add("--export-only", action="store_true", help="export the checkpoint that is there")
    add("--evaluate", action="store_true", help="predict real images with the exported file")
    add("--real", type=Path, help="folder with bids, real/gm, real/hippocampus, real/lidc")
    asked = parser.parse_args()
    study = Study(
        output=asked.output.resolve(),
        planner=PLANNER,
        device=asked.device,
        epochs=0,
        iterations=0,
        num_processes=asked.num_processes,
        methods={"ready": Method(TRAINER)},
        name=NAME,
        dataset_ids=(DATASET_ID,),
    )
    if asked.evaluate:
        if asked.real is None:
            parser.error("--evaluate: expected --real DATA")
        evaluate(study, asked.real.resolve())
        return
    if not asked.export_only:
        if asked.pam50 is None:
            parser.error("expected --pam50, the folder of the template's label maps")
        train(study, asked.pam50.resolve(), asked.number, asked.seed)
    export(study, asked.checkpoint)


def train(study: Study, pam50: Path, number: int, seed: int) -> None:
    """Draw the images, convert, plan and train; what is done is kept."""
    workers = study.num_processes
    bids = synthesise(
        None, study.output / "bids", number, seed, pam50=pam50, phantom=True, num_processes=workers
    )
    convert(
        bids,
        DATASET_ID,
        NAME,
        raw_folder=study.raw,
        num_test=0,
        num_validation=max(2, number // VALIDATION_SHARE),
        num_processes=workers,
    )
    plan(study, DATASET_ID)
    if study.checkpoint("ready", DATASET_ID, 0).is_file():
        return
    words = [str(DATASET_ID), CONFIGURATION, FOLD, "-tr", TRAINER, "-p", PLANS[PLANNER]]
    words += ["-device", study.device, "--c"]
    study.command("nnUNetv2_train", *words, results=study.results("ready", 0), log="train")


def export(study: Study, checkpoint: str) -> None:
    """Write OUT/cord.softseg: the trained network, on the box around the middle of an image."""
    trained = study.checkpoint("ready", DATASET_ID, 0).with_name(checkpoint)
    model = study.output / "model" / trained.parents[1].name
    make_folder(model / trained.parent.name)
    for file in ("dataset.json", "dataset_fingerprint.json"):
        shutil.copyfile(trained.parents[1] / file, model / file)
    write_mirrored(trained, model / trained.parent.name / "checkpoint_final.pth")
    write_json(model / "plans.json", centred(load_json(trained.parents[1] / "plans.json")))
    study.command(
        "nnunet-softseg", "export", "-m", str(model), "-o", str(study.output / "cord.softseg"), log="export"
    )


def write_mirrored(trained: Path, target: Path) -> None:
    """Write a checkpoint whose predictions are means over the image and its mirror image."""
    import torch

    checkpoint = torch.load(trained, map_location="cpu", weights_only=False)
    checkpoint["inference_allowed_mirroring_axes"] = (RL_AXIS,)
    torch.save(checkpoint, target)


def centred(plans: dict[str, Any]) -> dict[str, Any]:
    """Return plans of a network that has seen patches anywhere, for the box around the middle of an image.

    In real images, which are unlike the drawn ones, a cord comes out at 0.8 to 0.97 all over: its map is
    divided by its own peak, but by no less than `FLOOR`, so that what is faint stays so.
    """
    entry = plans[PLANS_KEY]
    entry["settings"] |= {"center_crop": True, "floor_fraction": FLOOR}
    entry["si_axis"] = SI_AXIS
    plans["configurations"][CONFIGURATION]["patch_size"] = PATCH
    (scale,) = output_scales(plans, [LABEL])
    kept = replace(
        scale,
        output_scale="case",
        height=HEIGHT,
        core_threshold=CORE,
        least_agreement=LEAST_AGREEMENT,
        why="chosen for real images",
    )
    keep_output_scales(plans, {LABEL: kept})
    return plans


# Real images


def real_images(data: Path) -> Iterator[tuple[str, Path, Path | None]]:
    """Yield name, image and manual mask of the real images; None: an image that shows no cord."""
    for place in (data / "bids", data / "real" / "gm"):
        for mask in sorted((place / "derivatives" / "labels").rglob(f"*{MASK}.nii.gz")):
            name = mask.name.removesuffix(f"{MASK}.nii.gz")
            yield name, place / mask.parent.relative_to(place / "derivatives/labels") / f"{name}.nii.gz", mask
    for kind in ("hippocampus", "lidc"):
        files = sorted((data / "real" / kind / "images").glob("*.nii.gz"))
        for file in files[:: max(1, len(files) // OFF_BODY_IMAGES)][:OFF_BODY_IMAGES]:
            yield f"{kind}-{file.name.removesuffix('.nii.gz').removesuffix('_0000')}", file, None


def evaluate(study: Study, data: Path) -> None:
    """Predict real images that were not trained on; write Dice, error of area, and what is found off body."""
    images, maps = study.output / "real_images", study.output / "real_maps"
    make_folder(images)
    masks: dict[str, Path | None] = {}
    for name, image, mask in real_images(data):
        copy_file(image, images / f"{name}.nii.gz")
        masks[name] = mask
    masks |= dict.fromkeys(_without_anatomy(images))
    shutil.rmtree(maps, ignore_errors=True)
    study.command(
        "nnunet-softseg", "predict", "-i", str(images), "-o", str(maps), "-m",
        str(study.output / "cord.softseg"), "--no-qc", log="predict-real",
    )  # fmt: skip
    cases = load_json(maps / "softseg.json")["cases"]
    rows = [_row(name, maps, mask, cases.get(name, {})) for name, mask in masks.items()]
    table = pd.DataFrame(rows)
    with replacing(study.output / "real.csv") as aside:
        table.to_csv(aside, index=False)
    print(table.to_string(float_format=lambda value: f"{value:.3f}"))
    figures = summary(table) | contrasts_of_phantoms(study)
    print(json.dumps(figures, indent=2))
    write_json(study.output / "real.json", figures)


# The same cord in six contrasts, thin and thick slices


def contrasts_of_phantoms(study: Study) -> dict[str, float]:
    """Return how much the area of a cord differs between its images, in mm2, and from the truth, in percent.

    Six people of the phantom, whose seed no training image has; six contrasts each, and the T2w in slices of
    `THICK` times the thickness. Areas are means over the heights that all images of a person share.
    """
    bids = phantom(study.output / "phantom", n=6, seed=PHANTOM_SEED, num_processes=study.num_processes)
    images, truths, maps = (study.output / f"phantom_{name}" for name in ("images", "truth", "maps"))
    for folder in (images, truths):
        make_folder(folder)
    for image in list_bids(bids).files:
        truth = derivative_file(image, bids, bids / TRUTH, TRUTH_SUFFIX)
        name = image.name.removesuffix(".nii.gz")
        copy_file(image, images / f"{name}.nii.gz")
        copy_file(truth, truths / f"{name}.nii.gz")
        if name.endswith("_T2w"):
            for file, folder in ((image, images), (truth, truths)):
                thick = name.replace("_T2w", "_acq-thick_T2w")
                in_thick_slices(file).to_filename(folder / f"{thick}.nii.gz")
    shutil.rmtree(maps, ignore_errors=True)
    study.command(
        "nnunet-softseg", "predict", "-i", str(images), "-o", str(maps), "-m",
        str(study.output / "cord.softseg"), "--no-qc", log="predict-phantom",
    )  # fmt: skip
    cases = evaluate_maps(maps, truths, study.output / "phantom_evaluation").cases
    areas = cases.groupby("subject")["csa_mm2"]
    errors = 100 * (cases["csa_mm2"] / cases["reference_csa_mm2"] - 1)
    print(cases[["case", "csa_mm2", "reference_csa_mm2", "soft_dice"]].to_string(index=False))
    return {
        "phantom_csa_std_mm2": float(areas.std(ddof=1).mean()),
        "phantom_csa_std_mm2_largest": float(areas.std(ddof=1).max()),
        "phantom_csa_error_percent_mean": float(errors.mean()),
    }


def in_thick_slices(file: Path) -> nib.Nifti1Image:
    """Return the mean over every `THICK` slices along S-I."""
    image = nib.as_closest_canonical(load_nifti(file))
    values = image.get_fdata(dtype=np.float32)
    count = values.shape[2] // THICK
    values = values[:, :, : count * THICK].reshape(*values.shape[:2], count, THICK).mean(axis=3)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (THICK - 1) / 2
    affine[:3, 2] *= THICK
    return nib.Nifti1Image(values, affine)


def _without_anatomy(folder: Path) -> list[str]:
    """Write an image of noise and one of zeros, and return their names."""
    noise = np.random.default_rng(0).normal(300, 100, (80, 96, 96)).astype(np.float32)
    for name, values in {"noise": noise, "zeros": np.zeros_like(noise)}.items():
        nib.Nifti1Image(values, np.eye(4)).to_filename(folder / f"{name}.nii.gz")
    return ["noise", "zeros"]


def _row(name: str, maps: Path, mask: Path | None, case: dict[str, Any]) -> dict[str, Any]:
    row = {"case": name, "flags": " ".join(case.get("flags", [])), "cord": mask is not None}
    file = maps / "soft" / f"{name}_0001.nii.gz"
    if not file.is_file():
        return row | {"empty": False, "failed": True}
    found = nib.as_closest_canonical(load_nifti(file)).get_fdata(dtype=np.float32)
    row |= {"empty": not found.any(), "failed": False, "largest": float(found.max())}
    if mask is not None:
        manual = nib.as_closest_canonical(load_nifti(mask)).get_fdata(dtype=np.float32)
        outlined = manual.any(axis=(0, 1))  # a rater may have left slices out
        inside, of_rater = found[:, :, outlined], manual[:, :, outlined]
        error = overlap.relative_volume_error(inside, of_rater)
        row |= {"dice": overlap.dice(inside, of_rater), "area_error_percent": error}
    return row


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Return the figures that the model is judged by."""
    cords, others = table[table["cord"]], table[~table["cord"]]
    silent = others["empty"] | (others["flags"] != "")
    return {
        "images": len(cords),
        "dice_mean": float(cords["dice"].mean()),
        "dice_min": float(cords["dice"].min()),
        "abs_area_error_percent_median": float(cords["area_error_percent"].abs().median()),
        "off_body_images": len(others),
        "off_body_empty_percent": 100 * float(others["empty"].mean()),
        "off_body_empty_or_flagged_percent": 100 * float(silent.mean()),
    }


if __name__ == "__main__":
    main()
