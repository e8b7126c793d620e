"""Commands that make soft labels: make-gt, fuse."""

import argparse
import sys

from nnunet_softseg.cli.parsing import Subparsers, add_command


def add_make_gt(subparsers: Subparsers) -> None:
    """Add the command `make-gt`."""
    parser = add_command(
        subparsers,
        "make-gt",
        "soft ground truth from masks per contrast, as BIDS derivatives, with a page to look at them",
        "For each subject (and session): masks of all contrasts -> aligned to the reference, slice by slice\n"
        "-> mean over those that cover a slice -> a soft label on every contrast's own grid. Writes for\n"
        "each image with a mask, in the same subfolders,\n"
        "  <source name>_label-SC_desc-softseg_probseg.nii.gz   float32, share of cord in [0, 1]\n"
        "  <source name>_label-SC_desc-softseg_seg.nii.gz       uint8, strictly > 0.5\n"
        "with sidecars (.json), and qc/index.html. Images without a mask are passed over. A contrast whose\n"
        "mask is empty, or lies beside the reference along the cord, takes no part and gets no label.\n\n"
        "A subject with a broken file, a mask off its image's grid, or masks on two images of one contrast\n"
        "fails: it is named at the end and in qc/failed.json, what an earlier call made of it is removed,\n"
        "and no other is stopped. A call that was cut off can be repeated: subjects made from the same\n"
        "files, settings and version are kept, failed ones are tried again.\n\n"
        "Example: nnunet-softseg make-gt -i BIDS -o BIDS/derivatives/softseg --reference T2w\n"
        "Exit code 0: all subjects with a mask have soft labels. 2: a mistake, or subjects that failed.",
    )
    _add_make_gt_files(parser)
    add = parser.add_argument
    add("--reference", default="T2w", metavar="CONTRAST", help="that the others are aligned to")
    add(
        "--contrasts",
        nargs="+",
        metavar="NAME",
        help="those that take part (T1w T2w T2star mt-on mt-off dwi); all if not given",
    )
    add("--trim-mm", type=float, default=0.0, metavar="MM", help="left out at both ends of a mask")
    add(
        "--smooth-mm",
        type=float,
        default=0.0,
        metavar="MM",
        help="standard deviation of the Gaussian that smooths the shifts along the cord; 0: none",
    )
    add("--rotation", action="store_true", help="turn slices, too, where the cord is clearly not round")
    add("--no-box", action="store_true", help="take a thick slice as a point in its middle, not as a mean")
    add(
        "--max-shift-mm",
        type=float,
        default=10.0,
        metavar="MM",
        help="a longer shift is implausible",
    )
    add(
        "--max-jump-mm",
        type=float,
        default=3.0,
        metavar="MM",
        help="a larger change of the shift from slice to slice is implausible",
    )
    add(
        "--min-agreement",
        type=float,
        default=0.75,
        metavar="DICE",
        help="a lower Dice with the average, both > 0.5, is implausible",
    )
    add(
        "--leave-out-implausible",
        action="store_true",
        help="average without implausible contrasts, which then get no label; else they are only reported",
    )
    add("--strict", action="store_true", help="a subject without the reference fails; else another is taken")
    add("--overwrite", action="store_true", help="make all subjects again, though nothing changed")
    add("-np", dest="num_processes", type=int, default=2, help="subjects made at once")
    parser.set_defaults(run=_run_make_gt)


def _add_make_gt_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-i", dest="bids", required=True, default=argparse.SUPPRESS, metavar="BIDS", help="images and masks")
    add(
        "-o",
        dest="output",
        required=True,
        default=argparse.SUPPRESS,
        metavar="DERIVATIVES",
        help="folder to write, such as BIDS/derivatives/softseg; nothing else in BIDS is touched",
    )
    add(
        "--masks",
        default="derivatives/labels",
        metavar="FOLDER",
        help="of the masks, in BIDS or anywhere; <source name><suffix>.nii.gz in any subfolder",
    )
    add(
        "--suffix",
        default="_seg-manual",
        help="what follows the image's name in that of its mask; write --suffix=-x if it starts with a dash",
    )
    add("--soft-masks", action="store_true", help="take values between 0 and 1 as they are; else refused")
    add(
        "--exclude",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="images to pass over, by path, name or subject, * and ? allowed: sub-05 '*_acq-ax_T2w'",
    )
    add(
        "--distinguish-by",
        nargs="+",
        default=[],
        metavar="ENTITY",
        help="take images of one contrast that differ in these BIDS entities as contrasts of their own: acq\n"
        "makes acq-sag_T2w and acq-ax_T2w",
    )
    add("--subjects", nargs="+", metavar="SUB", help="sub-01, or one session of it, sub-01_ses-1; else all")


