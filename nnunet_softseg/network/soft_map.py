"""Output activation: raw output -> soft map in [0, 1], of NumPy's arrays and torch's tensors alike.

One formula for training, prediction with torch, and prediction without it: only methods that both have, and
what they lack is told apart in two small functions. torch itself is not imported here.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from nnunet_softseg.preprocessing.output_scale import OutputScale

_TINY = float(np.finfo(np.float32).tiny)
_FLOAT32_BYTES = 4

Values = TypeVar("Values")
"""numpy.ndarray or torch.Tensor."""


def at_least_float32(values: Values) -> Values:
    """Return values in float32, or wider if they are: half precision and integers are converted."""
    array: Any = values
    is_numpy, kind = isinstance(array, np.ndarray), array.dtype
    if (kind.kind == "f" if is_numpy else kind.is_floating_point) and kind.itemsize >= _FLOAT32_BYTES:
        return values
    converted: Values = array.astype(np.float32) if is_numpy else array.float()
    return converted


def robust_peak(raw: Values) -> Values:
    """Return the Lehmer mean of order 5 of each sample and channel, kept as (batch, channel, 1, ...).

    It is sum(x ** 5) / sum(x ** 4) over x = relu(raw): a mean in which high values count most. On a structure
    of constant height it is that height; partial volume at the boundary lowers it by a percent or two; a
    residue in the background hardly moves it, and a hot voxel of 1.3 in a disc of 113 by 0.8 %, not by 30 %.
    Unlike the maximum it passes its gradient to all of the structure.

    Args:
        raw: (batch, channel, *space), raw network output.
    """
    values: Any = at_least_float32(raw)
    positive = values.reshape(*values.shape[:2], -1).clip(min=0)
    # Powers of values relative to the peak neither overflow nor vanish, whatever the network's scale. The
    # result does not depend on it.
    scale = _largest(positive).clip(min=_TINY)
    relative = positive / scale
    weight = relative * relative  # a fifth of the cost of ** 4
    weight = weight * weight
    total = weight.sum(2, keepdims=True).clip(min=_TINY)
    mean = (weight * relative).sum(2, keepdims=True) / total
    peaks: Values = (scale * mean).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
    return peaks


def _largest(positive: Any) -> Any:
    """Return the largest value of each channel (batch, channel, voxel), without a gradient."""
    if isinstance(positive, np.ndarray):
        return positive.max(axis=2, keepdims=True)
    return positive.detach().amax(dim=2, keepdim=True)


def soft_map_of(raw: Values, running: Any, scales: Sequence[OutputScale], floor_fraction: float) -> Values:
    """Return the soft map of raw output, in [0, 1], per sample and on the output scale of each label.

    Per case it is NormReLU by the robust peak, which becomes the height of the labels of the training; fixed,
    the raw output over the running scale, which is 1 there.

    Args:
        raw: (batch, label, *space).
        running: (label,) running scale.
        scales: one per label.
        floor_fraction: smallest denominator of NormReLU, as a fraction of the running scale.
    """
    values: Any = at_least_float32(raw)
    peaks: Any = robust_peak(values)
    soft = values.clip(min=0)
    for label, scale in enumerate(scales):
        if scale.is_fixed:
            continue
        unit = peaks[:, label : label + 1].clip(min=floor_fraction * float(running[label])) / scale.height
        soft[:, label : label + 1] /= unit + (unit <= 0)  # nothing there: 0 / 1
    clipped: Values = soft.clip(max=1)
    return clipped
