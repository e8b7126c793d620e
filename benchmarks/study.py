"""Trainings that are alike but for what a study compares: plan, train, predict by stock commands.

Each method is trained on the same plans and for the same number of steps, once per seed; then the test images
are predicted by the stock command. A step that is done is kept: an interrupted study goes on where it was.
Run as a script, this file is one training: `python benchmarks/study.py TRAINING`, TRAINING in JSON.
"""

import argparse
import dataclasses
import hashlib
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

from evidence_segforge import predict_with_segforge

from nnunet_softseg.io.results import make_folder, write_json

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_softseg.evaluation.evaluate import Evaluation

CONFIGURATION, FOLD = "3d_fullres", "0"
PLANS = {
    "SoftSegDemoPlanner": "nnUNetSoftSegDemoPlans",
    "SoftSegReadyPlanner": "nnUNetSoftSegReadyPlans",
    "ExperimentPlanner": "nnUNetPlans",
}
SHORT_TRAINING_LR = 4e-3
"""Of our trainers, whose own rate is meant for 50,000 steps; vanilla keeps its own."""


@dataclass(frozen=True)
class Method:
    """What a study compares.

    Attributes:
        trainer: its name, as nnUNetv2_train takes it.
        settings: other than the trainer's own, name -> value; only for trainers of ours.
        loss: name in LOSSES, in place of the trainer's own; only for trainers of ours.
        per_contrast: trained once on each contrast, for as many steps each; only on the phantom.
        probabilities: predicted with the probabilities of its softmax beside the label maps.
        activation: name in torch, put behind the network; only for trainers of ours, and only where the
            validation cases of the training are measured, as no stock command knows of it.
        configuration: of the plans.
        folds: of the dataset's splits; their networks are averaged.
        trained_as: the method whose trainings it takes, for those that differ in what follows.
        calibrated: its maps by `nnunet-softseg calibrate` on the validation cases of its folds.
        data: name in the study's `datasets` of what it is trained on.
        label_smoothing: of vanilla's cross-entropy.
        length: of its training, relative to the study's number of epochs: does it still gain?
        elsewhere: trained and predicted by a tool in the study's other environment.
    """

    trainer: str = "nnUNetTrainerSoftSeg"
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss: str | None = None
    per_contrast: bool = False
    probabilities: bool = False
    activation: str | None = None
    configuration: str = CONFIGURATION
    folds: tuple[str, ...] = (FOLD,)
    trained_as: str | None = None
    calibrated: bool = False
    data: str = ""
    label_smoothing: float = 0.0
    length: float = 1.0
    elsewhere: bool = False


@dataclass(frozen=True)
class Study:
    """Where a study works, and what all of its methods share.

    `name`: of its datasets. `dataset_ids`: each method is trained on each of them, and their test images are
    predicted into one folder: several for the folds of a cross-validation. `datasets`: in place of these for
    methods that name them. `reference_ids`: hold the references; else `dataset_ids`. `mirroring`: where
    the trainer asks for it. `validates`: each training ends with the prediction of its validation cases.
    `spacing_mm`: of the network's grid, as nnU-Net orders its axes (S-I, A-P, R-L); none: the planner's.
    `segforge`: environment of the methods that are trained elsewhere. `seeds`: of its trainings.
    """

    output: Path
    planner: str
    device: str
    epochs: int
    iterations: int
    num_processes: int
    methods: Mapping[str, Method]
    name: str
    dataset_ids: tuple[int, ...]
    mirroring: bool = True
    validates: bool = False
    datasets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reference_ids: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    segforge: Path | None = None
    seeds: tuple[int, ...] = ()

    @property
    def raw(self) -> Path:
        """Folder of the raw datasets."""
        return self.output / "nnUNet_raw"

    @property
    def steps(self) -> int:
        """Of each training."""
        return self.epochs * self.iterations

    def datasets_of(self, method: str) -> tuple[int, ...]:
        """Return the datasets that a method is trained on."""
        return self.datasets.get(self.methods[method].data, self.dataset_ids)

    def folder_of(self, dataset_id: int) -> Path:
        """Return a raw dataset; that of one contrast has the contrast in its name."""
        there = self.raw.glob(f"Dataset{dataset_id:03d}_*")
        return next(there, self.raw / f"Dataset{dataset_id:03d}_{self.name}")

    def results(self, method: str, seed: int) -> str:
        """Return the folder of a method's trainings within nnUNet_results."""
        return f"seed-{seed}/{self.methods[method].trained_as or method}"

    def checkpoint(self, method: str, dataset_id: int, seed: int, fold: str = FOLD) -> Path:
        """Return the file that a training ends with; nnU-Net's folder of the model is two above it."""
        results = self.output / "nnUNet_results" / self.results(method, seed)
        model = f"{self.methods[method].trainer}__{PLANS[self.planner]}__{self.methods[method].configuration}"
        return results / self.folder_of(dataset_id).name / model / f"fold_{fold}" / "checkpoint_final.pth"

    def images(self, dataset_id: int) -> Path:
        """Return the folder of a dataset's test images."""
        return self.folder_of(dataset_id) / "imagesTs"

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

    def command(
        self, name: str, *arguments: str, results: str = ".", log: str, variables: Mapping[str, str] = {}
    ) -> None:
        """Run a command of this environment, its output in a log file."""
        executable = shutil.which(name, path=str(Path(sys.executable).parent)) or name
        make_folder(self.output / "logs")
        log_file = self.output / "logs" / f"{log}.txt"
        started = time.perf_counter()
        print(f"$ {name} {' '.join(arguments)}", flush=True)
        with log_file.open("w", encoding="utf-8") as stream:
            done = subprocess.run(
                [executable, *arguments],
                env={**self.environment(results), **variables},
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            sys.exit(f"{name} failed with exit code {done.returncode}: see {log_file}")
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)


