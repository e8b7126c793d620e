"""Commands that predict and measure, one image or a cohort."""

import sys
from dataclasses import dataclass, replace
from typing import Literal

from nnunet_softseg.cli.command import (
    Command,
    Pairs,
    Words,
    option,
    pair,
    print_report,
    print_warnings,
    required,
    switch,
)


@dataclass
class OpeningCommand(Command):
    """The option of every command that opens a model."""

    trust_model: bool = switch(
        "--trust-model", "open a checkpoint that holds more than weights and numbers: opening it may run code"
    )


@dataclass
class PredictionChoices(Command):
    """Options of every command that predicts: how a model is run, and what becomes of a map."""

    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "-device", "device of the network; auto: cuda if there is one", "auto"
    )
    localize: Literal["always", "auto", "never"] | None = option(
        "--localize",
        "look for the cord off the centre of the image; if not given, as NNUNET_SOFTSEG_LOCALIZE says, "
        "else auto: where the centre shows none, or one that is cut",
    )
    largest_piece: bool = switch(
        "--largest-piece", "keep only the largest piece of each label; its values stay as they are"
    )
    discard_implausible: bool = switch(
        "--discard-implausible",
        "empty a map that is flagged as unlike every label of the training: also a right one of anatomy that "
        "the training did not show, such as a compressed or swollen cord, or that of a child",
    )
    calibrate: bool = switch(
        "--calibrate", "map the values as nnunet-softseg calibrate found on the validation maps of the model"
    )
    backend: str | None = option(
        "--backend NAME",
        "what runs the network: auto (the fastest here), torch, openvino, or with precision (torch-float32, "
        "openvino-bfloat16); if not given, as NNUNET_SOFTSEG_BACKEND says, else auto",
    )


@dataclass
class OfOneModel(Command):
    """Options of every command that predicts by one model: which, and of which images."""

    model: str | None = option(
        "-m MODEL",
        "folder of a trained model, nnUNet_results/DatasetNNN_Name/<trainer>__<plans>__<configuration>, "
        "a .zip of nnUNetv2_export_model_to_zip, or a .softseg of nnunet-softseg export; if not given, the "
        "spinal cord model that comes with nnunet-softseg",
    )
    folds: Words | None = option("-f FOLD", "folds whose soft maps are averaged; all if not given")
    checkpoint: str = option("-chk FILE", "checkpoint in the fold's folder", "checkpoint_final.pth")
    contrasts: Words | None = option("--contrasts NAME", "to take of a BIDS folder; all if not given")


@dataclass
class PredictingCommand(OpeningCommand, PredictionChoices, OfOneModel):
    """Options that predict, workflow and nnunet-softseg-bids share: all that decides a prediction."""

    no_qc: bool = switch(
        "--no-qc", "make no page of pictures: of many small images they take most of the time"
    )


@dataclass
class Predict(PredictingCommand):
    """Predict soft maps of images in one process, without nnU-Net's folders and file names.

    Writes the files that nnUNetv2_predict writes, bit by bit:
      OUT/<case>.nii.gz                         soft map > 0.5
      OUT/soft/<case>_<label, 4 digits>.nii.gz  float32 in [0, 1]
      OUT/softseg.json                          times, flags and warnings
      OUT/qc/index.html                         a page to look at them
    A case is named as its image without .nii.gz and without nnU-Net's channel number _0000. Soft maps of MHA
    and NRRD images have their ending, those of PNG and TIFF are .tif.

    A call that was cut off can be repeated: what is written is kept. An image that cannot be predicted stops
    no other; it is named at the end.

    Example:
      nnunet-softseg predict -i sub-01_T2w.nii.gz -o OUT
      nnunet-softseg predict -i IMAGES -o OUT -m MODEL

    Exit code 0: all predicted. 2: a mistake, or images that failed.
    """

    goes_on = True
    source: str = required(
        "-i FILE|DIR|BIDS",
        "an image in NIfTI, or in the format of the training; a folder of images; a BIDS folder, of which "
        "sub-*/[ses-*/]anat and dwi count",
    )
    output: str = required("-o OUT", "folder, made if missing; not that of the images")
    overwrite: bool = switch("--overwrite", "predict every case again")
    num_threads: int = option(
        "-np N", "threads that read, and that write, beside the network; at most N cases wait on each side", 2
    )

    def run(self) -> int:
        from nnunet_softseg.inference.predict import predict

        report = predict(**vars(self))
        print_report(report)
        return 2 if report.failed else 0


