"""What of the trainer earns its place: one change at a time, on a phantom whose truth is known.

    python benchmarks/ablation.py -o ablation --seeds 0 1 2

What decides is the summed soft map: CSA error, boundary error, STD of CSA over contrasts. Dice is blind to a
residue in the background and to a boundary that is a little too far out.
"""

from phantom_study import PhantomStudy, measure, parse, run
from study import Method, trainings

METHODS = {
    "default": Method(),
    "raw regression": Method("nnUNetTrainerSoftSegRawLoss"),
    "adaptive exponent": Method(settings={"adaptive_exponent": True}),
    "mean squared error": Method(loss="mean_squared_error"),
    "mean over voxels": Method(settings={"loss_reduction": "mean"}),
    "paper's augmentation": Method("nnUNetTrainerSoftSegPaperAug"),
    "SGD, poly": Method(settings={"optimizer": "sgd", "initial_lr": 1e-2, "weight_decay": 3e-5}),
}
MEASURES = {
    "csa_error_mm2": "CSA bias, mm2",
    "abs_csa_error_mm2": "|CSA error|, mm2",
    "std_csa_mm2": "STD of CSA, mm2",
    "boundary_mae": "boundary MAE",
    "soft_dice": "soft Dice",
    "dice": "Dice",
}


def main() -> None:
    """Run what is missing, then print and write the table."""
    study, asked = parse(__doc__, METHODS)
    run(study, asked)
    table = summary(study, asked.seeds)
    folder = study.output / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablation.md").write_text(table, encoding="utf-8")
    print(table)


def summary(study: PhantomStudy, seeds: list[int]) -> str:
    """Return a Markdown table: per method the mean over trainings, and their standard deviation."""
    cases = measure(study, seeds).cases
    keys = ["method", "subject"]
    spread = cases.groupby(keys, sort=False)["csa_mm2"].std(ddof=1).rename("std_csa_mm2")
    by_subject = cases.groupby(keys, sort=False)[[name for name in MEASURES if name in cases]].mean()
    by_training = by_subject.join(spread).groupby("method", sort=False).mean()
    method_of = {name: method for name, (method, _) in trainings(study, seeds).items()}
    groups = by_training.groupby(by_training.index.map(method_of), sort=False)
    mean, deviation = groups.mean(), groups.std(ddof=1)
    lines = [f"| | {' | '.join(MEASURES.values())} |", "|---" * (len(MEASURES) + 1) + "|"]
    for method in mean.index:
        cells = [
            f"{mean.loc[method, name]:.3f} ± {deviation.loc[method, name]:.3f}"
            if len(seeds) > 1
            else f"{mean.loc[method, name]:.3f}"
            for name in MEASURES
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
