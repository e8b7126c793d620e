"""`python -m nnunet_softseg`: the same as the command `nnunet-softseg`.

Not for `run` where start-up files are not read: Python does not import a `__main__.py` again in spawned
workers. There, `python -m nnunet_softseg.run` does it.
"""

import sys

from nnunet_softseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
