"""What soft targets add to nnU-Net's preprocessing: time, processor and disk, on the same dataset in one run.

    python benchmarks/preparation.py --json preparation.json

A phantom of eight subjects in six contrasts with a field of view as large as that of real images, planned by
SoftSegPlanner. `nnUNetv2_preprocess` and `nnunet-softseg prepare` take it one after the other, each with as
many processes, each from the start.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from inference import beside_python, in_a_new_process

DATASET_ID, NAME = 912, "Preparation"
CONFIGURATION, PLANNER, PLANS = "3d_fullres", "SoftSegPlanner", "nnUNetSoftSegPlans"
FOV_MM = (160, 200, 256)
SUBJECTS = 8


def make_dataset(folder: Path, fov_mm: tuple[float, ...], num_processes: int) -> None:
    """Write the phantom as a dataset of nnU-Net's and plan it."""
    from nnunet_softseg.datasets.conversion import convert
    from nnunet_softseg.phantom import TRUTH, TRUTH_SUFFIX, phantom

    bids = phantom(folder / "bids", n=SUBJECTS, seed=0, fov_mm=fov_mm, num_processes=num_processes)
    convert(bids, DATASET_ID, NAME, raw_folder=folder / "raw", derivatives=TRUTH, suffix=TRUTH_SUFFIX)
    command = [beside_python("nnUNetv2_plan_and_preprocess"), "-d", str(DATASET_ID), "-pl", PLANNER]
    processes = ["--no_pp", "-npfp", str(num_processes)]
    done = subprocess.run([*command, *processes], env=environment(folder), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"planning failed: {done.stderr.decode(errors='replace')[-3000:]}")


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of the stock commands."""
    names = ("raw", "preprocessed", "results")
    return {**os.environ, **{f"nnUNet_{name}": str(folder / name) for name in names}}


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    make_dataset(folder, tuple(arguments.fov), arguments.num_processes)
    preprocessed = folder / "preprocessed" / f"Dataset{DATASET_ID}_{NAME}"
    shared = ["-d", str(DATASET_ID), "-c", CONFIGURATION, "-np", str(arguments.num_processes)]
    preprocess = [beside_python("nnUNetv2_preprocess"), *shared, "-plans_name", PLANS]
    prepare = [beside_python("nnunet-softseg"), "prepare", *shared, "-p", PLANS]
    before = megabytes(preprocessed)
    theirs = in_a_new_process(preprocess, environment(folder))
    between = megabytes(preprocessed)
    ours = in_a_new_process(prepare, environment(folder))
    after = megabytes(preprocessed)
    return {
        "ratio_wall": round(ours["wall_seconds"] / theirs["wall_seconds"], 3),
        "ratio_cpu": round(ours["cpu_seconds"] / theirs["cpu_seconds"], 3),
        "ratio_disk": round((after - between) / (between - before), 4),
        "nnUNetv2_preprocess": {**theirs, "megabytes": round(between - before, 2)},
        "nnunet-softseg prepare": {**ours, "megabytes": round(after - between, 2)},
        "cases": len(list(preprocessed.glob("gt_segmentations/*"))),
        "fov_mm": arguments.fov,
        "processes": arguments.num_processes,
        "machine": {"cpus": os.cpu_count(), "load_average": [round(load, 1) for load in os.getloadavg()]},
    }


def megabytes(folder: Path) -> float:
    """Return what the files of a folder hold."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument(
        "--fov", type=float, nargs=3, default=FOV_MM, help="R-L A-P S-I in mm (default: 160 200 256)"
    )
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
