"""Commands that make soft labels: make-gt, fuse, pseudo-label."""

import shlex
import sys
from dataclasses import dataclass
from typing import Literal

from nnunet_softseg.cli.command import Command, Words, option, print_report, required, switch
from nnunet_softseg.cli.prediction import OpeningCommand, PredictionChoices


@dataclass
class MakeGt(Command):
    """Make soft ground truth of masks per contrast, as BIDS derivatives, with a page to look at them.

    For each subject (and session): masks of all contrasts -> aligned to the reference, slice by slice -> mean
    over those that cover a slice -> a soft label on every contrast's own grid. Writes for each image with a
    mask, in the same subfolders,
      <source name>_label-SC_desc-softseg_probseg.nii.gz   float32, share of cord in [0, 1]
      <source name>_label-SC_desc-softseg_seg.nii.gz       uint8, strictly > 0.5
    with sidecars (.json), and qc/index.html. Images without a mask are passed over. A contrast whose mask is
    empty, or lies beside the reference along the cord, takes no part and gets no label.

    A subject with a broken file, a mask off its image's grid, or masks on two images of one contrast fails:
    it is named at the end and in qc/failed.json, what an earlier call made of it is removed, and no other is
    stopped. A call that was cut off can be repeated: subjects made from the same files, settings and version
    are kept, failed ones are tried again. Labels that were changed by hand since are made again, and named.

    Example:
      nnunet-softseg make-gt -i BIDS -o BIDS/derivatives/softseg --reference T2w

    Exit code 0: all subjects with a mask have soft labels. 2: a mistake, or subjects that failed.
    """

    goes_on = True
    bids: str = required("-i BIDS", "images and masks")
    output: str = required(
        "-o DERIVATIVES", "folder to write, such as BIDS/derivatives/softseg; nothing else in BIDS is touched"
    )
    masks: str = option(
        "--masks FOLDER",
        "folder of the masks, in BIDS or anywhere; <source name><suffix>.nii.gz in any subfolder",
        "derivatives/labels",
    )
    suffix: str = option(
        "--suffix SUFFIX",
        "what follows the image's name in that of its mask; write --suffix=-x if it starts with a dash",
        "_seg-manual",
    )
    soft_masks: bool = switch("--soft-masks", "take values between 0 and 1 as they are; else refused")
    exclude: Words = option(
        "--exclude PATTERN|FILE",
        "images to pass over, by path, name or subject, * and ? allowed: sub-05 '*_acq-ax_T2w'; or .txt, "
        ".yml, .json with them",
        (),
    )
    distinguish_by: Words = option(
        "--distinguish-by ENTITY",
        "BIDS entities that make two contrasts of one: acq for acq-sag_T2w and acq-ax_T2w",
        (),
    )
    subjects: Words | None = option("--subjects SUB", "sub-01, or one session, sub-01_ses-1; else all")
    reference: str = option("--reference CONTRAST", "contrast that the others are aligned to", "T2w")
    contrasts: Words | None = option(
        "--contrasts NAME", "contrasts that take part (T1w T2w T2star mt-on mt-off dwi); all if not given"
    )
    trim_mm: float = option("--trim-mm MM", "length left out at both ends of masks but the reference's", 0.0)
    smooth_mm: float = option(
        "--smooth-mm MM", "standard deviation of the Gaussian along S-I that smooths the shifts; 0: none", 0.0
    )
    rotation: bool = switch("--rotation", "turn slices, too, where the cord is clearly not round")
    box: bool = switch("--no-box", "take a large voxel (thick slice) as a point, not as a mean over it", True)
    max_shift_mm: float = option("--max-shift-mm MM", "a longer shift is implausible", 10.0)
    max_jump_mm: float = option(
        "--max-jump-mm MM", "a larger change of the shift from slice to slice is implausible", 3.0
    )
    min_agreement: float = option(
        "--min-agreement DICE", "a lower Dice with the average, both > 0.5, is implausible", 0.75
    )
    leave_out_implausible: bool = switch(
        "--leave-out-implausible",
        "average without implausible contrasts, which then get no label; else they are only reported",
    )
    strict: bool = switch("--strict", "a subject without the reference fails; else another is taken")
    overwrite: bool = switch("--overwrite", "make all subjects again, though nothing changed")
    num_processes: int = option("-np N", "subjects made at once", 2)

    def run(self) -> int:
        from nnunet_softseg.labels.contrasts.make_gt import make_gt
        from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings

        settings, options = self.split(GroundTruthSettings)
        report = make_gt(settings=settings, **options)
        print(report.as_text())
        for outcome in report.failures:
            print(f"nnunet-softseg: error: {outcome.person}: {outcome.failure}", file=sys.stderr)
        if len(report.failures) < len(report.outcomes):
            words = ["-i", self.bids, "--derivatives", self.output, "-d", "101", "--name", "Cord"]
            print(f"next, once you have looked at it: nnunet-softseg convert {shlex.join(words)}")
        return 2 if report.failures else 0


