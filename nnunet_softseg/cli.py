"""The command `nnunet-softseg`: argument parsing only.

One `_add_<command>` for the arguments and one `_run_<command>` that imports the module which owns the command
and calls its function. Imports of those modules stay inside `_run_<command>`, so that `-h` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from nnunet_softseg import __version__

# Imported for its effect: spawned workers of a command import this file again and need the hook, too.
from nnunet_softseg import run as _run_module  # noqa: F401
from nnunet_softseg.errors import UserError

Subparsers = Any  # argparse keeps the type of add_subparsers() private


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and keeps the line breaks of descriptions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `nnunet-softseg`: 0, 1 (doctor found a fault), or 2 (the user can mend it).

    Args:
        argv: arguments without the program's name; None takes those of the process.
    """
    arguments = _make_parser().parse_args(argv)
    try:
        exit_code: int = arguments.run(arguments)
        return exit_code
    except UserError as error:
        print(f"nnunet-softseg: error: {error}", file=sys.stderr)
        return 2


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet-softseg", description="Soft labels for nnU-Net.", formatter_class=_HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"nnunet-softseg {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(subparsers)
    _add_phantom(subparsers)
    _add_make_gt(subparsers)
    _add_fuse(subparsers)
    _add_convert(subparsers)
    _add_check(subparsers)
    _add_prepare(subparsers)
    _add_csa(subparsers)
    _add_evaluate(subparsers)
    _add_compare(subparsers)
    _add_doctor(subparsers)
    _add_run(subparsers)
    return parser


def _add_command(
    subparsers: Subparsers, name: str, summary: str, details: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=f"{summary}\n\n{details}".strip(), formatter_class=_HelpFormatter
    )
    return parser


def _add_demo(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "demo",
        "the whole way on a CPU in minutes, soft against vanilla",
        "Phantom -> dataset -> stock nnU-Net plan, train, predict -> table and picture. An interrupted demo\n"
        "goes on where it was when the command is repeated.",
    )
    parser.add_argument(
        "-o", dest="output", required=True, default=argparse.SUPPRESS, help="folder, made if missing"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the phantom")
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="processes of each command")
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_softseg.demo import demo

    demo(Path(arguments.output), seed=arguments.seed, num_processes=arguments.num_processes)
    return 0


def _add_phantom(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "phantom",
        "multi-contrast cord phantom with exact partial volume, per-contrast biased masks, levels, true CSA",
        "Writes a BIDS folder: images, derivatives/labels (masks as raters draw them, biased by contrast)\n"
        "and derivatives/truth (share of cord in every voxel, levels, areas). The same arguments give the\n"
        "same files, bit by bit. A call that was interrupted can be repeated; a larger -n adds subjects.",
    )
    parser.add_argument("-o", dest="output", required=True, metavar="BIDS", help="folder to write")
    parser.add_argument("-n", type=int, default=12, help="number of subjects")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--fov-mm",
        type=float,
        nargs=3,
        metavar=("RL", "AP", "SI"),
        default=(72.0, 72.0, 96.0),
        help="extent of the images in mm",
    )
    parser.add_argument(
        "--contrasts", nargs="+", metavar="NAME", help="of T1w T2w T2star mt-on mt-off dwi; all if not given"
    )
    parser.add_argument(
        "--shift-mm", type=float, default=0.0, metavar="MM", help="largest in-plane shift against T2w"
    )
    parser.add_argument(
        "--axial-si-mm", type=float, metavar="MM", help="S-I extent of T2star, mt-on, mt-off, dwi, if shorter"
    )
    parser.add_argument(
        "--oblique-deg", type=float, default=0.0, metavar="DEG", help="largest tip of axial slices about R-L"
    )
    parser.add_argument("--no-cord", action="store_true", help="all tissue but cord and canal; empty labels")
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="subjects made at once")
    parser.set_defaults(run=_run_phantom)


