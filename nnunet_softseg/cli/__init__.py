"""The command `nnunet-softseg`: argument parsing only.

  parsing.py       what the parsers of all commands share
  try_out.py       arguments of demo and phantom
  label_making.py  arguments of make-gt and fuse
  datasets.py      arguments of convert, check and prepare
  prediction.py    arguments of predict
  measures.py      arguments of csa, evaluate and compare
  set_up.py        arguments of doctor and run

One `add_<command>` for the arguments and one `_run_<command>` that imports the module which owns the command
and calls its function. Imports of those modules stay inside `_run_<command>`, so that `-h` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence

from nnunet_softseg import __version__

# Imported for its effect: spawned workers of a command import this file again and need the hook, too.
from nnunet_softseg import run as _run_module  # noqa: F401
from nnunet_softseg.cli.datasets import add_check, add_convert, add_prepare
from nnunet_softseg.cli.label_making import add_fuse, add_make_gt
from nnunet_softseg.cli.measures import add_compare, add_csa, add_evaluate
from nnunet_softseg.cli.parsing import HelpFormatter
from nnunet_softseg.cli.prediction import add_predict
from nnunet_softseg.cli.set_up import add_doctor, add_run
from nnunet_softseg.cli.try_out import add_demo, add_phantom
from nnunet_softseg.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `nnunet-softseg`: 0, 1 (doctor found a fault), or 2 (the user can mend it).

    Args:
        argv: arguments without the program's name; None takes those of the process.
    """
    arguments = make_parser().parse_args(argv)
    try:
        exit_code: int = arguments.run(arguments)
        return exit_code
    except UserError as error:
        print(f"nnunet-softseg: error: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="nnunet-softseg", description="Soft labels for nnU-Net.", formatter_class=HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"nnunet-softseg {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_demo(subparsers)
    add_phantom(subparsers)
    add_make_gt(subparsers)
    add_fuse(subparsers)
    add_convert(subparsers)
    add_check(subparsers)
    add_prepare(subparsers)
    add_predict(subparsers)
    add_csa(subparsers)
    add_evaluate(subparsers)
    add_compare(subparsers)
    add_doctor(subparsers)
    add_run(subparsers)
    return parser
