"""The command `nnunet-softseg-bids`: a BIDS-App."""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_softseg import __version__

# Imported for its effect: spawned workers import this file again and need the hook, too.
from nnunet_softseg import run as _run_module  # noqa: F401
from nnunet_softseg.cli.command import (
    LOOKS,
    Command,
    Parser,
    Words,
    exit_code,
    option,
    print_report,
    print_warnings,
    required,
    switch,
)
from nnunet_softseg.cli.prediction import PredictingCommand

PROGRAM = "nnunet-softseg-bids"
_SHARED = ("bids", "output", "participants", "sessions", "contrasts")


@dataclass
class BidsApp(PredictingCommand):
    """Soft maps and areas of a BIDS folder, as a BIDS-App: participant by participant, then all together.

    Level participant writes, for each image in sub-*/[ses-*/]anat and dwi:
      OUT/sub-01/anat/sub-01_T2w_label-<label>_probseg.nii.gz  soft map, float32 in [0, 1]
      OUT/sub-01/anat/sub-01_T2w_dseg.nii.gz                   label map: soft map > 0.5; names in dseg.tsv
      OUT/sub-01/anat/sub-01_T2w_dseg.json                     source, flags, warnings, volumes, mean areas
      OUT/sub-01/anat/sub-01_T2w_csa.tsv                       area of every slice in mm2
      OUT/sub-01.html                                          a page of pictures
    Level group writes OUT/group_csa.tsv and OUT/group.html over all participants that are there.

    Several participants may be worked on at the same time, in processes of their own, with the same OUT. A
    call that was cut off can be repeated: what is written is kept, unless its image is newer. An image that
    fails stops no other.

    Example:
      nnunet-softseg-bids BIDS OUT participant --participant-label 01 02 -m MODEL
      nnunet-softseg-bids BIDS OUT group

    Exit code 0: all done. 2: a mistake, or images that failed.
    """

    goes_on = True
    bids: str = required("BIDS", "folder of the images")
    output: str = required("OUT", "folder of the derivatives, made if missing")
    level: Literal["participant", "group"] = required(
        "LEVEL", "participant, then group", metavar="participant|group"
    )
    participants: Words = option(
        "--participant-label --participant_label LABEL",
        "participants, with or without sub-; all if not given",
        (),
    )
    sessions: Words = option(
        "--session-label --session_label LABEL", "sessions, with or without ses-; all if not given", ()
    )
    overwrite: bool = switch("--overwrite", "of level participant: write all derivatives again")
    num_threads: int = option(
        "-np N", "threads that read and preprocess, and that write, beside the network", 2
    )
    report: str | None = option(
        "--report JSON", "file for the outcome: images written, kept, missing, failed"
    )
    skip_bids_validator: bool = switch(
        "--skip-bids-validator --skip_bids_validator",
        "does nothing: no validator is run, images with names that are not BIDS are passed over and named",
    )

    def run(self) -> int:
        if self.skip_bids_validator:
            print_warnings(["--skip-bids-validator does nothing: no validator is run"])
        return self._participant() if self.level == "participant" else self._group()

    def _participant(self) -> int:
        from nnunet_softseg.evaluation.cohort.participants import analyse_participants

        left_out = ("level", "report", "skip_bids_validator")
        options = {name: value for name, value in vars(self).items() if name not in left_out}
        report = analyse_participants(**options)
        self._write_outcome(written=report.predicted, kept=report.kept, failed=report.failed)
        print_report(report)
        return 2 if report.failed else 0

    def _group(self) -> int:
        from nnunet_softseg.evaluation.cohort.group import report_group

        report = report_group(**{name: getattr(self, name) for name in _SHARED})
        self._write_outcome(missing=report.missing, flagged=report.flagged)
        print_report(report)
        return 0

    def _write_outcome(self, **outcome: Any) -> None:
        if self.report:
            from nnunet_softseg.io.results import write_json

            write_json(Path(self.report), outcome)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code; argv: without the program's name, None: of the process."""
    return exit_code(PROGRAM, lambda: read_bids_app(argv))


def read_bids_app(argv: Sequence[str] | None = None) -> Command:
    """Return the call with its options; a mistake in them ends the process with code 2 and one line."""
    program = Parser(prog=PROGRAM, description=inspect.getdoc(BidsApp), **LOOKS)
    program.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return program.read_one(BidsApp, argv)


if __name__ == "__main__":
    sys.exit(main())
