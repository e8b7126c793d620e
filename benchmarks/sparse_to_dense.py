"""A few annotated slices -> pseudo-labels -> a 3-D model, on a phantom whose truth is known.

    python benchmarks/sparse_to_dense.py -o sparse_to_dense

The teacher (configuration 2d, two folds of half of the subjects each) learns from 3 of 53 slices of each
volume, the rest is unknown. `pseudo-label` labels the volumes, each by the fold that has not seen its
subject; the student (3d_fullres) learns from these. Beside them: the same 3-D model with all slices
annotated, and with the three slices alone. Test subjects, annotated throughout, chose nothing.
"""

from pathlib import Path

from partly_annotated import mask
from phantom_study import DATASET_ID, PhantomStudy, make_data, measure, parse
from study import Method, plan, protocol, train_and_predict, trainings

from nnunet_softseg.inference.pseudo_label import pseudo_label
from nnunet_softseg.io.results import load_json, make_folder, write_json

SPARSE_ID, STUDENT_ID = DATASET_ID + 40, DATASET_ID + 50
TEACHER, STUDENT, FULL, SPARSE = "teacher", "student", "all slices", "three slices"
METHODS = {
    TEACHER: Method(configuration="2d", folds=("0", "1")),
    STUDENT: Method(),
    FULL: Method(),
    SPARSE: Method(),
}
PHANTOM = {"contrasts": ("T2w",), "fov_mm": (56.0, 60.0, 40.4)}
"""53 slices of 0.8 mm."""
MEASURES = ["csa_error_mm2", "abs_csa_error_mm2", "soft_dice", "boundary_mae", "dice"]
SPLITS = "splits_final.json"


class SparseToDense(PhantomStudy):
    """A study whose student learns from the labels of the teacher of the same seed."""

    seed = 0

    def datasets_of(self, method: str) -> tuple[int, ...]:
        """Return the dataset of a method."""
        at = {TEACHER: SPARSE_ID, STUDENT: STUDENT_ID + self.seed, FULL: DATASET_ID, SPARSE: SPARSE_ID + 1}
        return (at[method],)


def main() -> None:
    """Run what is missing, then print and write the table."""
    asked_for, asked = parse(__doc__, METHODS)
    study = SparseToDense(**vars(asked_for))
    make_data(study, (asked.subjects, asked.validation, asked.test), asked.more_test, **PHANTOM)
    for dataset_id, configuration in ((SPARSE_ID, "2d"), (SPARSE_ID + 1, "3d_fullres")):
        if dataset_id != SPARSE_ID and SPARSE not in study.methods:
            continue
        mask(study, dataset_id, float("nan"))
        if dataset_id == SPARSE_ID:
            write_json(study.folder_of(SPARSE_ID) / SPLITS, halves(study.folder_of(SPARSE_ID)))
        plan(study, dataset_id, configuration)
    for seed in asked.seeds:
        study.seed = seed
        for name in study.methods:
            if name == STUDENT:
                label(study)
            train_and_predict(study, name, seed)
    report(study, list(asked.seeds))


def halves(dataset: Path) -> list[dict[str, list[str]]]:
    """Return two folds of a dataset of one image per subject: each trains on half, validates on the other."""
    first = load_json(dataset / SPLITS)[0]
    cases = sorted([*first["train"], *first["val"]])
    parts = (cases[::2], cases[1::2])
    return [{"train": train, "val": val} for train, val in (parts, parts[::-1])]


def label(study: SparseToDense) -> None:
    """Make the student's dataset from the teacher of the same seed, split as that with all slices."""
    dataset_id = STUDENT_ID + study.seed
    model = study.checkpoint(TEACHER, SPARSE_ID, study.seed).parents[1]
    folder = study.raw / f"Dataset{dataset_id:03d}_{study.name}"
    if not folder.exists():
        pseudo_label(
            study.dataset / "imagesTr",
            dataset_id,
            study.name,
            models=[model],
            splits=study.folder_of(SPARSE_ID) / SPLITS,
            raw_folder=study.raw,
            device=study.device,
        )
        (folder / "imagesTs").symlink_to(study.dataset / "imagesTs")
    write_json(folder / SPLITS, load_json(study.dataset / SPLITS))
    plan(study, dataset_id)


def report(study: SparseToDense, seeds: list[int]) -> None:
    """Print and write the means over test cases, of each training and of each method."""
    cases = measure(study, seeds).cases
    by_training = cases.groupby("method", sort=False)[MEASURES].mean()
    method_of = {name: method for name, (method, _) in trainings(study, seeds).items()}
    by_method = by_training.groupby(by_training.index.map(method_of), sort=False).mean()
    folder = study.output / "report"
    make_folder(folder)
    write_json(folder / "sparse_to_dense.json", protocol(study, seeds))
    for table, name in ((by_training, "trainings.csv"), (by_method, "methods.csv")):
        table.to_csv(folder / name)
        print(table.to_string(float_format=lambda value: f"{value:.3f}"), end="\n\n")


if __name__ == "__main__":
    main()