@dataclass
class Workflow(PredictingCommand):
    """Predict and measure a whole BIDS folder in batches, here or on a cluster, and report on all people.

    Needs Snakemake: pip install "nnunet-softseg[workflow]". Each job does the participants of one batch with
    nnunet-softseg-bids, and loads the model once; with -g a last one measures the maps. In the end
    group_csa.tsv and group.html are gathered. Logs are in OUT/.workflow.

    A repeated call does only what is missing. An image that fails is named, and stops no other; a job that
    ends for want of memory or time is repeated once with twice as much.

    Example:
      nnunet-softseg workflow -i BIDS -o OUT -m MODEL --profile slurm --cores 50 --batch-size 20

    Exit code 0: all there. 2: a mistake, or images or batches that failed.
    """

    goes_on = True
    bids: str = required("-i BIDS", "folder of the images")
    output: str = required("-o OUT", "folder of the derivatives, made if missing")
    profile: str = option(
        "--profile NAME", "local, slurm, or a folder with a profile of Snakemake's", "local"
    )
    cores: int = option("--cores N", "cores to use here; on a cluster, jobs at the same time", 2)
    batch_size: int | None = option(
        "--batch-size N", "participants a job; if not given, 250 here, 20 on a cluster"
    )
    references: str | None = option(
        "-g REF",
        "folder of soft labels or masks to measure the maps against, as evaluate does, into OUT/evaluation",
    )
    reference_pattern: str | None = option(
        "--reference-pattern PATTERN", "of a reference inside its folder, such as '{case}_seg.nii.gz'"
    )
    threads: int = option("--threads N", "cores of a job", 2)
    mem_mb: int = option("--memory MB", "memory of a job in MB; twice as much when it is repeated", 8000)
    minutes: int = option(
        "--minutes N", "time limit of a job on a cluster; twice as long when it is repeated", 240
    )
    resources: Pairs = option(
        "--resource NAME=VALUE",
        "such as slurm_partition=cpu, slurm_account=NAME",
        (),
        action="append",
        type=pair,
    )
    participants: Words = option("--participant-label LABEL", "participants; all if not given", ())

    def run(self) -> int:
        from nnunet_softseg.evaluation.cohort.workflow import Jobs, run_workflow

        jobs, options = self.split(Jobs)
        jobs = replace(jobs, resources=dict(self.resources))
        words = ["-device", options.pop("device"), "-np", str(self.threads)]
        words += ["--backend", backend] if (backend := options.pop("backend")) else []
        for name in ("trust_model", "no_qc"):
            words += [f"--{name.replace('_', '-')}"] if options.pop(name) else []
        words += ["--localize", self.localize] if self.localize else []
        for name in ("largest_piece", "discard_implausible", "calibrate"):
            words += [f"--{name.replace('_', '-')}"] if options[name] else []
        report = run_workflow(jobs=jobs, words=words, **options)
        print_report(report)
        return 2 if report.failed or report.failed_batches else 0


@dataclass
class Export(OpeningCommand):
    """Write a trained model as one file that predicts without PyTorch and nnU-Net.

    FILE.softseg holds the networks as OpenVINO runs them, the plans, and a SHA-256 of each part; opening it
    runs no code. predict -m FILE.softseg needs NumPy, SciPy, nibabel and OpenVINO, starts sooner, and writes
    the files that the model's folder would give.

    Example:
      nnunet-softseg export -m MODEL -o cord.softseg
    """

    model: str = required(
        "-m MODEL",
        "folder of a trained model, or a .zip of nnUNetv2_export_model_to_zip",
    )
    output: str = required("-o FILE", "file to write, which ends in .softseg; replaced if it is there")
    folds: Words | None = option("-f FOLD", "folds to take; all if not given")
    checkpoint: str = option("-chk FILE", "checkpoint in the fold's folder", "checkpoint_final.pth")
    precision: Literal["float16", "float32"] = option(
        "--precision",
        "of the weights; float16 halves the file, and moves soft maps of trained networks by less than 0.02",
        "float16",
    )

    def run(self) -> int:
        from nnunet_softseg.inference.model_export import export

        print(export(**vars(self)).as_text())
        return 0