def _run_make_gt(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.labels.contrasts.make_gt import make_gt
    from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings

    settings = GroundTruthSettings(
        reference=arguments.reference,
        contrasts=None if arguments.contrasts is None else tuple(arguments.contrasts),
        trim_mm=arguments.trim_mm,
        smooth_mm=arguments.smooth_mm,
        rotation=arguments.rotation,
        box=not arguments.no_box,
        max_shift_mm=arguments.max_shift_mm,
        max_jump_mm=arguments.max_jump_mm,
        min_agreement=arguments.min_agreement,
        leave_out_implausible=arguments.leave_out_implausible,
    )
    report = make_gt(
        arguments.bids,
        arguments.output,
        settings,
        masks=arguments.masks,
        suffix=arguments.suffix,
        soft_masks=arguments.soft_masks,
        exclude=arguments.exclude,
        distinguish_by=arguments.distinguish_by,
        subjects=arguments.subjects,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        num_processes=arguments.num_processes,
    )
    print(report.as_text())
    for outcome in report.failures:
        print(f"nnunet-softseg: error: {outcome.person}: {outcome.failure}", file=sys.stderr)
    return 2 if report.failures else 0


def add_fuse(subparsers: Subparsers) -> None:
    """Add the command `fuse`."""
    parser = add_command(
        subparsers,
        "fuse",
        "several raters of one image -> one soft label, with their agreement",
        "One file per rater and -o FILE.nii.gz, or one folder per rater and -o FOLDER (softLabelsTr): cases\n"
        "are matched by name. A rater's folder holds <case>.nii.gz (label map, mask or soft map) or\n"
        "<case>_<label, 4 digits>.nii.gz (mask or soft map). Give --images where case ids themselves end in\n"
        "four digits. A call that was interrupted can be repeated: what is up to date is kept.\n\n"
        "Prints volumes (mm3), Dice (> 0.5) and soft Dice of each pair, and Fleiss' kappa; writes them\n"
        "beside the output (FILE.json; in a folder <case>.json, agreement.csv, fuse.json).\n\n"
        "With an even number of raters a voxel drawn by half of them is 0.5, which is not > 0.5: label maps\n"
        "leave it out. STAPLE takes masks only; it gives the probability of the structure by raters whose\n"
        "errors are independent, near 0 or 1 in most voxels, and not a share of volume. With two raters it\n"
        "cannot tell who is right.\n\n"
        "Example: nnunet-softseg fuse -i rater1 rater2 rater3 -o softLabelsTr --images imagesTr\n"
        "Exit code 0: all cases have a soft label. 2: a mistake, or cases that could not be fused.",
    )
    parser.add_argument(
        "-i",
        dest="inputs",
        nargs="+",
        required=True,
        default=argparse.SUPPRESS,
        help="per rater a file or folder",
    )
    parser.add_argument(
        "-o", dest="output", required=True, default=argparse.SUPPRESS, help="soft label, or folder for them"
    )
    parser.add_argument("--method", choices=("mean", "staple"), default="mean", help="how to fuse")
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="of the raters in the mean, in the order of -i"
    )
    parser.add_argument(
        "--label",
        "--labels",
        dest="labels",
        type=int,
        nargs="+",
        metavar="VALUE",
        help="values to take from label maps, one soft label each; not given: files hold masks or soft maps, "
        "and of folders label 1, or the labels in the file names",
    )
    parser.add_argument("--images", help="the image, or imagesTr: its grid and header are used")
    parser.add_argument(
        "--label-maps", metavar="FOLDER", help="write label maps (soft > 0.5) here, as labelsTr"
    )
    parser.add_argument(
        "--margin-mm",
        type=float,
        default=5.0,
        metavar="MM",
        help="STAPLE and kappa look no further than this around what was drawn",
    )
    parser.add_argument("--strict", action="store_true", help="refuse cases that a rater or the images lack")
    parser.add_argument("--overwrite", action="store_true", help="replace files that fuse has not written")
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="cases at a time")
    parser.set_defaults(run=_run_fuse)


def _run_fuse(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.labels.raters import FusionSettings, fuse

    settings = FusionSettings(
        arguments.method,
        None if arguments.weights is None else tuple(arguments.weights),
        None if arguments.labels is None else tuple(arguments.labels),
        arguments.margin_mm,
    )
    report = fuse(
        arguments.inputs,
        arguments.output,
        settings,
        images=arguments.images,
        label_maps=arguments.label_maps,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        num_processes=arguments.num_processes,
    )
    print(report.as_text())
    for case in report.failures:
        print(f"nnunet-softseg: error: {case.failure}", file=sys.stderr)
    return 2 if report.failures else 0
