"""Every trainer of the paper's comparison against vanilla nnU-Net, on a phantom whose truth is known.

    python benchmarks/leaderboard.py -o leaderboard

Phantom -> dataset -> plan -> each method is trained on the same plans, the same fold and for the same number
of steps, once per seed -> the test subjects are predicted by the stock command -> report. A step that is done
is kept: an interrupted run goes on where it was. Vanilla is nnU-Net's own trainer as it comes (its loss,
optimiser, schedule and mirroring), for as many steps. On a GPU: --device cuda --planner ExperimentPlanner
--epochs 200 --iterations 250.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from phantom_study import PhantomStudy, measure, parse, run
from study import Method, average_trainings, protocol, trainings

from nnunet_softseg.io.results import make_folder

METHODS = {
    "soft_all": Method(),
    "soft_all_raw_loss": Method("nnUNetTrainerSoftSegRawLoss"),
    "soft_all_dice_loss": Method("nnUNetTrainerSoftSegDice"),
    "hard_all": Method("nnUNetTrainerSoftSegHardGT"),
    "nnUNet": Method("nnUNetTrainer"),
    "soft_per_contrast": Method(per_contrast=True),
}
VOXELS = ["soft_dice", "ece", "boundary_mae", "rve_percent"]
SHOWN = ["dice", "soft_dice", "boundary_mae", "asd_mm", "abs_csa_error_mm2", "abs_csa_hard_error_mm2"]


def main() -> None:
    """Run what is missing, then report."""
    study, asked = parse(__doc__, METHODS)
    run(study, asked)
    report(study, asked.seeds)


def report(study: PhantomStudy, seeds: Sequence[int]) -> None:
    """Compare the methods, the trainings of each averaged, and write the report."""
    from nnunet_softseg.evaluation.compare import write_report
    from nnunet_softseg.evaluation.comparison.leaderboard import PRIMARY
    from nnunet_softseg.evaluation.comparison.result import compared, write_comparison
    from nnunet_softseg.evaluation.tables import made_by

    each = measure(study, seeds)
    parameters = {"primary": PRIMARY, "correction": "holm", "seed": 0, **protocol(study, seeds)}
    evaluation = average_trainings(
        each, {name: method for name, (method, _) in trainings(study, seeds).items()}
    )
    references = Path(study.dataset.name) / "softLabelsTs"  # where the study lies is no one's business
    comparison = compared(evaluation, references, made_by("benchmarks/leaderboard.py", parameters))
    output = study.output / "report"
    make_folder(output)
    write_comparison(comparison, output)
    write_report(comparison, output)
    if "soft_all" in study.methods:
        threshold_of_its_own(study, seeds).to_csv(output / "soft_map_and_its_threshold.csv")
    by_training = each.cases.groupby("method", sort=False)[SHOWN].mean()
    by_training.to_csv(output / "trainings.csv")
    print(by_training.to_string(float_format=lambda value: f"{value:.3f}"))
    print(comparison.as_text())
    print(output / "report.html")


def threshold_of_its_own(study: PhantomStudy, seeds: Sequence[int]) -> pd.DataFrame:
    """Return, per contrast, the soft map of soft_all beside its own voxels above 0.5: which is nearer?"""
    from nnunet_softseg.evaluation.evaluate import measure_methods
    from nnunet_softseg.evaluation.measuring import EvaluationSettings

    settings = EvaluationSettings.from_arguments(num_processes=study.num_processes)
    tables = []
    for seed in seeds:
        soft = study.prediction("soft_all", seed)
        above = study.output / "above_threshold" / f"seed-{seed}"
        make_folder(above)
        for label_map in soft.glob("*.nii.gz"):
            shutil.copyfile(label_map, above / label_map.name)
        folders = {"soft map": soft, "its own threshold": above}
        tables.append(measure_methods(folders, study.dataset / "softLabelsTs", settings).cases)
    cases = pd.concat(tables)
    return cases.groupby(["contrast", "method"], sort=False)[VOXELS].mean()


if __name__ == "__main__":
    main()
