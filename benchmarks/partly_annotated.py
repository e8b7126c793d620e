"""Three annotated slices of each volume against all of them, on a phantom whose truth is known.

    python benchmarks/partly_annotated.py -o partly_annotated

The same images three times: with the whole soft label; with three slices of it, the rest unknown (NaN); with
the same three slices and zeros in place of the rest, which is what a tool without unknown voxels would learn.
All are trained alike; the test subjects, annotated throughout, chose nothing. With the whole label it is the
leaderboard's `soft_all`: in that benchmark's folder its trainings are taken.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from phantom_study import DATASET_ID, PhantomStudy, make_data, measure, parse
from study import Method, plan, protocol, train_and_predict, trainings

from nnunet_softseg.io.results import make_folder, new_folder, write_json

FULL, UNKNOWN, ZEROS = "soft_all", "three_slices", "three_slices_zeros"
METHODS = {name: Method() for name in (FULL, UNKNOWN, ZEROS)}
DATASETS = {FULL: DATASET_ID, UNKNOWN: DATASET_ID + 30, ZEROS: DATASET_ID + 31}
FILLED: Mapping[str, float] = {UNKNOWN: np.nan, ZEROS: 0.0}
ANNOTATED = (0.25, 0.5, 0.75)
"""Where the annotated slices lie along S-I, as parts of the image."""
MEASURES = ["csa_error_mm2", "abs_csa_error_mm2", "soft_dice", "boundary_mae", "dice"]


class PartlyAnnotated(PhantomStudy):
    """A study whose methods differ in the dataset that they are trained on."""

    def datasets_of(self, method: str) -> tuple[int, ...]:
        """Return the dataset of a method."""
        return (DATASETS[method],)


def main() -> None:
    """Run what is missing, then print and write the table."""
    study, asked = parse(__doc__, METHODS)
    study = PartlyAnnotated(**vars(study))
    make_data(study, (asked.subjects, asked.validation, asked.test), asked.more_test)
    for name, rest in FILLED.items():
        mask(study, DATASETS[name], rest)
        plan(study, DATASETS[name])
    for seed in asked.seeds:
        for name in study.methods:
            train_and_predict(study, name, seed)
    cases = measure(study, asked.seeds).cases
    by_training = cases.groupby("method", sort=False)[MEASURES].mean()
    method_of = {name: method for name, (method, _) in trainings(study, asked.seeds).items()}
    by_method = by_training.groupby(by_training.index.map(method_of), sort=False).mean()
    folder = study.output / "report"
    make_folder(folder)
    write_json(folder / "partly_annotated.json", protocol(study, asked.seeds))
    by_training.to_csv(folder / "partly_annotated_trainings.csv")
    by_method.to_csv(folder / "partly_annotated.csv")
    for table in (by_training, by_method):
        print(table.to_string(float_format=lambda value: f"{value:.3f}"))


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


if __name__ == "__main__":
    main()
