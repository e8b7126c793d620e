"""Does a training ever collapse? Many short ones, each from another seed, on the phantom.

    python benchmarks/stability.py -o stability --seeds $(seq 0 19) --epochs 4 --methods soft_all

A training has collapsed if its network puts out nothing where the labels are, or ends far from the others.
Nothing is predicted; what counts is the soft Dice of the last epoch on patches of the validation subjects.
"""

import statistics
from typing import Any

from phantom_study import DATASET_ID, make_data, parse
from study import Method, Study, protocol, train

from nnunet_softseg.io.results import make_folder, write_json

METHODS = {
    "soft_all": Method(),
    "soft_all_raw_loss": Method("nnUNetTrainerSoftSegRawLoss"),
    "paper_augmentation": Method("nnUNetTrainerSoftSegPaperAug"),
}
COLLAPSED = 0.5
"""Soft Dice below which a training is said to have collapsed."""


def main() -> None:
    """Train what is missing, then print and write what came of it."""
    study, asked = parse(__doc__, METHODS)
    make_data(study, (asked.subjects, asked.validation, asked.test), asked.more_test)
    outcomes: dict[str, dict[str, float]] = {}
    for name in study.methods:
        outcomes[name] = {}
        for seed in asked.seeds:
            if not study.checkpoint(name, DATASET_ID, seed).is_file():
                train(study, name, DATASET_ID, seed)
            outcomes[name][str(seed)] = last_soft_dice(study, name, seed)
            print(f"{name}, seed {seed}: soft Dice {outcomes[name][str(seed)]:.3f}", flush=True)
    report = {name: summary(list(values.values())) for name, values in outcomes.items()}
    folder = study.output / "report"
    make_folder(folder)
    write_json(
        folder / "stability.json", {**protocol(study, asked.seeds), "methods": report, "soft_dice": outcomes}
    )
    for name, figures in report.items():
        print(name, figures)


def summary(soft_dice: list[float]) -> dict[str, Any]:
    """Return how many trainings there were, how many collapsed, and how far apart they ended."""
    return {
        "trainings": len(soft_dice),
        "collapsed": sum(not value >= COLLAPSED for value in soft_dice),
        "soft_dice_worst": round(min(soft_dice), 3),
        "soft_dice_median": round(statistics.median(soft_dice), 3),
        "soft_dice_best": round(max(soft_dice), 3),
    }


def last_soft_dice(study: Study, name: str, seed: int) -> float:
    """Return the soft Dice of the last epoch of a training."""
    import torch

    checkpoint = torch.load(study.checkpoint(name, DATASET_ID, seed), map_location="cpu", weights_only=False)
    return float(checkpoint["logging"]["soft_dice"][-1][0])


if __name__ == "__main__":
    main()