def _run_phantom(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.phantom import CONTRAST_NAMES, phantom

    folder = phantom(
        arguments.output,
        n=arguments.n,
        seed=arguments.seed,
        fov_mm=tuple(arguments.fov_mm),
        contrasts=arguments.contrasts or CONTRAST_NAMES,
        shift_mm=arguments.shift_mm,
        cord=not arguments.no_cord,
        axial_si_mm=arguments.axial_si_mm,
        oblique_deg=arguments.oblique_deg,
        num_processes=arguments.num_processes,
    )
    print(folder)
    return 0


def _add_make_gt(subparsers: Subparsers) -> None:
    parser = _add_command(
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
        "fails: it is named at the end and in qc/failed.json, and stops no other. A call that was cut off\n"
        "can be repeated: subjects made from the same files, settings and version are kept, failed ones\n"
        "are tried again.\n\n"
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
    from nnunet_softseg.ground_truth.make_gt import make_gt
    from nnunet_softseg.ground_truth.settings import GroundTruthSettings

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


def _add_fuse(subparsers: Subparsers) -> None:
    parser = _add_command(
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
    from nnunet_softseg.raters import FusionSettings, fuse

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


def _add_convert(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "convert",
        "BIDS + soft label derivatives -> nnUNet_raw, split by subject",
        "Case ids are <sub>[_ses]_<contrast>. Images are copied, never linked or changed. All contrasts of\n"
        "a subject are on one side of the split, in all datasets; test subjects go to imagesTs, labelsTs and\n"
        "softLabelsTs. conversion.json says where every file comes from. Nothing is written before all\n"
        "files are found fit; a dataset from the same sources and split is kept.\n\n"
        "An image without a soft label is left out and named.\n\n"
        "Example: nnunet-softseg convert -i BIDS -d 101 --name SpinalCord --exclude sub-03 exclude.yml",
    )
    parser.add_argument(
        "-i",
        dest="bids",
        required=True,
        default=argparse.SUPPRESS,
        metavar="BIDS",
        help="images in sub-*/[ses-*/]anat and dwi",
    )
    parser.add_argument(
        "-d", dest="dataset_id", type=int, required=True, default=argparse.SUPPRESS, help="dataset id, 1-999"
    )
    parser.add_argument(
        "--name", required=True, default=argparse.SUPPRESS, help="of the dataset: Dataset<id>_<name>"
    )
    parser.add_argument("-o", dest="raw_folder", metavar="nnUNet_raw", help="nnUNet_raw if not given")
    _add_selection(parser)
    _add_split(parser)
    parser.add_argument(
        "--per-contrast",
        nargs="*",
        metavar="CONTRAST=ID",
        help="also make a dataset <name>_<contrast> of each contrast, from the same split, with the ids that "
        "follow -d; or of those named, with these ids",
    )
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="cases at a time")
    parser.set_defaults(run=_run_convert)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layout",
        default="bids",
        help="name table: bids (the suffix is the contrast) or spine-generic (data-multi-subject, six "
        "contrasts, old and new file names)",
    )
    parser.add_argument(
        "--derivatives",
        metavar="FOLDER",
        help="soft labels in the images' subfolders; in BIDS or anywhere; derivatives/softseg if not given",
    )
    parser.add_argument(
        "--suffix",
        help="what follows the image's name in that of its soft label; _label-SC_desc-softseg_probseg if not "
        "given; the label's name is cord",
    )
    parser.add_argument(
        "--label",
        dest="labels",
        action="append",
        metavar="NAME=SUFFIX",
        help="instead of --suffix, once for each label; values are 1, 2, ... in this order",
    )
    parser.add_argument("--contrasts", nargs="+", metavar="NAME", help="those to take; all if not given")
    parser.add_argument(
        "--distinguish-by",
        nargs="+",
        metavar="ENTITY",
        help="BIDS entities that make two contrasts of one: acq for acq-sag_T2w and acq-ax_T2w",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        metavar="PATTERN|FILE",
        help="subjects (sub-01), sessions, cases, images, patterns (sub-site*), or files of them: .txt (one "
        "a line, # comments), .yml, .json",
    )


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        dest="split_file",
        metavar="FILE",
        help="who is where: .json or .yml with train, val and test (or test alone: the rest is drawn), a "
        "conversion.json, or participants.tsv with a column split; whoever is not in it is left out",
    )
    parser.add_argument("--test", type=int, help="subjects to draw for testing; a fifth if not given")
    parser.add_argument(
        "--validation", type=int, help="subjects to draw that fold 0 validates on; a fifth if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw")


