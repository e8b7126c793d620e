"""spine-generic/data-multi-subject with soft labels, its six contrasts, as a dataset of nnU-Net's.

    python dataset_conversion/Dataset101_SpineGeneric.py -i data-multi-subject --split datasplit.yaml

Old and new file names are known (nnunet_softseg/datasets/conversion/sources.py holds the table). Soft labels
are taken from derivatives/softseg (nnunet-softseg make-gt) or else from derivatives/labels_softseg, the
dataset's own.
All options of `nnunet-softseg convert` are there; `--per-contrast` adds Dataset102_SpineGeneric_T1w etc.
"""

import sys
from collections.abc import Sequence

from nnunet_softseg.cli import main as nnunet_softseg

DEFAULTS = ("-d", "101", "--name", "SpineGeneric", "--layout", "spine-generic")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `nnunet-softseg convert`; what is given comes after the defaults, and wins."""
    return nnunet_softseg(["convert", *DEFAULTS, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
