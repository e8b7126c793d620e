"""Tiles of an image, and the raw output of all of them, blended: nnU-Net's sliding window on arrays.

Sums are collected in float32, as half precision would cost the third digit, and in whatever arrays the
network answers with: NumPy's, or torch's on a GPU.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image = npt.NDArray[np.float32]
Tile = tuple[Any, ...]
"""Slices of (channel, *space); a number along the first axis, where patches have one axis less."""
SIGMA = 1 / 8
"""Of the Gaussian that weighs a tile, in patches."""

Values = TypeVar("Values")


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


class Network(Protocol):
    """What runs patches of one size: (channel, *space) -> raw output (label, *space) float32.

    Attributes:
        name: of what runs them, for softseg.json; empty before the first patch.
        agreement: of the mirrored passes of all patches since it was set.
    """

    agreement: Agreement

    @property
    def name(self) -> str:
        """What ran the last patch."""

    def run(self, patch: Image) -> Any:
        """Return the raw output of a patch, in an array as `place` gives them."""

    def place(self, array: Image) -> Any:
        """Return an array where sums are collected: as it is, or on the GPU."""


def padded(image: Image, patch_size: Sequence[int]) -> tuple[Image, tuple[slice, ...]]:
    """Return an image (channel, *space) as large as the patch at least, zeros around it, and where it lies.

    The last axes are those of the patch.
    """
    smallest = [*image.shape[: image.ndim - len(patch_size)], *patch_size]
    missing = [max(0, int(least) - size) for least, size in zip(smallest, image.shape, strict=True)]
    before = [amount // 2 for amount in missing]
    inside = tuple(slice(start, start + size) for start, size in zip(before, image.shape, strict=True))
    if not any(missing):
        return image, inside
    whole = np.zeros([size + amount for size, amount in zip(image.shape, missing, strict=True)], image.dtype)
    whole[inside] = image
    return whole, inside


def tiles(shape: Sequence[int], patch_size: Sequence[int], step: float) -> list[Tile]:
    """Return the tiles of a space, no smaller than the patch; neighbours are at most `step` patches apart.

    Patches with one axis less than the space lie in each of its slices.
    """
    flat = len(shape) - len(patch_size)
    starts = [
        _starts(int(size), int(patch), step) for size, patch in zip(shape[flat:], patch_size, strict=True)
    ]
    along: list[Iterable[Any]] = [range(int(size)) for size in shape[:flat]]
    along += [
        [slice(start, start + int(patch)) for start in each]
        for each, patch in zip(starts, patch_size, strict=True)
    ]
    return [(slice(None), *place) for place in itertools.product(*along)]


def _starts(size: int, patch: int, step: float) -> list[int]:
    number = math.ceil((size - patch) / (patch * step)) + 1
    apart = (size - patch) / (number - 1) if number > 1 else 0.0
    return [int(np.round(apart * place)) for place in range(number)]


@functools.lru_cache(maxsize=2)
def gaussian(patch_size: tuple[int, ...]) -> Image:
    """Return the weight of each voxel of a tile, 1 in its middle, nowhere 0."""
    peak = np.zeros(patch_size)
    peak[tuple(size // 2 for size in patch_size)] = 1
    smooth = ndimage.gaussian_filter(peak, [size * SIGMA for size in patch_size], mode="constant")
    weight: Image = (smooth / smooth.max()).astype(np.float32)
    weight[weight == 0] = weight[weight > 0].min()
    weight.flags.writeable = False  # the next call gets the same one
    return weight


def blended(
    network: Network,
    image: Image,
    where: Iterable[Tile],
    num_labels: int,
    *,
    window: Image | None,
    told: Callable[[str], None],
) -> Any:
    """Return the raw output (label, *space) of an image (channel, *space), in an array of the network's.

    Args:
        network: that runs the tiles.
        image: no smaller than the patch.
        where: the tiles.
        num_labels: of the raw output.
        window: weight of the voxels of a tile; None: all alike.
        told: is called with the name of what ran each tile.
    """
    total = network.place(np.zeros((num_labels, *image.shape[1:]), np.float32))
    weight = network.place(np.zeros(image.shape[1:], np.float32))
    importance = 1.0 if window is None else network.place(window)
    for tile in where:
        total[tile] += network.run(image[tile]) * importance
        weight[tile[1:]] += importance
        told(network.name)
    return total / weight


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