def _run_convert(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.conversion import convert

    report = convert(
        arguments.bids,
        arguments.dataset_id,
        arguments.name,
        raw_folder=arguments.raw_folder,
        layout=arguments.layout,
        derivatives=arguments.derivatives,
        suffix=arguments.suffix,
        labels=None if arguments.labels is None else _pairs("--label", arguments.labels),
        contrasts=arguments.contrasts,
        distinguish_by=arguments.distinguish_by or (),
        exclude=arguments.exclude or (),
        split_file=arguments.split_file,
        num_test=arguments.test,
        num_validation=arguments.validation,
        seed=arguments.seed,
        per_contrast=_per_contrast(arguments.per_contrast),
        num_processes=arguments.num_processes,
    )
    print(report.as_text())
    return 0


def _per_contrast(values: Sequence[str] | None) -> bool | dict[str, int]:
    if not values:
        return values is not None
    pairs = _pairs("--per-contrast", values)
    for contrast, dataset_id in pairs.items():
        if not dataset_id.isdecimal():
            raise UserError(f"--per-contrast {contrast}: expected a dataset id, got {dataset_id!r}")
    return {contrast: int(dataset_id) for contrast, dataset_id in pairs.items()}


def _pairs(option: str, values: Sequence[str]) -> dict[str, str]:
    """Return `NAME=VALUE` of an option as a mapping."""
    pairs: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f"{option} {text}: expected NAME=VALUE: write both, without spaces around =")
        if name in pairs:
            raise UserError(f"{option} names {name} twice: expected each name once")
        pairs[name] = value
    return pairs


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", dest="dataset", required=True, default=argparse.SUPPRESS, help="dataset id or name"
    )


def _add_check(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "check",
        "every way in which a dataset can be wrong, before hours are spent on it",
        "Looks at dataset.json, images, label maps and soft labels in nnUNet_raw, and at splits and plans\n"
        "if there are any.\nExit code 0: no error, perhaps warnings. 2: at least one error.",
    )
    _add_dataset(parser)
    parser.add_argument("-np", dest="num_processes", type=int, default=4, help="processes that read cases")
    parser.add_argument("-o", dest="output", metavar="JSON", help="write the findings to this file, too")
    parser.set_defaults(run=_run_check)


