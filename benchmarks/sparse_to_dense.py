"""A few annotated slices -> pseudo-labels -> a 3-D model, on a phantom whose truth is known.

    python benchmarks/sparse_to_dense.py -o sparse_to_dense

The teacher (configuration 2d, two folds of half of the subjects each) learns from 3 of 53 slices of each
volume, the rest is unknown. `pseudo-label` labels the volumes, each by the fold that has not seen its
subject; the student (3d_fullres) learns from these. Beside them: the same 3-D model with all slices
annotated, with the three slices alone, and with zeros in place of what is unknown, which is what a tool
without unknown voxels would learn. Test subjects, annotated throughout, chose nothing.
"""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from phantom_study import DATASET_ID, PhantomStudy, make_data, measure, parse
from study import Method, plan, protocol, train_and_predict, trainings

from nnunet_softseg.inference.pseudo_label import pseudo_label
from nnunet_softseg.io.results import load_json, make_folder, new_folder, write_json

SPARSE_ID, STUDENT_ID = DATASET_ID + 40, DATASET_ID + 50
TEACHER, STUDENT, FULL, SPARSE = "teacher", "student", "all slices", "three slices"
ZEROS = "three slices, zeros"
METHODS = {
    TEACHER: Method(configuration="2d", folds=("0", "1")),
    STUDENT: Method(),
    FULL: Method(),
    SPARSE: Method(),
    ZEROS: Method(),
}
MASKED = {SPARSE: (SPARSE_ID + 1, np.nan), ZEROS: (SPARSE_ID + 2, 0.0)}
"""Dataset of the 3-D models that learn from the slices themselves, and what fills the rest."""
ANNOTATED = (0.25, 0.5, 0.75)
"""Where the annotated slices lie along S-I, as parts of the image."""
PHANTOM = {"contrasts": ("T2w",), "fov_mm": (56.0, 60.0, 40.4)}
"""53 slices of 0.8 mm."""
MEASURES = ["csa_error_mm2", "abs_csa_error_mm2", "soft_dice", "boundary_mae", "dice"]
SPLITS = "splits_final.json"


class SparseToDense(PhantomStudy):
    """A study whose student learns from the labels of the teacher of the same seed."""

    seed = 0

    def datasets_of(self, method: str) -> tuple[int, ...]:
        """Return the dataset of a method."""
        at = {TEACHER: SPARSE_ID, STUDENT: STUDENT_ID + self.seed, FULL: DATASET_ID}
        return (MASKED[method][0] if method in MASKED else at[method],)


def main() -> None:
    """Run what is missing, then print and write the table."""
    asked_for, asked = parse(__doc__, METHODS)
    study = SparseToDense(**vars(asked_for))
    make_data(study, (asked.subjects, asked.validation, asked.test), asked.more_test, **PHANTOM)
    mask(study, SPARSE_ID, np.nan)
    write_json(study.folder_of(SPARSE_ID) / SPLITS, halves(study.folder_of(SPARSE_ID)))
    plan(study, SPARSE_ID, "2d")
    for dataset_id, rest in (MASKED[name] for name in study.methods if name in MASKED):
        mask(study, dataset_id, rest)
        plan(study, dataset_id)
    for seed in asked.seeds:
        study.seed = seed
        for name in study.methods:
            if name == STUDENT:
                label(study)
            train_and_predict(study, name, seed)
    report(study, list(asked.seeds))


def mask(study: PhantomStudy, dataset_id: int, rest: float) -> None:
    """Write the dataset of which three slices are annotated, and the rest has one value."""
    target = study.raw / f"Dataset{dataset_id:03d}_{study.name}"
    if target.is_dir():
        return
    with new_folder(target) as aside:
        shutil.copytree(study.dataset, aside, dirs_exist_ok=True)
        for file in sorted((aside / "softLabelsTr").glob("*.nii.gz")):
            keep_slices(file, rest)
        if rest == 0:  # what is not annotated is background to nnU-Net, too
            for file in sorted((aside / "labelsTr").glob("*.nii.gz")):
                keep_slices(file, rest)


def keep_slices(file: Path, rest: float) -> None:
    """Replace all slices across S-I but the annotated ones."""
    image = nib.load(file)
    axis = nib.aff2axcodes(image.affine, (("R", "R"), ("A", "A"), ("S", "S"))).index("S")
    kept = [round(part * (image.shape[axis] - 1)) for part in ANNOTATED]
    annotated = tuple(kept if at == axis else slice(None) for at in range(3))
    voxels = np.full(image.shape, rest, dtype=image.get_data_dtype())
    voxels[annotated] = np.asarray(image.dataobj)[annotated]
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), file)


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