def plan(study: Study, dataset_id: int, configuration: str = CONFIGURATION) -> None:
    """Plan and preprocess a dataset unless that is done."""
    done = study.output / "logs" / f"planned-{dataset_id}.json"
    if done.is_file():
        return
    processes = ["-npfp", str(study.num_processes), "-np", str(study.num_processes)]
    arguments = ["-d", str(dataset_id), "-c", configuration, "-pl", study.planner, *processes]
    if study.spacing_mm:
        arguments += ["-overwrite_target_spacing", *map(str, study.spacing_mm)]
        arguments += ["-overwrite_plans_name", PLANS[study.planner]]
    study.command("nnUNetv2_plan_and_preprocess", *arguments, log=f"plan-{dataset_id}")
    write_json(done, {"planner": study.planner})


def train_and_predict(study: Study, name: str, seed: int) -> None:
    """Train a method once, on each of its datasets, and predict the test images, unless that is done."""
    done = study.prediction(name, seed) / "done.json"
    if done.is_file():
        return
    method = study.methods[name]
    if method.elsewhere:
        predict_with_segforge(study, name, seed)
    else:
        train_and_predict_here(study, name, seed)
    record = {**dataclasses.asdict(method), "seed": seed}
    write_json(done, {**record, "epochs": study.epochs, "iterations": study.iterations})


def train_and_predict_here(study: Study, name: str, seed: int) -> None:
    """Train a method on each of its datasets where that is missing, and predict the test images."""
    method = study.methods[name]
    for dataset_id in study.datasets_of(name):
        for fold in method.folds:
            if not study.checkpoint(name, dataset_id, seed, fold).is_file():
                train(study, name, dataset_id, seed, fold)
        if method.calibrated:
            calibrate(study, name, dataset_id, seed)
        predict(study, name, dataset_id, seed)


def train(study: Study, name: str, dataset_id: int, seed: int, fold: str = FOLD) -> None:
    """Train in a process of its own."""
    training = {
        "method": dataclasses.asdict(study.methods[name]),
        "dataset": str(dataset_id),
        "fold": fold,
        "plans": PLANS[study.planner],
        "seed": seed,
        "device": study.device,
        "epochs": max(1, round(study.epochs * study.methods[name].length)),
        "iterations": study.iterations,
        "validates": study.validates,
    }
    study.command(
        sys.executable,
        __file__,
        json.dumps(training),
        results=study.results(name, seed),
        log=f"train-{name}-seed-{seed}-{dataset_id}-fold-{fold}",
    )


def calibrate(study: Study, name: str, dataset_id: int, seed: int) -> None:
    """Predict the validation cases of a method's folds where that is missing, and calibrate its model."""
    method, results = study.methods[name], study.results(name, seed)
    for fold in method.folds:
        model = study.checkpoint(name, dataset_id, seed, fold).parent
        if not (model / "validation" / "summary.json").is_file():
            what = [
                str(dataset_id),
                method.configuration,
                fold,
                "-tr",
                method.trainer,
                "-p",
                PLANS[study.planner],
            ]
            how = ["--val", "-device", study.device]
            log = f"validate-{name}-seed-{seed}-{dataset_id}-fold-{fold}"
            study.command("nnUNetv2_train", *what, *how, results=results, log=log)
    arguments = ["-m", str(study.checkpoint(name, dataset_id, seed).parents[1]), "-f", *method.folds]
    study.command(
        "nnunet-softseg",
        "calibrate",
        *arguments,
        results=results,
        log=f"calibrate-{name}-seed-{seed}-{dataset_id}",
    )


