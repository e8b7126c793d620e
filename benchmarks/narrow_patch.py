"""A narrow patch against the paper's: is the area of the cord as good, and how much time does a step save?

    python benchmarks/narrow_patch.py -o narrow_patch

The same data, network (that of the demo) and steps; patches of 64 x 192 mm in R-L and A-P, as the paper's,
and of 48 x 96 mm, as `SoftSegCordPlanner` plans them, both of 32 mm along S-I, so that a CPU is enough. What
is done is kept: an interrupted run goes on where it was.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from phantom_study import DATASET_ID, PhantomStudy, make_data, measure, parse
from study import PLANS, Method, train_and_predict, trainings

from nnunet_softseg.io.results import load_json, write_json

PATCHES = {"wide": [32, 192, 64], "narrow": [32, 96, 48]}
"""Voxels of 1 mm along S-I, A-P, R-L."""
METHODS = {name: Method(configuration=f"3d_{name}") for name in PATCHES}
FOV_MM = (72.0, 192.0, 64.0)


def main() -> None:
    """Run what is missing, then print the figures."""
    study, asked = parse(__doc__, METHODS)
    make_data(study, (asked.subjects, asked.validation, asked.test), asked.more_test, fov_mm=FOV_MM)
    add_patches(study)
    for seed in asked.seeds:
        for name in study.methods:
            train_and_predict(study, name, seed)
    print(figures(study, asked.seeds).to_string(float_format=lambda value: f"{value:.3f}"))


def add_patches(study: PhantomStudy) -> None:
    """Give the plans a configuration for each patch, on the same preprocessed data."""
    preprocessed = study.output / "nnUNet_preprocessed" / study.folder_of(DATASET_ID).name
    file = preprocessed / f"{PLANS[study.planner]}.json"
    plans = load_json(file)
    for name, patch in PATCHES.items():
        plans["configurations"][f"3d_{name}"] = {"inherits_from": "3d_fullres", "patch_size": patch}
    write_json(file, plans)


def figures(study: PhantomStudy, seeds: list[int]) -> pd.DataFrame:
    """Return |CSA error|, STD over contrasts (both mm2), boundary MAE and seconds a step of each training."""
    cases = measure(study, seeds).cases
    rows = []
    for training, (name, seed) in trainings(study, seeds).items():
        of_one = cases[cases["method"] == training]
        spread = of_one.groupby("subject")["csa_mm2"].std(ddof=1)
        rows.append(
            {
                "patch": name,
                "seed": seed,
                "abs_csa_error_mm2": of_one["abs_csa_error_mm2"].mean(),
                "csa_std_mm2": spread.mean(),
                "boundary_mae": of_one["boundary_mae"].mean(),
                "step_s": seconds_a_step(study, name, seed),
            }
        )
    table = pd.DataFrame(rows)
    write_json(study.output / "narrow_patch.json", table.to_dict("records"))
    return table


def seconds_a_step(study: PhantomStudy, name: str, seed: int) -> float:
    """Return the median time of an epoch by nnU-Net's log, with its validation, over its number of steps."""
    folder: Path = study.checkpoint(name, DATASET_ID, seed).parent
    logs = "\n".join(file.read_text("utf-8") for file in sorted(folder.glob("training_log_*.txt")))
    times = [float(text) for text in re.findall(r"Epoch time: ([\d.]+) s", logs)]
    return float(np.median(times)) / study.iterations


if __name__ == "__main__":
    main()
