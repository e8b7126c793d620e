"""Any BIDS dataset with probseg derivatives as a dataset of nnU-Net's.

    python dataset_conversion/Dataset102_BIDSProbseg.py -i BIDS --derivatives derivatives/manual \
        --label SC=_label-SC_probseg --label lesion=_label-lesion_probseg

Without options, soft labels are those of `nnunet-softseg make-gt -i BIDS -o BIDS/derivatives/softseg`. All
options of `nnunet-softseg convert` are there.
"""

import sys
from collections.abc import Sequence

from nnunet_softseg.cli import main as nnunet_softseg

DEFAULTS = ("-d", "102", "--name", "BIDSProbseg")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `nnunet-softseg convert`; what is given comes after the defaults, and wins."""
    return nnunet_softseg(["convert", *DEFAULTS, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
