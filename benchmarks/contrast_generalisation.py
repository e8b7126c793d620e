"""What the contrast augmentation gives on contrasts that were not trained on, and takes on the one that was.

    python benchmarks/contrast_generalisation.py -o contrast_generalisation --seeds 0

Both methods see T1w images of the phantom alone, for as many steps; every contrast of the test subjects is
predicted and measured against the truth.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from phantom_study import DATASET_ID, PhantomStudy, contrast_ids, make_data, measure, parse
from study import Method, Study, predict, protocol, train, trainings

from nnunet_softseg.io.results import make_folder, write_json

if TYPE_CHECKING:
    import pandas as pd

SEEN = "T1w"
BASELINE, AUGMENTED = "nnU-Net augmentation", "contrast augmentation"
METHODS = {BASELINE: Method(), AUGMENTED: Method("nnUNetTrainerSoftSegContrastAug")}
MEASURES = {"soft_dice": "soft Dice", "boundary_mae": "boundary MAE", "abs_csa_error_mm2": "|CSA error|, mm2"}


class AllContrastsTested(PhantomStudy):
    """A study whose models, whatever they were trained on, are tested on all contrasts."""

    def images(self, dataset_id: int) -> Path:
        """Return the folder of the test images of all contrasts."""
        return super().images(DATASET_ID)


def main() -> None:
    """Run what is missing, then print and write the tables."""
    study, asked = parse(__doc__, METHODS)
    study = AllContrastsTested(**vars(study))
    one_dataset_each = dataclasses.replace(study, methods={SEEN: Method(per_contrast=True)})
    make_data(one_dataset_each, (asked.subjects, asked.validation, asked.test), asked.more_test)
    for seed in asked.seeds:
        for name in study.methods:
            train_and_predict(study, name, seed)
    table = by_contrast(study, asked.seeds)
    text = "\n\n".join(f"{title}\n{markdown(table, measure)}" for measure, title in MEASURES.items())
    folder = study.output / "report"
    make_folder(folder)
    (folder / "contrast_generalisation.md").write_text(f"{text}\n", encoding="utf-8")
    write_json(folder / "contrast_generalisation.json", {**protocol(study, asked.seeds), "trained_on": SEEN})
    print(text)


def train_and_predict(study: Study, name: str, seed: int) -> None:
    """Train a method once on one contrast and predict all contrasts, unless that is done."""
    done = study.prediction(name, seed) / "done.json"
    if done.is_file():
        return
    dataset_id = contrast_ids()[SEEN]
    train(study, name, dataset_id, seed)
    predict(study, name, dataset_id, seed)
    record = {**dataclasses.asdict(study.methods[name]), "seed": seed, "trained_on": SEEN}
    write_json(done, {**record, "epochs": study.epochs, "iterations": study.iterations})


def by_contrast(study: PhantomStudy, seeds: list[int]) -> "pd.DataFrame":
    """Return the measures per (method, contrast): means over trainings and subjects."""
    cases = measure(study, seeds).cases
    method_of = {name: method for name, (method, _) in trainings(study, seeds).items()}
    cases["method"] = cases["method"].map(method_of)
    return cases.groupby(["method", "contrast"], sort=False)[list(MEASURES)].mean()


def markdown(table: "pd.DataFrame", measure: str) -> str:
    """Return a Markdown table of one measure: rows are methods, columns contrasts, then all unseen ones."""
    wide = table[measure].unstack("contrast")
    wide = wide[[SEEN, *sorted(set(wide.columns) - {SEEN})]]
    wide["unseen"] = wide.drop(columns=SEEN).mean(axis=1)
    lines = [f"| | {' | '.join(wide.columns)} |", "|---" * (len(wide.columns) + 1) + "|"]
    rows = [(name, list(values)) for name, values in wide.iterrows()]
    if {BASELINE, AUGMENTED} <= set(wide.index):
        rows.append(("difference", list(wide.loc[AUGMENTED] - wide.loc[BASELINE])))
    lines += [f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |" for name, values in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