@dataclass
class Calibrate(Command):
    """Fit a calibration: for each label, the monotone map from predicted value to soft label.

    Takes the soft maps that training has written of its validation cases (MODEL/fold_X/validation/soft), and
    counts the voxels within 3 mm of the structure and all others above 0. Writes MODEL/calibration.json, with
    the reliability before and after, and keeps the map in MODEL/plans.json; predict --calibrate applies it.
    Figures after calibration are cross-checked: each fold, or with one fold each subject, is mapped by the
    others.

    Example:
      nnunet-softseg calibrate -m MODEL
    """

    model: str = required("-m MODEL", "folder of a trained model, with its final validation")
    folds: Words | None = option("-f FOLD", "folds whose validation is taken; all that have one if not given")
    reference: str | None = option(
        "-g REF", "folder of the soft labels; softLabelsTr of the dataset in nnUNet_raw if not given"
    )
    num_processes: int = option("-np N", "maps read at once", 2)

    def run(self) -> int:
        from nnunet_softseg.inference.calibrate import calibrate

        print_report(calibrate(**vars(self)))
        return 0


@dataclass
class Csa(Command):
    """Measure cross-sectional area (CSA) in mm2, corrected for tilt, and shape, per slice and per level.

    CSA of a slice = sum of the map's values x pixel area x cosine of the angle between centreline and slice
    normal; nothing is rescaled or thresholded. The map > 0.5 is measured beside it (csa_hard_mm2). Writes one
    row per slice, an empty slice has no value; a JSON beside the CSV explains its columns (another
    file of that name is not replaced).

    Example:
      nnunet-softseg csa -i OUT --levels LEVELS --vert 2:3 -o csa.csv --figure csa.png
    """

    exclusive = ("levels", "discs", "rootlets")
    maps: Words = required(
        "-i MAP", "soft maps or masks, or a folder; of a folder of predictions its soft maps (OUT/soft)"
    )
    output: str = required("-o CSV", "table of the slices")
    levels: Words | None = option(
        "--levels L",
        "image of vertebral levels (2 is C2, 8 T1) on the map's grid: one for all maps, one per map, or "
        "a folder where it is found by the map's name",
    )
    discs: Words | None = option(
        "--discs D", "points at the discs instead, on any grid of the same space; 3 is C2/C3, as in SCT"
    )
    rootlets: Words | None = option(
        "--rootlets R",
        "nerve rootlets with the numbers of their spinal levels (8 is C8) on the map's grid: one for all "
        "maps, one per map, or a folder; a spinal level reaches from their first to their last slice",
    )
    reach_mm: float = option("--reach-mm MM", "largest distance of rootlets from the cord", 3.0)
    level_names: Literal["spinal", "vertebral"] | None = option(
        "--level-names KIND",
        "names of level 8 and up: C8, T1, ... (spinal) or T1, T2, ... (vertebral); if not given, spinal with "
        "--rootlets, else vertebral",
    )
    vert: Words | None = option("--vert LEVEL", "only slices of these levels: 2 3, 2:3 or C2 C3")
    summary: str | None = option("--summary CSV", "table of mean and STD per level and of --vert")
    figure: str | None = option("--figure PNG", "CSA along S-I, levels shaded (PNG, SVG or PDF)")
    label: Words | None = option(
        "--label N|NAME=N",
        "measure this value of integer label maps; or several labels beside each other, cord=1 gm=2 "
        "wm=cord-gm, of label maps or soft maps of several labels: columns csa_mm2_cord, csa_mm2_gm, ...; "
        "tilt and shape are those of the first",
    )
    smoothing_mm: float = option("--smooth MM", "length over which the centreline is smooth", 30.0)
    num_processes: int = option("-np N", "maps measured at once", 2)

    def run(self) -> int:
        from nnunet_softseg.metrics.morphometry import csa, csa_overview

        table = csa(**vars(self), progress=True)
        print_warnings(table.attrs["warnings"])
        print(csa_overview(table))
        for failure in table.attrs["failed"]:
            print(f"nnunet-softseg: error: {failure}", file=sys.stderr)
        return 2 if table.attrs["failed"] else 0


