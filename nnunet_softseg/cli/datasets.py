"""Commands for datasets: convert, check, prepare."""

import argparse
from collections.abc import Sequence

from nnunet_softseg.cli.parsing import Subparsers, add_command
from nnunet_softseg.errors import UserError


def add_convert(subparsers: Subparsers) -> None:
    """Add the command `convert`."""
    parser = add_command(
        subparsers,
        "convert",
        "BIDS + soft label derivatives -> nnUNet_raw, split by subject",
        "Case ids are <sub>[_ses]_<contrast>. Images are copied, never linked or changed. All contrasts of\n"
        "a subject are on one side of the split, in all datasets; test subjects go to imagesTs, labelsTs\n"
        "and softLabelsTs. conversion.json says where every file comes from. Nothing is written before all\n"
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
    from nnunet_softseg.datasets.conversion import convert

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


def add_check(subparsers: Subparsers) -> None:
    """Add the command `check`."""
    parser = add_command(
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

    from nnunet_softseg.datasets.check import check
    from nnunet_softseg.io.atomic import write_json

    report = check(arguments.dataset, arguments.num_processes)
    print(report.as_text())
    if arguments.output:
        write_json(Path(arguments.output), report.as_dict())
    return 2 if report.errors else 0


def add_prepare(subparsers: Subparsers) -> None:
    """Add the command `prepare`."""
    parser = add_command(
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
    from nnunet_softseg.preprocessing.soft_target import prepare

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
