"""Hippocampi by segforge, a regression package for nnU-Net of others: a tool in an environment of its own.

    python -m venv SEGFORGE; SEGFORGE/bin/pip install segforge
    python benchmarks/evidence.py hippocampus ... --methods softseg segforge --segforge SEGFORGE

It learns one continuous label at a time: a network for each label of the study's dataset, on the same images,
for the same number of steps of as many patches. Its own planner, preprocessor, loss (squared error, more
weight on the foreground), optimiser and prediction are as they come; of its plans only the number of features
and the batch are the study's. Run as a script, this file is one training in that environment.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study import Study

TRAINER, PLANS, CONFIGURATION, FOLD = "nnUNetDistanceTrainer", "nnUNetPlans_reg", "3d_fullres", "0"


def predict_with_segforge(study: "Study", name: str, seed: int) -> None:
    """Train a network for each label and predict the test images, each step unless that is done."""
    source = study.folder_of(study.dataset_ids[0])
    labels = json.loads((source / "dataset.json").read_text("utf-8"))["labels"]
    for value in range(1, len(labels)):
        dataset_id = study.dataset_ids[0] + value
        write_dataset(source, study.raw / f"Dataset{dataset_id:03d}_{study.name}Label{value}", value)
        _plan(study, dataset_id)
        training = {
            "dataset": str(dataset_id),
            "seed": seed,
            "epochs": study.epochs,
            "iterations": study.iterations,
            "device": study.device,
        }
        results = study.results(name, seed)
        log = f"{name}-seed-{seed}-{dataset_id}"
        _run(study, "python", __file__, json.dumps(training), results=results, log=f"train-{log}")
        predicted = study.output / "segforge" / str(seed) / str(value)
        model = ["-d", str(dataset_id), "-c", CONFIGURATION, "-f", FOLD, "-tr", TRAINER, "-p", PLANS]
        how = ["-device", study.device, "-npp", "0", "-nps", "0", "--disable_tta", "--continue_prediction"]
        folders = ["-i", str(study.images(study.dataset_ids[0])), "-o", str(predicted)]
        words = [*folders, *model, *how]
        _run(study, "segforge_predict_regression", *words, results=results, log=f"predict-{log}")
        maps = study.prediction(name, seed) / "soft"
        maps.mkdir(parents=True, exist_ok=True)
        for file in predicted.glob("*.nii.gz"):
            shutil.copyfile(file, maps / file.name.replace(".nii.gz", f"_{value:04d}.nii.gz"))


def write_dataset(source: Path, folder: Path, value: int) -> None:
    """Write a dataset whose label is one soft label of another's, as floating-point values in labelsTr."""
    if (folder / "dataset.json").is_file():
        return
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "imagesTr", folder / "imagesTr", dirs_exist_ok=True)
    for file in (source / "softLabelsTr").glob(f"*_{value:04d}.nii.gz"):
        shutil.copyfile(file, folder / "labelsTr" / file.name.replace(f"_{value:04d}", ""))
    description = json.loads((source / "dataset.json").read_text("utf-8"))
    description["labels"] = {"background": 0, "structure": 1}
    description["overwrite_image_reader_writer"] = "SimpleITKIO"
    (folder / "dataset.json").write_text(json.dumps(description, indent=2), encoding="utf-8")


def _plan(study: "Study", dataset_id: int) -> None:
    """Plan and preprocess, then give the plans the study's features and batch; splits are the study's."""
    done = study.output / "logs" / f"planned-{dataset_id}.json"
    if done.is_file():
        return
    arguments = ["-d", str(dataset_id), "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
    _run(study, "segforge_plan_and_preprocess_regression", *arguments, log=f"plan-{dataset_id}")
    preprocessed = study.output / "nnUNet_preprocessed"
    file = preprocessed / study.folder_of(dataset_id).name / f"{PLANS}.json"
    ours = preprocessed / study.folder_of(study.dataset_ids[0]).name
    plans = json.loads(file.read_text("utf-8"))
    same = json.loads(next(ours.glob("nnUNetSoftSeg*Plans.json")).read_text("utf-8"))
    configuration, known = (entry["configurations"][CONFIGURATION] for entry in (plans, same))
    network = configuration["architecture"]["arch_kwargs"]
    features = known["architecture"]["arch_kwargs"]["features_per_stage"]
    network["features_per_stage"] = [
        features[min(stage, len(features) - 1)] for stage in range(network["n_stages"])
    ]
    configuration["batch_size"] = known["batch_size"]
    file.write_text(json.dumps(plans, indent=2), encoding="utf-8")
    shutil.copyfile(ours / "splits_final.json", file.parent / "splits_final.json")
    done.write_text(json.dumps({"features_per_stage": network["features_per_stage"]}), encoding="utf-8")


def _run(study: "Study", name: str, *arguments: str, log: str, results: str = ".") -> None:
    """Run a command of the other environment, where nnU-Net finds its trainers."""
    environment = Path(study.segforge or ".")
    variables = {"nnUNet_extTrainer": _trainers(environment), "PYTHONPATH": ""}
    command = str(environment / "bin" / name)
    study.command(command, *arguments, results=results, log=log, variables=variables)


@cache
def _trainers(environment: Path) -> str:
    """Return the folder of segforge's trainers; end the study where there is none."""
    asked = "import segforge.training.nnUNetTrainer as trainers; print(trainers.__path__[0])"
    python = str(environment / "bin" / "python")
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"--segforge {environment}: expected an environment with segforge: pip install segforge")
    return found.stdout.strip().splitlines()[-1]


def train_here(training: dict[str, Any]) -> None:
    """Train in this process, which is of the other environment, by nnU-Net's own entry."""
    import random

    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(training["seed"])
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    what = (training["dataset"], CONFIGURATION, int(FOLD), TRAINER, PLANS)
    trainer = get_trainer_from_args(*what, device=torch.device(training["device"]))
    if (Path(trainer.output_folder) / "checkpoint_final.pth").is_file():
        return
    trainer.num_epochs, trainer.num_iterations_per_epoch = training["epochs"], training["iterations"]
    trainer.num_val_iterations_per_epoch, trainer.save_every = 5, 2
    maybe_load_checkpoint(trainer, True, False, None)
    trainer.run_training()


if __name__ == "__main__":
    train_here(json.loads(sys.argv[1]))
