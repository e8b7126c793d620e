"""Trainings on a phantom whose truth is known, all alike but for what a study compares.

Phantom -> dataset -> plan -> each method is trained on the same plans, the same fold and for the same number
of steps, once per seed -> the test subjects are predicted by the stock command -> measures against the truth.
A step that is done is kept: an interrupted study goes on where it was.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.results import make_folder, write_json

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_softseg.evaluation.evaluation import Evaluation

DATASET_ID = 910
NAME = "Leaderboard"
CONFIGURATION, FOLD = "3d_fullres", "0"
PLANS = {"SoftSegDemoPlanner": "nnUNetSoftSegDemoPlans", "ExperimentPlanner": "nnUNetPlans"}
FOV_MM = (56.0, 60.0, 64.0)
SHORT_TRAINING_LR = 4e-3
"""Of our trainers, whose own rate is meant for 50,000 steps; vanilla keeps its own."""


@dataclass(frozen=True)
class Method:
    """What a study compares.

    Attributes:
        trainer: its name, as nnUNetv2_train takes it.
        settings: other than the trainer's own, name -> value; only for trainers of ours.
        loss: name in LOSSES, in place of the trainer's own; only for trainers of ours.
        per_contrast: trained once on each contrast, for as many steps each.
    """

    trainer: str = "nnUNetTrainerSoftSeg"
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss: str | None = None
    per_contrast: bool = False


@dataclass(frozen=True)
class Study:
    """Where a study works, and what all of its methods share."""

    output: Path
    planner: str
    device: str
    epochs: int
    iterations: int
    num_processes: int
    methods: Mapping[str, Method]

    @property
    def raw(self) -> Path:
        """Folder of the raw datasets."""
        return self.output / "nnUNet_raw"

    @property
    def dataset(self) -> Path:
        """Raw dataset of all contrasts."""
        return self.raw / f"Dataset{DATASET_ID}_{NAME}"

    def checkpoint(self, method: str, dataset_id: int, seed: int) -> Path:
        """Return the file that a training ends with; nnU-Net's folder of the model is two above it."""
        results = self.output / "nnUNet_results" / f"seed-{seed}" / method
        model = f"{self.methods[method].trainer}__{PLANS[self.planner]}__{CONFIGURATION}"
        dataset = f"Dataset{dataset_id:03d}_{NAME}"
        return results / dataset / model / f"fold_{FOLD}" / "checkpoint_final.pth"

    def images(self, dataset_id: int) -> Path:
        """Folder of a dataset's test images."""
        return next(self.raw.glob(f"Dataset{dataset_id:03d}_*")) / "imagesTs"

    def prediction(self, method: str, seed: int) -> Path:
        """Return where a method's predictions of the test subjects lie."""
        return self.output / "predictions" / f"seed-{seed}" / method

    def environment(self, results: str) -> dict[str, str]:
        """Return the environment of the stock commands; each training has results of its own."""
        workers = {name: str(self.num_processes) for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc")}
        heap = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_MAX_": "0"}
        folders = {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.output / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.output / "nnUNet_results" / results),
        }
        return {**os.environ, **workers, **heap, **folders}

    def command(self, name: str, *arguments: str, results: str = ".", log: str) -> None:
        """Run a command of this environment, its output in a log file."""
        executable = shutil.which(name, path=str(Path(sys.executable).parent)) or name
        make_folder(self.output / "logs")
        log_file = self.output / "logs" / f"{log}.txt"
        started = time.perf_counter()
        print(f"$ {name} {' '.join(arguments)}", flush=True)
        with log_file.open("w", encoding="utf-8") as stream:
            done = subprocess.run(
                [executable, *arguments],
                env=self.environment(results),
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            sys.exit(f"{name} failed with exit code {done.returncode}: see {log_file}")
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)


