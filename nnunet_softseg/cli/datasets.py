"""Commands for datasets: convert, check, prepare."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nnunet_softseg.cli.command import Command, Pairs, Words, option, pair, print_report, required, switch
from nnunet_softseg.cli.prediction import OpeningCommand
from nnunet_softseg.errors import UserError

Value = TypeVar("Value")


def contrast_and_id(text: str) -> tuple[str, int]:
    """Return contrast and dataset id of CONTRAST=ID."""
    contrast, dataset_id = pair(text)
    if not dataset_id.isdecimal():
        raise argparse.ArgumentTypeError(f"{contrast}: expected a dataset id, found {dataset_id!r}")
    return contrast, int(dataset_id)


@dataclass
class Convert(Command):
    """Convert BIDS images and soft label derivatives to datasets in nnUNet_raw, split by subject.

    Case ids are <sub>[_ses]_<contrast>. Images are copied, never linked or changed. All contrasts of a
    subject are on one side of the split, in all datasets; test subjects go to imagesTs, labelsTs and
    softLabelsTs. conversion.json says where every file comes from. Nothing is written before all files are
    found fit; a dataset from the same sources and split is kept. An image without a soft label is left out
    and named.

    Example:
      nnunet-softseg convert -i BIDS -d 101 --name SpinalCord --exclude sub-03 exclude.yml
    """

    bids: str = required("-i BIDS", "images in sub-*/[ses-*/]anat and dwi")
    dataset_id: int = required("-d ID", "dataset id, 1-999")
    name: str = required("--name NAME", "name of the dataset: Dataset<id>_<name>")
    raw_folder: str | None = option("-o nnUNet_raw", "folder of datasets; else the variable nnUNet_raw")
    layout: str = option(
        "--layout NAME",
        "file names: bids (the suffix is the contrast) or spine-generic (data-multi-subject, old and new)",
        "bids",
    )
    derivatives: str | None = option(
        "--derivatives FOLDER", "of the soft labels, in BIDS or anywhere; derivatives/softseg if not given"
    )
    suffix: str | None = option(
        "--suffix SUFFIX",
        "end of the soft labels' names, after the image's, such as _soft, soft or (with =) -soft; "
        "_label-SC_desc-softseg_probseg if not given",
    )
    labels: Pairs = option(
        "--label NAME=SUFFIX",
        "instead of --suffix (one label, cord), once for each label; values are 1, 2, ... in this order, "
        "the outer of nested ones first",
        (),
        action="append",
        type=pair,
    )
    contrasts: Words | None = option("--contrasts NAME", "contrasts to take; all if not given")
    distinguish_by: Words = option(
        "--distinguish-by ENTITY",
        "BIDS entities that make two contrasts of one: acq for acq-sag_T2w and acq-ax_T2w",
        (),
    )
    exclude: Words = option(
        "--exclude PATTERN|FILE",
        "subjects (sub-01), sessions, cases, images, patterns (sub-site*), or .txt, .yml, .json with them",
        (),
    )
    split_file: str | None = option(
        "--split FILE",
        "who is where: .json or .yml with train, val and test (or test alone: the rest is drawn), a "
        "conversion.json, or participants.tsv with a column split; whoever is not in it is left out",
    )
    num_test: int | None = option("--test N", "subjects to draw for testing; a fifth if not given")
    num_validation: int | None = option(
        "--validation N", "subjects to draw that fold 0 validates on; a fifth if not given"
    )
    seed: int = option("--seed N", "random seed of the draw", 0)
    per_contrast: tuple[tuple[str, int], ...] | None = option(
        "--per-contrast CONTRAST=ID",
        "also make a dataset <name>_<contrast> of each contrast, from the same split, with the ids that "
        "follow -d; or of those named, with these ids",
        nargs="*",
        type=contrast_and_id,
    )
    num_processes: int = option("-np N", "cases at a time", 2)

    def run(self) -> int:
        from nnunet_softseg.datasets.conversion import convert

        options = vars(self) | {
            "labels": _mapping("--label", self.labels) or None,
            "per_contrast": _mapping("--per-contrast", self.per_contrast) or self.per_contrast is not None,
        }
        print(convert(**options).as_text())
        return 0


def _mapping(option_name: str, pairs: Sequence[tuple[str, Value]] | None) -> dict[str, Value]:
    mapping: dict[str, Value] = {}
    for name, value in pairs or ():
        if name in mapping:
            raise UserError(f"{option_name} names {name} twice: expected each name once")
        mapping[name] = value
    return mapping


@dataclass
class Check(OpeningCommand):
    """Check a dataset, or images to predict, for all that can be wrong, before hours are spent on it.

    Of a dataset (-d), looks at dataset.json, images, label maps and soft labels in nnUNet_raw, compares the
    cases, and looks at splits and plans if there are any. With --simulate it also writes the maps that a
    perfect network would give after nnUNetv2_plan_and_preprocess, as predict writes them, and says what they
    have lost.

    Of images (-i), says what predict would say: files that cannot be read, doubtful headers, fields of view
    too large for memory; with a model (-m) also channels, orientations and voxel sizes unlike the training's.

    Example:
      nnunet-softseg check -d 101
      nnunet-softseg check -d 101 -c 3d_fullres --simulate PERFECT
      nnunet-softseg check -i imagesTs -m MODEL

    Exit code 0: no error, perhaps warnings. 2: at least one error.
    """

    exclusive = ("dataset", "images")
    dataset: str | None = option("-d DATASET", "dataset id or name")
    images: str | None = option("-i IMAGES", "instead of a dataset: images to predict, as predict takes them")
    model: str | None = option("-m MODEL", "model that will predict them: folder, .zip or .softseg")
    num_processes: int = option("-np N", "processes that read cases", 4)
    output: str | None = option("-o JSON", "write the findings to this file, too")
    simulate: str | None = option("--simulate FOLDER", "write the maps of a perfect network there")
    configuration: str = option("-c CONFIGURATION", "of the plans, for --simulate", "3d_fullres")
    plans_identifier: str = option("-p PLANS", "name of the plans, for --simulate", "nnUNetPlans")
    trainer: str = option("-tr TRAINER", "whose settings count, for --simulate", "nnUNetTrainerSoftSeg")

    def run(self) -> int:
        from nnunet_softseg.datasets.check import check
        from nnunet_softseg.io.results import write_json

        if self.images is not None and self.simulate is None:
            from nnunet_softseg.inference.image_check import check_images

            report = check_images(self.images, self.model, self.num_processes, trust_model=self.trust_model)
            of_model = ["-m", self.model] if self.model else []
            following = shlex.join(["nnunet-softseg", "predict", "-i", self.images, "-o", "OUT", *of_model])
        elif self.dataset is not None and self.model is None:
            report = check(self.dataset, self.num_processes)
            following = f"nnUNetv2_plan_and_preprocess -d {report.number} -c {report.configuration}"
        else:
            raise UserError(
                "check: expected a dataset (-d), or images (-i) and perhaps a model (-m): give one"
            )
        print(report.as_text())
        if self.output:
            write_json(Path(self.output), report.as_dict())
        if self.simulate and self.dataset and not report.errors:
            self._simulate(self.dataset, Path(self.simulate))
        elif not report.errors:
            print(f"next: {following}")
        return 2 if report.errors else 0

    def _simulate(self, dataset: str, output: Path) -> None:
        from nnunet_softseg.inference.simulation import simulate
        from nnunet_softseg.registry import find

        settings = getattr(find(self.trainer), "settings", None)
        if settings is None:
            raise UserError(f"-tr {self.trainer}: expected a trainer of soft labels, found another class")
        report = simulate(
            dataset,
            self.configuration,
            output,
            trainer=self.trainer,
            settings=settings,
            plans_identifier=self.plans_identifier,
            num_processes=self.num_processes,
        )
        print_report(report)


@dataclass
class Prepare(Command):
    """Prepare soft targets ahead of training, which does it by itself if they are missing or stale.

    Brings the soft labels of a preprocessed dataset to the network's grid, beside nnU-Net's folder of
    preprocessed cases.

    Example:
      nnunet-softseg prepare -d 101 -c 3d_fullres
    """

    goes_on = True
    dataset: str = required("-d DATASET", "dataset id or name")
    configuration: str = required("-c CONFIGURATION", "configuration of the plans, such as 3d_fullres")
    plans_identifier: str = option("-p PLANS", "name of the plans", "nnUNetPlans")
    num_processes: int = option("-np N", "processes that prepare cases", 4)
    crop: bool = switch(
        "--no-crop",
        "for trainers without the fixed centre-crop patch: do not measure what it keeps of the labels",
        True,
    )

    def run(self) -> int:
        from nnunet_softseg.preprocessing.preparation import prepare

        report = prepare(**vars(self))
        for warning in report.warnings:
            print(f"warning: {warning}")
        print(f"patches: {report.patches}")
        up_to_date = len(report.cases) - report.num_prepared
        print(f"{report.folder}: {report.num_prepared} soft targets prepared, {up_to_date} up to date")
        return 0
