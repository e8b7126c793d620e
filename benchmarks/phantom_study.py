"""Trainings on a phantom whose truth is known: its data and its measures; the rest is `study.py`."""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import Method, Study, add_arguments, plan, shared_by, train_and_predict, trainings

from nnunet_softseg.io.formats import without_nifti_ending
from nnunet_softseg.io.results import make_folder, write_json

if TYPE_CHECKING:
    from nnunet_softseg.evaluation.evaluate import Evaluation

DATASET_ID = 910
NAME = "Leaderboard"
FOV_MM = (56.0, 60.0, 64.0)


class PhantomStudy(Study):
    """A study on the phantom; a method of each contrast is trained on a dataset of each."""

    @property
    def dataset(self) -> Path:
        """Raw dataset of all contrasts."""
        return self.folder_of(DATASET_ID)

    def datasets_of(self, method: str) -> tuple[int, ...]:
        """Return the datasets that a method is trained on."""
        return tuple(contrast_ids().values()) if self.methods[method].per_contrast else self.dataset_ids


def parse(description: str | None, methods: Mapping[str, Method]) -> tuple[PhantomStudy, argparse.Namespace]:
    """Return the study that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, methods)
    add = parser.add_argument
    add("--subjects", type=int, default=30, help="of the phantom, drawn into parts (default: 30)")
    add("--test", type=int, default=12, help="of these for testing (default: 12)")
    add("--more-test", type=int, default=6, help="subjects on top, all for testing (default: 6)")
    add("--validation", type=int, default=3, help="of these for validation (default: 3)")
    asked = parser.parse_args()
    return PhantomStudy(**shared_by(asked, methods), name=NAME, dataset_ids=(DATASET_ID,)), asked


def run(study: PhantomStudy, asked: argparse.Namespace) -> None:
    """Do what is missing: data, trainings, predictions."""
    make_data(study, (asked.subjects, asked.validation, asked.test), asked.more_test)
    for seed in asked.seeds:
        for name in study.methods:
            train_and_predict(study, name, seed)


def make_data(study: PhantomStudy, drawn: tuple[int, int, int], more_test: int, **of_phantom: Any) -> None:
    """Make phantom, datasets and plans where they are missing.

    Args:
        study: where.
        drawn: number of subjects in the draw, and of these for validation and for testing.
        more_test: subjects after these, all for testing. More of them change no training.
        of_phantom: arguments of `phantom` in place of the study's own.
    """
    from nnunet_softseg.datasets.conversion import convert
    from nnunet_softseg.datasets.conversion.splits import split_subjects
    from nnunet_softseg.phantom import TRUTH, TRUTH_SUFFIX, phantom

    options = {"fov_mm": FOV_MM, "num_processes": study.num_processes} | of_phantom
    bids = phantom(study.output / "bids", n=drawn[0] + more_test, seed=0, **options)
    subjects = sorted(path.name for path in bids.glob("sub-*"))
    split = split_subjects(subjects[: drawn[0]], num_validation=drawn[1], num_test=drawn[2])
    parts = {**dataclasses.asdict(split), "test": [*split.test, *subjects[drawn[0] :]]}
    write_json(study.output / "split.json", parts)
    per_contrast = any(method.per_contrast for method in study.methods.values())
    convert(
        bids,
        DATASET_ID,
        NAME,
        raw_folder=study.raw,
        derivatives=TRUTH,
        suffix=TRUTH_SUFFIX,
        split_file=study.output / "split.json",
        per_contrast=contrast_ids() if per_contrast else False,
    )
    for dataset_id in [DATASET_ID, *(contrast_ids().values() if per_contrast else ())]:
        plan(study, dataset_id)


def contrast_ids() -> dict[str, int]:
    """Return contrast -> id of its dataset."""
    from nnunet_softseg.phantom import CONTRAST_NAMES

    return {contrast: DATASET_ID + number for number, contrast in enumerate(CONTRAST_NAMES, 1)}


def measure(study: PhantomStudy, seeds: Sequence[int]) -> "Evaluation":
    """Return the measures of every training, as methods named `<method>, seed <seed>`, against the truth."""
    from nnunet_softseg.evaluation.evaluate import measure_methods
    from nnunet_softseg.evaluation.measuring import EvaluationSettings

    folders = {name: study.prediction(*training) for name, training in trainings(study, seeds).items()}
    options = {"levels": levels_of(study), "images": study.dataset / "imagesTs"}
    settings = EvaluationSettings.from_arguments(**options, num_processes=study.num_processes)
    return measure_methods(folders, study.dataset / "softLabelsTs", settings)


def levels_of(study: PhantomStudy) -> Path:
    """Return a folder with the vertebral levels of every test case, under its case id."""
    folder = study.output / "levels"
    make_folder(folder)
    manifest = json.loads((study.dataset / "conversion.json").read_text("utf-8"))
    for case_id, case in manifest["cases"].items():
        if case["part"] == "test":
            image = Path(case["image"])
            name = f"{without_nifti_ending(image.name)}_desc-levels_dseg.nii.gz"
            levels = study.output / "bids" / "derivatives" / "truth" / image.parent / name
            shutil.copyfile(levels, folder / f"{case_id}.nii.gz")
    return folder