@dataclass
class Fuse(Command):
    """Fuse the masks or soft maps of several raters to one soft label, and measure their agreement.

    One file per rater and -o FILE.nii.gz, or one folder per rater and -o FOLDER (softLabelsTr): cases are
    matched by name. A rater's folder holds <case>.nii.gz (label map, mask or soft map) or
    <case>_<label, 4 digits>.nii.gz (mask or soft map). Give --images where case ids themselves end in four
    digits. A call that was interrupted can be repeated: what is up to date is kept; what was changed since it
    was made is made again, and named. What an earlier call has made of a case that fails now, or is fused
    anew without it (a label that no rater has any more, a label map), is removed unless it was changed since;
    labels that --labels does not name stay.

    Prints volumes (mm3), Dice (> 0.5) and soft Dice of each pair, and Fleiss' kappa; writes them beside the
    output (FILE.json; in a folder <case>.json, agreement.csv, fuse.json).

    With an even number of raters a voxel drawn by half of them is 0.5, which is not > 0.5: label maps leave
    it out. STAPLE takes masks only; it gives the probability of the structure by raters whose errors are
    independent, near 0 or 1 in most voxels, and not a share of volume. With two raters it cannot tell who is
    right.

    Example:
      nnunet-softseg fuse -i rater1 rater2 rater3 -o softLabelsTr --images imagesTr

    Exit code 0: all cases have a soft label. 2: a mistake, or cases that could not be fused.
    """

    goes_on = True
    inputs: Words = required("-i RATER", "a file or folder per rater")
    output: str = required("-o OUT", "soft label, or folder for them")
    method: Literal["mean", "staple"] = option("--method", "mean, or probability by STAPLE", "mean")
    weights: tuple[float, ...] | None = option("--weights W", "of the raters in the mean, in the order of -i")
    labels: tuple[int, ...] | None = option(
        "--label --labels VALUE",
        "values to take from label maps, one soft label each; not given: files hold masks or soft maps, "
        "and of folders label 1, or the labels in the file names",
    )
    images: str | None = option("--images FILE|DIR", "the image, or imagesTr: its grid and header are used")
    label_maps: str | None = option("--label-maps FOLDER", "write label maps (soft > 0.5) here, as labelsTr")
    margin_mm: float = option(
        "--margin-mm MM", "STAPLE and kappa look no further than this around what was drawn", 5.0
    )
    strict: bool = switch("--strict", "refuse cases that a rater or the images lack")
    overwrite: bool = switch("--overwrite", "replace files that fuse has not written")
    num_processes: int = option("-np N", "cases fused at once", 2)

    def run(self) -> int:
        from nnunet_softseg.labels.raters import FusionSettings, fuse

        settings, options = self.split(FusionSettings)
        report = fuse(settings=settings, **options)
        print(report.as_text())
        for case in report.failures:
            print(f"nnunet-softseg: error: {case.failure}", file=sys.stderr)
        return 2 if report.failures else 0


@dataclass
class PseudoLabel(OpeningCommand, PredictionChoices):
    """Label images by models that have not seen their subjects, as a new dataset of nnU-Net's.

    A case is labelled by the mean of all folds that have not trained on its subject: of an annotated subject
    the fold that validates on it, of a new one all. --splits is held against what is kept with each model; a
    case that no fold covers, or that a fold would label that has seen its subject, is named, and nothing is
    written. Models of the configuration 2d label volumes slice by slice.

    Writes to nnUNet_raw/Dataset<id>_<name>:
      imagesTr, softLabelsTr, labelsTr   the images, their soft labels (shares in [0, 1]), soft > 0.5
      dataset.json, splits_final.json    folds as in --splits, by subject; new subjects train in all
      pseudo_labels.json                 of each case the models, folds, hashes, versions, and flags

    With --max-disagreement, voxels where folds disagree are unknown: NaN in softLabelsTr, the label to ignore
    in labelsTr; no loss is taken there. A call that was cut off can be repeated: predictions are kept until
    the dataset is whole.

    Example:
      nnunet-softseg pseudo-label -i IMAGES --models MODEL --splits splits_final.json -d 201 --name Student
    """

    goes_on = True
    source: str = required(
        "-i IMAGES", "images to label, as predict takes them: a folder, a BIDS folder, or one image (NIfTI)"
    )
    models: Words = required(
        "--models MODEL",
        "folders of trained models (all numbered folds), or of single folds, MODEL/fold_0",
    )
    splits: str = required(
        "--splits FILE", "splits_final.json of nnUNet_preprocessed by which the models were trained"
    )
    dataset_id: int = required("-d ID", "id of the new dataset, 1-999")
    name: str = required("--name NAME", "name of the new dataset: Dataset<id>_<name>")
    raw_folder: str | None = option("-o nnUNet_raw", "folder of datasets; else the variable nnUNet_raw")
    max_disagreement: float | None = option(
        "--max-disagreement SHARE",
        "voxels are unknown where two folds differ by more than this share of a voxel, such as 0.3; if not "
        "given, all are known",
    )
    checkpoint: str = option("-chk FILE", "checkpoint in the fold's folder", "checkpoint_final.pth")
    contrasts: Words | None = option("--contrasts NAME", "to take of a BIDS folder; all if not given")
    num_processes: int = option("-np N", "cases read and written at once", 2)

    def run(self) -> int:
        from nnunet_softseg.inference.pseudo_label import pseudo_label

        report = pseudo_label(**vars(self))
        print_report(report)
        return 0
