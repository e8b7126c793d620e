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
