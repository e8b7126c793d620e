"""Commands that measure: csa, evaluate, compare."""

import argparse
import sys
from typing import Any

from nnunet_softseg.cli.parsing import Subparsers, add_command


def add_csa(subparsers: Subparsers) -> None:
    """Add the command `csa`."""
    parser = add_command(
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
    from nnunet_softseg.metrics.morphometry import csa, csa_overview

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


def add_evaluate(subparsers: Subparsers) -> None:
    """Add the command `evaluate`."""
    parser = add_command(
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


def add_compare(subparsers: Subparsers) -> None:
    """Add the command `compare`."""
    parser = add_command(
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
    from nnunet_softseg.evaluation.comparison import compare

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
