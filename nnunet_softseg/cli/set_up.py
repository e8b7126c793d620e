"""Commands about the set-up: doctor, run."""

import argparse

from nnunet_softseg.cli.parsing import Subparsers, add_command


def add_doctor(subparsers: Subparsers) -> None:
    """Add the command `doctor`."""
    parser = add_command(
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


def add_run(subparsers: Subparsers) -> None:
    """Add the command `run`."""
    parser = add_command(
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
