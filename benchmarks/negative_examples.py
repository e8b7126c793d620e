"""Do images without a cord in the training keep a network from making one up?

    python benchmarks/negative_examples.py -o FOLDER

Two trainings a seed, alike but for 48 images without a cord that the second has as well: necks without canal
and cord, and sides of necks, each with a soft label of zeros. `localiser.py` then shows both what it has:
cords in the middle of an image and elsewhere, and images without one, of other subjects. None of it was
trained on. What is done is kept in FOLDER; the data of `leaderboard.py -o FOLDER` are taken up.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from localiser import show, views_without_cord
from phantom_study import DATASET_ID, FOV_MM, NAME, PhantomStudy, make_data, parse
from study import Method, plan, train

from nnunet_softseg.io.results import new_folder, write_json
from nnunet_softseg.phantom import CONTRAST_NAMES
from nnunet_softseg.phantom.acquisition import PhantomSpec

METHODS = {"soft_all": Method()}
WITH_NEGATIVES = DATASET_ID + 20
SUBJECTS, SEED = 4, 1001  # of the images without a cord; `localiser.py` draws from other seeds
NEAREST_MM, FARTHEST_MM = 38.0, 50.0
LABEL_FOLDERS = {"labelsTr": ("", np.uint8), "softLabelsTr": ("_0001", np.float32)}


def main() -> None:
    """Train what is missing, then show each network what it has, and print the tables."""
    study, asked = parse(__doc__, METHODS)
    make_data(study, (asked.subjects, asked.validation, asked.test), asked.more_test)
    add_negatives(study)
    plan(study, WITH_NEGATIVES)
    for seed in asked.seeds:
        for dataset_id in (DATASET_ID, WITH_NEGATIVES):
            checkpoint = study.checkpoint("soft_all", dataset_id, seed)
            if not checkpoint.is_file():
                train(study, "soft_all", dataset_id, seed)
            found = study.output / "localiser" / f"{dataset_id}-seed-{seed}"
            script = Path(__file__).with_name("localiser.py")
            subprocess.run(
                [sys.executable, str(script), "-m", str(checkpoint.parents[1]), "-o", str(found)], check=True
            )


def add_negatives(study: PhantomStudy) -> None:
    """Write the dataset of the second training: the first one's, and images without a cord in every fold."""
    target = study.raw / f"Dataset{WITH_NEGATIVES:03d}_{NAME}"
    if target.is_dir():
        return
    with new_folder(target) as aside:
        shutil.copytree(study.dataset, aside, dirs_exist_ok=True)
        names = []
        for name, image, affine in negatives():
            names.append(name)
            save(aside / "imagesTr" / f"{name}_0000.nii.gz", image, affine)
            for folder, (ending, kind) in LABEL_FOLDERS.items():
                save(aside / folder / f"{name}{ending}.nii.gz", np.zeros(image.shape, kind), affine)
        entries = json.loads((aside / "dataset.json").read_text("utf-8"))
        write_json(aside / "dataset.json", {**entries, "numTraining": entries["numTraining"] + len(names)})
        folds = json.loads((aside / "splits_final.json").read_text("utf-8"))
        write_json(
            aside / "splits_final.json", [{**fold, "train": [*fold["train"], *names]} for fold in folds]
        )


def negatives() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, voxels and affine of necks without canal and cord, and of sides of necks."""
    rng = np.random.default_rng(SEED)
    spec = PhantomSpec(SEED, FOV_MM)
    for number in range(1, SUBJECTS + 1):
        for contrast in CONTRAST_NAMES:
            aside = float(rng.choice([-1, 1]) * rng.uniform(NEAREST_MM, FARTHEST_MM))
            for kind, view in views_without_cord(number, contrast, aside).items():
                image, affine, _ = show(view, spec, cord=False)
                yield f"none-{kind}-{number:02d}_{contrast}", image, affine


def save(file: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI file."""
    nib.save(nib.Nifti1Image(voxels, affine), file)


if __name__ == "__main__":
    main()