@dataclass
class Bridges(Command):
    """Measure lesions of the cord and the tissue bridges that they spare in the midsagittal plane, in mm.

    One row per lesion, the largest first: volume, length along S-I, width along A-P, equivalent diameter,
    axial damage ratio; ventral, dorsal and total bridge, as the Spinal Cord Toolbox defines them from 7.3 on.
    Where both maps are soft and sagittal slices at most 1 mm thick, bridges are sums of the values
    (definition: soft), else counts of voxels > 0.5 (hard). A JSON beside the CSV explains its columns
    (another file of that name is not replaced).

    Example:
      nnunet-softseg bridges -i lesion.nii.gz --cord cord.nii.gz -o lesions.csv --figure bridges.png
    """

    lesion: str = required("-i LESION", "mask or soft map of the lesions")
    cord: str = required("--cord CORD", "mask or soft map of the cord, on the same grid")
    output: str = required("-o CSV", "table of the lesions")
    figure: str | None = option("--figure PNG", "midsagittal plane with both bridges (PNG, SVG or PDF)")
    hard: bool = switch("--hard", "count voxels > 0.5 of soft maps, too, as published numbers do")

    def run(self) -> int:
        from nnunet_softseg.metrics.morphometry.bridges import bridges, bridges_overview

        table = bridges(**vars(self))
        print_warnings(table.attrs["warnings"])
        print(bridges_overview(table))
        print(f"{self.output}{f', {self.figure}' * bool(self.figure)}")
        return 0


@dataclass
class _Measuring(Command):
    """Options that evaluate and compare share."""

    reference: str = required(
        "-g REF",
        "folder of references (softLabelsTs, labelsTs, or maps of any name), or one file; decides which "
        "cases and labels count",
    )
    output: str = required("-o OUT", "folder, made if missing")
    reference_pattern: str | None = option(
        "--reference-pattern PATTERN", "of a reference inside its folder, as --pattern; {case} is needed"
    )
    subjects: str | None = option(
        "--subjects TSV",
        "table with columns case, subject, contrast (and session, reference, one per method with paths, "
        "if wanted); if not given, the names tell: sub-01_ses-1_T2w",
    )
    labels: tuple[int, ...] | None = option("--label N", "values to measure; all if not given")
    levels: str | None = option(
        "--levels DIR",
        "vertebral levels: a folder with an image per case, or one image; if not given, areas are means "
        "over the heights that all contrasts of a subject share",
    )
    vert: Words | None = option("--vert LEVEL", "levels over which areas are means; 2 3 if not given")
    images: str | None = option("--images DIR", "folder of the images, for pictures")
    resample: bool = switch(
        "--resample",
        "bring predictions on another grid to that of the reference, linearly; else they are refused",
    )
    surface_dice_tolerance_mm: float = option("--tolerance-mm MM", "of the surface Dice coefficient", 1.0)
    split_touching: bool = switch(
        "--split-touching",
        "objects that touch count one by one: a watershed splits them where they are narrower by more than a "
        "voxel; else what touches is one object",
    )
    num_processes: int = option("-np N", "cases measured at once", 2)


_PATTERN_HELP = (
    "path of a prediction inside its folder, such as '{case}_seg.nii.gz', with {case}, {subject}, {session}, "
    "{contrast}, {label} (with leading zeros or none) and *; if not given, files are matched by their names"
)


@dataclass
class Evaluate(_Measuring):
    """Measure the predictions of one method case by case, as soft maps and as label maps.

    Writes to the output folder: cases.csv (a row per case and label), slices.csv (CSA in mm2), instances.csv
    (a row per object: volume in mm3, centre in mm, IoU), reliability.csv, cases.json (what each column means)
    and summary.json. Takes predictions of ours (the soft maps in their folder soft/), label maps of nnU-Net,
    or masks of any other tool.

    Example:
      nnunet-softseg evaluate -i OUT -g softLabelsTs -o EVALUATION
    """

    prediction: str = required("-i PRED", "folder of predictions, or one file")
    name: str = option("--name NAME", "name of the method in the tables", "prediction")
    pattern: str | None = option("--pattern PATTERN", _PATTERN_HELP)

    def run(self) -> int:
        from nnunet_softseg.evaluation.evaluate import evaluate

        evaluation = evaluate(**vars(self))
        print_report(evaluation)
        print(
            f"{self.output}: cases.csv, slices.csv, instances.csv, reliability.csv, cases.json, summary.json"
        )
        return 2 if evaluation.failed else 0


