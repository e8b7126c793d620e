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
    _add_check(subparsers)
    _add_prepare(subparsers)
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
