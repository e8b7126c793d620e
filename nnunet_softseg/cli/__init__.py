"""The commands `nnunet-softseg` and `nnunet-softseg-bids`: reading of the command line only.

  command.py       a command as a dataclass, each option a field; help and one-line errors
  prediction.py    predict, workflow, export and calibrate; csa, bridges, evaluate, compare and drift
  label_making.py  make-gt, fuse and pseudo-label
  datasets.py      convert, check and prepare
  set_up.py        doctor and run; demo, phantom and synthesise
  bids_app.py      the command `nnunet-softseg-bids`

The fields of a command are the arguments of the function that does the work; `run()` imports this function
only then, so that `-h` answers at once.
"""

from collections.abc import Sequence

from nnunet_softseg import __version__

# Imported for its effect: spawned workers of a command import this file again and need the hook, too.
from nnunet_softseg import run as _run_module  # noqa: F401
from nnunet_softseg.cli import datasets, label_making, prediction, set_up
from nnunet_softseg.cli.command import Command, Parser, exit_code

COMMANDS: dict[str, type[Command]] = {
    "demo": set_up.Demo,
    "phantom": set_up.Phantom,
    "synthesise": set_up.Synthesise,
    "make-gt": label_making.MakeGt,
    "fuse": label_making.Fuse,
    "pseudo-label": label_making.PseudoLabel,
    "convert": datasets.Convert,
    "check": datasets.Check,
    "prepare": datasets.Prepare,
    "predict": prediction.Predict,
    "export": prediction.Export,
    "calibrate": prediction.Calibrate,
    "csa": prediction.Csa,
    "bridges": prediction.Bridges,
    "evaluate": prediction.Evaluate,
    "compare": prediction.Compare,
    "drift": prediction.Drift,
    "workflow": prediction.Workflow,
    "doctor": set_up.Doctor,
    "run": set_up.Run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `nnunet-softseg`; argv: without the program's name, None: of the process."""
    return exit_code("nnunet-softseg", lambda: read_command(argv))


def read_command(argv: Sequence[str] | None = None) -> Command:
    """Return the command with its options; a mistake in them ends the process with code 2 and one line."""
    program = Parser(prog="nnunet-softseg", description="Soft labels for nnU-Net.")
    program.add_argument("--version", action="version", version=f"nnunet-softseg {__version__}")
    return program.read(COMMANDS, argv)
