"""Commands about the set-up: doctor, run."""

import argparse
from dataclasses import dataclass

from nnunet_softseg.cli.command import Command, Words, option, required


@dataclass
class Doctor(Command):
    """Say whether nnU-Net finds the plug-in here and, if not, what to do.

    Exit code 0: nothing failed. 1: at least one line says FAIL.
    """

    def run(self) -> int:
        from nnunet_softseg.doctor import doctor

        failed = False
        for diagnosis in doctor():
            print(diagnosis, flush=True)
            failed = failed or diagnosis.level == "FAIL"
        return int(failed)


@dataclass
class Run(Command):
    """Run a stock nnU-Net command where Python reads no start-up files.

    Example:
      nnunet-softseg run nnUNetv2_train 101 3d_fullres 0 -tr nnUNetTrainerSoftSeg
    """

    stock_command: str = required("NNUNET_COMMAND", "for example nnUNetv2_train")
    arguments: Words = option("", "its own arguments", (), nargs=argparse.REMAINDER)

    def run(self) -> int:
        from nnunet_softseg.run import run

        result = run(self.stock_command, self.arguments)
        return result if isinstance(result, int) else 0
