"""The phantom that `nnunet-softseg phantom -o BIDS` wrote, as a dataset of nnU-Net's with soft labels."""

import argparse
import sys
from collections.abc import Sequence

from nnunet_softseg.conversion import convert_bids
from nnunet_softseg.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 2 for something that the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("-i", dest="bids", required=True, help="folder that nnunet-softseg phantom wrote")
    parser.add_argument("-d", dest="dataset_id", type=int, default=900, help="dataset id")
    parser.add_argument("--test", type=int, help="subjects kept for testing; a fifth if not given")
    parser.add_argument(
        "--validation", type=int, help="subjects that fold 0 validates on; a fifth if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    arguments = parser.parse_args(argv)
    try:
        folder = convert_bids(
            arguments.bids,
            arguments.dataset_id,
            "Phantom",
            num_test=arguments.test,
            num_validation=arguments.validation,
            seed=arguments.seed,
        )
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
