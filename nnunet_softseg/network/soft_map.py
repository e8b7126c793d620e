"""Raw output -> soft map in [0, 1], of NumPy's arrays and torch's tensors alike: activation, mirrored passes.

One formula for training, prediction with torch, and prediction without it: only methods that both have, and
what they lack is told apart in two small functions. torch itself is not imported here.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

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


# Passes of the network


class OneSizeError(Exception):
    """The network takes no image of another size than the patch, such as Primus, which counts its tokens."""


class Agreement:
    """How far mirrored passes agree: sum of the least of them over that of their mean, both above 0.

    A network that knows a structure finds it in the mirror image, too; what merely looks like one, it finds
    in one and not in the other. Of two passes it is the soft Dice of their raw output.
    """

    def __init__(self) -> None:
        self._sums: npt.NDArray[np.float64] | None = None

    def add(self, least: Any, mean: Any) -> None:
        """Add the least and the mean of the passes of a patch, (label, *space) each."""
        sums = np.array([[float((label * (label > 0)).sum()) for label in raw] for raw in (least, mean)])
        self._sums = sums if self._sums is None else self._sums + sums

    def of_labels(self, num_labels: int) -> npt.NDArray[np.float64]:
        """Return it for each label; 1 where nothing is above 0, or there was one pass of each patch."""
        least, mean = np.zeros((2, num_labels)) if self._sums is None else self._sums
        shares: npt.NDArray[np.float64] = np.divide(least, mean, out=np.ones_like(mean), where=mean > 0)
        return shares


def mirrored(
    run: Callable[[Values], Values],
    patch: Values,
    axes: Sequence[int],
    flip: Callable[[Any, tuple[int, ...]], Any],
    agreement: Agreement | None = None,
) -> Values:
    """Return the mean of a network's output over all combinations of mirrored spatial axes; none: one pass.

    The patch is (channel, *space); `flip` mirrors an array along its axes: `numpy.flip` or `torch.flip`. How
    far the passes agree is added to `agreement`.
    """
    chosen = [flips for n in range(len(axes) + 1) for flips in itertools.combinations(axes, n)]
    total: Any = run(patch)
    least = total
    for flips in chosen[1:]:
        dims = tuple(1 + axis for axis in flips)
        found: Any = flip(run(flip(patch, dims)), dims)
        least = (least + found - abs(least - found)) / 2  # the smaller one, in NumPy as in torch
        total = total + found
    mean: Values = total / len(chosen)
    if agreement is not None and len(chosen) > 1:
        agreement.add(least, mean)
    return mean