def _run_check(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_softseg.atomic import write_json
    from nnunet_softseg.check import check

    report = check(arguments.dataset, arguments.num_processes)
    print(report.as_text())
    if arguments.output:
        write_json(Path(arguments.output), report.as_dict())
    return 2 if report.errors else 0


def _add_prepare(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "prepare",
        "soft targets ahead of training (the trainer does it by itself if they are missing or stale)",
        "Brings the soft labels of a preprocessed dataset to the network's grid, beside nnU-Net's folder of\n"
        "preprocessed cases.",
    )
    _add_dataset(parser)
    parser.add_argument(
        "-c", dest="configuration", required=True, default=argparse.SUPPRESS, help="such as 3d_fullres"
    )
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier")
    parser.add_argument("-np", dest="num_processes", type=int, default=4, help="processes that prepare cases")
    parser.add_argument(
        "--no-crop",
        action="store_true",
        help="for trainers without the fixed centre-crop patch: do not measure what it keeps of the labels",
    )
    parser.set_defaults(run=_run_prepare)


def _run_prepare(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.soft_target import prepare

    report = prepare(
        arguments.dataset,
        arguments.configuration,
        arguments.plans,
        arguments.num_processes,
        crop=not arguments.no_crop,
    )
    for warning in report.warnings:
        print(f"warning: {warning}")
    up_to_date = len(report.cases) - report.num_prepared
    print(f"{report.folder}: {report.num_prepared} soft targets prepared, {up_to_date} up to date")
    return 0


def _add_csa(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "csa",
        "per-slice and per-level cross-sectional area (CSA) in mm2, corrected for tilt, and shape",
        "CSA of a slice = sum of the map's values x pixel area x cosine of the angle between centreline\n"
        "and slice normal; nothing is rescaled or thresholded. The map > 0.5 is measured beside it\n"
        "(csa_hard_mm2). Writes one row per slice, an empty slice has no value; a JSON beside the CSV\n"
        "explains its columns.\n"
        "Example: nnunet-softseg csa -i OUT/soft --levels LEVELS --vert 2:3 -o csa.csv --figure csa.png",
    )
    parser.add_argument(
        "-i", dest="maps", nargs="+", required=True, metavar="MAP", help="soft maps or masks, or a folder"
    )
    parser.add_argument("-o", dest="output", required=True, metavar="CSV", help="table of the slices")
    at_levels = parser.add_mutually_exclusive_group()
    at_levels.add_argument(
        "--levels",
        nargs="+",
        metavar="L",
        help="image of vertebral levels (2 is C2, 8 T1) on the map's grid: one for all maps, one per map, or "
        "a folder where it is found by the map's name",
    )
    at_levels.add_argument(
        "--discs",
        nargs="+",
        metavar="D",
        help="points at the discs instead, on any grid of the same space; 3 is C2/C3, as in the Spinal Cord "
        "Toolbox",
    )
    parser.add_argument(
        "--vert", nargs="+", metavar="LEVEL", help="only slices of these levels: 2 3, 2:3 or C2 C3"
    )
    parser.add_argument("--summary", metavar="CSV", help="table of mean and STD per level and of --vert")
    parser.add_argument("--figure", metavar="PNG", help="CSA along S-I, levels shaded (PNG, SVG or PDF)")
    parser.add_argument("--label", type=int, metavar="N", help="measure this value of integer label maps")
    parser.add_argument(
        "--smooth",
        dest="smoothing_mm",
        type=float,
        default=30.0,
        metavar="MM",
        help="length over which the centreline is smooth",
    )
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="maps measured at once")
    parser.set_defaults(run=_run_csa)


def _run_csa(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.morphometry import csa, csa_overview

    table = csa(
        arguments.maps,
        levels=arguments.levels,
        discs=arguments.discs,
        vert=arguments.vert,
        label=arguments.label,
        smoothing_mm=arguments.smoothing_mm,
        output=arguments.output,
        summary=arguments.summary,
        figure=arguments.figure,
        num_processes=arguments.num_processes,
        progress=True,
    )
    for warning in table.attrs["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(csa_overview(table))
    return 0


def _add_evaluate(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "evaluate",
        "per-case measures of one method, soft and hard",
        "Writes to the output folder: cases.csv (a row per case and label), slices.csv (CSA in mm2),\n"
        "reliability.csv, cases.json (what each column means) and summary.json. Takes predictions of ours\n"
        "(the soft maps in their folder soft/), label maps of nnU-Net, or masks of any other tool.",
    )
    parser.add_argument(
        "-i",
        dest="prediction",
        required=True,
        metavar="PRED",
        default=argparse.SUPPRESS,
        help="folder of predictions, or one file",
    )
    _add_reference(parser)
    parser.add_argument("--name", default="prediction", help="of the method, in the tables")
    parser.add_argument("--pattern", metavar="PATTERN", help=_PATTERN_HELP)
    _add_evaluation_options(parser)
    parser.set_defaults(run=_run_evaluate)


_PATTERN_HELP = (
    "path of a prediction inside its folder, such as '{case}_seg.nii.gz'; {subject}, {session}, {contrast}, "
    "{label} and * are understood, too; if not given, files are matched by their names"
)


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-g",
        dest="reference",
        required=True,
        metavar="REF",
        default=argparse.SUPPRESS,
        help="folder of references (softLabelsTs, labelsTs, or maps of any name), or one file; decides which "
        "cases and labels count",
    )
    parser.add_argument(
        "-o", dest="output", required=True, default=argparse.SUPPRESS, help="folder, made if missing"
    )


def _add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference-pattern", metavar="PATTERN", help="the same for the references; {case} is needed"
    )
    parser.add_argument(
        "--subjects",
        metavar="TSV",
        help="table with columns case, subject, contrast (and session, reference, one per method with paths, "
        "if wanted); if not given, the names tell: sub-01_ses-1_T2w",
    )
    parser.add_argument(
        "--label", dest="labels", type=int, nargs="+", metavar="N", help="values to measure; all if not given"
    )
    parser.add_argument(
        "--levels",
        metavar="DIR",
        help="vertebral levels: a folder with an image per case, or one image; if not given, areas are means "
        "over the heights that all contrasts of a subject share",
    )
    parser.add_argument(
        "--vert", nargs="+", metavar="LEVEL", help="levels over which areas are means; 2 3 if not given"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of the images, for pictures")
    parser.add_argument(
        "--resample",
        action="store_true",
        help="bring predictions on another grid to that of the reference, linearly; else they are refused",
    )
    parser.add_argument(
        "--tolerance-mm", type=float, default=1.0, metavar="MM", help="of the surface Dice coefficient"
    )
    parser.add_argument("-np", dest="num_processes", type=int, default=2, help="cases measured at once")


def _evaluation_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = (
        "reference_pattern",
        "subjects",
        "labels",
        "levels",
        "vert",
        "images",
        "resample",
        "num_processes",
    )
    options = {name: getattr(arguments, name) for name in names}
    return options | {"surface_dice_tolerance_mm": arguments.tolerance_mm}


def _run_evaluate(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.evaluation import evaluate

    evaluation = evaluate(
        arguments.prediction,
        arguments.reference,
        arguments.output,
        name=arguments.name,
        pattern=arguments.pattern,
        **_evaluation_options(arguments),
    )
    for warning in evaluation.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(evaluation.as_text())
    print(f"{arguments.output}: cases.csv, slices.csv, reliability.csv, cases.json, summary.json")
    return 0


def _add_compare(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "compare",
        "leaderboard of methods: tables, statistics, figures, report.html",
        "Compares methods on the cases that all of them have; the subject is the unit of the statistics:\n"
        "two-sided Wilcoxon signed-rank tests corrected over all pairs of methods, bootstrap intervals,\n"
        "repeated-measures ANOVA over contrasts, Bland-Altman limits of agreement.\n"
        "Example: nnunet-softseg compare -g softLabelsTs --method vanilla=A --method softseg=B -o OUT",
    )
    _add_reference(parser)
    parser.add_argument(
        "--method",
        dest="methods",
        action="append",
        required=True,
        type=_name_and_value,
        metavar="NAME=DIR",
        default=argparse.SUPPRESS,
        help="a method's name and its folder of predictions; once for each",
    )
    parser.add_argument(
        "--pattern",
        dest="patterns",
        action="append",
        type=_name_and_value,
        metavar="NAME=PATTERN",
        default=[],
        help=f"of one method: {_PATTERN_HELP}",
    )
    _add_evaluation_options(parser)
    parser.add_argument(
        "--correction", choices=("holm", "bonferroni"), default="holm", help="over all pairs of methods"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--no-report", action="store_true", help="tables only, no report.html")
    parser.set_defaults(run=_run_compare)


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"expected NAME=..., found {text!r}")
    return name, value


def _run_compare(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.comparison import compare

    comparison = compare(
        arguments.methods,
        arguments.reference,
        arguments.output,
        patterns=dict(arguments.patterns),
        correction=arguments.correction,
        seed=arguments.seed,
        report=not arguments.no_report,
        **_evaluation_options(arguments),
    )
    for warning in comparison.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(comparison.as_text())
    page = "" if arguments.no_report else "report.html, "
    print(f"{arguments.output}: {page}leaderboard.csv, statistics.csv, cases.csv and more")
    return 0


def _add_doctor(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "doctor",
        "is the plug-in seen by nnU-Net here, and if not, what to do",
        "Exit code 0: nothing failed. 1: at least one line says FAIL.",
    )
    parser.set_defaults(run=_run_doctor)


def _run_doctor(_: argparse.Namespace) -> int:
    from nnunet_softseg.doctor import doctor

    failed = False
    for diagnosis in doctor():
        print(diagnosis, flush=True)
        failed = failed or diagnosis.level == "FAIL"
    return int(failed)


def _add_run(subparsers: Subparsers) -> None:
    parser = _add_command(
        subparsers,
        "run",
        "a stock nnU-Net command where Python's start-up files are not read",
        "Example: nnunet-softseg run nnUNetv2_train 101 3d_fullres 0 -tr nnUNetTrainerSoftSeg",
    )
    parser.add_argument("stock_command", metavar="NNUNET_COMMAND", help="for example nnUNetv2_train")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments", default=[])
    parser.set_defaults(run=_run_run)


def _run_run(arguments: argparse.Namespace) -> int:
    from nnunet_softseg.run import run

    result = run(arguments.stock_command, arguments.arguments)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