def parse(description: str | None, methods: Mapping[str, Method]) -> tuple[Study, argparse.Namespace]:
    """Return the study that the command line asks for; in a process that only trains, do that and end."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = [name for name, method in methods.items() if not method.per_contrast]
    add = parser.add_argument
    add("-o", dest="output", type=Path, required=True, help="folder, made if missing")
    add("--subjects", type=int, default=30, help="of the phantom, drawn into parts (default: 30)")
    add("--test", type=int, default=12, help="of these for testing (default: 12)")
    add("--more-test", type=int, default=6, help="subjects on top, all for testing (default: 6)")
    add("--validation", type=int, default=3, help="of these for validation (default: 3)")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="trainings of each method (default: 0 1)")
    add("--methods", nargs="+", choices=list(methods), default=default, help=f"default: {' '.join(default)}")
    add("--planner", choices=list(PLANS), default="SoftSegDemoPlanner", help="default: SoftSegDemoPlanner")
    add("--epochs", type=int, default=10, help="default: 10")
    add("--iterations", type=int, default=100, help="steps of an epoch (default: 100)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("-np", dest="num_processes", type=int, default=2, help="processes (default: 2)")
    add("--train", nargs=3, metavar=("METHOD", "DATASET", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    study = Study(
        output=asked.output.resolve(),
        planner=asked.planner,
        device=asked.device,
        epochs=asked.epochs,
        iterations=asked.iterations,
        num_processes=asked.num_processes,
        methods={name: methods[name] for name in asked.methods},
    )
    if asked.train:
        train_here(study, methods[asked.train[0]], *asked.train[1:])
        sys.exit(0)
    return study, asked


def run(study: Study, asked: argparse.Namespace) -> None:
    """Do what is missing: data, trainings, predictions."""
    make_data(study, (asked.subjects, asked.validation, asked.test), asked.more_test)
    for seed in asked.seeds:
        for name in study.methods:
            train_and_predict(study, name, seed)


def make_data(study: Study, drawn: tuple[int, int, int], more_test: int) -> None:
    """Make phantom, datasets and plans where they are missing.

    Args:
        study: where.
        drawn: number of subjects in the draw, and of these for validation and for testing.
        more_test: subjects after these, all for testing. More of them change no training.
    """
    from nnunet_softseg.datasets.conversion import convert
    from nnunet_softseg.datasets.conversion.splits import split_subjects
    from nnunet_softseg.phantom import TRUTH, TRUTH_SUFFIX, phantom

    bids = phantom(
        study.output / "bids",
        n=drawn[0] + more_test,
        seed=0,
        fov_mm=FOV_MM,
        num_processes=study.num_processes,
    )
    subjects = sorted(path.name for path in bids.glob("sub-*"))
    split = split_subjects(subjects[: drawn[0]], num_validation=drawn[1], num_test=drawn[2])
    parts = {**dataclasses.asdict(split), "test": [*split.test, *subjects[drawn[0] :]]}
    write_json(study.output / "split.json", parts)
    per_contrast = any(method.per_contrast for method in study.methods.values())
    convert(
        bids,
        DATASET_ID,
        NAME,
        raw_folder=study.raw,
        derivatives=TRUTH,
        suffix=TRUTH_SUFFIX,
        split_file=study.output / "split.json",
        per_contrast=contrast_ids() if per_contrast else False,
    )
    for dataset_id in [DATASET_ID, *(contrast_ids().values() if per_contrast else ())]:
        plan(study, dataset_id)


def contrast_ids() -> dict[str, int]:
    """Return contrast -> id of its dataset."""
    from nnunet_softseg.phantom import CONTRAST_NAMES

    return {contrast: DATASET_ID + number for number, contrast in enumerate(CONTRAST_NAMES, 1)}


def plan(study: Study, dataset_id: int) -> None:
    """Plan and preprocess a dataset unless that is done."""
    done = study.output / "logs" / f"planned-{dataset_id}.json"
    if done.is_file():
        return
    processes = ["-npfp", str(study.num_processes), "-np", str(study.num_processes)]
    arguments = ["-d", str(dataset_id), "-c", CONFIGURATION, "-pl", study.planner, *processes]
    study.command("nnUNetv2_plan_and_preprocess", *arguments, log=f"plan-{dataset_id}")
    write_json(done, {"planner": study.planner})


def train_and_predict(study: Study, name: str, seed: int) -> None:
    """Train a method once, on each of its datasets, and predict the test subjects, unless that is done."""
    done = study.prediction(name, seed) / "done.json"
    if done.is_file():
        return
    method = study.methods[name]
    for dataset_id in contrast_ids().values() if method.per_contrast else [DATASET_ID]:
        train(study, name, dataset_id, seed)
        predict(study, name, dataset_id, seed)
    record = {**dataclasses.asdict(method), "seed": seed}
    write_json(done, {**record, "epochs": study.epochs, "iterations": study.iterations})


def train(study: Study, name: str, dataset_id: int, seed: int) -> None:
    """Train in a process of its own."""
    shared = ["-o", str(study.output), "--planner", study.planner, "--device", study.device]
    length = ["--epochs", str(study.epochs), "--iterations", str(study.iterations)]
    training = ["--train", name, str(dataset_id), str(seed)]
    study.command(
        sys.executable,
        sys.argv[0],
        *shared,
        *length,
        *training,
        results=f"seed-{seed}/{name}",
        log=f"train-{name}-seed-{seed}-{dataset_id}",
    )


def predict(study: Study, name: str, dataset_id: int, seed: int) -> None:
    """Predict a dataset's test images with the stock command."""
    folders = ["-i", str(study.images(dataset_id)), "-o", str(study.prediction(name, seed))]
    trainer, plans = study.methods[name].trainer, PLANS[study.planner]
    model = ["-d", str(dataset_id), "-c", CONFIGURATION, "-f", FOLD, "-tr", trainer, "-p", plans]
    how = [
        "-device",
        study.device,
        "-npp",
        "1",
        "-nps",
        "1",
        "--continue_prediction",
        "--disable_progress_bar",
    ]
    study.command(
        "nnUNetv2_predict",
        *folders,
        *model,
        *how,
        results=f"seed-{seed}/{name}",
        log=f"predict-{name}-seed-{seed}-{dataset_id}",
    )


