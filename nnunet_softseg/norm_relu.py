"""The output activation by the path that scripts of users have; its home is `network/norm_relu.py`.

`nnunet_softseg.norm_relu` is a function of the front door, and Python binds this module to the same name once
it is imported. So the function stands in place of the module: `nnunet_softseg.norm_relu(raw, floor)` and
`from nnunet_softseg.norm_relu import norm_relu` both work, in either order.
"""

import sys
from typing import Any, cast

from nnunet_softseg.network.norm_relu import norm_relu

__all__ = ["norm_relu"]

cast(Any, norm_relu).norm_relu = norm_relu
sys.modules[__name__] = cast(Any, norm_relu)
