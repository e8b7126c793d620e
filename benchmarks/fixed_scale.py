"""How should raw output become a map on one scale for all cases: as it is, by a sigmoid, a ReLU? Which loss?

    python benchmarks/fixed_scale.py -o fixed_scale --data LIDC

Lung nodules marked by one to four of four radiologists. The people whose nodules `evidence.py` tests on are
left out; of the others two thirds are trained on and one third is measured. All else is the same.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from evidence_data import RATERS, Parts, nodules, parts_of
from study import Method, Study, add_arguments, plan, protocol, shared_by, train, trainings

from nnunet_softseg.io.results import make_folder, write_json

DATASET_ID = 921
TRAINER = "nnUNetTrainerSoftSegSlidingWindow"
FIXED = {"output_scale": "fixed"}
METHODS = {
    "raw": Method(TRAINER, settings=FIXED),
    "sigmoid": Method(TRAINER, settings=FIXED, activation="sigmoid"),
    "relu": Method(TRAINER, settings=FIXED, activation="relu"),
    "squared_error": Method(TRAINER, settings=FIXED, loss="mean_squared_error"),
}
MEASURES = ["brier", "ece", "soft_dice", "boundary_mae", "abs_rve_percent"]


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, METHODS)
    parser.add_argument("--data", type=Path, required=True, help="folder of the nodules")
    parser.set_defaults(iterations=200)
    asked = parser.parse_args()
    shared = shared_by(asked, METHODS)
    study = Study(**shared, name="Development", dataset_ids=(DATASET_ID,), validates=True)
    make_data(asked.data.resolve(), study)
    plan(study, DATASET_ID)
    for seed in asked.seeds:
        for name in study.methods:
            validation = study.checkpoint(name, DATASET_ID, seed).with_name("validation")
            if not (validation / "summary.json").is_file():
                train(study, name, DATASET_ID, seed)
    report(study, asked.seeds)


def make_data(data: Path, study: Study) -> None:
    """Write the dataset: the people that are tested on elsewhere are left out."""
    cases = [entry["case"] for entry in json.loads((data / "cases.json").read_text("utf-8"))]
    known = parts_of(cases).others
    measured = parts_of(known).test
    parts = Parts(test=(), others=known, folds=[measured])
    folder = study.raw / f"Dataset{DATASET_ID}_{study.name}"
    nodules([data / name for name in RATERS], data / "images", folder, study.output / "fused", parts)


def report(study: Study, seeds: list[int]) -> None:
    """Measure the validation cases of all trainings and write the table."""
    from nnunet_softseg.evaluation.evaluate import measure_methods
    from nnunet_softseg.evaluation.measuring import EvaluationSettings

    settings = EvaluationSettings.from_arguments(num_processes=study.num_processes)
    folders = {
        name: study.checkpoint(method, DATASET_ID, seed).with_name("validation")
        for name, (method, seed) in trainings(study, seeds).items()
    }
    references = study.output / "references"
    make_folder(references)
    dataset = study.folder_of(DATASET_ID)
    (references / "dataset.json").write_bytes((dataset / "dataset.json").read_bytes())
    for case in json.loads((dataset / "splits_final.json").read_text("utf-8"))[0]["val"]:
        file = f"{case}_0001.nii.gz"
        (references / file).write_bytes((dataset / "softLabelsTr" / file).read_bytes())
    cases = measure_methods(folders, references, settings).cases
    finite = cases.replace([np.inf, -np.inf], np.nan)
    table = finite.groupby("method", sort=False)[MEASURES].mean()
    folder = study.output / "report"
    make_folder(folder)
    table.to_csv(folder / "fixed_scale.csv")
    write_json(folder / "fixed_scale.json", protocol(study, seeds))
    print(table.to_string(float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main()