@dataclass
class Compare(_Measuring):
    """Compare methods on the cases that all of them have: tables, statistics, figures, report.html.

    The subject is the unit of the statistics: two-sided Wilcoxon signed-rank tests, corrected over all pairs
    of methods and over the primary measure and the headlines (CSA error, its STD over contrasts, Dice), and
    confidence intervals. Other measures are exploratory. Repeated-measures ANOVA over contrasts, Bland-Altman
    limits of agreement.

    Example:
      nnunet-softseg compare -g softLabelsTs --method vanilla=A --method softseg=B -o OUT
    """

    methods: Pairs = required(
        "--method NAME=DIR", "a method's folder of predictions; once for each", action="append", type=pair
    )
    patterns: Pairs = option(
        "--pattern NAME=PATTERN", f"of one method: {_PATTERN_HELP}", (), action="append", type=pair
    )
    primary: str = option(
        "--primary MEASURE",
        "measure, chosen before the data are seen, that answers which method is better: a column of "
        "leaderboard.csv without its end _mean, such as dice",
        "abs_csa_error_mm2",
    )
    correction: Literal["holm", "bonferroni"] = option(
        "--correction",
        "correction of p values over the primary measure, the headlines and all pairs",
        "holm",
    )
    seed: int = option("--seed N", "random seed of the bootstrap", 0)
    report: bool = switch(
        "--no-report", "tables only, no report.html; that of an earlier call is removed", True
    )

    def run(self) -> int:
        from nnunet_softseg.evaluation.compare import compare

        comparison = compare(**vars(self) | {"patterns": dict(self.patterns)})
        print_report(comparison)
        page = "report.html, " if self.report else ""
        print(f"{self.output}: {page}leaderboard.csv, statistics.csv, cases.csv and more")
        return 2 if comparison.failed else 0


@dataclass
class Drift(Command):
    """Compare the areas of two releases of a model on the same people: does the new one measure otherwise?

    Takes two folders of maps (of the same images), or two CSV files with columns subject, level, csa_mm2 and
    perhaps contrast, in mm2; the CSV of `csa` will do. Writes to the output folder: drift.csv (per contrast
    and level: bias with its 95 % interval, limits of agreement, ratios, Deming line), drift.json, and
    drift.html, which works offline and in print.

    Drift is a 95 % interval that lies wholly beyond a limit, or an area that the new release does not find.
    No published limit exists: the default, a bias of 1 % of the mean area over all contrasts, or of 2.5 % in
    one of several, is a choice. A file of limits is JSON with some of bias_percent, contrast_bias_percent,
    bias_mm2, slope (of |Deming slope - 1|), contrast_std_mm2 (growth of the STD over contrasts), lost_areas.

    Example:
      nnunet-softseg drift --old v1.0/OUT --new v1.1/OUT --levels LEVELS --vert 2 3 -o DRIFT

    Exit code 0: no drift. 3: drift. 2: a mistake; then nothing is written.
    """

    old: str = required("--old OLD", "folder of maps, or CSV of areas, of the old release")
    new: str = required("--new NEW", "the same of the new release")
    output: str = required("-o OUT", "folder, made if missing")
    levels: str | None = option(
        "--levels DIR",
        "levels of the maps: a folder with an image per case, or one image; if not given, areas are means "
        "over the whole map",
    )
    level_names: Literal["spinal", "vertebral"] | None = option(
        "--level-names KIND",
        "names of level 8 and up: C8, T1, ... (spinal) or T1, T2, ... (vertebral); if not given, as the JSON "
        "beside tables of csa says, else vertebral",
    )
    vert: Words | None = option("--vert LEVEL", "levels to compare, such as 2 3; all if not given")
    label: int | None = option("--label N", "label to measure, if the maps have several")
    limits: str | None = option(
        "--limits FILE",
        "JSON of limits; if not given, a bias of 1 percent of the mean area, of 2.5 percent in one of "
        "several contrasts",
    )
    manifest: str | None = option(
        "--manifest FILE",
        "SHA-256 of the files of the frozen set, as sha256sum writes it, paths from its own folder; refused "
        "if one has changed, or its subjects are not those compared",
    )
    update: str | None = option(
        "--update CSV",
        "table of normal values of the old release (level, perhaps contrast, areas in columns that end in "
        "_mm2): written to OUT as the new release would measure them, with standard errors",
    )
    num_processes: int = option("-np N", "maps measured at once", 2)

    def run(self) -> int:
        from nnunet_softseg.evaluation.drift import drift

        report = drift(**vars(self))
        print_report(report)
        print(f"{self.output}: drift.html, drift.csv, drift.json")
        return 3 if report.drift else 0