def mean_squared_error(prediction: Any, target: Any) -> Any:
    """Return the loss whose optimum is the mean of what a voxel may be."""
    return ((prediction - target) ** 2).mean()


LOSSES = {"mean_squared_error": mean_squared_error}


def train_here(study: Study, method: Method, dataset: str, seed: str) -> None:
    """Train in this process: nnU-Net's own entry, with a seed and the number of steps set in between."""
    import random

    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    from nnunet_softseg import registry

    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(int(seed))
    torch.set_num_threads(os.cpu_count() or 1)
    if method.trainer in registry.CLASSES:
        trainer_class = registry.find(method.trainer)
        changes = {"initial_lr": SHORT_TRAINING_LR, **method.settings}
        trainer_class.settings = dataclasses.replace(trainer_class.settings, **changes)
        if method.loss is not None:
            loss = LOSSES[method.loss]
            trainer_class.voxel_loss = lambda _: loss
    plans, device = PLANS[study.planner], torch.device(study.device)
    trainer = get_trainer_from_args(dataset, CONFIGURATION, int(FOLD), method.trainer, plans, device=device)
    trainer.num_epochs, trainer.num_iterations_per_epoch = study.epochs, study.iterations
    trainer.num_val_iterations_per_epoch, trainer.save_every = 5, 2
    maybe_load_checkpoint(trainer, True, False, None)
    trainer.run_training()


def measure(study: Study, seeds: Sequence[int]) -> "Evaluation":
    """Return the measures of every training, as methods named `<method>, seed <seed>`, against the truth."""
    from nnunet_softseg.evaluation.evaluation import measure_methods
    from nnunet_softseg.evaluation.measuring import EvaluationSettings

    folders = {name: study.prediction(*training) for name, training in trainings(study, seeds).items()}
    options = {"levels": levels_of(study), "images": study.dataset / "imagesTs"}
    settings = EvaluationSettings.from_arguments(**options, num_processes=study.num_processes)
    return measure_methods(folders, study.dataset / "softLabelsTs", settings)


def trainings(study: Study, seeds: Sequence[int]) -> dict[str, tuple[str, int]]:
    """Return the name of each training -> (method, seed)."""
    return {f"{name}, seed {seed}": (name, seed) for name in study.methods for seed in seeds}


def protocol(study: Study, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what was the same for all methods."""
    return {
        "planner": study.planner,
        "steps": study.epochs * study.iterations,
        "seeds": list(seeds),
        "fold": FOLD,
        "initial_lr_of_our_trainers": SHORT_TRAINING_LR,
        "device": study.device,
    }


def levels_of(study: Study) -> Path:
    """Return a folder with the vertebral levels of every test case, under its case id."""
    folder = study.output / "levels"
    make_folder(folder)
    manifest = json.loads((study.dataset / "conversion.json").read_text("utf-8"))
    for case_id, case in manifest["cases"].items():
        if case["part"] == "test":
            image = Path(case["image"])
            name = f"{without_nifti_ending(image.name)}_desc-levels_dseg.nii.gz"
            levels = study.output / "bids" / "derivatives" / "truth" / image.parent / name
            shutil.copyfile(levels, folder / f"{case_id}.nii.gz")
    return folder


def average_trainings(each: "Evaluation", method_of: Mapping[str, str]) -> "Evaluation":
    """Return the evaluation with the trainings of a method averaged, case by case and slice by slice.

    Args:
        each: every training as a method of its own.
        method_of: training -> method; several trainings may share one.
    """
    weighted = each.reliability.copy()
    sums = ["mean_prediction", "mean_reference"]
    weighted[sums] = weighted[sums].mul(weighted["num_voxels"], axis=0)
    weighted["method"] = weighted["method"].map(method_of)
    reliability = weighted.groupby(["method", "label", "bin_low", "bin_high"], sort=False).sum().reset_index()
    reliability[sums] = reliability[sums].div(reliability["num_voxels"], axis=0)
    return dataclasses.replace(
        each,
        methods=tuple(dict.fromkeys(method_of.values())),
        cases=_averaged(each.cases, method_of, ["method", "case", "label"]),
        slices=_averaged(each.slices, method_of, ["method", "case", "label", "slice"]),
        reliability=reliability[list(each.reliability.columns)],
        method_notes={method_of[name]: note for name, note in each.method_notes.items()},
    )


def _averaged(table: "pd.DataFrame", method_of: Mapping[str, str], keys: list[str]) -> "pd.DataFrame":
    renamed = table.assign(method=table["method"].map(method_of))
    rest = [name for name in renamed if name not in keys]
    how = {name: "mean" if renamed[name].dtype.kind == "f" else "first" for name in rest}
    return renamed.groupby(keys, sort=False, dropna=False).agg(how).reset_index()[list(table.columns)]