def predict(study: Study, name: str, dataset_id: int, seed: int) -> None:
    """Predict a dataset's test images with the stock command."""
    method = study.methods[name]
    folders = ["-i", str(study.images(dataset_id)), "-o", str(study.prediction(name, seed))]
    folds = ["-f", *method.folds]
    model = ["-d", str(dataset_id), "-c", method.configuration, "-tr", method.trainer]
    model += ["-p", PLANS[study.planner]]
    how = ["-device", study.device, "-npp", "1", "-nps", "1", "--continue_prediction"]
    how += ["--disable_progress_bar"]
    if not study.mirroring:
        how.append("--disable_tta")
    if method.probabilities:
        how.append("--save_probabilities")
    study.command(
        "nnUNetv2_predict",
        *folders,
        *model,
        *folds,
        *how,
        results=study.results(name, seed),
        log=f"predict-{name}-seed-{seed}-{dataset_id}",
        variables={"NNUNET_SOFTSEG_CALIBRATE": "1"} if method.calibrated else {},
    )


def mean_squared_error(prediction: Any, target: Any) -> Any:
    """Return the loss whose optimum is the mean of what a voxel may be."""
    return ((prediction - target) ** 2).mean()


LOSSES = {"mean_squared_error": mean_squared_error}


def train_here(training: Mapping[str, Any]) -> None:
    """Train in this process: nnU-Net's own entry, with a seed and the number of steps set in between."""
    import random

    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    from nnunet_softseg import registry

    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(training["seed"])
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    method = Method(**training["method"])
    if method.trainer in registry.CLASSES:
        trainer_class = registry.find(method.trainer)
        changes = {"initial_lr": SHORT_TRAINING_LR, **method.settings}
        trainer_class.settings = dataclasses.replace(trainer_class.settings, **changes)
        if method.loss is not None:
            loss = LOSSES[method.loss]
            trainer_class.voxel_loss = lambda _: loss
    fold = int(training["fold"])
    what = (training["dataset"], method.configuration, fold, method.trainer, training["plans"])
    trainer = get_trainer_from_args(*what, device=torch.device(training["device"]))
    trainer.num_epochs, trainer.num_iterations_per_epoch = training["epochs"], training["iterations"]
    trainer.num_val_iterations_per_epoch, trainer.save_every = 5, 2
    maybe_load_checkpoint(trainer, True, False, None)
    if method.label_smoothing:
        smooth_labels(trainer, method.label_smoothing)
    if method.activation is not None:
        activate(trainer, getattr(torch, method.activation))
    trainer.run_training()
    if training["validates"]:
        trainer.perform_actual_validation(False)


def smooth_labels(trainer: Any, amount: float) -> None:
    """Smooth the labels of vanilla's cross-entropy; its Dice term sees them as they are."""
    if not trainer.was_initialized:
        trainer.initialize()
    loss = getattr(trainer.loss, "loss", trainer.loss)  # within deep supervision, or alone
    loss.ce.label_smoothing = amount


def activate(trainer: Any, activation: Any) -> None:
    """Put an activation behind the network of a trainer, at each of its resolutions."""
    if not trainer.was_initialized:
        trainer.initialize()

    def apply(_module: Any, _inputs: Any, output: Any) -> Any:
        return [activation(level) for level in output] if isinstance(output, list) else activation(output)

    trainer.network.register_forward_hook(apply)


def trainings(study: Study, seeds: Sequence[int]) -> dict[str, tuple[str, int]]:
    """Return the name of each training -> (method, seed)."""
    return {f"{name}, seed {seed}": (name, seed) for name in study.methods for seed in seeds}


def protocol(study: Study, seeds: Sequence[int]) -> dict[str, Any]:
    """Return all that decides the figures: what was the same for all methods, and the methods."""
    return {
        "methods": {name: dataclasses.asdict(method) for name, method in study.methods.items()},
        "planner": study.planner,
        **({"spacing_mm": list(study.spacing_mm)} if study.spacing_mm else {}),
        "steps": study.steps,
        "seeds": list(seeds),
        "fold": FOLD,
        "initial_lr_of_our_trainers": SHORT_TRAINING_LR,
        "device": study.device,
    }


