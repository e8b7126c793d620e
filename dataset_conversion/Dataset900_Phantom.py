"""The phantom that `nnunet-softseg phantom -o BIDS` wrote, with its truth, as a dataset of nnU-Net's.

    python dataset_conversion/Dataset900_Phantom.py -i BIDS --test 2 --validation 1

All options of `nnunet-softseg convert` are there; these are its defaults for the phantom.
"""

import sys
from collections.abc import Sequence

from nnunet_softseg.cli import main as nnunet_softseg

DEFAULTS = (
    *("-d", "900", "--name", "Phantom"),
    *("--derivatives", "derivatives/truth", "--suffix", "_label-SC_desc-truth_probseg"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `nnunet-softseg convert`; what is given comes after the defaults, and wins."""
    return nnunet_softseg(["convert", *DEFAULTS, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
