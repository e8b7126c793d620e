"""Every trainer of the paper's comparison against vanilla nnU-Net, on a phantom whose truth is known.

    python benchmarks/leaderboard.py -o leaderboard

Phantom -> dataset -> plan -> each method is trained on the same plans, the same fold and for the same number
of steps, once per seed -> the test subjects are predicted by the stock command -> report. A step that is done
is kept: an interrupted run goes on where it was. Vanilla is nnU-Net's own trainer as it comes (its loss,
optimiser, schedule and mirroring), for as many steps. On a GPU: --device cuda --planner ExperimentPlanner
--epochs 200 --iterations 250.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_softseg.atomic import make_folder, write_json
from nnunet_softseg.nifti import without_nifti_ending

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_softseg.evaluation.evaluation import Evaluation

DATASET_ID = 910
NAME = "Leaderboard"
CONFIGURATION, FOLD = "3d_fullres", "0"
PLANS = {"SoftSegDemoPlanner": "nnUNetSoftSegDemoPlans", "ExperimentPlanner": "nnUNetPlans"}
METHODS = {
    "soft_all": "nnUNetTrainerSoftSeg",
    "soft_all_raw_loss": "nnUNetTrainerSoftSegRawLoss",
    "soft_all_dice_loss": "nnUNetTrainerSoftSegDice",
    "hard_all": "nnUNetTrainerSoftSegHardGT",
    "nnUNet": "nnUNetTrainer",
}
PER_CONTRAST = "soft_per_contrast"
"""nnUNetTrainerSoftSeg on one dataset per contrast, each trained for as many steps as the others."""
FOV_MM = (56.0, 60.0, 64.0)
SHORT_TRAINING_LR = 4e-3
"""Of our trainers, whose own rate is meant for 50,000 steps; vanilla keeps its own."""
SHOWN = ("dice", "soft_dice", "boundary_mae", "asd_mm", "abs_csa_error_mm2", "abs_csa_hard_error_mm2")


@dataclass(frozen=True)
class Run:
    """Where a leaderboard works, and what all of its methods share."""

    output: Path
    planner: str
    device: str
    epochs: int
    iterations: int
    num_processes: int

    @property
    def raw(self) -> Path:
        """Folder of the raw datasets."""
        return self.output / "nnUNet_raw"

    def prediction(self, method: str, seed: int) -> Path:
        """Return where a method's predictions of the test subjects lie."""
        return self.output / "predictions" / f"seed-{seed}" / method

    def environment(self, seed: int) -> dict[str, str]:
        """Return the environment of the stock commands; each seed has results of its own."""
        workers = {name: str(self.num_processes) for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc")}
        heap = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_MAX_": "0"}
        folders = {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.output / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.output / "nnUNet_results" / f"seed-{seed}"),
        }
        return {**os.environ, **workers, **heap, **folders}

    def command(self, name: str, *arguments: str, seed: int = 0, log: str) -> None:
        """Run a command of this environment, its output in a log file."""
        executable = shutil.which(name, path=str(Path(sys.executable).parent)) or name
        make_folder(self.output / "logs")
        log_file = self.output / "logs" / f"{log}.txt"
        started = time.perf_counter()
        print(f"$ {name} {' '.join(arguments)}", flush=True)
        with log_file.open("w", encoding="utf-8") as stream:
            done = subprocess.run(
                [executable, *arguments],
                env=self.environment(seed),
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            sys.exit(f"{name} failed with exit code {done.returncode}: see {log_file}")
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, help="folder, made if missing")
    parser.add_argument("--subjects", type=int, default=30, help="of the phantom (default: 30)")
    parser.add_argument("--test", type=int, default=12, help="of these for testing (default: 12)")
    parser.add_argument("--validation", type=int, default=3, help="of these for validation (default: 3)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], help="trainings of each method (default: 0 1)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[*METHODS, PER_CONTRAST],
        default=list(METHODS),
        help="default: all but the last",
    )
    parser.add_argument("--planner", choices=list(PLANS), default="SoftSegDemoPlanner")
    parser.add_argument("--epochs", type=int, default=10, help="default: 10")
    parser.add_argument("--iterations", type=int, default=100, help="steps of an epoch (default: 100)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="processes (default: 2)")
    parser.add_argument(
        "--train", nargs=4, metavar=("TRAINER", "DATASET", "PLANS", "SEED"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    run = Run(
        arguments.output.resolve(),
        arguments.planner,
        arguments.device,
        arguments.epochs,
        arguments.iterations,
        arguments.num_processes,
    )
    if arguments.train:
        train_here(run, *arguments.train)
        return
    make_data(
        run, arguments.subjects, arguments.test, arguments.validation, PER_CONTRAST in arguments.methods
    )
    for seed in arguments.seeds:
        for method in arguments.methods:
            train_and_predict(run, method, seed)
    report(run, arguments.methods, arguments.seeds)


def make_data(run: Run, subjects: int, test: int, validation: int, per_contrast: bool) -> None:
    """Make phantom, dataset and plans where they are missing."""
    from nnunet_softseg.conversion import convert
    from nnunet_softseg.phantom import TRUTH, TRUTH_SUFFIX, phantom

    bids = phantom(run.output / "bids", n=subjects, seed=0, fov_mm=FOV_MM, num_processes=run.num_processes)
    convert(
        bids,
        DATASET_ID,
        NAME,
        raw_folder=run.raw,
        derivatives=TRUTH,
        suffix=TRUTH_SUFFIX,
        num_test=test,
        num_validation=validation,
    )
    plan(run, DATASET_ID)


def plan(run: Run, dataset_id: int) -> None:
    """Plan and preprocess a dataset unless that is done."""
    done = run.output / "logs" / f"planned-{dataset_id}.json"
    if done.is_file():
        return
    processes = ["-npfp", str(run.num_processes), "-np", str(run.num_processes)]
    arguments = ["-d", str(dataset_id), "-c", CONFIGURATION, "-pl", run.planner, *processes]
    run.command("nnUNetv2_plan_and_preprocess", *arguments, log=f"plan-{dataset_id}")
    write_json(done, {"planner": run.planner})


def train_and_predict(run: Run, method: str, seed: int) -> None:
    """Train a method once and predict the test subjects, unless that is done."""
    trainer, plans = METHODS[method], PLANS[run.planner]
    done = run.prediction(method, seed) / "done.json"
    if done.is_file():
        return
    shared = ["-o", str(run.output), "--planner", run.planner, "--device", run.device]
    length = ["--epochs", str(run.epochs), "--iterations", str(run.iterations)]
    training = ["--train", trainer, str(DATASET_ID), plans, str(seed)]
    name = f"{method}-seed-{seed}"
    run.command(sys.executable, __file__, *shared, *length, *training, seed=seed, log=f"train-{name}")
    images = run.raw / f"Dataset{DATASET_ID}_{NAME}" / "imagesTs"
    model = ["-d", str(DATASET_ID), "-c", CONFIGURATION, "-f", FOLD, "-tr", trainer, "-p", plans]
    how = ["-device", run.device, "-npp", "1", "-nps", "1", "--continue_prediction", "--disable_progress_bar"]
    folders = ["-i", str(images), "-o", str(run.prediction(method, seed))]
    run.command("nnUNetv2_predict", *folders, *model, *how, seed=seed, log=f"predict-{name}")
    write_json(done, {"trainer": trainer, "seed": seed, "epochs": run.epochs, "iterations": run.iterations})


def train_here(run: Run, trainer_name: str, dataset: str, plans: str, seed: str) -> None:
    """Train in this process: nnU-Net's own entry, with a seed and the number of steps set in between."""
    import random

    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(int(seed))
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device(run.device)
    trainer = get_trainer_from_args(dataset, CONFIGURATION, int(FOLD), trainer_name, plans, device=device)
    trainer.num_epochs, trainer.num_iterations_per_epoch = run.epochs, run.iterations
    trainer.num_val_iterations_per_epoch, trainer.save_every = 5, 2
    if hasattr(trainer, "settings"):
        trainer.initial_lr = SHORT_TRAINING_LR
    maybe_load_checkpoint(trainer, True, False, None)
    trainer.run_training()


def report(run: Run, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Measure all predictions against the truth, average the trainings of a method, and write the report."""
    from nnunet_softseg.comparison.compare import compared, write_comparison
    from nnunet_softseg.evaluation.evaluation import EvaluationSettings, measure_methods
    from nnunet_softseg.evaluation.tables import made_by
    from nnunet_softseg.report import write_report

    dataset = run.raw / f"Dataset{DATASET_ID}_{NAME}"
    trainings = {(method, seed): f"{method}, seed {seed}" for method in methods for seed in seeds}
    folders = {name: run.prediction(*training) for training, name in trainings.items()}
    options = {"levels": levels_of(run), "images": dataset / "imagesTs"}
    settings = EvaluationSettings.from_arguments(**options, num_processes=run.num_processes)
    each = measure_methods(folders, dataset / "softLabelsTs", settings)
    parameters = {"correction": "holm", "seed": 0, **settings.as_dict(), **protocol(run, seeds)}
    comparison = compared(
        average_trainings(each, {name: method for (method, _), name in trainings.items()}),
        dataset / "softLabelsTs",
        made_by("benchmarks/leaderboard.py", parameters),
    )
    output = run.output / "report"
    make_folder(output)
    write_comparison(comparison, average_trainings(each, {name: name for name in folders}), output)
    write_report(comparison, output)
    by_training = each.cases.groupby("method", sort=False)[list(SHOWN)].mean()
    by_training.to_csv(output / "trainings.csv")
    print(by_training.to_string(float_format=lambda value: f"{value:.3f}"))
    print(comparison.as_text())
    print(output / "report.html")


def protocol(run: Run, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what was the same for all methods."""
    return {
        "planner": run.planner,
        "steps": run.epochs * run.iterations,
        "seeds": list(seeds),
        "fold": FOLD,
        "initial_lr_of_our_trainers": SHORT_TRAINING_LR,
        "device": run.device,
    }


def levels_of(run: Run) -> Path:
    """Return a folder with the vertebral levels of every test case, under its case id."""
    folder = run.output / "levels"
    make_folder(folder)
    manifest = json.loads((run.raw / f"Dataset{DATASET_ID}_{NAME}" / "conversion.json").read_text("utf-8"))
    for case_id, case in manifest["cases"].items():
        if case["part"] == "test":
            image = Path(case["image"])
            name = f"{without_nifti_ending(image.name)}_desc-levels_dseg.nii.gz"
            shutil.copyfile(
                run.output / "bids" / "derivatives" / "truth" / image.parent / name,
                folder / f"{case_id}.nii.gz",
            )
    return folder


def average_trainings(each: "Evaluation", method_of: Mapping[str, str]) -> "Evaluation":
    """Return the evaluation with the trainings of a method averaged, case by case and slice by slice.

    Args:
        each: every training as a method of its own.
        method_of: training -> method; several trainings may share one.
    """
    import dataclasses

    methods = tuple(dict.fromkeys(method_of.values()))

    def averaged(table: "pd.DataFrame", keys: list[str]) -> "pd.DataFrame":
        renamed = table.assign(method=table["method"].map(lambda name: method_of.get(name, name)))
        groups = renamed.groupby(keys, sort=False, dropna=False)
        means = {
            name: "mean" if renamed[name].dtype.kind == "f" else "first"
            for name in renamed
            if name not in keys
        }
        return groups.agg(means).reset_index()[list(table.columns)]

    weighted = each.reliability.copy()
    sums = ["mean_prediction", "mean_reference"]
    weighted[sums] = weighted[sums].mul(weighted["num_voxels"], axis=0)
    weighted["method"] = weighted["method"].map(lambda name: method_of.get(name, name))
    reliability = weighted.groupby(["method", "label", "bin_low", "bin_high"], sort=False).sum().reset_index()
    reliability[sums] = reliability[sums].div(reliability["num_voxels"], axis=0)
    return dataclasses.replace(
        each,
        methods=methods,
        cases=averaged(each.cases, ["method", "case", "label"]),
        slices=averaged(each.slices, ["method", "case", "label", "slice"]),
        reliability=reliability[list(each.reliability.columns)],
        method_notes={method_of[name]: note for name, note in each.method_notes.items()},
    )


if __name__ == "__main__":
    main()
