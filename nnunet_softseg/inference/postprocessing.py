"""What of a soft map is kept: what belongs to a core, the largest piece on request, nothing made up."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import flags
from nnunet_softseg.inference.flags import Finding
from nnunet_softseg.inference.soft_map import keep_supported
from nnunet_softseg.metrics.label_shape import could_be_labels, differences
from nnunet_softseg.settings import HARD_THRESHOLD, PLANS_KEY, SoftSegSettings

LARGEST = "NNUNET_SOFTSEG_LARGEST_PIECE"
KEEP_UNLIKELY = "NNUNET_SOFTSEG_KEEP_UNLIKELY"
_SWITCHES = {
    LARGEST: "keep the largest piece of each label",
    KEEP_UNLIKELY: "keep maps that look like no label of the training",
}
Map = npt.NDArray[np.float32]


def cleaned(
    soft_maps: Map,
    names: Sequence[str],
    plans: Mapping[str, Any],
    lean: npt.NDArray[np.float64] | None = None,
    *,
    at_border: bool = False,
) -> tuple[Map, list[Finding]]:
    """Return soft maps with the background exactly 0, and what there is to say about it.

    A map no piece of which could be a label of the training, by its coarse shape, is made empty, unless it is
    asked for: it is what a network makes up where there is none. So is one that touches the border of what
    the network saw and is in pieces, each of which is unlike the training. (Of 1500 maps of cords of phantoms
    none touches the border, is in pieces and unlike the training, of 63 that were made up 40 do.)

    Args:
        soft_maps: (label, *space) on the network's grid, along S-I all of the case.
        names: of the labels.
        plans: of the model, with our entries.
        lean: as for `label_shape`.
        at_border: whether the border of what the network saw is touched, with the image going on behind it.

    Returns:
        A new array of the same shape, and findings for softseg.json.

    Raises:
        UserError: if the environment variable NNUNET_SOFTSEG_LARGEST_PIECE or NNUNET_SOFTSEG_KEEP_UNLIKELY is
            neither 0 nor 1.
    """
    settings, entry = SoftSegSettings.from_plans(plans), plans[PLANS_KEY]
    only_largest, keep_unlikely = is_on(LARGEST), is_on(KEEP_UNLIKELY)
    kept, findings = [], []
    for name, soft_map in zip(names, soft_maps, strict=True):
        label = keep_supported(soft_map, settings.core_threshold, settings.support_threshold)
        if only_largest:
            label = largest_piece(label, settings.support_threshold)
        training = entry.get("training_shapes", {}).get(name)
        axis = entry.get("si_axis") or 0
        something = bool((label > HARD_THRESHOLD).any())
        if something and training and _is_made_up(label, training, axis, lean, at_border):
            findings += flags.of_unlikely(name, kept=keep_unlikely)
            label = label if keep_unlikely else np.zeros_like(label)
        kept.append(label)
    return np.stack(kept), findings


def _is_made_up(
    label: Map,
    training: Mapping[str, float],
    axis: int,
    lean: npt.NDArray[np.float64] | None,
    at_border: bool,
) -> bool:
    could_be = could_be_labels(label, training, axis, lean)
    if (
        not at_border
        or ndimage.label(label > HARD_THRESHOLD, np.ones((3,) * label.ndim))[1] <= training["components"]
    ):
        return not any(True for _ in could_be)
    return all(differences(shape, training) for shape in could_be)


def is_on(variable: str) -> bool:
    """Return what one of the two environment variables says; False without it.

    Raises:
        UserError: if it is neither 0 nor 1.
    """
    word = os.environ.get(variable) or "0"
    if word not in ("0", "1"):
        raise UserError(f"{variable}: expected 1 ({_SWITCHES[variable]}) or 0, found {word!r}")
    return word == "1"


def largest_piece(soft_map: Map, support_threshold: float) -> Map:
    """Return a soft map with only its largest piece, by the sum of its values, which stay as they are.

    Args:
        soft_map: (*space), from `keep_supported`.
        support_threshold: a piece is what is connected (26 neighbours) through voxels above this, and the
            ring around it.
    """
    neighbours = np.ones((3,) * soft_map.ndim, dtype=bool)
    pieces, count = ndimage.label(soft_map > support_threshold, structure=neighbours)
    if not count:
        return np.zeros_like(soft_map)
    sums = ndimage.sum_labels(soft_map, pieces, np.arange(1, count + 1))
    kept = ndimage.binary_dilation(pieces == 1 + int(np.argmax(sums)), structure=neighbours)
    return np.where(kept, soft_map, np.float32(0))