def listing(data: Path, output: Path) -> str:
    """Return what tells the files of a folder from others, wherever it lies: their number, names and sizes.

    Hidden files are passed over, and `output` if it lies in the folder.
    """
    sizes = {}
    for folder, folders, names in os.walk(data, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "." and Path(folder, name) != output]
        files = [Path(folder, name) for name in names if name[0] != "."]
        there = [file for file in files if file.is_file()]  # not a link to nowhere
        sizes.update({file.relative_to(data).as_posix(): file.stat().st_size for file in there})
    names_and_sizes = json.dumps(sizes, sort_keys=True).encode()
    return f"{len(sizes)} files, SHA-256 of names and sizes {hashlib.sha256(names_and_sizes).hexdigest()}"


def freeze(study: Study, seeds: Sequence[int], data: Path | None = None) -> str:
    """Write the protocol before anything is drawn or trained, and return its hash.

    An earlier call's must be the same but for more methods and seeds, which change no figure of the others,
    and so must be the files in `data`, if the earlier call said what they are.
    """
    file = study.output / "protocol.json"
    frozen = json.loads(json.dumps(protocol(study, seeds)))
    if data is not None:
        frozen["data"] = listing(data, study.output)
    if file.is_file():
        before = json.loads(file.read_text("utf-8"))
        for one, other in ((before, frozen), (frozen, before)):
            if "data" in other:
                one.setdefault("data", other["data"])
        frozen["methods"] = {**before["methods"], **frozen["methods"]}
        frozen["seeds"] = sorted({*before["seeds"], *frozen["seeds"]})
        changed = [
            f"{name}: {before.get(name)}, now {frozen.get(name)}"
            for name in {**before, **frozen}
            if name not in ("seeds", "methods") and frozen.get(name) != before.get(name)
        ]
        changed += [
            name
            for name, method in before["methods"].items()
            if method != {key: frozen["methods"][name].get(key) for key in method}  # later fields: no change
        ]
        if changed:
            sys.exit(f"{file}: other settings than before ({'; '.join(changed)}): take another folder")
    make_folder(study.output)
    write_json(file, frozen)
    return hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()


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
        method_notes={method_of.get(name, name): note for name, note in each.method_notes.items()},
    )


def _averaged(table: "pd.DataFrame", method_of: Mapping[str, str], keys: list[str]) -> "pd.DataFrame":
    renamed = table.assign(method=table["method"].map(method_of))
    rest = [name for name in renamed if name not in keys]
    how = {name: "mean" if renamed[name].dtype.kind == "f" else "first" for name in rest}
    return renamed.groupby(keys, sort=False, dropna=False).agg(how).reset_index()[list(table.columns)]


def add_arguments(
    parser: argparse.ArgumentParser, methods: Mapping[str, Method], default: str | None = None
) -> None:
    """Add what every study can be asked for to a command line.

    `default`: whose methods, grid and steps are taken where none are given, in words; they are None then.
    """
    defaults: dict[str, Any] = {
        "methods": [name for name, method in methods.items() if not method.per_contrast],
        "spacing_mm": (),
        "epochs": 10,
        "iterations": 100,
    }
    told = {**defaults, "methods": " ".join(defaults["methods"]), "spacing_mm": "the planner's"}
    if default is not None:
        defaults, told = dict.fromkeys(defaults), dict.fromkeys(defaults, default)
    add = parser.add_argument
    add("-o", dest="output", type=Path, required=True, help="folder, made if missing")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="trainings of each method (default: 0 1)")
    text = f"of {', '.join(methods)} (default: {told['methods']})"
    add("--methods", nargs="+", choices=list(methods), metavar="METHOD", help=text)
    add("--planner", choices=list(PLANS), default="SoftSegDemoPlanner", help="default: SoftSegDemoPlanner")
    text = f"of the network's grid: S-I A-P R-L in mm (default: {told['spacing_mm']})"
    add("--spacing", dest="spacing_mm", type=float, nargs=3, metavar="MM", help=text)
    add("--epochs", type=int, help=f"default: {told['epochs']}")
    add("--iterations", type=int, help=f"steps of an epoch (default: {told['iterations']})")
    parser.set_defaults(**defaults)
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("-np", dest="num_processes", type=int, default=2, help="processes (default: 2)")


def shared_by(asked: argparse.Namespace, methods: Mapping[str, Method]) -> dict[str, Any]:
    """Return what the command line says of a study."""
    names = ("planner", "device", "epochs", "iterations", "num_processes")
    return {
        "output": asked.output.resolve(),
        "methods": {name: methods[name] for name in asked.methods},
        "seeds": tuple(asked.seeds),
        "spacing_mm": tuple(asked.spacing_mm),
        **{name: getattr(asked, name) for name in names},
    }


if __name__ == "__main__":
    train_here(json.loads(sys.argv[1]))
